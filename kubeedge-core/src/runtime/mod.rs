//! The port `ContainerRuntime`: what runs the containers of pods. Words and meaning are those of CRI v1.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::id::Uid;

#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(feature = "containerd")]
pub mod containerd;
pub mod memory;
#[cfg(feature = "process")]
pub mod process;

/// Runs the containers of pods.
///
/// Every call is idempotent where CRI says so: stopping or removing what is gone is success. Dropping a future
/// may leave the call done or not done; [`observe`](Self::observe) tells which.
#[async_trait]
pub trait ContainerRuntime: fmt::Debug + Send + Sync + 'static {
    /// Name and version of the runtime, and whether it can run pods and give them a network.
    ///
    /// # Errors
    /// If the runtime does not answer.
    async fn info(&self) -> Result<RuntimeInfo, RuntimeError>;

    /// Whether the image is here, and under which id; `None` if it is absent.
    ///
    /// # Errors
    /// If the runtime does not answer.
    async fn image(&self, image: &str) -> Result<Option<ImageId>, RuntimeError>;

    /// Fetches the image. An image that is here already is success.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`] if the registry has no such image, [`RuntimeError::Refused`] if it wants
    /// other credentials, [`RuntimeError::Unavailable`] if it cannot be reached.
    async fn pull(&self, image: &str, credentials: Option<&Credentials>) -> Result<ImageId, RuntimeError>;

    /// Creates and starts a pod's sandbox: its namespaces and its network.
    ///
    /// # Errors
    /// If it cannot be started; nothing of it is left then that `observe` does not show.
    async fn run_sandbox(&self, sandbox: &SandboxConfig) -> Result<SandboxId, RuntimeError>;

    /// Stops what runs in the sandbox and gives back its network. A sandbox that is gone is success.
    ///
    /// # Errors
    /// If the runtime fails to.
    async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError>;

    /// Removes the sandbox and all its containers, killing what still runs. One that is gone is success.
    ///
    /// # Errors
    /// If the runtime fails to.
    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError>;

    /// Creates a container in a sandbox, not started.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`] if sandbox or image are absent, [`RuntimeError::Invalid`] if the
    /// configuration cannot work.
    async fn create_container(
        &self,
        sandbox: &SandboxId,
        container: &ContainerConfig,
    ) -> Result<ContainerId, RuntimeError>;

    /// Starts a created container.
    ///
    /// # Errors
    /// If its command cannot be run; the container is then observed as exited.
    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError>;

    /// Asks the container to stop, and kills it after `grace`. One that is gone or stopped is success.
    /// When this returns `Ok` the container is not running.
    ///
    /// # Errors
    /// If the runtime fails to.
    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError>;

    /// Removes a container, killing it if it runs. One that is gone is success. Its log stays.
    ///
    /// # Errors
    /// If the runtime fails to.
    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError>;

    /// All sandboxes with the labels of [`SandboxConfig`], and their containers, as they are now: also those
    /// that an earlier process of ours has started.
    ///
    /// # Errors
    /// If the runtime does not answer.
    async fn observe(&self) -> Result<Vec<ObservedSandbox>, RuntimeError>;
}

/// Name, version and readiness of a runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeInfo {
    /// Such as `containerd`.
    pub name: String,
    /// Such as `1.6.20`.
    pub version: String,
    /// Why it cannot run pods now; empty if it can.
    pub not_ready: Vec<String>,
}

macro_rules! text_id {
    ($(#[$doc:meta] $name:ident),*) => {$(
        #[$doc]
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}
text_id! {
    /// A sandbox, as the runtime calls it.
    SandboxId,
    /// A container, as the runtime calls it.
    ContainerId,
    /// An image, as the runtime calls it: the digest of its configuration.
    ImageId
}

/// User name and password for an image registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub username: String,
    /// The password or token.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

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
    /// Name servers, search domains and options; `None` means the node's.
    pub dns: Option<DnsConfig>,
    /// Ports of the node that lead into the pod.
    pub ports: Vec<PortMapping>,
    /// The pod's labels.
    pub labels: BTreeMap<String, String>,
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
    /// Labels, for whoever looks at the runtime.
    pub labels: BTreeMap<String, String>,
    /// A hash of what it was made from, kept with the container, so that a change is noticed after a restart.
    pub spec_hash: String,
    /// The log file, relative to the sandbox's log directory.
    pub log_path: PathBuf,
    /// Limits.
    pub resources: Resources,
    /// Whether it runs with all privileges.
    pub privileged: bool,
    /// The user id; `None` means the image's.
    pub run_as_user: Option<i64>,
    /// The group id; `None` means the image's.
    pub run_as_group: Option<i64>,
    /// Whether its root file system is read-only.
    pub read_only_root: bool,
    /// Whether it keeps stdin open.
    pub stdin: bool,
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
            .finish_non_exhaustive()
    }
}

