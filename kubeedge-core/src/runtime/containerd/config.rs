//! From the port's configurations to CRI's messages.

use std::{collections::BTreeMap, fs, path::Path};

use super::cri;
use crate::runtime::{
    ContainerConfig, MountPropagation, Resources, SandboxConfig, SecurityProfile, SelinuxLabels,
};

/// The labels by which everyone knows pods in a container runtime; the kubelet writes the same.
pub(super) const POD_NAME: &str = "io.kubernetes.pod.name";
pub(super) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub(super) const POD_UID: &str = "io.kubernetes.pod.uid";
pub(super) const CONTAINER_NAME: &str = "io.kubernetes.container.name";

/// The annotation with [`ContainerConfig::spec_hash`].
pub(super) const SPEC_HASH: &str = "kubeedge.io/spec-hash";

// What creating a container in a sandbox needs to know of it, also after a restart of this process.
const HOSTNAME: &str = "kubeedge.io/hostname";
const LOG_DIRECTORY: &str = "kubeedge.io/log-directory";
const HOST_NETWORK: &str = "kubeedge.io/host-network";
const HOST_PID: &str = "kubeedge.io/host-pid";
const HOST_IPC: &str = "kubeedge.io/host-ipc";
const SHARE_PROCESSES: &str = "kubeedge.io/share-processes";
const PRIVILEGED: &str = "kubeedge.io/privileged";
const CGROUP_PARENT: &str = "kubeedge.io/cgroup-parent";

pub(super) fn image(image: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: image.to_owned() }
}

pub(super) fn sandbox(from: &SandboxConfig) -> cri::PodSandboxConfig {
    let mut labels = from.labels.clone();
    labels.extend([
        (POD_NAME.to_owned(), from.name.clone()),
        (POD_NAMESPACE.to_owned(), from.namespace.clone()),
        (POD_UID.to_owned(), from.uid.to_string()),
    ]);
    let annotations = annotations(from);
    let linux = linux_sandbox(from, &annotations);
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: from.name.clone(),
            uid: from.uid.to_string(),
            namespace: from.namespace.clone(),
            attempt: from.attempt,
        }),
        hostname: from.hostname.clone(),
        log_directory: text(&from.log_directory),
        dns_config: from.dns.as_ref().map(|dns| cri::DnsConfig {
            servers: dns.servers.clone(),
            searches: dns.searches.clone(),
            options: dns.options.clone(),
        }),
        port_mappings: from.ports.iter().map(port).collect(),
        labels: labels.into_iter().collect(),
        linux: Some(linux),
        annotations: annotations.into_iter().collect(),
    }
}

/// The pod's own, and what its containers need to know of the sandbox. A pod cannot set the latter.
fn annotations(from: &SandboxConfig) -> BTreeMap<String, String> {
    let flags = [
        (HOST_NETWORK, from.host_network),
        (HOST_PID, from.host_pid),
        (HOST_IPC, from.host_ipc),
        (SHARE_PROCESSES, from.share_processes),
        (PRIVILEGED, from.privileged),
    ];
    let mut annotations = from.annotations.clone();
    annotations.retain(|name, _| *name != CGROUP_PARENT && flags.iter().all(|(flag, _)| name != flag));
    annotations.insert(HOSTNAME.to_owned(), from.hostname.clone());
    annotations.insert(LOG_DIRECTORY.to_owned(), text(&from.log_directory));
    for (name, _) in flags.into_iter().filter(|(_, holds)| *holds) {
        annotations.insert(name.to_owned(), "true".to_owned());
    }
    if let Some(parent) = &from.cgroup_parent {
        annotations.insert(CGROUP_PARENT.to_owned(), parent.clone());
    }
    annotations
}

/// All of the sandbox's part that is about Linux, where [`linux`] has what its containers need of it.
fn linux_sandbox(from: &SandboxConfig, annotations: &BTreeMap<String, String>) -> cri::LinuxPodSandboxConfig {
    let of_containers = linux(annotations);
    let some =
        |resources: &Resources| (*resources != Resources::default()).then(|| linux_resources(resources));
    let security = of_containers.security_context.unwrap_or_default();
    cri::LinuxPodSandboxConfig {
        security_context: Some(cri::LinuxSandboxSecurityContext {
            selinux_options: from.selinux.as_ref().map(selinux),
            run_as_user: from.run_as_user.map(|value| cri::Int64Value { value }),
            // CRI refuses a group without a user.
            run_as_group: from.run_as_user.and(from.run_as_group).map(|value| cri::Int64Value { value }),
            supplemental_groups: from.supplemental_groups.clone(),
            // Its own process only waits, so the strictest profile that always works is right for it.
            seccomp: Some(profile(&SecurityProfile::RuntimeDefault)),
            ..security
        }),
        sysctls: from.sysctls.clone().into_iter().collect(),
        overhead: some(&from.overhead),
        resources: some(&from.resources),
        ..of_containers
    }
}

