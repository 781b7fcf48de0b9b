//! The runtime adapter for containerd, and for any other runtime with CRI v1 on a unix socket.
//!
//! The runtime keeps everything, so this adapter can be dropped and built again at any time: what it needs to
//! know about a sandbox later is kept in the sandbox's annotations.
//!
//! ```no_run
//! use kubeedge_core::runtime::{ContainerRuntime, containerd::{Config, Containerd}};
//!
//! # async fn example() -> Result<(), kubeedge_core::runtime::RuntimeError> {
//! let runtime = Containerd::new(Config::default())?;
//! println!("{}", runtime.info().await?.version);
//! # Ok(())
//! # }
//! ```

mod config;
mod errors;
mod exec;
mod images;
mod observe;
mod stats;
mod streaming;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use async_trait::async_trait;
use serde::Deserialize;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint},
};

use self::{
    cri::{image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient},
    errors::gone_is_success,
};
use super::{
    ContainerConfig, ContainerId, ContainerRuntime, Execution, ObservedSandbox, Resources, RuntimeError,
    RuntimeInfo, SandboxConfig, SandboxId, SandboxStats,
};

#[expect(unreachable_pub, unnameable_types, reason = "generated from proto/cri.proto")]
#[allow(clippy::all, clippy::use_self, clippy::wildcard_enum_match_arm, reason = "generated")]
mod cri {
    include!("cri/runtime.v1.rs");
}

/// Where the runtime is, and how long it may take.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The socket of the runtime. Default: `/run/containerd/containerd.sock`.
    pub socket: PathBuf,
    /// How long a call may take. 2 min, the kubelet's default (`--runtime-request-timeout`).
    pub deadline: Duration,
    /// How long fetching an image may take. 1 h: gigabytes over a mobile link.
    pub pull_deadline: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/run/containerd/containerd.sock"),
            deadline: Duration::from_secs(120),
            pull_deadline: Duration::from_secs(3600),
        }
    }
}

/// A [`ContainerRuntime`] over CRI v1.
#[derive(Debug)]
pub struct Containerd {
    config: Config,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    known: Mutex<Known>,
    /// Whether the runtime was found not to sum up what a whole sandbox uses.
    only_containers: AtomicBool,
}

/// What never changes of a container or sandbox in a given state, so that it is asked for once.
#[derive(Debug, Default)]
struct Known {
    ips: HashMap<String, Vec<String>>,
    containers: HashMap<String, observe::Described>,
    /// Sandboxes and containers that the runtime lists and could not describe when last asked.
    undescribed: HashSet<String>,
}

/// 16 MiB, as the kubelet: a node with many containers has a long list.
const MESSAGE_LIMIT: usize = 16 << 20;

