//! All of the runtime's sandboxes and containers, in two calls when nothing has changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use futures_util::{StreamExt, stream};
use tokio::time::Instant;
use tonic::Request;
use tracing::warn;

use super::{
    Containerd,
    config::{POD_NAME, POD_NAMESPACE, POD_UID, SPEC_HASH},
    cri,
};
use crate::{
    id::Uid,
    runtime::{
        ContainerId, ContainerLog, ContainerState, LogFormat, ObservedContainer, ObservedSandbox,
        RuntimeError, SandboxId,
    },
};

/// How long all of an observation's questions about single items may take, and one of them: a shim that hangs
/// must not keep the others from being seen.
const QUESTIONS: Duration = Duration::from_secs(30);
const QUESTION: Duration = Duration::from_secs(10);

/// How many such questions are asked at once: after a start of this process there is one for each item.
const QUESTIONS_AT_ONCE: usize = 8;

impl Containerd {
    pub(super) async fn observe_all(&self) -> Result<Vec<ObservedSandbox>, RuntimeError> {
        let what = || "list sandboxes".to_owned();
        let request = Request::new(cri::ListPodSandboxRequest { filter: None });
        let sandboxes = self.call(what, self.runtime().list_pod_sandbox(request)).await?.items;
        let what = || "list containers".to_owned();
        let request = Request::new(cri::ListContainersRequest { filter: None });
        let containers = self.call(what, self.runtime().list_containers(request)).await?.containers;
        self.forget_all_but(&sandboxes, &containers);

        let until = Instant::now() + QUESTIONS;
        let mut of_sandbox: BTreeMap<String, Vec<ObservedContainer>> = BTreeMap::new();
        let of_pods: BTreeSet<&str> =
            sandboxes.iter().filter_map(|sandbox| pod_of(sandbox).map(|_| sandbox.id.as_str())).collect();
        let of_pods = containers.into_iter().filter(|one| of_pods.contains(one.pod_sandbox_id.as_str()));
        let observing: Vec<_> = of_pods
            .map(|one| async move { (one.pod_sandbox_id.clone(), self.observe_container(one, until).await) })
            .collect();
        let mut observing = stream::iter(observing).buffered(QUESTIONS_AT_ONCE);
        while let Some((sandbox, observed)) = observing.next().await {
            of_sandbox.entry(sandbox).or_default().push(observed);
        }
        let mut ips = self.all_ips(&sandboxes, until).await;
        let mut all = Vec::with_capacity(sandboxes.len());
        for sandbox in sandboxes {
            let Some((name, namespace, uid)) = pod_of(&sandbox) else { continue };
            let ready = is_ready(&sandbox);
            let mut containers = of_sandbox.remove(&sandbox.id).unwrap_or_default();
            containers.sort_by(|a, b| (&a.name, a.attempt).cmp(&(&b.name, b.attempt)));
            let sandbox_id = sandbox.id.clone();
            all.push(ObservedSandbox {
                id: SandboxId(sandbox.id),
                name,
                namespace,
                uid: Uid::new(uid),
                attempt: sandbox.metadata.map_or(0, |metadata| metadata.attempt),
                ready,
                ips: ips.remove(&sandbox_id).unwrap_or_default(),
                created_at_ms: milliseconds(sandbox.created_at),
                containers,
            });
        }
        Ok(all)
    }

    /// The container as it is. One that the runtime lists and cannot describe is what the list says of it: left
    /// out, it would be started a second time; failed for, it would keep every other pod from being seen.
    async fn observe_container(&self, from: cri::Container, until: Instant) -> ObservedContainer {
        let known = self.known().containers.get(&from.id).cloned();
        let described = match known {
            Some(known) if known.listed == from.state => known,
            known => match self.status(&from.id, until).await {
                Some(status) => {
                    let described = Described::new(status);
                    self.known().containers.insert(from.id.clone(), described.clone());
                    described
                }
                // Not remembered: the next observation asks again.
                None => Described { state: listed_state(&from), ..known.unwrap_or_default() },
            },
        };
        let metadata = from.metadata.unwrap_or_default();
        let log = ContainerLog { path: PathBuf::from(&described.log_path), format: LogFormat::Cri };
        let image_id = if described.image_ref.is_empty() { from.image_ref } else { described.image_ref };
        ObservedContainer {
            id: ContainerId(from.id),
            name: metadata.name,
            attempt: metadata.attempt,
            image: from.image.map(|image| image.image).unwrap_or_default(),
            image_id,
            spec_hash: from.annotations.get(SPEC_HASH).cloned().unwrap_or_default(),
            created_at_ms: milliseconds(from.created_at),
            state: described.state,
            log: (!described.log_path.is_empty()).then_some(log),
        }
    }