/// The part of a sandbox's configuration that its containers need, from what the runtime kept of it.
pub(super) fn sandbox_again(status: cri::PodSandboxStatus) -> cri::PodSandboxConfig {
    let annotations: BTreeMap<String, String> = status.annotations.into_iter().collect();
    cri::PodSandboxConfig {
        metadata: status.metadata,
        hostname: annotations.get(HOSTNAME).cloned().unwrap_or_default(),
        log_directory: annotations.get(LOG_DIRECTORY).cloned().unwrap_or_default(),
        labels: status.labels,
        linux: Some(linux(&annotations)),
        annotations: annotations.into_iter().collect(),
        ..cri::PodSandboxConfig::default()
    }
}

fn linux(annotations: &BTreeMap<String, String>) -> cri::LinuxPodSandboxConfig {
    let holds = |name: &str| annotations.contains_key(name);
    let of_node = |name: &str| if holds(name) { cri::NamespaceMode::Node } else { cri::NamespaceMode::Pod };
    let shared = holds(HOST_PID) || holds(SHARE_PROCESSES);
    let pid = if shared { of_node(HOST_PID) } else { cri::NamespaceMode::Container };
    cri::LinuxPodSandboxConfig {
        cgroup_parent: annotations.get(CGROUP_PARENT).cloned().unwrap_or_default(),
        security_context: Some(cri::LinuxSandboxSecurityContext {
            namespace_options: Some(cri::NamespaceOption {
                network: of_node(HOST_NETWORK).into(),
                pid: pid.into(),
                ipc: of_node(HOST_IPC).into(),
                target_id: String::new(),
            }),
            privileged: holds(PRIVILEGED),
            ..cri::LinuxSandboxSecurityContext::default()
        }),
        ..cri::LinuxPodSandboxConfig::default()
    }
}

fn port(from: &crate::runtime::PortMapping) -> cri::PortMapping {
    let protocol = match from.protocol.as_str() {
        "UDP" => cri::Protocol::Udp,
        "SCTP" => cri::Protocol::Sctp,
        _ => cri::Protocol::Tcp,
    };
    cri::PortMapping {
        protocol: protocol.into(),
        container_port: i32::from(from.container_port),
        host_port: i32::from(from.host_port),
        host_ip: from.host_ip.clone(),
    }
}

pub(super) fn container(from: &ContainerConfig, sandbox: &cri::PodSandboxConfig) -> cri::ContainerConfig {
    let mut labels = from.labels.clone();
    for name in [POD_NAME, POD_NAMESPACE, POD_UID] {
        if let Some(value) = sandbox.labels.get(name) {
            labels.insert(name.to_owned(), value.clone());
        }
    }
    labels.insert(CONTAINER_NAME.to_owned(), from.name.clone());
    let env = from
        .env
        .iter()
        .map(|(key, value)| cri::KeyValue { key: key.clone(), value: value.clone().into_bytes() });
    let mounts = from.mounts.iter().map(|mount| cri::Mount {
        container_path: text(&mount.container_path),
        host_path: text(&mount.host_path),
        readonly: mount.read_only,
        selinux_relabel: mount.selinux_relabel,
        propagation: propagation(mount.propagation).into(),
    });
    let devices = from.devices.iter().map(|device| cri::Device {
        container_path: text(&device.container_path),
        host_path: text(&device.host_path),
        permissions: device.permissions.clone(),
    });
    let mut annotations = from.annotations.clone();
    annotations.insert(SPEC_HASH.to_owned(), from.spec_hash.clone());
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: from.name.clone(), attempt: from.attempt }),
        image: Some(image(&from.image)),
        command: from.command.clone(),
        args: from.args.clone(),
        working_dir: from.working_dir.clone(),
        envs: env.collect(),
        mounts: mounts.collect(),
        devices: devices.collect(),
        cdi_devices: from.cdi_devices.iter().map(|name| cri::CdiDevice { name: name.clone() }).collect(),
        labels: labels.into_iter().collect(),
        annotations: annotations.into_iter().collect(),
        log_path: text(&from.log_path),
        stdin: from.stdin,
        stdin_once: from.stdin_once,
        tty: from.tty,
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(linux_resources(&from.resources)),
            security_context: Some(security(from, sandbox)),
        }),
    }
}

