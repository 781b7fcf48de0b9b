//! A runtime without containers: each container's command runs as a process of the node.
//!
//! There is **no image and no isolation**: a pod sees and may do what this program sees and may do. It is for
//! machines that are too small for containerd, for programs that are installed on the node, and for tests.
//!
//! * A sandbox is a directory; a container is a process group with a record beside it.
//! * A container finds its mounts as links below the directory that the variable `CONTAINER_ROOT` names, which
//!   is also where it is started: `/etc/app` of the pod is `$CONTAINER_ROOT/etc/app`.
//! * Its environment is what the container's configuration says, and a `PATH`.
//! * Output goes straight to the log file, so it goes on when this program dies; a later one finds the processes
//!   by their ids and start times, and tells them from others that were given the same id since.
//! * Only the program that started a process learns its exit code. Of one that ended while no such program ran,
//!   or after another took over, just the end is known: its exit code is absent, which counts as a failure, so a
//!   pod with `restartPolicy: OnFailure` may run again although it had ended well.
//! * What a pod asks for besides, and processes of the node cannot have, is refused by the name of its field: a
//!   restriction that is not kept would be worse than a pod that does not start. Requests are not limits, and a
//!   mount that is read-only for a container is just a link for a process.
//! * A container writes to its log file itself, so the file cannot be changed under it: logs are not rotated.
//! * What a container left in the background is killed when the container ends, as in a real one.

mod exec;
mod inner;
mod proc;
mod record;
mod refuse;
mod stats;
#[cfg(test)]
mod tests;

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use rustix::process::Signal;
use serde::Deserialize;
use tracing::warn;

use self::inner::Inner;
use super::{
    ContainerConfig, ContainerId, ContainerRuntime, Credentials, Execution, FileSystemUsage, Image, ImageId,
    Images, ObservedSandbox, Resources, RuntimeError, RuntimeInfo, SandboxConfig, SandboxId, SandboxStats,
};

/// Where the process runtime keeps what it knows.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its directory; one runtime at a time may use it.
    pub directory: PathBuf,
}

/// A [`ContainerRuntime`] that runs processes of the node; see the [module](self) for what that means.
#[derive(Debug, Clone)]
pub struct ProcessRuntime {
    inner: Arc<Inner>,
}

/// How often a stopping process is looked at.
const STOP_POLL: Duration = Duration::from_millis(20);

impl ProcessRuntime {
    /// Opens the directory, making it if needed, and finds what an earlier process has started.
    ///
    /// # Errors
    /// If the directory or a record in it cannot be used.
    pub fn open(config: Config) -> Result<Self, RuntimeError> {
        warn!(
            directory = %config.directory.display(),
            "the process runtime has no images and no isolation: pods run as processes of this node"
        );
        let what = format!("open {}", config.directory.display());
        let inner = Inner::open(config.directory).map_err(|error| failed(&what, &error))?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Does work that touches the disk, off the threads that must not wait.
    async fn work<T: Send + 'static>(
        &self,
        what: impl Into<String>,
        work: impl FnOnce(&Inner) -> Result<T, WorkError> + Send + 'static,
    ) -> Result<T, RuntimeError> {
        let inner = Arc::clone(&self.inner);
        let what = what.into();
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(WorkError::NotFound(message))) => Err(RuntimeError::NotFound { what, message }),
            Ok(Err(WorkError::Invalid(message))) => Err(RuntimeError::Invalid { what, message }),
            Ok(Err(WorkError::Failed(message))) => Err(RuntimeError::Failed { what, message }),
            Ok(Err(WorkError::Io(error))) => Err(failed(&what, &error)),
            Err(error) => Err(failed(&what, &io::Error::other(error))),
        }
    }
}

enum WorkError {
    NotFound(String),
    Invalid(String),
    Failed(String),
    Io(io::Error),
}

impl From<io::Error> for WorkError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn failed(what: &str, error: &io::Error) -> RuntimeError {
    let (what, message) = (what.to_owned(), error.to_string());
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        return RuntimeError::NoSpace { what, message };
    }
    RuntimeError::Failed { what, message }
}

