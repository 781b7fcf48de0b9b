//! What a container may use, and what it does use.

use std::{collections::BTreeMap, path::PathBuf};

use super::{ContainerId, SandboxId};
use crate::id::Uid;

/// Limits of a container in cgroup values; zero and empty mean none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// `cpu.shares`, 2 to 262144.
    pub cpu_shares: u64,
    /// `cpu.cfs_quota_us`.
    pub cpu_quota: i64,
    /// `cpu.cfs_period_us`.
    pub cpu_period: i64,
    /// `memory.limit_in_bytes`.
    pub memory_limit: i64,
    /// `memory.memsw.limit_in_bytes`: memory and swap together.
    pub memory_swap_limit: i64,
    /// `oom_score_adj`; the adapter clamps it to what the process may set.
    pub oom_score_adj: i64,
    /// `cpuset.cpus`, such as `0-2,7`.
    pub cpuset_cpus: String,
    /// `cpuset.mems`.
    pub cpuset_mems: String,
    /// Limits of huge pages in bytes, by the size of a page as the kernel writes it: `2MB`, `1GB`.
    pub hugepages: BTreeMap<String, u64>,
    /// Files of cgroup v2 and what is written to them, such as `memory.high`.
    pub unified: BTreeMap<String, String>,
}

/// What a sandbox and its containers use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxStats {
    /// The sandbox.
    pub id: SandboxId,
    /// The pod's name.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's UID.
    pub uid: Uid,
    /// All of its processor time; `None` if the runtime does not say.
    pub cpu: Option<CpuUsage>,
    /// All of its memory; `None` if the runtime does not say.
    pub memory: Option<MemoryUsage>,
    /// Its network interfaces, the default one first; empty with the node's network or if the runtime does not say.
    pub network: Vec<InterfaceUsage>,
    /// How many processes it has; `None` if the runtime does not say.
    pub processes: Option<u64>,
    /// Its containers that run.
    pub containers: Vec<ContainerStats>,
}

/// What a container uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerStats {
    /// The container.
    pub id: ContainerId,
    /// Its name in the pod.
    pub name: String,
    /// Counts the instances.
    pub attempt: u32,
    /// Its processor time; `None` if the runtime does not say.
    pub cpu: Option<CpuUsage>,
    /// Its memory; `None` if the runtime does not say.
    pub memory: Option<MemoryUsage>,
    /// What it has written besides its volumes; `None` if the runtime does not say.
    pub writable_layer: Option<FileSystemUsage>,
}

/// Processor time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuUsage {
    /// When it was read, milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Since the start, on all processors together.
    pub total_ns: u64,
    /// Over a recent time, in nanoseconds of processor time a second; `None` if the runtime does not say.
    pub nano_cores: Option<u64>,
}

/// Memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryUsage {
    /// When it was read, milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// What cannot be taken back without harm: all but cached files that were not used lately.
    pub working_set_bytes: u64,
    /// All, cached files too.
    pub usage_bytes: Option<u64>,
    /// Anonymous memory.
    pub rss_bytes: Option<u64>,
    /// What is left below the limit.
    pub available_bytes: Option<u64>,
    /// Page faults since the start.
    pub page_faults: Option<u64>,
    /// Page faults that waited for the disk.
    pub major_page_faults: Option<u64>,
}

/// What one network interface has carried since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InterfaceUsage {
    /// Its name inside.
    pub name: String,
    /// When it was read, milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Errors while receiving.
    pub rx_errors: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Errors while sending.
    pub tx_errors: u64,
}

/// What something takes of a file system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileSystemUsage {
    /// When it was read, milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// A directory of the file system.
    pub mountpoint: PathBuf,
    /// Bytes.
    pub used_bytes: u64,
    /// Inodes; `None` if the runtime does not say.
    pub inodes_used: Option<u64>,
}
