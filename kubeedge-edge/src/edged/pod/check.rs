//! What a Pod asks for as a whole that cannot be given to it.

use super::{InvalidPod, Pod, PodSpec};
use crate::edged::resolve::is_inside;

/// Kernel parameters that a namespace of the pod keeps to itself: the safe ones of Kubernetes 1.33
/// (kubernetes.io/docs/tasks/administer-cluster/sysctl-cluster).
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// What the node lets in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Admission<'a> {
    /// Kernel parameters, or their beginnings with a `*`, that are allowed besides the safe ones.
    pub(crate) sysctls: &'a [String],
    /// Whether the kernel enforces profiles of AppArmor.
    pub(crate) apparmor: bool,
    /// Whether pods have cgroups of their own.
    pub(crate) cgroups: bool,
}

impl Pod {
    /// Says why the node does not let this pod in, if it does not.
    pub(crate) fn forbidden(&self, node: Admission<'_>) -> Option<InvalidPod> {
        self.forbidden_sysctl(node.sysctls)
            .or_else(|| self.needs_apparmor().filter(|_| !node.apparmor))
            .or_else(|| self.needs_cgroup().filter(|_| !node.cgroups))
    }

    fn needs_cgroup(&self) -> Option<InvalidPod> {
        let limits = self.spec.resources.limits.keys().next()?;
        let why =
            "pods have no cgroups of their own on this node, so only containers can be limited; see its log";
        Some(InvalidPod {
            reason: "UnsupportedField",
            message: format!("spec.resources.limits[{limits}]: {why}"),
            deleting: self.is_deleting(),
        })
    }

    fn needs_apparmor(&self) -> Option<InvalidPod> {
        let containers = self.spec.init_containers.iter().chain(&self.spec.containers);
        let profiles = containers.map(|container| &container.security_context.app_armor_profile);
        let mut all = profiles.chain([&self.spec.security_context.app_armor_profile]).flatten();
        all.any(|profile| profile.kind != "Unconfined").then(|| InvalidPod {
            reason: "AppArmor",
            message: "Cannot enforce AppArmor: AppArmor is not enabled on the host".to_owned(),
            deleting: self.is_deleting(),
        })
    }

    fn forbidden_sysctl(&self, allowed: &[String]) -> Option<InvalidPod> {
        let spec = &self.spec;
        spec.security_context.sysctls.iter().find_map(|sysctl| {
            let name = sysctl.name.replace('/', ".");
            let why = if !SAFE_SYSCTLS.contains(&name.as_str()) && !is_allowed(&name, allowed) {
                "not allowlisted"
            } else if spec.host_network && name.starts_with("net.") {
                "not allowed with host net enabled"
            } else if spec.host_ipc && is_ipc(&name) {
                "not allowed with host ipc enabled"
            } else {
                return None;
            };
            let message = format!("forbidden sysctl: {:?} {why}", sysctl.name);
            Some(InvalidPod { reason: "SysctlForbidden", message, deleting: self.is_deleting() })
        })
    }
}

fn is_allowed(name: &str, allowed: &[String]) -> bool {
    allowed.iter().map(|pattern| pattern.replace('/', ".")).any(|pattern| match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => pattern == name,
    })
}

fn is_ipc(name: &str) -> bool {
    ["kernel.sem", "kernel.msg", "kernel.shm", "fs.mqueue."].iter().any(|of| name.starts_with(of))
}

/// What contradicts itself, or leads out of the pod: the API server refuses it, an edge without one must too.
pub(super) fn contradiction(spec: &PodSpec) -> Option<(String, String)> {
    for (list, containers) in [("initContainers", &spec.init_containers), ("containers", &spec.containers)] {
        for (index, container) in containers.iter().enumerate() {
            for (number, mount) in container.volume_mounts.iter().enumerate() {
                let path = format!("spec.{list}[{index}].volumeMounts[{number}]");
                if !spec.volumes.iter().any(|volume| volume.name == mount.name) {
                    return Some((format!("{path}.name"), format!("there is no volume {:?}", mount.name)));
                }
                if mount.mount_path.is_empty() || mount.mount_path.contains(['\0', ':']) {
                    return Some((format!("{path}.mountPath"), "it is no path in a container".to_owned()));
                }
                if !mount.sub_path.is_empty() && !is_inside(&mount.sub_path) {
                    return Some((format!("{path}.subPath"), "it leads out of its volume".to_owned()));
                }
            }
        }
    }
    None
}
