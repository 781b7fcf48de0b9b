//! What the processes of containers use.

use super::{
    inner::{Inner, now_ms},
    proc,
};
use crate::runtime::{ContainerStats, CpuUsage, MemoryUsage, SandboxStats};

impl Inner {
    /// Reads `/proc` once for all. Of a container that has processes which ended, their time stays with the one
    /// that waited for them, as the kernel counts it.
    pub(super) fn stats(&self) -> Vec<SandboxStats> {
        let usage = proc::usage();
        let at_ms = now_ms();
        let observed = self.observe().unwrap_or_default();
        let ready = observed.into_iter().filter(|sandbox| sandbox.ready);
        let stats = ready.map(|sandbox| {
            let mut processes = 0;
            let containers = sandbox.containers.into_iter().filter_map(|container| {
                let used = usage.get(&container.id.0)?;
                processes += used.processes;
                Some(ContainerStats {
                    id: container.id,
                    name: container.name,
                    attempt: container.attempt,
                    cpu: Some(CpuUsage { at_ms, total_ns: used.cpu_ns, nano_cores: None }),
                    memory: Some(MemoryUsage {
                        at_ms,
                        working_set_bytes: used.resident_bytes,
                        rss_bytes: Some(used.resident_bytes),
                        ..MemoryUsage::default()
                    }),
                    writable_layer: None,
                })
            });
            SandboxStats {
                id: sandbox.id,
                name: sandbox.name,
                namespace: sandbox.namespace,
                uid: sandbox.uid,
                containers: containers.collect(),
                processes: Some(processes),
                ..SandboxStats::default()
            }
        });
        stats.collect()
    }
}