/// A file or directory of the node that a container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where in the container.
    pub container_path: PathBuf,
    /// Where on the node.
    pub host_path: PathBuf,
    /// Whether the container may not write to it.
    pub read_only: bool,
}

/// Limits of a container in cgroup values; zero means none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resources {
    /// `cpu.shares`.
    pub cpu_shares: u64,
    /// `cpu.cfs_quota_us`.
    pub cpu_quota: i64,
    /// `cpu.cfs_period_us`.
    pub cpu_period: i64,
    /// `memory.limit_in_bytes`.
    pub memory_limit: i64,
    /// `oom_score_adj`; the adapter clamps it to what the process may set.
    pub oom_score_adj: i64,
}

/// A sandbox as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedContainer {
    /// The container.
    pub id: ContainerId,
    /// Its name in the pod.
    pub name: String,
    /// Counts the instances.
    pub attempt: u32,
    /// The image, as the pod named it.
    pub image: String,
    /// The image that it runs.
    pub image_id: String,
    /// What was given as [`ContainerConfig::spec_hash`].
    pub spec_hash: String,
    /// Whether it runs.
    pub state: ContainerState,
    /// Where its log is, and how it is written; `None` if there is none.
    pub log: Option<ContainerLog>,
}

/// Whether a container runs.
#[derive(Debug, Clone, PartialEq, Eq)]
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
        /// The runtime's word for why, such as `Completed`, `Error`, `OOMKilled`; may be empty.
        reason: String,
        /// More about it; may be empty.
        message: String,
        /// When it started, milliseconds since the Unix epoch; zero if it never did.
        started_at_ms: u64,
        /// When it ended, milliseconds since the Unix epoch.
        finished_at_ms: u64,
    },
    /// The runtime does not know.
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

/// Says why the runtime did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The thing is not there.
    #[error("{what}: not found: {message}")]
    NotFound {
        /// What was being done.
        what: String,
        /// What the runtime says.
        message: String,
    },
    /// The configuration cannot work; trying again will not help.
    #[error("{what}: {message}")]
    Invalid {
        /// What was being done.
        what: String,
        /// What is wrong.
        message: String,
    },
    /// A registry or the system does not allow it.
    #[error("{what}: refused: {message}")]
    Refused {
        /// What was being done.
        what: String,
        /// What the runtime says.
        message: String,
    },
    /// The runtime, or what it needs, does not answer.
    #[error("{what}: unavailable: {message}")]
    Unavailable {
        /// What was being done.
        what: String,
        /// What was met.
        message: String,
    },
    /// The runtime tried and failed.
    #[error("{what}: failed: {message}")]
    Failed {
        /// What was being done.
        what: String,
        /// What the runtime says.
        message: String,
    },
}

macro_rules! forward {
    ($($outer:ty),*) => {$(
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl<T: ContainerRuntime + ?Sized> ContainerRuntime for $outer {
            async fn info(&self) -> Result<RuntimeInfo, RuntimeError> {
                (**self).info().await
            }
            async fn image(&self, image: &str) -> Result<Option<ImageId>, RuntimeError> {
                (**self).image(image).await
            }
            async fn pull(&self, image: &str, credentials: Option<&Credentials>) -> Result<ImageId, RuntimeError> {
                (**self).pull(image, credentials).await
            }
            async fn run_sandbox(&self, sandbox: &SandboxConfig) -> Result<SandboxId, RuntimeError> {
                (**self).run_sandbox(sandbox).await
            }
            async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
                (**self).stop_sandbox(id).await
            }
            async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
                (**self).remove_sandbox(id).await
            }
            async fn create_container(
                &self,
                sandbox: &SandboxId,
                container: &ContainerConfig,
            ) -> Result<ContainerId, RuntimeError> {
                (**self).create_container(sandbox, container).await
            }
            async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
                (**self).start_container(id).await
            }
            async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError> {
                (**self).stop_container(id, grace).await
            }
            async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
                (**self).remove_container(id).await
            }
            async fn observe(&self) -> Result<Vec<ObservedSandbox>, RuntimeError> {
                (**self).observe().await
            }
        }
    )*};
}
forward!(Arc<T>, Box<T>);
