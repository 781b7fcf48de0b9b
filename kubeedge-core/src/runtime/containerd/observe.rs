//! All of the runtime's sandboxes and containers, in two calls when nothing has changed.

use std::{collections::BTreeMap, path::PathBuf};

use tonic::Request;

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

impl Containerd {
    pub(super) async fn observe_all(&self) -> Result<Vec<ObservedSandbox>, RuntimeError> {
        let what = || "list sandboxes".to_owned();
        let request = Request::new(cri::ListPodSandboxRequest { filter: None });
        let sandboxes = self.call(what, self.runtime().list_pod_sandbox(request)).await?.items;
        let what = || "list containers".to_owned();
        let request = Request::new(cri::ListContainersRequest { filter: None });
        let containers = self.call(what, self.runtime().list_containers(request)).await?.containers;
        self.forget_all_but(&sandboxes, &containers);

        let mut of_sandbox: BTreeMap<String, Vec<ObservedContainer>> = BTreeMap::new();
        for container in containers {
            let sandbox = container.pod_sandbox_id.clone();
            if let Some(observed) = self.observe_container(container).await? {
                of_sandbox.entry(sandbox).or_default().push(observed);
            }
        }
        let mut all = Vec::with_capacity(sandboxes.len());
        for sandbox in sandboxes {
            let label = |name| sandbox.labels.get(name).cloned();
            let names = (label(POD_NAME), label(POD_NAMESPACE), label(POD_UID));
            // Others may use the same runtime; their sandboxes have no labels of pods.
            let (Some(name), Some(namespace), Some(uid)) = names else { continue };
            let ready = sandbox.state == i32::from(cri::PodSandboxState::SandboxReady);
            let ips = if ready { self.ips(&sandbox.id).await? } else { Vec::new() };
            let mut containers = of_sandbox.remove(&sandbox.id).unwrap_or_default();
            containers.sort_by(|a, b| (&a.name, a.attempt).cmp(&(&b.name, b.attempt)));
            all.push(ObservedSandbox {
                id: SandboxId(sandbox.id),
                name,
                namespace,
                uid: Uid::new(uid),
                attempt: sandbox.metadata.map_or(0, |metadata| metadata.attempt),
                ready,
                ips,
                created_at_ms: milliseconds(sandbox.created_at),
                containers,
            });
        }
        Ok(all)
    }

    /// The container as it is; `None` if it vanished between two calls.
    async fn observe_container(
        &self,
        from: cri::Container,
    ) -> Result<Option<ObservedContainer>, RuntimeError> {
        let known = self.known().containers.get(&from.id).cloned();
        let (state, log_path) = match known {
            Some((state, known, log_path)) if state == from.state => (known, log_path),
            Some(_) | None => match self.status(&from.id).await? {
                None => return Ok(None),
                Some(status) => {
                    let told = (state(&status), status.log_path);
                    let known = (status.state, told.0.clone(), told.1.clone());
                    self.known().containers.insert(from.id.clone(), known);
                    told
                }
            },
        };
        let metadata = from.metadata.unwrap_or_default();
        let log = ContainerLog { path: PathBuf::from(&log_path), format: LogFormat::Cri };
        Ok(Some(ObservedContainer {
            id: ContainerId(from.id),
            name: metadata.name,
            attempt: metadata.attempt,
            image: from.image.map(|image| image.image).unwrap_or_default(),
            image_id: from.image_ref,
            spec_hash: from.annotations.get(SPEC_HASH).cloned().unwrap_or_default(),
            state,
            log: (!log_path.is_empty()).then_some(log),
        }))
    }

    async fn status(&self, id: &str) -> Result<Option<cri::ContainerStatus>, RuntimeError> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned() };
        let what = || format!("read the status of container {id}");
        match self.call(what, self.runtime().container_status(Request::new(request))).await {
            Ok(response) => Ok(response.status),
            Err(RuntimeError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn ips(&self, id: &str) -> Result<Vec<String>, RuntimeError> {
        if let Some(ips) = self.known().ips.get(id) {
            return Ok(ips.clone());
        }
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned() };
        let what = || format!("read the status of sandbox {id}");
        let response = match self.call(what, self.runtime().pod_sandbox_status(Request::new(request))).await {
            Ok(response) => response,
            Err(RuntimeError::NotFound { .. }) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let network = response.status.and_then(|status| status.network).unwrap_or_default();
        let more = network.additional_ips.into_iter().map(|more| more.ip);
        let ips: Vec<String> = [network.ip].into_iter().chain(more).filter(|ip| !ip.is_empty()).collect();
        self.known().ips.insert(id.to_owned(), ips.clone());
        Ok(ips)
    }

    fn forget_all_but(&self, sandboxes: &[cri::PodSandbox], containers: &[cri::Container]) {
        let mut known = self.known();
        known.ips.retain(|id, _| sandboxes.iter().any(|sandbox| sandbox.id == *id));
        known.containers.retain(|id, _| containers.iter().any(|container| container.id == *id));
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
fn milliseconds(nanoseconds: i64) -> u64 {
    u64::try_from(nanoseconds / 1_000_000).unwrap_or(0)
}
