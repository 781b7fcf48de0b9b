//! The port `ContainerRuntime`: what runs the containers of pods. Words and meaning are those of CRI v1.
//!
//! [`Images`] and [`ContainerRuntime`] are what every adapter has; [`Streaming`] is for those whose runtime opens
//! a connection into a container.

mod config;
mod error;
mod image;
mod observed;
mod resources;
mod security;

#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(feature = "containerd")]
pub mod containerd;
pub mod memory;
#[cfg(feature = "process")]
pub mod process;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;

pub use self::{
    config::{ContainerConfig, Device, DnsConfig, Mount, MountPropagation, PortMapping, SandboxConfig},
    error::RuntimeError,
    image::{Credentials, Image, ImageUser},
    observed::{ContainerLog, ContainerState, LogFormat, ObservedContainer, ObservedSandbox},
    resources::{
        ContainerStats, CpuUsage, FileSystemUsage, InterfaceUsage, MemoryUsage, Resources, SandboxStats,
    },
    security::{Capabilities, SecurityProfile, SelinuxLabels},
};

/// How much of a command's output [`ContainerRuntime::exec`] keeps of each of its two streams, from the beginning.
/// 10 KiB: what the kubelet keeps of a probe.
pub const EXEC_OUTPUT_MAX: usize = 10 << 10;

/// Keeps the images of containers.
#[async_trait]
pub trait Images: fmt::Debug + Send + Sync + 'static {
    /// The image of this name, digest or id; `None` if it is absent.
    ///
    /// # Errors
    /// [`RuntimeError::Invalid`] if this is no name of an image.
    async fn image(&self, image: &str) -> Result<Option<Image>, RuntimeError>;

    /// All images that are here. A runtime without images has none.
    ///
    /// # Errors
    /// If the runtime does not answer.
    async fn images(&self) -> Result<Vec<Image>, RuntimeError>;

    /// Fetches the image. If it is here already, its name may have been given to another image since, and that
    /// one is fetched.
    ///
    /// # Errors
    /// [`RuntimeError::Invalid`] if this is no name of an image, [`RuntimeError::NotFound`] if the registry has no
    /// such image, [`RuntimeError::Refused`] if it wants other credentials,
    /// [`RuntimeError::RegistryUnavailable`] if it cannot be reached, [`RuntimeError::NoSpace`] if it does not fit.
    async fn pull(&self, image: &str, credentials: Option<&Credentials>) -> Result<ImageId, RuntimeError>;

    /// Removes an image under all its names. One that is absent is success. What containers still use goes on.
    ///
    /// # Errors
    /// If the runtime fails to.
    async fn remove_image(&self, image: &ImageId) -> Result<(), RuntimeError>;

    /// What all images together take, by file system. A runtime without images has none.
    ///
    /// # Errors
    /// If the runtime does not answer.
    async fn image_file_systems(&self) -> Result<Vec<FileSystemUsage>, RuntimeError>;
}

/// Runs the containers of pods.
///
/// Every call is idempotent where CRI says so: stopping or removing what is gone is success. Dropping a future
/// may leave the call done or not done; [`observe`](Self::observe) tells which. Every call ends, if only with
/// [`RuntimeError::Unavailable`] when the runtime is not there; the call after that finds it if it is back.
///
/// An adapter that cannot do what a configuration asks for says so with [`RuntimeError::Invalid`] and the name of
/// the field; it never leaves out a restriction in silence.
#[async_trait]
pub trait ContainerRuntime: Images {
    /// Name and version of the runtime, and whether it can run pods and give them a network.
    ///
    /// # Errors
    /// If the runtime does not answer.
    async fn info(&self) -> Result<RuntimeInfo, RuntimeError>;

    /// Creates and starts a pod's sandbox: its namespaces and its network.
    ///
    /// # Errors
    /// [`RuntimeError::Invalid`] if the configuration cannot work. If it cannot be started, nothing of it is left
    /// that `observe` does not show.
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
    /// configuration cannot work, [`RuntimeError::NoSpace`] if the disk is full.
    async fn create_container(
        &self,
        sandbox: &SandboxId,
        container: &ContainerConfig,
    ) -> Result<ContainerId, RuntimeError>;

    /// Starts a created container.
    ///
    /// # Errors
    /// [`RuntimeError::UnderWay`] if an earlier start of it has not ended; another if its command cannot be run: the
    /// container is then observed as exited.
    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError>;

    /// Gives a container that runs other limits, without stopping it. What is zero or empty stays as it is, and so
    /// does `oom_score_adj`.
    ///
    /// # Errors
    /// [`RuntimeError::Invalid`] if the runtime sets no limits; another if the container is absent, or if it uses more
    /// than it may have: then its limits are those that it had. Of one that does not run, some runtimes take it
    /// without effect and others refuse it.
    async fn update_container(&self, id: &ContainerId, resources: &Resources) -> Result<(), RuntimeError>;

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

