//! What the state asks the driver to do for a pod, and what may come of it.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use kubeedge_core::runtime::{ContainerConfig, ContainerId, Credentials, SandboxConfig, SandboxId};

use super::volumes::Files;

/// One step for one pod. A pod has at most one in flight.
#[derive(Debug, Clone)]
pub(crate) enum Action {
    /// Make the pod's directories, and its volumes as they should be.
    Prepare(Prepare),
    /// Start a sandbox.
    RunSandbox(Box<SandboxConfig>),
    /// See that a container's image is here.
    Pull { container: String, image: String, policy: PullPolicy, credentials: Option<Credentials> },
    /// Create a container and start it.
    Start {
        sandbox: SandboxId,
        config: Box<ContainerConfig>,
        /// Mounts, by their place in `config.mounts`, of which only a part is wanted: its path below.
        sub_paths: BTreeMap<usize, String>,
    },
    /// Start a container that was created and not started, as a crash of ours leaves it.
    StartCreated { container: String, id: ContainerId },
    /// Stop a container that is to be replaced.
    Stop { id: ContainerId, grace: Duration },
    /// Remove a container that nobody can ask about any more, and its log.
    RemoveContainer { id: ContainerId, log: Option<PathBuf> },
    /// Stop a sandbox, and give back its network.
    StopSandbox(SandboxId),
    /// Remove a sandbox that a newer one has replaced.
    RemoveSandbox(SandboxId),
    /// Stop all containers at once, then remove the sandboxes.
    Kill { sandboxes: Vec<(SandboxId, Vec<ContainerId>)>, grace: Duration },
    /// Remove the pod's directories.
    RemoveFiles { directories: Vec<PathBuf> },
}

/// The directories and volumes of a pod.
#[derive(Debug, Clone)]
pub(crate) struct Prepare {
    /// Where its volumes are, each in a directory of its name.
    pub(crate) volumes: PathBuf,
    /// Where its logs go.
    pub(crate) logs: PathBuf,
    /// Volumes that are made of objects.
    pub(crate) files: BTreeMap<String, Files>,
    /// Volumes that begin empty.
    pub(crate) empty: Vec<String>,
    /// Paths of the node with what `hostPath.type` says of them.
    pub(crate) host_paths: Vec<(PathBuf, String)>,
}

/// When an image is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

impl PullPolicy {
    /// The policy of a container: what it says, else `Always` for the tag `latest` or none.
    pub(crate) fn of(policy: &str, image: &str) -> Self {
        match policy {
            "Always" => Self::Always,
            "IfNotPresent" => Self::IfNotPresent,
            "Never" => Self::Never,
            _ => {
                let last = image.rsplit('/').next().unwrap_or(image);
                let digest = last.contains('@');
                let tag = last.split('@').next().unwrap_or(last).split_once(':').map(|(_, tag)| tag);
                if !digest && tag.is_none_or(|tag| tag == "latest") {
                    Self::Always
                } else {
                    Self::IfNotPresent
                }
            }
        }
    }
}

/// Says how an action failed, in the words of a pod's status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Such as `ErrImagePull`.
    pub(crate) reason: &'static str,
    /// What went wrong.
    pub(crate) message: String,
}

/// What became of an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Failed(Failure),
    /// It was broken off because the state asked for it.
    Aborted,
}
