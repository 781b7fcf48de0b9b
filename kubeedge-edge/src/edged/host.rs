//! What the machine is and has, as the kernel tells.

use std::{fs, path::Path};

/// What does not change while the process runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) cpus: i64,
    pub(crate) memory_bytes: i64,
    pub(crate) hostname: String,
    pub(crate) machine_id: String,
    pub(crate) system_uuid: String,
    pub(crate) boot_id: String,
    pub(crate) kernel: String,
    pub(crate) os_image: String,
}

/// What is left of what the node has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) memory_available: i64,
    pub(crate) disk_bytes: i64,
    pub(crate) disk_available: i64,
    pub(crate) inodes: i64,
    pub(crate) inodes_available: i64,
    pub(crate) pids_max: i64,
    pub(crate) pids: i64,
}

impl Machine {
    /// Reads it; what cannot be read is left empty.
    pub(crate) fn read() -> Self {
        let uname = rustix::system::uname();
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let release = text("/etc/os-release");
        let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        let machine_id = text("/etc/machine-id");
        let uuid = text("/sys/class/dmi/id/product_uuid");
        Self {
            cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as i64),
            memory_bytes: meminfo("MemTotal:"),
            hostname: uname.nodename().to_string_lossy().into_owned(),
            system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
            machine_id,
            boot_id: text("/proc/sys/kernel/random/boot_id"),
            kernel: uname.release().to_string_lossy().into_owned(),
            os_image: pretty.unwrap_or("Linux").trim_matches('"').to_owned(),
        }
    }
}

impl Usage {
    /// Reads it for the file system that `root` is on.
    pub(crate) fn read(root: &Path) -> Self {
        let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<i64>().ok();
        let mut usage = Self {
            memory_available: meminfo("MemAvailable:"),
            pids_max: number("/proc/sys/kernel/pid_max").unwrap_or(32768),
            pids: tasks().unwrap_or(0),
            ..Self::default()
        };
        if let Ok(disk) = rustix::fs::statvfs(root) {
            let bytes = |blocks: u64| i64::try_from(blocks.saturating_mul(disk.f_frsize)).unwrap_or(i64::MAX);
            usage.disk_bytes = bytes(disk.f_blocks);
            usage.disk_available = bytes(disk.f_bavail);
            usage.inodes = i64::try_from(disk.f_files).unwrap_or(i64::MAX);
            usage.inodes_available = i64::try_from(disk.f_favail).unwrap_or(i64::MAX);
        }
        usage
    }
}

fn meminfo(name: &str) -> i64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<i64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

/// How many tasks there are: the second number of the fourth field of `/proc/loadavg`.
fn tasks() -> Option<i64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

/// The architecture by Go's name, which Kubernetes uses.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}