impl Containerd {
    /// Creates the adapter. The socket is first opened by the first call, and again whenever it was lost.
    ///
    /// # Errors
    /// If the socket's path is not UTF-8 or not absolute.
    pub fn new(config: Config) -> Result<Self, RuntimeError> {
        let invalid = |message: String| RuntimeError::Invalid {
            what: format!("use the runtime at {}", config.socket.display()),
            message,
        };
        let path = config.socket.to_str().filter(|path| path.starts_with('/'));
        let path = path.ok_or_else(|| invalid("the path must be absolute and UTF-8".into()))?;
        let endpoint =
            Endpoint::try_from(format!("unix://{path}")).map_err(|error| invalid(error.to_string()))?;
        let channel = endpoint.connect_timeout(Duration::from_secs(10)).connect_lazy();
        let runtime = RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_LIMIT);
        let images = ImageServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT);
        Ok(Self { config, runtime, images, known: Mutex::default(), only_containers: AtomicBool::new(false) })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a call, for no longer than its deadline.
    async fn wait<T>(
        &self,
        what: impl FnOnce() -> String,
        deadline: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, RuntimeError> {
        match tokio::time::timeout(deadline, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(errors::explain(what(), &status)),
            Err(_) => {
                let message = format!("no answer within {deadline:?}");
                Err(RuntimeError::Unavailable { what: what(), message })
            }
        }
    }

    async fn call<T>(
        &self,
        what: impl FnOnce() -> String,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, RuntimeError> {
        self.wait(what, self.config.deadline, call).await
    }

    /// containerd knows CDI since 1.7, and an earlier one leaves out such a device without a word.
    async fn has_cdi(&self, what: impl Fn() -> String) -> Result<(), RuntimeError> {
        let version = cri::VersionRequest { version: "v1".to_owned() };
        let version = self.call(&what, self.runtime().version(Request::new(version))).await?;
        let mut numbers = version.runtime_version.trim_start_matches('v').split('.').map(str::parse::<u32>);
        let (major, minor) = (numbers.next(), numbers.next());
        if let ("containerd", Some(Ok(1)), Some(Ok(0..=6))) = (version.runtime_name.as_str(), major, minor) {
            let message = format!("containerd {} knows no CDI devices", version.runtime_version);
            return Err(RuntimeError::Invalid { what: what(), message });
        }
        Ok(())
    }

    fn runtime(&self) -> RuntimeServiceClient<Channel> {
        self.runtime.clone()
    }

    fn images(&self) -> ImageServiceClient<Channel> {
        self.images.clone()
    }
}

#[async_trait]
impl ContainerRuntime for Containerd {
    async fn info(&self) -> Result<RuntimeInfo, RuntimeError> {
        let what = || "read the runtime's status".to_owned();
        let version = cri::VersionRequest { version: "v1".to_owned() };
        let version = self.call(what, self.runtime().version(Request::new(version))).await?;
        let status = self.call(what, self.runtime().status(Request::new(cri::StatusRequest {}))).await?;
        let conditions = status.status.map(|status| status.conditions).unwrap_or_default();
        let not_ready = conditions.into_iter().filter(|condition| !condition.status);
        let not_ready = not_ready.map(|it| format!("{}: {} {}", it.r#type, it.reason, it.message));
        Ok(RuntimeInfo {
            name: version.runtime_name,
            version: version.runtime_version,
            not_ready: not_ready.collect(),
        })
    }

    async fn run_sandbox(&self, sandbox: &SandboxConfig) -> Result<SandboxId, RuntimeError> {
        let request = cri::RunPodSandboxRequest {
            config: Some(config::sandbox(sandbox)),
            runtime_handler: sandbox.handler.clone(),
        };
        let what = || format!("run sandbox of pod {}/{}", sandbox.namespace, sandbox.name);
        let run = self.call(what, self.runtime().run_pod_sandbox(Request::new(request))).await?;
        Ok(SandboxId(run.pod_sandbox_id))
    }

    async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.0.clone() };
        let what = || format!("stop sandbox {id}");
        gone_is_success(self.call(what, self.runtime().stop_pod_sandbox(Request::new(request))).await)
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        // containerd refuses to remove a sandbox that is not stopped.
        self.stop_sandbox(id).await?;
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.0.clone() };
        let what = || format!("remove sandbox {id}");
        gone_is_success(self.call(what, self.runtime().remove_pod_sandbox(Request::new(request))).await)
    }

    async fn create_container(
        &self,
        sandbox: &SandboxId,
        container: &ContainerConfig,
    ) -> Result<ContainerId, RuntimeError> {
        let what = || format!("create container {}", container.name);
        if !container.cdi_devices.is_empty() {
            self.has_cdi(what).await?;
        }
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: sandbox.0.clone() };
        let status = self.call(what, self.runtime().pod_sandbox_status(Request::new(request))).await?;
        let sandbox_config = config::sandbox_again(status.status.unwrap_or_default());
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.0.clone(),
            config: Some(config::container(container, &sandbox_config)),
            sandbox_config: Some(sandbox_config),
        };
        let created = self.call(what, self.runtime().create_container(Request::new(request))).await?;
        Ok(ContainerId(created.container_id))
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let request = cri::StartContainerRequest { container_id: id.0.clone() };
        let what = || format!("start container {id}");
        self.call(what, self.runtime().start_container(Request::new(request))).await.map(drop)
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError> {
        // CRI counts whole seconds; a begun one is given.
        let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
        let timeout = i64::try_from(seconds).unwrap_or(i64::MAX);
        let request = cri::StopContainerRequest { container_id: id.0.clone(), timeout };
        let deadline = self.config.deadline.saturating_add(Duration::from_secs(seconds));
        let mut runtime = self.runtime();
        let call = runtime.stop_container(Request::new(request));
        gone_is_success(self.wait(|| format!("stop container {id}"), deadline, call).await)
    }

    async fn update_container(&self, id: &ContainerId, resources: &Resources) -> Result<(), RuntimeError> {
        let request = cri::UpdateContainerResourcesRequest {
            container_id: id.0.clone(),
            linux: Some(config::linux_resources(resources)),
        };
        let what = || format!("change the limits of container {id}");
        self.call(what, self.runtime().update_container_resources(Request::new(request))).await.map(drop)
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let request = cri::RemoveContainerRequest { container_id: id.0.clone() };
        let what = || format!("remove container {id}");
        gone_is_success(self.call(what, self.runtime().remove_container(Request::new(request))).await)
    }

    async fn exec(
        &self,
        id: &ContainerId,
        command: &[String],
        deadline: Duration,
    ) -> Result<Execution, RuntimeError> {
        self.exec_sync(id, command, deadline).await
    }

    async fn reopen_log(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let request = cri::ReopenContainerLogRequest { container_id: id.0.clone() };
        let what = || format!("open the log of container {id} again");
        self.call(what, self.runtime().reopen_container_log(Request::new(request))).await.map(drop)
    }

    async fn stats(&self) -> Result<Vec<SandboxStats>, RuntimeError> {
        self.all_stats().await
    }

    async fn observe(&self) -> Result<Vec<ObservedSandbox>, RuntimeError> {
        self.observe_all().await
    }
}
