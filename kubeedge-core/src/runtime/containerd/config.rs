//! From the port's configurations to CRI's messages.

use std::{collections::BTreeMap, fs, path::Path};

use super::cri;
use crate::runtime::{ContainerConfig, SandboxConfig};

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
    let mut annotations = BTreeMap::from([
        (HOSTNAME.to_owned(), from.hostname.clone()),
        (LOG_DIRECTORY.to_owned(), text(&from.log_directory)),
    ]);
    for (name, holds) in [(HOST_NETWORK, from.host_network), (PRIVILEGED, from.privileged)] {
        if holds {
            annotations.insert(name.to_owned(), "true".to_owned());
        }
    }
    if let Some(parent) = &from.cgroup_parent {
        annotations.insert(CGROUP_PARENT.to_owned(), parent.clone());
    }
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
        linux: Some(linux(&annotations)),
        annotations: annotations.into_iter().collect(),
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
    let network = if annotations.contains_key(HOST_NETWORK) {
        cri::NamespaceMode::Node
    } else {
        cri::NamespaceMode::Pod
    };
    cri::LinuxPodSandboxConfig {
        cgroup_parent: annotations.get(CGROUP_PARENT).cloned().unwrap_or_default(),
        security_context: Some(cri::LinuxSandboxSecurityContext {
            namespace_options: Some(cri::NamespaceOption {
                network: network.into(),
                pid: cri::NamespaceMode::Container.into(),
                ipc: cri::NamespaceMode::Pod.into(),
            }),
            privileged: annotations.contains_key(PRIVILEGED),
        }),
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
    });
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: from.name.clone(), attempt: from.attempt }),
        image: Some(image(&from.image)),
        command: from.command.clone(),
        args: from.args.clone(),
        working_dir: from.working_dir.clone(),
        envs: env.collect(),
        mounts: mounts.collect(),
        labels: labels.into_iter().collect(),
        annotations: [(SPEC_HASH.to_owned(), from.spec_hash.clone())].into(),
        log_path: text(&from.log_path),
        stdin: from.stdin,
        tty: from.tty,
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources(from)),
            security_context: Some(security(from, sandbox)),
        }),
    }
}

fn resources(from: &ContainerConfig) -> cri::LinuxContainerResources {
    let limits = &from.resources;
    cri::LinuxContainerResources {
        cpu_period: limits.cpu_period,
        cpu_quota: limits.cpu_quota,
        cpu_shares: i64::try_from(limits.cpu_shares).unwrap_or(i64::MAX),
        memory_limit_in_bytes: limits.memory_limit,
        oom_score_adj: clamp_oom_score_adj(limits.oom_score_adj),
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
    let paths = |paths: &[&str]| -> Vec<String> {
        if from.privileged { Vec::new() } else { paths.iter().map(|path| (*path).to_owned()).collect() }
    };
    cri::LinuxContainerSecurityContext {
        privileged: from.privileged,
        namespace_options: of_sandbox.and_then(|context| context.namespace_options),
        run_as_user: from.run_as_user.map(|value| cri::Int64Value { value }),
        run_as_group: from.run_as_user.and(from.run_as_group).map(|value| cri::Int64Value { value }),
        readonly_rootfs: from.read_only_root,
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
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