/// There are no images, so none is ever absent.
#[async_trait]
impl Images for ProcessRuntime {
    async fn image(&self, image: &str) -> Result<Option<Image>, RuntimeError> {
        Ok(Some(Image { id: ImageId(format!("process:{image}")), ..Image::default() }))
    }

    async fn images(&self) -> Result<Vec<Image>, RuntimeError> {
        Ok(Vec::new())
    }

    async fn pull(&self, image: &str, _: Option<&Credentials>) -> Result<ImageId, RuntimeError> {
        Ok(ImageId(format!("process:{image}")))
    }

    async fn remove_image(&self, _: &ImageId) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn image_file_systems(&self) -> Result<Vec<FileSystemUsage>, RuntimeError> {
        Ok(Vec::new())
    }
}

#[async_trait]
impl ContainerRuntime for ProcessRuntime {
    async fn info(&self) -> Result<RuntimeInfo, RuntimeError> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(RuntimeInfo { name: "process".to_owned(), version, not_ready: Vec::new() })
    }

    async fn run_sandbox(&self, sandbox: &SandboxConfig) -> Result<SandboxId, RuntimeError> {
        let sandbox = sandbox.clone();
        let what = format!("run sandbox of pod {}/{}", sandbox.namespace, sandbox.name);
        self.work(what, move |inner| inner.run_sandbox(&sandbox)).await
    }

    async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        let id = id.clone();
        self.work(format!("stop sandbox {id}"), move |inner| inner.stop_sandbox(&id)).await
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        let id = id.clone();
        self.work(format!("remove sandbox {id}"), move |inner| inner.remove_sandbox(&id)).await
    }

    async fn create_container(
        &self,
        sandbox: &SandboxId,
        container: &ContainerConfig,
    ) -> Result<ContainerId, RuntimeError> {
        let (sandbox, container) = (sandbox.clone(), container.clone());
        let what = format!("create container {}", container.name);
        self.work(what, move |inner| inner.create(&sandbox, container)).await
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let id = id.clone();
        self.work(format!("start container {id}"), move |inner| inner.start(&id)).await
    }

    async fn update_container(&self, id: &ContainerId, _: &Resources) -> Result<(), RuntimeError> {
        Err(RuntimeError::Invalid {
            what: format!("change the limits of container {id}"),
            message: "the process runtime sets no limits".to_owned(),
        })
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError> {
        let what = || format!("stop container {id}");
        let one = id.clone();
        if !self.work(what(), move |inner| inner.signal(&one, Signal::TERM)).await? {
            return Ok(());
        }
        let deadline = tokio::time::Instant::now() + grace;
        loop {
            let one = id.clone();
            if !self.work(what(), move |inner| inner.is_alive(&one)).await? {
                return Ok(());
            }
            if tokio::time::Instant::now() >= deadline {
                break;
            }
            tokio::time::sleep(STOP_POLL).await;
        }
        let one = id.clone();
        self.work(what(), move |inner| inner.kill(&one)).await
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let id = id.clone();
        self.work(format!("remove container {id}"), move |inner| inner.remove(&id)).await
    }

    async fn exec(
        &self,
        id: &ContainerId,
        command: &[String],
        deadline: Duration,
    ) -> Result<Execution, RuntimeError> {
        exec::run(self, id, command, deadline).await
    }

    async fn reopen_log(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let message = "a process holds its log file open itself, so the file cannot be changed under it";
        Err(RuntimeError::Invalid {
            what: format!("open the log of container {id} again"),
            message: message.to_owned(),
        })
    }

    async fn stats(&self) -> Result<Vec<SandboxStats>, RuntimeError> {
        self.work("read what processes use", |inner| Ok(inner.stats())).await
    }

    async fn observe(&self) -> Result<Vec<ObservedSandbox>, RuntimeError> {
        self.work("observe processes", Inner::observe).await
    }
}