    async fn status(&self, id: &str, until: Instant) -> Option<cri::ContainerStatus> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned() };
        let mut runtime = self.runtime();
        let call = runtime.container_status(Request::new(request));
        let what = || format!("read the status of container {id}");
        let response = self.wait(what, self.question(until), call).await;
        self.described(id, response)?.status
    }

    /// The addresses of all sandboxes of pods that are ready.
    async fn all_ips(&self, sandboxes: &[cri::PodSandbox], until: Instant) -> BTreeMap<String, Vec<String>> {
        let ready = sandboxes.iter().filter(|one| is_ready(one) && pod_of(one).is_some());
        let asking: Vec<_> =
            ready.map(|one| async move { (one.id.clone(), self.ips(&one.id, until).await) }).collect();
        stream::iter(asking).buffered(QUESTIONS_AT_ONCE).collect().await
    }

    /// The sandbox's addresses; none if the runtime cannot describe it now.
    async fn ips(&self, id: &str, until: Instant) -> Vec<String> {
        if let Some(ips) = self.known().ips.get(id) {
            return ips.clone();
        }
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned() };
        let mut runtime = self.runtime();
        let call = runtime.pod_sandbox_status(Request::new(request));
        let what = || format!("read the status of sandbox {id}");
        let response = self.wait(what, self.question(until), call).await;
        let Some(response) = self.described(id, response) else { return Vec::new() };
        let network = response.status.and_then(|status| status.network).unwrap_or_default();
        let more = network.additional_ips.into_iter().map(|more| more.ip);
        let ips: Vec<String> = [network.ip].into_iter().chain(more).filter(|ip| !ip.is_empty()).collect();
        self.known().ips.insert(id.to_owned(), ips.clone());
        ips
    }

    fn question(&self, until: Instant) -> Duration {
        self.config.deadline.min(QUESTION).min(until.saturating_duration_since(Instant::now()))
    }

    /// The answer about one item; that there is none is said once, not with every observation.
    fn described<T>(&self, id: &str, answer: Result<T, RuntimeError>) -> Option<T> {
        match answer {
            Ok(answer) => {
                self.known().undescribed.remove(id);
                Some(answer)
            }
            Err(error) => {
                if self.known().undescribed.insert(id.to_owned()) {
                    warn!(%error, "only what the runtime's list says of it is known");
                }
                None
            }
        }
    }

    fn forget_all_but(&self, sandboxes: &[cri::PodSandbox], containers: &[cri::Container]) {
        let mut known = self.known();
        known.ips.retain(|id, _| sandboxes.iter().any(|sandbox| sandbox.id == *id));
        known.containers.retain(|id, _| containers.iter().any(|container| container.id == *id));
        known.undescribed.retain(|id| {
            let is_sandbox = sandboxes.iter().any(|sandbox| sandbox.id == *id);
            is_sandbox || containers.iter().any(|container| container.id == *id)
        });
    }
}

fn is_ready(sandbox: &cri::PodSandbox) -> bool {
    sandbox.state == i32::from(cri::PodSandboxState::SandboxReady)
}

/// Name, namespace and UID of its pod. Others may use the same runtime; their sandboxes have no labels of pods.
pub(super) fn pod_of(sandbox: &cri::PodSandbox) -> Option<(String, String, String)> {
    let label = |name| sandbox.labels.get(name).cloned();
    Some((label(POD_NAME)?, label(POD_NAMESPACE)?, label(POD_UID)?))
}

/// What the list says, which has neither exit codes nor other times than that of creation. Only a container of
/// which the list itself says so is [`ContainerState::Unknown`]: such a one is removed.
fn listed_state(from: &cri::Container) -> ContainerState {
    let created_at_ms = milliseconds(from.created_at);
    match cri::ContainerState::try_from(from.state) {
        Ok(cri::ContainerState::ContainerCreated) => ContainerState::Created,
        Ok(cri::ContainerState::ContainerRunning) => ContainerState::Running { started_at_ms: created_at_ms },
        Ok(cri::ContainerState::ContainerExited) => ContainerState::Exited {
            exit_code: None,
            reason: String::new(),
            message: String::new(),
            started_at_ms: created_at_ms,
            finished_at_ms: created_at_ms,
        },
        Ok(cri::ContainerState::ContainerUnknown) | Err(_) => ContainerState::Unknown,
    }
}

/// What never changes of a container while the runtime's list says the same of its state.
#[derive(Debug, Clone, Default)]
pub(super) struct Described {
    listed: i32,
    state: ContainerState,
    log_path: String,
    image_ref: String,
}

impl Described {
    fn new(status: cri::ContainerStatus) -> Self {
        let state = state(&status);
        Self { listed: status.state, state, log_path: status.log_path, image_ref: status.image_ref }
    }
}

fn state(status: &cri::ContainerStatus) -> ContainerState {
    let started_at_ms = milliseconds(status.started_at);
    match cri::ContainerState::try_from(status.state) {
        Ok(cri::ContainerState::ContainerCreated) => ContainerState::Created,
        Ok(cri::ContainerState::ContainerRunning) => ContainerState::Running { started_at_ms },
        Ok(cri::ContainerState::ContainerExited) => ContainerState::Exited {
            exit_code: Some(status.exit_code),
            reason: status.reason.clone(),
            message: status.message.clone(),
            started_at_ms,
            finished_at_ms: milliseconds(status.finished_at),
        },
        Ok(cri::ContainerState::ContainerUnknown) | Err(_) => ContainerState::Unknown,
    }
}

/// CRI's times are nanoseconds; a time that was never set is zero or before it.
pub(super) fn milliseconds(nanoseconds: i64) -> u64 {
    u64::try_from(nanoseconds / 1_000_000).unwrap_or(0)
}