    /// Runs a command in a container that runs, without a shell, and waits for its end. Any exit code is `Ok`. Of
    /// each stream the first [`EXEC_OUTPUT_MAX`] bytes are kept; the command can write more.
    ///
    /// # Errors
    /// [`RuntimeError::TimedOut`] if it did not end within `deadline`: then it was killed, where the runtime can.
    /// [`RuntimeError::NotFound`] if the container is absent; another if it does not run, or if there is no such
    /// command.
    async fn exec(
        &self,
        id: &ContainerId,
        command: &[String],
        deadline: Duration,
    ) -> Result<Execution, RuntimeError>;

    /// Opens the log of a container that runs again, under its name, after the file was renamed. Nothing that the
    /// container writes is lost.
    ///
    /// # Errors
    /// If the container is absent or does not run, or if the runtime cannot: then nothing has changed.
    async fn reopen_log(&self, id: &ContainerId) -> Result<(), RuntimeError>;

    /// What the pods' sandboxes that are ready use. What the runtime cannot tell is absent.
    ///
    /// # Errors
    /// If the runtime does not answer.
    async fn stats(&self) -> Result<Vec<SandboxStats>, RuntimeError>;

    /// All sandboxes with the labels of [`SandboxConfig`], and their containers, as they are now: also those
    /// that an earlier process of ours has started.
    ///
    /// # Errors
    /// If the runtime does not answer.
    async fn observe(&self) -> Result<Vec<ObservedSandbox>, RuntimeError>;
}

/// Opens connections into containers. The runtime serves them itself, on an address of this node: what is
/// returned is a URL that is good for one connection for a short while, and speaks what the kubelet's own
/// endpoints speak to their clients.
#[async_trait]
pub trait Streaming: fmt::Debug + Send + Sync + 'static {
    /// The URL of a command that is run in a container.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`] if the container is absent; another if it does not run.
    async fn exec_url(
        &self,
        id: &ContainerId,
        command: &[String],
        streams: Streams,
    ) -> Result<String, RuntimeError>;

    /// The URL of a container's own process.
    ///
    /// # Errors
    /// As [`exec_url`](Self::exec_url).
    async fn attach_url(&self, id: &ContainerId, streams: Streams) -> Result<String, RuntimeError>;

    /// The URL of ports inside a sandbox; without ports, the client names them.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`] if the sandbox is absent; another if it is not ready.
    async fn port_forward_url(&self, id: &SandboxId, ports: &[u16]) -> Result<String, RuntimeError>;
}

/// Which streams a client wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Streams {
    /// To write to the command.
    pub stdin: bool,
    /// To read its output.
    pub stdout: bool,
    /// To read its errors. Not together with a terminal, which mixes both.
    pub stderr: bool,
    /// Whether the command has a terminal.
    pub tty: bool,
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

/// How a command in a container has ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Execution {
    /// The exit code; 128 plus the signal's number if a signal ended it.
    pub exit_code: i32,
    /// The beginning of its output.
    pub stdout: Vec<u8>,
    /// The beginning of its errors.
    pub stderr: Vec<u8>,
}

macro_rules! text_id {
    ($(#[$doc:meta] $name:ident),*) => {$(
        #[$doc]
        #[derive(
            Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
        )]
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

macro_rules! forward {
    ($($outer:ty),*) => {$(
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl<T: Images + ?Sized> Images for $outer {
            async fn image(&self, image: &str) -> Result<Option<Image>, RuntimeError> {
                (**self).image(image).await
            }
            async fn images(&self) -> Result<Vec<Image>, RuntimeError> {
                (**self).images().await
            }
            async fn pull(&self, image: &str, credentials: Option<&Credentials>) -> Result<ImageId, RuntimeError> {
                (**self).pull(image, credentials).await
            }
            async fn remove_image(&self, image: &ImageId) -> Result<(), RuntimeError> {
                (**self).remove_image(image).await
            }
            async fn image_file_systems(&self) -> Result<Vec<FileSystemUsage>, RuntimeError> {
                (**self).image_file_systems().await
            }
        }

        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl<T: ContainerRuntime + ?Sized> ContainerRuntime for $outer {
            async fn info(&self) -> Result<RuntimeInfo, RuntimeError> {
                (**self).info().await
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
            async fn update_container(
                &self,
                id: &ContainerId,
                resources: &Resources,
            ) -> Result<(), RuntimeError> {
                (**self).update_container(id, resources).await
            }
            async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError> {
                (**self).stop_container(id, grace).await
            }
            async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
                (**self).remove_container(id).await
            }
            async fn exec(
                &self,
                id: &ContainerId,
                command: &[String],
                deadline: Duration,
            ) -> Result<Execution, RuntimeError> {
                (**self).exec(id, command, deadline).await
            }
            async fn reopen_log(&self, id: &ContainerId) -> Result<(), RuntimeError> {
                (**self).reopen_log(id).await
            }
            async fn stats(&self) -> Result<Vec<SandboxStats>, RuntimeError> {
                (**self).stats().await
            }
            async fn observe(&self) -> Result<Vec<ObservedSandbox>, RuntimeError> {
                (**self).observe().await
            }
        }
    )*};
}
forward!(Arc<T>, Box<T>);
