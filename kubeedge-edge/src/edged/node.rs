//! The node's own report. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use kubeedge_core::{
    message::{NodeReport, Report},
    runtime::{Image, RuntimeError, RuntimeInfo},
};
use serde_json::{Value, json};

use super::{
    Config,
    admission::{Amounts, Room, own_labels},
    devices::Inventory,
    eviction::{Pressure, Shortage, Signal, Watch},
    host::{Machine, Usage, architecture},
    quantity::binary,
    state::Moment,
    text::rfc3339,
};

/// What is known of the node, and what of it the cloud was told.
#[derive(Debug)]
pub(crate) struct Node {
    config: Config,
    machine: Machine,
    usage: Usage,
    watch: Watch,
    devices: Inventory,
    runtime: Option<Result<RuntimeInfo, String>>,
    online_since: Option<Instant>,
    told: bool,
    conditions: BTreeMap<&'static str, Condition>,
    outdated: bool,
    images: Value,
    /// The images have changed since they were reported.
    images_outdated: bool,
    reported_at: Option<Instant>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Condition {
    holds: bool,
    since_ms: u64,
    reason: &'static str,
    message: String,
}

/// How long the first report waits for the runtime to say how it is; a slow one must not keep the node away.
const PATIENCE: Duration = Duration::from_millis(200);

type Words = (&'static str, &'static str);

/// Reason and message of each condition, without and with the pressure, as the kubelet writes them.
const PRESSURES: [(&str, Pressure, Words, Words); 3] = [
    (
        "MemoryPressure",
        Pressure::Memory,
        ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
    ),
    (
        "DiskPressure",
        Pressure::Disk,
        ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("KubeletHasDiskPressure", "kubelet has disk pressure"),
    ),
    (
        "PIDPressure",
        Pressure::Pids,
        ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
    ),
];

impl Node {
    pub(crate) fn new(config: Config, machine: Machine) -> Self {
        Self {
            watch: Watch::new(config.eviction.clone()),
            config,
            machine,
            usage: Usage::default(),
            devices: Inventory::new(),
            runtime: None,
            online_since: None,
            told: false,
            conditions: BTreeMap::new(),
            outdated: false,
            images: json!([]),
            images_outdated: false,
            reported_at: None,
        }
    }

    pub(crate) fn handle_usage(&mut self, usage: Usage, now: Moment) {
        self.outdated |= self.usage.disk.capacity != usage.disk.capacity;
        self.usage = usage;
        self.watch.handle_levels(usage.levels(), now.at);
        let pressures = self.watch.pressures(now.at);
        for (kind, pressure, good, bad) in PRESSURES {
            let holds = pressures.contains(&pressure);
            let (reason, message) = if holds { bad } else { good };
            self.set(kind, holds, reason, message.to_owned(), now);
        }
    }

    /// Takes the images that are here, of which the largest are reported.
    pub(crate) fn handle_images(&mut self, images: &[Image]) {
        let mut images: Vec<&Image> = images.iter().collect();
        images.sort_by(|a, b| (b.size_bytes, &a.id).cmp(&(a.size_bytes, &b.id)));
        let shown = images.iter().take(self.config.images_max).map(|image| {
            // Five: the kubelet's limit of names for each.
            let names: Vec<&String> = image.digests.iter().chain(&image.tags).take(5).collect();
            json!({ "names": names, "sizeBytes": image.size_bytes })
        });
        let shown = Value::Array(shown.collect());
        // The first ones are news; later ones can wait.
        self.outdated |= self.images == json!([]) && shown != self.images;
        self.images_outdated |= shown != self.images;
        self.images = shown;
    }

    /// Takes the devices that pods may ask for.
    pub(crate) fn handle_devices(&mut self, devices: Inventory) {
        self.outdated |= self.devices != devices;
        self.devices = devices;
    }

    /// The pressures that the node is under.
    pub(crate) fn pressures(&self, now: Moment) -> BTreeSet<Pressure> {
        self.watch.pressures(now.at)
    }

    /// What pods have to give back, if anything.
    pub(crate) fn shortage(&self, now: Moment) -> Option<Shortage> {
        self.watch.shortage(now.at)
    }

    /// What is left of the file system with the images.
    pub(crate) fn image_disk(&self) -> super::eviction::Level {
        self.usage.images.map_or(self.usage.disk, |(disk, _)| disk)
    }

