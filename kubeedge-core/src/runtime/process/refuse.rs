//! What processes of the node cannot have.

use crate::runtime::{ContainerConfig, MountPropagation, SandboxConfig};

use super::WorkError;

/// Refuses a sandbox by the names that its fields have in a pod.
pub(super) fn sandbox(config: &SandboxConfig) -> Result<(), WorkError> {
    let mapped = config.ports.iter().any(|port| port.host_port != port.container_port);
    refuse(&[
        ("runtimeClassName", !config.handler.is_empty()),
        ("dnsPolicy (it must be Default) or dnsConfig", config.dns.is_some()),
        ("hostPort (it must be the containerPort)", mapped),
        ("securityContext.sysctls", !config.sysctls.is_empty()),
        ("the cgroup of the pod", config.cgroup_parent.is_some()),
        ("securityContext.seLinuxOptions", config.selinux.is_some()),
    ])
}

/// Refuses a container by the names that its fields have in a pod.
pub(super) fn container(config: &ContainerConfig) -> Result<(), WorkError> {
    let resources = &config.resources;
    let elsewhere = config.devices.iter().any(|device| device.container_path != device.host_path);
    let propagated = |propagation| config.mounts.iter().any(|mount| mount.propagation == propagation);
    refuse(&[
        ("resources.limits.cpu", resources.cpu_quota > 0),
        ("resources.limits.memory", resources.memory_limit > 0 || resources.memory_swap_limit > 0),
        ("resources.limits.hugepages", resources.hugepages.values().any(|limit| *limit > 0)),
        ("a set of processors", !resources.cpuset_cpus.is_empty() || !resources.cpuset_mems.is_empty()),
        ("limits of cgroup v2", !resources.unified.is_empty()),
        ("securityContext.readOnlyRootFilesystem", config.read_only_root),
        ("securityContext.supplementalGroups or fsGroup", !config.supplemental_groups.is_empty()),
        (
            "securityContext.capabilities",
            !config.capabilities.add.is_empty() || !config.capabilities.drop.is_empty(),
        ),
        ("securityContext.allowPrivilegeEscalation: false", config.no_new_privileges),
        ("securityContext.seccompProfile", restricts(config.seccomp.as_ref())),
        ("securityContext.appArmorProfile", restricts(config.apparmor.as_ref())),
        ("securityContext.seLinuxOptions", config.selinux.is_some()),
        ("a device under another name", elsewhere),
        ("CDI devices", !config.cdi_devices.is_empty()),
        ("mountPropagation: HostToContainer", propagated(MountPropagation::HostToContainer)),
        ("mountPropagation: Bidirectional", propagated(MountPropagation::Bidirectional)),
        ("targetContainerName", config.process_target.is_some()),
        ("stdin", config.stdin),
        ("tty", config.tty),
    ])?;
    id("securityContext.runAsUser", config.run_as_user)?;
    id("securityContext.runAsGroup", config.run_as_group)
}

fn restricts(profile: Option<&crate::runtime::SecurityProfile>) -> bool {
    use crate::runtime::SecurityProfile::{Localhost, RuntimeDefault, Unconfined};
    match profile {
        None | Some(Unconfined) => false,
        Some(RuntimeDefault | Localhost(_)) => true,
    }
}

fn refuse(fields: &[(&str, bool)]) -> Result<(), WorkError> {
    match fields.iter().find(|(_, asked)| *asked) {
        None => Ok(()),
        Some((field, _)) => Err(WorkError::Invalid(format!("the process runtime cannot do {field}"))),
    }
}

fn id(field: &str, id: Option<i64>) -> Result<(), WorkError> {
    match id.map(u32::try_from) {
        None | Some(Ok(_)) => Ok(()),
        Some(Err(_)) => Err(WorkError::Invalid(format!("{field} is no id"))),
    }
}
