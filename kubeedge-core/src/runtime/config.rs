//! How sandboxes and containers should be.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use super::{Capabilities, ContainerId, Resources, SecurityProfile, SelinuxLabels};
use crate::id::Uid;

/// How a pod's sandbox should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxConfig {
    /// The pod's name.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's UID.
    pub uid: Uid,
    /// Counts the sandboxes of one pod.
    pub attempt: u32,
    /// The host name inside.
    pub hostname: String,
    /// The directory for the logs of the pod's containers.
    pub log_directory: PathBuf,
    /// Whether it shares the node's network.
    pub host_network: bool,
    /// Whether it shares the node's processes.
    pub host_pid: bool,
    /// Whether it shares the node's System V IPC and POSIX message queues.
    pub host_ipc: bool,
    /// Whether the pod's containers see each other's processes.
    pub share_processes: bool,
    /// Kernel parameters of the pod's namespaces, by their names with dots.
    pub sysctls: BTreeMap<String, String>,
    /// The user id of the sandbox's own process; `None` means the runtime's choice.
    pub run_as_user: Option<i64>,
    /// The group id of the sandbox's own process.
    pub run_as_group: Option<i64>,
    /// Further groups of the sandbox's own process.
    pub supplemental_groups: Vec<i64>,
    /// SELinux labels; `None` leaves them to the runtime.
    pub selinux: Option<SelinuxLabels>,
    /// Name servers, search domains and options; `None` means the node's.
    pub dns: Option<DnsConfig>,
    /// Ports of the node that lead into the pod.
    pub ports: Vec<PortMapping>,
    /// The pod's labels.
    pub labels: BTreeMap<String, String>,
    /// The pod's annotations.
    pub annotations: BTreeMap<String, String>,
    /// The sum of its containers' resources, for runtimes that make a virtual machine of a sandbox.
    pub resources: Resources,
    /// What the sandbox itself needs, from a RuntimeClass.
    pub overhead: Resources,
    /// The cgroup under which it runs; `None` leaves it to the runtime.
    pub cgroup_parent: Option<String>,
    /// The runtime's handler, from a RuntimeClass; empty means the default.
    pub handler: String,
    /// Whether one of its containers runs with all privileges, which CRI wants to know beforehand.
    pub privileged: bool,
}

/// What becomes `/etc/resolv.conf`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DnsConfig {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

/// A port of the node that leads into a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The port inside.
    pub container_port: u16,
    /// The port of the node.
    pub host_port: u16,
    /// The address of the node; empty means all.
    pub host_ip: String,
}

/// How a container should be.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ContainerConfig {
    /// The container's name in its pod.
    pub name: String,
    /// Counts the instances of this container.
    pub attempt: u32,
    /// The image, as the pod names it.
    pub image: String,
    /// Instead of the image's entry point.
    pub command: Vec<String>,
    /// Arguments.
    pub args: Vec<String>,
    /// Instead of the image's working directory.
    pub working_dir: String,
    /// Environment, in order.
    pub env: Vec<(String, String)>,
    /// Files and directories of the node that it sees.
    pub mounts: Vec<Mount>,
    /// Devices of the node that it may use.
    pub devices: Vec<Device>,
    /// Names of devices that the runtime knows by CDI, such as `vendor.com/gpu=0`.
    pub cdi_devices: Vec<String>,
    /// Labels, for whoever looks at the runtime.
    pub labels: BTreeMap<String, String>,
    /// Annotations, for whoever looks at the runtime.
    pub annotations: BTreeMap<String, String>,
    /// A hash of what it was made from, kept with the container, so that a change is noticed after a restart.
    pub spec_hash: String,
    /// The log file, relative to the sandbox's log directory.
    pub log_path: PathBuf,
    /// Limits.
    pub resources: Resources,
    /// The container whose processes it shares, as an ephemeral container for debugging does; `None` leaves it
    /// to the sandbox.
    pub process_target: Option<ContainerId>,
    /// Whether it runs with all privileges.
    pub privileged: bool,
    /// The user id; `None` means the image's.
    pub run_as_user: Option<i64>,
    /// The group id; `None` means the image's.
    pub run_as_group: Option<i64>,
    /// Further groups.
    pub supplemental_groups: Vec<i64>,
    /// Whether its root file system is read-only.
    pub read_only_root: bool,
    /// Linux capabilities besides or instead of the runtime's own.
    pub capabilities: Capabilities,
    /// Whether it can never gain more privileges than its first process has (`no_new_privs` of prctl(2)):
    /// `allowPrivilegeEscalation: false`.
    pub no_new_privileges: bool,
    /// Which system calls it may use; `None` leaves it to the runtime.
    pub seccomp: Option<SecurityProfile>,
    /// Its AppArmor profile; `None` leaves it to the runtime.
    pub apparmor: Option<SecurityProfile>,
    /// SELinux labels; `None` leaves them to the runtime.
    pub selinux: Option<SelinuxLabels>,
    /// Whether it sees all of `/proc`: `procMount: Unmasked`.
    pub unmasked_proc: bool,
    /// Whether it keeps stdin open.
    pub stdin: bool,
    /// Whether stdin is closed when the first client that attached to it goes.
    pub stdin_once: bool,
    /// Whether it has a terminal.
    pub tty: bool,
}

impl fmt::Debug for ContainerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The environment stays out: it may hold Secrets.
        f.debug_struct("ContainerConfig")
            .field("name", &self.name)
            .field("attempt", &self.attempt)
            .field("image", &self.image)
            .field("mounts", &self.mounts)
            .field("devices", &self.devices)
            .field("resources", &self.resources)
            .finish_non_exhaustive()
    }
}

/// A file or directory of the node that a container sees.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    /// Where in the container.
    pub container_path: PathBuf,
    /// Where on the node.
    pub host_path: PathBuf,
    /// Whether the container may not write to it.
    pub read_only: bool,
    /// Whether mounts that are made below it later are seen at the other side.
    pub propagation: MountPropagation,
    /// Whether the runtime gives it the container's SELinux label.
    pub selinux_relabel: bool,
}

/// Whether mounts that are made below a mount later are seen at the other side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MountPropagation {
    /// Never: `None` in a pod.
    #[default]
    Private,
    /// The container sees what the node mounts.
    HostToContainer,
    /// And the node sees what the container mounts.
    Bidirectional,
}

/// A device of the node that a container may use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// Where in the container.
    pub container_path: PathBuf,
    /// Where on the node.
    pub host_path: PathBuf,
    /// Some of `r`, `w` and `m` (to make its node).
    pub permissions: String,
}
