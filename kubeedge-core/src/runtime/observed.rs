//! Sandboxes and containers as they are.

use std::path::PathBuf;

use super::{ContainerId, SandboxId};
use crate::id::Uid;

/// A sandbox as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedSandbox {
    /// The sandbox.
    pub id: SandboxId,
    /// The pod's name.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's UID.
    pub uid: Uid,
    /// Counts the sandboxes of the pod.
    pub attempt: u32,
    /// Whether its namespaces and network are up.
    pub ready: bool,
    /// Its addresses; empty with the node's network.
    pub ips: Vec<String>,
    /// When it was created, milliseconds since the Unix epoch.
    pub created_at_ms: u64,
    /// Its containers, all instances.
    pub containers: Vec<ObservedContainer>,
}

/// A container as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedContainer {
    /// The container.
    pub id: ContainerId,
    /// Its name in the pod.
    pub name: String,
    /// Counts the instances.
    pub attempt: u32,
    /// The image, as the pod named it.
    pub image: String,
    /// The image that it runs, as the kubelet shows it in `imageID`: the digest under which the registry has it
    /// (`docker.io/library/busybox@sha256:...`) where the runtime knows it, else the image's id.
    pub image_id: String,
    /// What was given as [`ContainerConfig::spec_hash`](super::ContainerConfig::spec_hash).
    pub spec_hash: String,
    /// When it was created, milliseconds since the Unix epoch.
    pub created_at_ms: u64,
    /// Whether it runs.
    pub state: ContainerState,
    /// Where its log is, and how it is written; `None` if there is none.
    pub log: Option<ContainerLog>,
}

/// Whether a container runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ContainerState {
    /// Created, not started.
    Created,
    /// Running.
    Running {
        /// Since, milliseconds since the Unix epoch.
        started_at_ms: u64,
    },
    /// Not running any more.
    Exited {
        /// The exit code; 128 plus the signal's number if a signal ended it. `None` if nobody saw it end.
        exit_code: Option<i32>,
        /// The runtime's word for why; may be empty. `Completed` with exit code 0, `Error` with another, `OOMKilled`
        /// if it had more than its memory limit, `StartError` or `ContainerCannotRun` if its command could not
        /// be started.
        reason: String,
        /// More about it; may be empty.
        message: String,
        /// When it started, milliseconds since the Unix epoch; zero if it never did.
        started_at_ms: u64,
        /// When it ended, milliseconds since the Unix epoch.
        finished_at_ms: u64,
    },
    /// The runtime does not know.
    #[default]
    Unknown,
}

/// Where a container's log is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerLog {
    /// The file.
    pub path: PathBuf,
    /// How lines are written in it.
    pub format: LogFormat,
}

/// How the lines of a log file are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// CRI's: `<RFC 3339 time> <stdout|stderr> <F|P> <line>`.
    Cri,
    /// Just the lines.
    Plain,
}