fn propagation(from: MountPropagation) -> cri::MountPropagation {
    match from {
        MountPropagation::Private => cri::MountPropagation::PropagationPrivate,
        MountPropagation::HostToContainer => cri::MountPropagation::PropagationHostToContainer,
        MountPropagation::Bidirectional => cri::MountPropagation::PropagationBidirectional,
    }
}

pub(super) fn linux_resources(from: &Resources) -> cri::LinuxContainerResources {
    let hugepages = from.hugepages.iter();
    cri::LinuxContainerResources {
        cpu_period: from.cpu_period,
        cpu_quota: from.cpu_quota,
        cpu_shares: i64::try_from(from.cpu_shares).unwrap_or(i64::MAX),
        memory_limit_in_bytes: from.memory_limit,
        memory_swap_limit_in_bytes: from.memory_swap_limit,
        oom_score_adj: clamp_oom_score_adj(from.oom_score_adj),
        cpuset_cpus: from.cpuset_cpus.clone(),
        cpuset_mems: from.cpuset_mems.clone(),
        hugepage_limits: hugepages
            .map(|(page_size, limit)| cri::HugepageLimit { page_size: page_size.clone(), limit: *limit })
            .collect(),
        unified: from.unified.clone().into_iter().collect(),
    }
}

fn profile(from: &SecurityProfile) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType;
    let (kind, localhost_ref) = match from {
        SecurityProfile::RuntimeDefault => (ProfileType::RuntimeDefault, String::new()),
        SecurityProfile::Unconfined => (ProfileType::Unconfined, String::new()),
        SecurityProfile::Localhost(name) => (ProfileType::Localhost, name.clone()),
    };
    cri::SecurityProfile { profile_type: kind.into(), localhost_ref }
}

fn selinux(from: &SelinuxLabels) -> cri::SeLinuxOption {
    cri::SeLinuxOption {
        user: from.user.clone(),
        role: from.role.clone(),
        r#type: from.kind.clone(),
        level: from.level.clone(),
    }
}

/// Paths that a container must not see or not write to unless it is privileged; the kubelet's own lists.
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn security(from: &ContainerConfig, sandbox: &cri::PodSandboxConfig) -> cri::LinuxContainerSecurityContext {
    let of_sandbox = sandbox.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let mut namespaces = of_sandbox.and_then(|context| context.namespace_options.clone());
    if let Some(target) = &from.process_target {
        let namespaces = namespaces.get_or_insert_default();
        namespaces.pid = cri::NamespaceMode::Target.into();
        namespaces.target_id = target.0.clone();
    }
    let paths = |paths: &[&str]| -> Vec<String> {
        let all = from.privileged || from.unmasked_proc;
        if all { Vec::new() } else { paths.iter().map(|path| (*path).to_owned()).collect() }
    };
    let capabilities = &from.capabilities;
    cri::LinuxContainerSecurityContext {
        capabilities: Some(cri::Capability {
            add_capabilities: capabilities.add.clone(),
            drop_capabilities: capabilities.drop.clone(),
        }),
        privileged: from.privileged,
        namespace_options: namespaces,
        selinux_options: from.selinux.as_ref().map(selinux),
        run_as_user: from.run_as_user.map(|value| cri::Int64Value { value }),
        run_as_group: from.run_as_user.and(from.run_as_group).map(|value| cri::Int64Value { value }),
        readonly_rootfs: from.read_only_root,
        supplemental_groups: from.supplemental_groups.clone(),
        no_new_privs: from.no_new_privileges,
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        seccomp: from.seccomp.as_ref().map(profile),
        apparmor: from.apparmor.as_ref().map(profile),
    }
}

/// Without CAP_SYS_RESOURCE the kernel refuses a lower value than one's own, and runc fails with a message
/// that says nothing of it.
fn clamp_oom_score_adj(asked: i64) -> i64 {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    if effective >> CAP_SYS_RESOURCE & 1 == 1 {
        return asked;
    }
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    asked.max(own.trim().parse().unwrap_or(0))
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
