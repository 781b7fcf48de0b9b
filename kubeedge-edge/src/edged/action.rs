//! What the state asks the driver to do for a pod, and what may come of it.

use std::{path::PathBuf, time::Duration};

use kubeedge_core::runtime::{
    ContainerConfig, ContainerId, Credentials, Resources, SandboxConfig, SandboxId,
};

use super::{cgroups::PodCgroup, devices::Question, make::Before, volumes::Prepare};

/// What a step is about. Of each there is at most one in flight in a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Slot {
    /// The pod as a whole: its files and its sandbox.
    Pod,
    /// The container of this name.
    Container(String),
}

impl Slot {
    /// The container's name; empty for the pod.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Pod => "",
            Self::Container(name) => name,
        }
    }
}

/// One step for one pod.
#[derive(Debug, Clone)]
pub(crate) enum Action {
    /// Make the pod's cgroup, if it has one, its directories, and its volumes as they should be.
    Prepare(Option<PodCgroup>, Prepare),
    /// Start a sandbox.
    RunSandbox(Box<SandboxConfig>),
    /// See whether an image is here.
    Inspect { image: String },
    /// Fetch an image.
    Pull { image: String, credentials: Option<Credentials> },
    /// Create a container.
    Create(Box<Create>),
    /// Start a container that was created.
    Start(ContainerId),
    /// Give a container that runs other limits, and the pod as a whole.
    Resize(ContainerId, Box<Resources>, Option<PodCgroup>),
    /// Run the container's postStart hook.
    PostStart(Task),
    /// Run the container's preStop hook, if one is given, and stop it with what the hook has left of the grace.
    Stop { id: ContainerId, grace: Duration, pre_stop: Option<Task> },
    /// Remove a container that nobody can ask about any more, and its files.
    RemoveContainer { id: ContainerId, files: Vec<PathBuf> },
    /// Stop a sandbox, and give back its network.
    StopSandbox(SandboxId),
    /// Stop and remove a sandbox.
    RemoveSandbox(SandboxId),
    /// Remove the pod's files.
    RemoveFiles { paths: Vec<PathBuf> },
}

/// A container to be created.
#[derive(Debug, Clone)]
pub(crate) struct Create {
    pub(crate) sandbox: SandboxId,
    pub(crate) config: ContainerConfig,
    /// What has to be made on the node before.
    pub(crate) before: Before,
    /// The file that is mounted for the container's last words, made empty beforehand.
    pub(crate) last_words: Option<PathBuf>,
    /// The question for its devices, if it wants some.
    pub(crate) devices: Option<Question>,
    /// The pod's cgroup, if it has one.
    pub(crate) cgroup: Option<PodCgroup>,
}

/// What a probe or a hook does, with everything found out that it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Task {
    Exec {
        id: ContainerId,
        command: Vec<String>,
    },
    Http(HttpTask),
    Tcp {
        host: String,
        port: u16,
    },
    Grpc {
        host: String,
        port: u16,
        service: String,
    },
    Sleep(Duration),
    /// It cannot be done, for this reason.
    Impossible(String),
}

/// A GET.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HttpTask {
    pub(crate) https: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
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
    /// Whether the image is here.
    Found(bool),
    /// The image was fetched, in this time.
    Pulled(Duration),
    /// The container was created.
    Created(ContainerId),
    /// The container is stopped, and how its preStop hook failed if it did.
    Stopped {
        hook: Option<String>,
        overdue: bool,
    },
    Failed(Failure),
    /// It was broken off because the state asked for it.
    Aborted,
}
