//! How the node looks after itself: the kubelet's settings for it, with the kubelet's defaults.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use super::eviction::{Amount, Signal, Threshold};

/// What is kept back from the pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reserved {
    /// Processors, in thousandths.
    pub cpu_milli: i64,
    /// Memory.
    pub memory_bytes: i64,
    /// Disk.
    pub ephemeral_storage_bytes: i64,
}

/// When pods end because something runs short.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Eviction {
    /// Thresholds at which pods end at once.
    pub hard: Vec<Threshold>,
    /// Thresholds at which pods end after some time, and are given some.
    pub soft: Vec<Threshold>,
    /// The most time that a pod gets to stop for a soft threshold. Zero: none, as the kubelet's default.
    pub grace_max: Duration,
    /// How long a pressure lasts after it was last seen. 5 min, as the kubelet's.
    pub pressure_lasts: Duration,
}

impl Eviction {
    /// No threshold at all: no pod ends, or is turned away, because the machine runs short of something.
    ///
    /// For demonstrations and tests on a machine with other uses, and for devices whose maker has given every pod
    /// its limits.
    pub fn never() -> Self {
        Self { hard: Vec::new(), ..Self::default() }
    }
}

impl Default for Eviction {
    fn default() -> Self {
        let hard = [
            (Signal::Memory, Amount::Units(100 << 20)),
            (Signal::NodeDisk, Amount::Share(1000)),
            (Signal::NodeInodes, Amount::Share(500)),
            (Signal::ImageDisk, Amount::Share(1500)),
            (Signal::ImageInodes, Amount::Share(500)),
        ];
        Self {
            hard: hard
                .map(|(signal, least)| Threshold { signal, least, grace: Duration::ZERO, reclaim: None })
                .into(),
            soft: Vec::new(),
            grace_max: Duration::ZERO,
            pressure_lasts: Duration::from_secs(300),
        }
    }
}

/// When images that nobody uses are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageCollection {
    /// How full the images' file system gets, in percent, before images go. 100 means that none ever goes for it.
    pub high_percent: u8,
    /// How full it is afterwards.
    pub low_percent: u8,
    /// How long an image stays at least, from when it was first seen.
    pub age_min: Duration,
    /// How long an image that nobody uses stays at most; zero means for ever.
    pub age_max: Duration,
    /// How often it is looked. 5 min, as the kubelet.
    pub interval: Duration,
}

impl Default for ImageCollection {
    fn default() -> Self {
        Self {
            high_percent: 85,
            low_percent: 80,
            age_min: Duration::from_secs(120),
            age_max: Duration::ZERO,
            interval: Duration::from_secs(300),
        }
    }
}

/// When a container's log goes on in another file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogRotation {
    /// How large a file gets; zero means that none is ever renamed.
    pub bytes_max: u64,
    /// How many files a container has, with the one that it writes to. At least two.
    pub files_max: u32,
    /// How often it is looked. 10 s, as the kubelet.
    pub interval: Duration,
}

impl Default for LogRotation {
    fn default() -> Self {
        Self { bytes_max: 10 << 20, files_max: 5, interval: Duration::from_secs(10) }
    }
}

/// Where pods come from besides the cloud.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticPods {
    /// The directory with their files, or one file.
    pub path: PathBuf,
    /// How often it is looked. 20 s, as the kubelet.
    pub interval: Duration,
}

/// Where the cgroups of pods are, and what holds for all of them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cgroups {
    /// Who makes the cgroups of containers; the runtime has to be configured alike.
    pub driver: CgroupDriver,
    /// The cgroup below which those of pods are, such as `/edge`; `/` as the kubelet's default.
    pub root: String,
    /// Whether all pods together are held to what the node does not keep back.
    pub enforce_allocatable: bool,
    /// How many processes a pod may have; `None` means as many as the node.
    pub pids_max: Option<u64>,
}

impl Default for Cgroups {
    fn default() -> Self {
        Self {
            driver: CgroupDriver::Cgroupfs,
            root: "/".to_owned(),
            enforce_allocatable: true,
            pids_max: None,
        }
    }
}

/// Who makes the cgroups of containers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// The runtime itself.
    #[default]
    Cgroupfs,
    /// systemd, of which the runtime asks them.
    Systemd,
}
