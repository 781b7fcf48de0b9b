//! What pods use, as CRI counts it.

use std::{collections::HashMap, sync::atomic::Ordering};

use tonic::{Code, Request};

use super::{
    Containerd,
    config::{POD_NAME, POD_NAMESPACE, POD_UID},
    cri, errors,
    images::file_system,
    observe::{milliseconds, pod_of},
};
use crate::{
    id::Uid,
    runtime::{
        ContainerId, ContainerStats, CpuUsage, InterfaceUsage, MemoryUsage, RuntimeError, SandboxId,
        SandboxStats,
    },
};

impl Containerd {
    pub(super) async fn all_stats(&self) -> Result<Vec<SandboxStats>, RuntimeError> {
        if !self.only_containers.load(Ordering::Relaxed) {
            let request = Request::new(cri::ListPodSandboxStatsRequest { filter: None });
            let mut runtime = self.runtime();
            let call = runtime.list_pod_sandbox_stats(request);
            match tokio::time::timeout(self.config.deadline, call).await {
                Ok(Ok(list)) => return Ok(list.into_inner().stats.into_iter().filter_map(sandbox).collect()),
                Ok(Err(status)) if status.code() == Code::Unimplemented => {
                    self.only_containers.store(true, Ordering::Relaxed);
                }
                Ok(Err(status)) if matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded) => {
                    return Err(errors::explain("read what pods use".to_owned(), &status));
                }
                // One sandbox that is just being removed makes some runtimes fail for all of them.
                Ok(Err(_)) => {}
                Err(_) => {
                    let message = format!("no answer within {:?}", self.config.deadline);
                    return Err(RuntimeError::Unavailable { what: "read what pods use".to_owned(), message });
                }
            }
        }
        self.of_containers().await
    }

    /// Without network, and without what the sandbox's own process uses: put together from its containers.
    async fn of_containers(&self) -> Result<Vec<SandboxStats>, RuntimeError> {
        let what = || "read what containers use".to_owned();
        let request = Request::new(cri::ListPodSandboxRequest { filter: None });
        let sandboxes = self.call(what, self.runtime().list_pod_sandbox(request)).await?.items;
        let request = Request::new(cri::ListContainersRequest { filter: None });
        let containers = self.call(what, self.runtime().list_containers(request)).await?.containers;
        let request = Request::new(cri::ListContainerStatsRequest { filter: None });
        let list = self.call(what, self.runtime().list_container_stats(request)).await?.stats;
        let sandbox_of: HashMap<String, String> =
            containers.into_iter().map(|one| (one.id, one.pod_sandbox_id)).collect();
        let mut of_sandbox: HashMap<String, Vec<ContainerStats>> = HashMap::new();
        for one in list.into_iter().filter_map(container) {
            if let Some(sandbox) = sandbox_of.get(&one.id.0) {
                of_sandbox.entry(sandbox.clone()).or_default().push(one);
            }
        }
        let ready = |one: &cri::PodSandbox| one.state == i32::from(cri::PodSandboxState::SandboxReady);
        let stats = sandboxes.into_iter().filter(ready).filter_map(|one| {
            let (name, namespace, uid) = pod_of(&one)?;
            let containers = of_sandbox.remove(&one.id).unwrap_or_default();
            Some(SandboxStats {
                id: SandboxId(one.id),
                name,
                namespace,
                uid: Uid::new(uid),
                cpu: sum(containers.iter().map(|one| one.cpu), add_cpu),
                memory: sum(containers.iter().map(|one| one.memory), add_memory),
                containers,
                ..SandboxStats::default()
            })
        });
        Ok(stats.collect())
    }
}

/// The sum of all; none if one of them is not known, or there are none.
fn sum<T>(mut all: impl Iterator<Item = Option<T>>, add: fn(T, T) -> T) -> Option<T> {
    let first = all.next()??;
    all.try_fold(first, |sum, next| Some(add(sum, next?)))
}