    /// What pods may ask for.
    pub(crate) fn room(&self) -> Room {
        Room {
            allocatable: self.allocatable(),
            pods: self.config.max_pods.into(),
            name: self.config.node.to_string(),
            labels: own_labels(&self.config),
            taints: self.config.taints.clone(),
            confirmed: false,
        }
    }

    fn capacity(&self) -> Amounts {
        let mut capacity = Amounts::from([
            ("cpu".to_owned(), self.machine.cpus * 1000),
            ("memory".to_owned(), self.machine.memory_bytes),
            ("ephemeral-storage".to_owned(), self.usage.disk.capacity),
        ]);
        capacity.extend(self.machine.huge_pages.clone());
        capacity.extend(self.devices.iter().map(|(name, stock)| (name.clone(), stock.all.into())));
        capacity
    }

    /// The capacity without what is kept back: for the system, and as what must be left when nothing is short.
    fn allocatable(&self) -> Amounts {
        let mut amounts = self.capacity();
        let hard = |signal: Signal, capacity: i64| {
            let of_signal = self.config.eviction.hard.iter().filter(|threshold| threshold.signal == signal);
            of_signal.map(|threshold| threshold.least.of(capacity)).max().unwrap_or(0)
        };
        let huge: i64 = self.machine.huge_pages.values().sum();
        for reserved in [&self.config.kube_reserved, &self.config.system_reserved] {
            for (name, amount) in [
                ("cpu", reserved.cpu_milli),
                ("memory", reserved.memory_bytes),
                ("ephemeral-storage", reserved.ephemeral_storage_bytes),
            ] {
                amounts.entry(name.to_owned()).and_modify(|left| *left -= amount);
            }
        }
        let memory = hard(Signal::Memory, self.machine.memory_bytes).saturating_add(huge);
        let disk = hard(Signal::NodeDisk, self.usage.disk.capacity);
        amounts.entry("memory".to_owned()).and_modify(|left| *left -= memory);
        amounts.entry("ephemeral-storage".to_owned()).and_modify(|left| *left -= disk);
        amounts.values_mut().for_each(|left| *left = (*left).max(0));
        amounts.extend(self.devices.iter().map(|(name, stock)| (name.clone(), stock.healthy.into())));
        amounts
    }

    pub(crate) fn handle_runtime(&mut self, info: Result<RuntimeInfo, RuntimeError>, now: Moment) {
        let info = info.map_err(|error| error.to_string());
        let version = |known: &Option<Result<RuntimeInfo, String>>| {
            known
                .as_ref()
                .and_then(|known| known.as_ref().ok())
                .map(|info| (info.name.clone(), info.version.clone()))
        };
        self.runtime = Some(match (info, self.runtime.take()) {
            (Ok(info), old) => {
                self.outdated |= version(&old) != Some((info.name.clone(), info.version.clone()));
                Ok(info)
            }
            (Err(error), _) => Err(error),
        });
        match &self.runtime {
            Some(Ok(info)) if info.not_ready.is_empty() => {
                let message = "edged is posting ready status".to_owned();
                self.set("Ready", true, "KubeletReady", message, now);
            }
            Some(Ok(info)) => {
                let message = info.not_ready.join("; ");
                self.set("Ready", false, "KubeletNotReady", message, now);
            }
            Some(Err(error)) => {
                let message = format!("container runtime is down: {error}");
                self.set("Ready", false, "KubeletNotReady", message, now);
            }
            None => {}
        }
    }

    pub(crate) fn handle_connectivity(&mut self, online: bool, now: Moment) {
        match (online, self.online_since) {
            (true, None) => (self.online_since, self.told) = (Some(now.at), false),
            (false, _) => self.online_since = None,
            (true, Some(_)) => {}
        }
    }

    /// When [`Self::poll_report`] may have something without a further input.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let first = self.online_since.filter(|_| !self.told).map(|since| since + PATIENCE);
        first.or_else(|| self.images_at())
    }

