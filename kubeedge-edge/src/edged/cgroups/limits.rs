//! What the processes of a pod may use together, and how the kernel is told. Pure.

use std::collections::BTreeMap;

use crate::edged::{Cgroups, Config};

/// The kernel's usual period for limits of processor time.
pub(crate) const PERIOD_US: i64 = 100_000;

/// Limits of a cgroup; what is `None` or absent is not limited by it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// 2 to 262144; zero leaves it as it is.
    pub(crate) cpu_shares: u64,
    /// Of each [`PERIOD_US`].
    pub(crate) cpu_quota_us: Option<i64>,
    pub(crate) memory_bytes: Option<i64>,
    pub(crate) pids: Option<u64>,
    /// Bytes, by the size of a page as the kernel writes it.
    pub(crate) huge_pages: BTreeMap<String, u64>,
}

/// Which files the kernel has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V2,
}

/// What is written into a file of a cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) controller: &'static str,
    pub(crate) name: String,
    pub(crate) value: String,
}

impl Limits {
    /// The controllers that it is about.
    pub(crate) fn controllers(&self) -> &'static [&'static str] {
        if self.huge_pages.is_empty() {
            &["cpu", "memory", "pids"]
        } else {
            &["cpu", "memory", "pids", "hugetlb"]
        }
    }

    /// The files in the order in which they are written.
    pub(crate) fn files(&self, version: Version) -> Vec<File> {
        let mut files = Vec::new();
        let mut file = |controller, name: &str, value: String| {
            files.push(File { controller, name: name.to_owned(), value });
        };
        if self.cpu_shares > 0 {
            match version {
                Version::V1 => file("cpu", "cpu.shares", self.cpu_shares.to_string()),
                Version::V2 => file("cpu", "cpu.weight", weight(self.cpu_shares).to_string()),
            }
        }
        if let Some(quota) = self.cpu_quota_us {
            match version {
                Version::V1 => {
                    file("cpu", "cpu.cfs_period_us", PERIOD_US.to_string());
                    file("cpu", "cpu.cfs_quota_us", quota.to_string());
                }
                Version::V2 => file("cpu", "cpu.max", format!("{quota} {PERIOD_US}")),
            }
        }
        if let Some(bytes) = self.memory_bytes {
            let name = if version == Version::V1 { "memory.limit_in_bytes" } else { "memory.max" };
            file("memory", name, bytes.to_string());
        }
        if let Some(pids) = self.pids {
            file("pids", "pids.max", pids.to_string());
        }
        for (size, bytes) in &self.huge_pages {
            let end = if version == Version::V1 { "limit_in_bytes" } else { "max" };
            file("hugetlb", &format!("hugetlb.{size}.{end}"), bytes.to_string());
        }
        files
    }
}

/// Processor time in the kernel's shares: 1024 are one processor, 2 the least and 262144 the most that it takes.
pub(crate) fn shares(milli: i64) -> u64 {
    (milli.clamp(0, 1 << 32) * 1024 / 1000).clamp(2, 262_144).unsigned_abs()
}

/// From the shares of cgroup v1 to the weight of v2, which is 1 to 10000: the kubelet's formula (KEP-2254).
fn weight(shares: u64) -> u64 {
    (shares.clamp(2, 262_144) - 2) * 9999 / 262_142 + 1
}

/// What all pods together may use: what the node has, without what it keeps back.
pub(crate) fn of_node(config: &Config, cgroups: &Cgroups, cpu_milli: i64, memory_bytes: i64) -> Limits {
    let reserved = [&config.kube_reserved, &config.system_reserved].into_iter();
    let reserved = reserved.filter(|_| cgroups.enforce_allocatable);
    let (cpu, memory) = reserved
        .fold((cpu_milli, memory_bytes), |(cpu, memory), of| (cpu - of.cpu_milli, memory - of.memory_bytes));
    Limits {
        cpu_shares: shares(cpu),
        memory_bytes: Some(memory).filter(|bytes| *bytes > 0),
        ..Limits::default()
    }
}
