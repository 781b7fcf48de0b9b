//! What the machine is and has, as the kernel tells.

use std::{collections::BTreeMap, fs, path::Path};

use super::eviction::{Level, Levels, Signal};

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
    /// Bytes that are set aside as huge pages, by the name of the resource, such as `hugepages-2Mi`.
    pub(crate) huge_pages: BTreeMap<String, i64>,
}

/// What pods get of the node's own configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HostFiles {
    /// The text of its `/etc/resolv.conf`.
    pub(crate) resolv: String,
    /// The text of its `/etc/hosts`.
    pub(crate) hosts: String,
    /// The size of the disk that volumes are on.
    pub(crate) disk_bytes: i64,
    /// Whether the kernel enforces profiles of AppArmor.
    pub(crate) apparmor: bool,
}

/// What is left of what the node has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) memory: Level,
    /// The file system with the volumes and logs of pods.
    pub(crate) disk: Level,
    pub(crate) inodes: Level,
    /// The file system with the images; `None` if the runtime has not said where it is.
    pub(crate) images: Option<(Level, Level)>,
    pub(crate) pids: Level,
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
            huge_pages: huge_pages(),
        }
    }
}

impl HostFiles {
    /// Reads it; what cannot be read is left empty.
    pub(crate) fn read(root: &Path) -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self {
            resolv: text("/etc/resolv.conf"),
            hosts: text("/etc/hosts"),
            disk_bytes: Usage::read(root, None).disk.capacity,
            apparmor: text("/sys/module/apparmor/parameters/enabled").starts_with('Y'),
        }
    }
}

impl Usage {
    /// Reads it for the file system that `root` is on, and for that of the images.
    pub(crate) fn read(root: &Path, images: Option<&Path>) -> Self {
        let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<i64>().ok();
        let pids = number("/proc/sys/kernel/pid_max").unwrap_or(32768);
        let (disk, inodes) = file_system(root).unwrap_or_default();
        Self {
            memory: Level { capacity: meminfo("MemTotal:"), available: meminfo("MemAvailable:") },
            disk,
            inodes,
            images: images.and_then(file_system),
            pids: Level { capacity: pids, available: pids - tasks().unwrap_or(0) },
        }
    }

    /// As what eviction looks at. Images that are not known to be elsewhere are where everything is.
    pub(crate) fn levels(&self) -> Levels {
        let (image_disk, image_inodes) = self.images.unwrap_or((self.disk, self.inodes));
        Levels::from([
            (Signal::Memory, self.memory),
            (Signal::NodeDisk, self.disk),
            (Signal::NodeInodes, self.inodes),
            (Signal::ImageDisk, image_disk),
            (Signal::ImageInodes, image_inodes),
            (Signal::Pids, self.pids),
        ])
    }
}

/// Bytes and inodes of the file system that this path is on.
fn file_system(path: &Path) -> Option<(Level, Level)> {
    let found = rustix::fs::statvfs(path).ok()?;
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let bytes = |blocks: u64| number(blocks.saturating_mul(found.f_frsize));
    // What is kept for root alone is no capacity, as `df` counts: pods could never have it, and a file system of
    // which much is kept would be short from the beginning.
    let kept = found.f_bfree.saturating_sub(found.f_bavail);
    Some((
        Level { capacity: bytes(found.f_blocks.saturating_sub(kept)), available: bytes(found.f_bavail) },
        Level { capacity: number(found.f_files), available: number(found.f_favail) },
    ))
}

/// What is set aside as huge pages: one directory for each size.
fn huge_pages() -> BTreeMap<String, i64> {
    let sizes = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let bytes =
            name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<i64>().ok()?.checked_mul(1024)?;
        let pages = fs::read_to_string(entry.path().join("nr_hugepages")).ok()?.trim().parse::<i64>().ok()?;
        Some((format!("hugepages-{}", super::quantity::binary(bytes)), bytes.saturating_mul(pages)))
    };
    sizes.filter_map(size).collect()
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