    /// The node's report, if it is due: at the beginning of a session, and when something has changed.
    pub(crate) fn poll_report(&mut self, now: Moment) -> Option<Report> {
        let since = self.online_since?;
        if self.runtime.is_none() && now.at < since + PATIENCE {
            return None;
        }
        let images = self.images_at().is_some_and(|at| now.at >= at);
        if self.told && !self.outdated && !images {
            return None;
        }
        if self.runtime.is_none() {
            let message = "the container runtime has not answered yet".to_owned();
            self.set("Ready", false, "KubeletNotReady", message, now);
        }
        (self.told, self.outdated, self.images_outdated) = (true, false, false);
        self.reported_at = Some(now.at);
        Some(Report::Node(NodeReport { json: self.json(now).to_string().into() }))
    }

    /// When the images are worth a report of their own.
    fn images_at(&self) -> Option<Instant> {
        let due = self.reported_at.filter(|_| self.images_outdated && self.online_since.is_some());
        due.map(|at| at + self.config.image_report_interval)
    }

    fn set(&mut self, kind: &'static str, holds: bool, reason: &'static str, message: String, now: Moment) {
        let known = self.conditions.get(kind);
        let same = known
            .is_some_and(|known| (known.holds, known.reason, &known.message) == (holds, reason, &message));
        self.outdated |= !same;
        let since_ms = known.filter(|known| known.holds == holds).map_or(now.unix_ms, |known| known.since_ms);
        self.conditions.insert(kind, Condition { holds, since_ms, reason, message });
    }

    /// The amounts as the API has them.
    fn resources(&self, amounts: &Amounts) -> Value {
        let shown = amounts.iter().map(|(name, amount)| {
            let text = match (name.as_str(), *amount) {
                ("cpu", milli) if milli % 1000 == 0 => (milli / 1000).to_string(),
                ("cpu", milli) => format!("{milli}m"),
                // As the kubelet writes it, which people compare with `free`.
                ("memory", bytes) => format!("{}Ki", bytes / 1024),
                (name, bytes) if name.starts_with("hugepages-") => binary(bytes),
                (_, amount) => amount.to_string(),
            };
            (name.clone(), Value::String(text))
        });
        let mut all: serde_json::Map<_, _> = shown.collect();
        all.insert("pods".to_owned(), self.config.max_pods.to_string().into());
        all.into()
    }

