//! Figures in the JSON of the kubelet's `/stats/summary`.

use kubeedge_core::runtime::{ContainerStats, CpuUsage, FileSystemUsage, InterfaceUsage, MemoryUsage};
use serde_json::{Map, Value, json};

use super::figures::{PodFigures, Snapshot};
use crate::edged::eviction::Level;

pub(super) fn summary(snapshot: &Snapshot) -> Value {
    let usage = &snapshot.usage;
    let at = time(snapshot.at_ms);
    let mut file_system = level(usage.disk, usage.inodes);
    file_system.insert("time".to_owned(), at.clone());
    let (disk, inodes) = usage.images.unwrap_or((usage.disk, usage.inodes));
    let mut images = level(disk, inodes);
    images.insert("time".to_owned(), at.clone());
    if let Some(used) = &snapshot.images {
        images.insert("usedBytes".to_owned(), used.used_bytes.into());
        set(&mut images, "inodesUsed", used.inodes_used);
    }
    let memory = usage.memory;
    json!({
        "node": {
            "nodeName": snapshot.node,
            "startTime": time(snapshot.boot_ms),
            "cpu": cpu(&snapshot.cpu),
            "memory": {
                "time": at,
                "availableBytes": memory.available,
                "usageBytes": memory.capacity - memory.available,
                "workingSetBytes": memory.capacity - memory.available,
            },
            "fs": file_system,
            "runtime": {"imageFs": images},
            "rlimit": {"time": at, "maxpid": usage.pids.capacity, "curproc": snapshot.tasks},
        },
        "pods": snapshot.pods.iter().map(|one| pod(one, snapshot)).collect::<Vec<_>>(),
    })
}

fn pod(figures: &PodFigures, snapshot: &Snapshot) -> Value {
    let stats = &figures.stats;
    let mut pod = Map::new();
    pod.insert(
        "podRef".to_owned(),
        json!({"name": stats.name, "namespace": stats.namespace, "uid": stats.uid.as_str()}),
    );
    pod.insert("startTime".to_owned(), time(figures.started_ms));
    let containers = stats.containers.iter().zip(&figures.containers);
    let containers: Vec<Value> = containers.map(|(one, times)| container(one, *times, snapshot)).collect();
    pod.insert("containers".to_owned(), containers.into());
    if let Some(used) = stats.cpu {
        pod.insert("cpu".to_owned(), cpu(&used));
    }
    if let Some(used) = stats.memory {
        pod.insert("memory".to_owned(), memory(&used));
    }
    if let Some(first) = stats.network.first() {
        let mut network = interface(first);
        network.insert("time".to_owned(), time(first.at_ms));
        let all = stats.network.iter().map(|one| Value::Object(interface(one)));
        network.insert("interfaces".to_owned(), all.collect());
        pod.insert("network".to_owned(), network.into());
    }
    if let Some(count) = stats.processes {
        pod.insert("process_stats".to_owned(), json!({"process_count": count}));
    }
    let written = stats.containers.iter().filter_map(|one| Some(one.writable_layer.as_ref()?.used_bytes));
    let logs = figures.containers.iter().map(|(_, logs)| *logs);
    let mut storage = level(snapshot.usage.disk, snapshot.usage.inodes);
    storage.insert("time".to_owned(), time(snapshot.at_ms));
    storage.insert("usedBytes".to_owned(), written.chain(logs).sum::<u64>().into());
    storage.remove("inodesUsed");
    pod.insert("ephemeral-storage".to_owned(), storage.into());
    pod.into()
}

fn container(stats: &ContainerStats, (started_ms, log_bytes): (u64, u64), snapshot: &Snapshot) -> Value {
    let mut container = Map::new();
    container.insert("name".to_owned(), stats.name.clone().into());
    container.insert("startTime".to_owned(), time(started_ms));
    if let Some(used) = stats.cpu {
        container.insert("cpu".to_owned(), cpu(&used));
    }
    if let Some(used) = stats.memory {
        container.insert("memory".to_owned(), memory(&used));
    }
    if let Some(used) = &stats.writable_layer {
        container.insert("rootfs".to_owned(), written(used, snapshot));
    }
    let mut logs = level(snapshot.usage.disk, snapshot.usage.inodes);
    logs.insert("time".to_owned(), time(snapshot.at_ms));
    logs.insert("usedBytes".to_owned(), log_bytes.into());
    logs.remove("inodesUsed");
    container.insert("logs".to_owned(), logs.into());
    container.into()
}

fn written(used: &FileSystemUsage, snapshot: &Snapshot) -> Value {
    let (disk, inodes) = snapshot.usage.images.unwrap_or((snapshot.usage.disk, snapshot.usage.inodes));
    let mut layer = level(disk, inodes);
    layer.insert("time".to_owned(), time(used.at_ms));
    layer.insert("usedBytes".to_owned(), used.used_bytes.into());
    layer.remove("inodesUsed");
    set(&mut layer, "inodesUsed", used.inodes_used);
    layer.into()
}

fn cpu(used: &CpuUsage) -> Value {
    let mut cpu = Map::new();
    cpu.insert("time".to_owned(), time(used.at_ms));
    set(&mut cpu, "usageNanoCores", used.nano_cores);
    cpu.insert("usageCoreNanoSeconds".to_owned(), used.total_ns.into());
    cpu.into()
}

fn memory(used: &MemoryUsage) -> Value {
    let mut memory = Map::new();
    memory.insert("time".to_owned(), time(used.at_ms));
    memory.insert("workingSetBytes".to_owned(), used.working_set_bytes.into());
    // Some runtimes say a limit that is none as the largest of numbers.
    set(&mut memory, "availableBytes", used.available_bytes.filter(|bytes| *bytes < 1 << 60));
    set(&mut memory, "usageBytes", used.usage_bytes);
    set(&mut memory, "rssBytes", used.rss_bytes);
    set(&mut memory, "pageFaults", used.page_faults);
    set(&mut memory, "majorPageFaults", used.major_page_faults);
    memory.into()
}

fn interface(used: &InterfaceUsage) -> Map<String, Value> {
    let value = json!({
        "name": used.name,
        "rxBytes": used.rx_bytes,
        "rxErrors": used.rx_errors,
        "txBytes": used.tx_bytes,
        "txErrors": used.tx_errors,
    });
    match value {
        Value::Object(map) => map,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Map::new(),
    }
}

fn level(disk: Level, inodes: Level) -> Map<String, Value> {
    let members = [
        ("availableBytes", disk.available),
        ("capacityBytes", disk.capacity),
        ("usedBytes", disk.capacity - disk.available),
        ("inodesFree", inodes.available),
        ("inodes", inodes.capacity),
        ("inodesUsed", inodes.capacity - inodes.available),
    ];
    members.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect()
}

fn set(map: &mut Map<String, Value>, name: &str, value: Option<u64>) {
    if let Some(value) = value {
        map.insert(name.to_owned(), value.into());
    }
}

/// RFC 3339, to the second, as Kubernetes writes times.
fn time(ms: u64) -> Value {
    let time = i64::try_from(ms / 1000).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    time.map_or(Value::Null, |time| time.to_string().into())
}