fn add_cpu(a: CpuUsage, b: CpuUsage) -> CpuUsage {
    CpuUsage {
        at_ms: a.at_ms.max(b.at_ms),
        total_ns: a.total_ns.saturating_add(b.total_ns),
        nano_cores: both(a.nano_cores, b.nano_cores),
    }
}

fn add_memory(a: MemoryUsage, b: MemoryUsage) -> MemoryUsage {
    MemoryUsage {
        at_ms: a.at_ms.max(b.at_ms),
        working_set_bytes: a.working_set_bytes.saturating_add(b.working_set_bytes),
        usage_bytes: both(a.usage_bytes, b.usage_bytes),
        rss_bytes: both(a.rss_bytes, b.rss_bytes),
        available_bytes: both(a.available_bytes, b.available_bytes),
        page_faults: both(a.page_faults, b.page_faults),
        major_page_faults: both(a.major_page_faults, b.major_page_faults),
    }
}

fn both(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    Some(a?.saturating_add(b?))
}

fn sandbox(from: cri::PodSandboxStats) -> Option<SandboxStats> {
    let attributes = from.attributes?;
    let label = |name: &str| attributes.labels.get(name).cloned();
    let (name, namespace, uid) = (label(POD_NAME)?, label(POD_NAMESPACE)?, label(POD_UID)?);
    let linux = from.linux.unwrap_or_default();
    let network = linux.network.unwrap_or_default();
    let at_ms = milliseconds(network.timestamp);
    let interfaces = network.default_interface.into_iter().chain(network.interfaces);
    Some(SandboxStats {
        id: SandboxId(attributes.id),
        name,
        namespace,
        uid: Uid::new(uid),
        cpu: linux.cpu.and_then(cpu),
        memory: linux.memory.and_then(memory),
        network: interfaces.map(|one| interface(one, at_ms)).collect(),
        processes: linux.process.and_then(|processes| value(processes.process_count)),
        containers: linux.containers.into_iter().filter_map(container).collect(),
    })
}

fn container(from: cri::ContainerStats) -> Option<ContainerStats> {
    let attributes = from.attributes?;
    let metadata = attributes.metadata.unwrap_or_default();
    Some(ContainerStats {
        id: ContainerId(attributes.id),
        name: metadata.name,
        attempt: metadata.attempt,
        cpu: from.cpu.and_then(cpu),
        memory: from.memory.and_then(memory),
        writable_layer: from.writable_layer.map(file_system),
    })
}

fn cpu(from: cri::CpuUsage) -> Option<CpuUsage> {
    Some(CpuUsage {
        at_ms: milliseconds(from.timestamp),
        total_ns: value(from.usage_core_nano_seconds)?,
        nano_cores: value(from.usage_nano_cores),
    })
}

fn memory(from: cri::MemoryUsage) -> Option<MemoryUsage> {
    Some(MemoryUsage {
        at_ms: milliseconds(from.timestamp),
        working_set_bytes: value(from.working_set_bytes)?,
        usage_bytes: value(from.usage_bytes),
        rss_bytes: value(from.rss_bytes),
        // A container without a limit has no bytes left below it, which containerd says as zero.
        available_bytes: value(from.available_bytes).filter(|bytes| *bytes > 0),
        page_faults: value(from.page_faults),
        major_page_faults: value(from.major_page_faults),
    })
}

fn interface(from: cri::NetworkInterfaceUsage, at_ms: u64) -> InterfaceUsage {
    InterfaceUsage {
        name: from.name,
        at_ms,
        rx_bytes: value(from.rx_bytes).unwrap_or(0),
        rx_errors: value(from.rx_errors).unwrap_or(0),
        tx_bytes: value(from.tx_bytes).unwrap_or(0),
        tx_errors: value(from.tx_errors).unwrap_or(0),
    }
}

fn value(from: Option<cri::UInt64Value>) -> Option<u64> {
    from.map(|from| from.value)
}