    fn json(&self, now: Moment) -> Value {
        let Self { config, machine, .. } = self;
        let name = config.node.as_str();
        let labels = own_labels(config);
        let conditions: Vec<Value> = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"]
            .iter()
            .filter_map(|kind| Some((kind, self.conditions.get(*kind)?)))
            .map(|(kind, condition)| {
                json!({
                    "type": kind,
                    "status": if condition.holds { "True" } else { "False" },
                    "reason": condition.reason,
                    "message": condition.message,
                    "lastHeartbeatTime": rfc3339(now.unix_ms),
                    "lastTransitionTime": rfc3339(condition.since_ms),
                })
            })
            .collect();
        let hostname = if machine.hostname.is_empty() { name } else { machine.hostname.as_str() };
        let mut addresses = vec![json!({ "type": "Hostname", "address": hostname })];
        if !config.node_ip.is_empty() {
            addresses.insert(0, json!({ "type": "InternalIP", "address": config.node_ip }));
        }
        let runtime = match &self.runtime {
            Some(Ok(info)) => format!("{}://{}", info.name, info.version.trim_start_matches('v')),
            Some(Err(_)) | None => "unknown://unknown".to_owned(),
        };
        let mut node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": name, "labels": labels, "annotations": config.annotations },
            "spec": {},
            "status": {
                "capacity": self.resources(&self.capacity()),
                "allocatable": self.resources(&self.allocatable()),
                "conditions": conditions,
                "addresses": addresses,
                "images": self.images,
                "nodeInfo": {
                    "machineID": machine.machine_id,
                    "systemUUID": machine.system_uuid,
                    "bootID": machine.boot_id,
                    "kernelVersion": machine.kernel,
                    "osImage": machine.os_image,
                    "containerRuntimeVersion": runtime,
                    "kubeletVersion": config.version,
                    "kubeProxyVersion": "",
                    "operatingSystem": "linux",
                    "architecture": architecture(),
                },
            },
        });
        if let Some(port) = config.api_port {
            node["status"]["daemonEndpoints"] = json!({ "kubeletEndpoint": { "Port": port } });
        }
        if !config.register_schedulable {
            node["spec"]["unschedulable"] = json!(true);
        }
        if !config.taints.is_empty() {
            let taint = |taint: &super::Taint| match taint.value.as_str() {
                "" => json!({ "key": taint.key, "effect": taint.effect }),
                value => json!({ "key": taint.key, "value": value, "effect": taint.effect }),
            };
            node["spec"]["taints"] = config.taints.iter().map(taint).collect();
        }
        node
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edged::{Reserved, eviction::Level};

    fn node(config: impl FnOnce(&mut Config)) -> (Node, Moment) {
        let mut whole = Config::new("edge-1".parse().unwrap());
        config(&mut whole);
        let machine = Machine {
            cpus: 4,
            memory_bytes: 4 << 30,
            huge_pages: [("hugepages-2Mi".to_owned(), 64 << 20)].into(),
            ..Machine::default()
        };
        (Node::new(whole, machine), Moment { at: Instant::now(), unix_ms: 1_700_000_000_000 })
    }

    fn usage(memory_mib: i64, disk_percent: i64) -> Usage {
        let disk = Level { capacity: 100 << 30, available: (disk_percent << 30) };
        let memory = Level { capacity: 4 << 30, available: memory_mib << 20 };
        Usage { memory, disk, ..Usage::default() }
    }

    #[test]
    fn what_is_kept_back_and_what_must_be_left_is_not_allocatable() {
        let (mut node, now) = node(|config| {
            config.kube_reserved =
                Reserved { cpu_milli: 100, memory_bytes: 200 << 20, ephemeral_storage_bytes: 1 << 30 };
            config.system_reserved =
                Reserved { cpu_milli: 150, memory_bytes: 56 << 20, ephemeral_storage_bytes: 0 };
        });
        node.handle_usage(usage(2000, 50), now);
        let status = &node.json(now)["status"];
        let capacity = json!({ "cpu": "4", "memory": "4194304Ki", "ephemeral-storage": "107374182400",
            "hugepages-2Mi": "64Mi", "pods": "110" });
        assert_eq!(status["capacity"], capacity);
        // 4 GiB without 200 MiB, 56 MiB, the threshold's 100 MiB, and the huge pages' 64 MiB.
        let allocatable = json!({ "cpu": "3750m", "memory": "3764224Ki", "ephemeral-storage": "95563022336",
            "hugepages-2Mi": "64Mi", "pods": "110" });
        assert_eq!(status["allocatable"], allocatable);
        assert_eq!(node.room().allocatable["cpu"], 3750);
    }

    #[test]
    fn the_port_of_the_interface_is_reported_if_there_is_one() {
        let (node, now) = node(|config| config.api_port = Some(10350));
        assert_eq!(
            node.json(now)["status"]["daemonEndpoints"],
            json!({ "kubeletEndpoint": { "Port": 10350 } })
        );
        let (node, now) = self::node(|_| {});
        assert_eq!(node.json(now)["status"]["daemonEndpoints"], Value::Null);
    }

    #[test]
    fn more_kept_back_than_there_is_leaves_nothing_and_not_less() {
        let (mut node, now) = node(|config| config.kube_reserved.memory_bytes = 5 << 30);
        node.handle_usage(usage(2000, 50), now);
        assert_eq!(node.json(now)["status"]["allocatable"]["memory"], "0Ki");
    }

    #[test]
    fn a_pressure_is_a_condition_with_the_kubelets_words() {
        let (mut node, mut now) = node(|_| {});
        node.handle_usage(usage(99, 9), now);
        let condition = |node: &Node, now: Moment, kind: &str| {
            let conditions = node.json(now)["status"]["conditions"].as_array().unwrap().clone();
            let found = conditions.into_iter().find(|condition| condition["type"] == kind).unwrap();
            (found["status"].clone(), found["reason"].clone(), found["message"].clone())
        };
        let memory = (
            "True".into(),
            "KubeletHasInsufficientMemory".into(),
            "kubelet has insufficient memory available".into(),
        );
        assert_eq!(condition(&node, now, "MemoryPressure"), memory);
        assert_eq!(condition(&node, now, "DiskPressure").1, "KubeletHasDiskPressure");
        assert_eq!(condition(&node, now, "PIDPressure").2, "kubelet has sufficient PID available");
        assert_eq!(node.shortage(now).unwrap().signal, Signal::Memory);
        now.at += Duration::from_secs(300);
        node.handle_usage(usage(2000, 50), now);
        assert_eq!(condition(&node, now, "MemoryPressure").1, "KubeletHasSufficientMemory");
    }
}
