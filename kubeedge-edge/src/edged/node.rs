//! The node's own report. Pure.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use kubeedge_core::{
    message::{NodeReport, Report},
    runtime::{RuntimeError, RuntimeInfo},
};
use serde_json::{Value, json};

use super::{
    Config,
    host::{Machine, Usage, architecture},
    state::Moment,
    status::rfc3339,
};

/// What is known of the node, and what of it the cloud was told.
#[derive(Debug)]
pub(crate) struct Node {
    config: Config,
    machine: Machine,
    usage: Usage,
    runtime: Option<Result<RuntimeInfo, String>>,
    online_since: Option<Instant>,
    told: bool,
    conditions: BTreeMap<&'static str, Condition>,
    outdated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Condition {
    holds: bool,
    since_ms: u64,
    reason: &'static str,
    message: String,
    /// When the measurement was last bad.
    bad_at: Option<Instant>,
}

/// How long the first report waits for the runtime to say how it is; a slow one must not keep the node away.
const PATIENCE: Duration = Duration::from_millis(200);

/// 5 min: a pressure is over when it has not been met for so long, as with the kubelet.
const PRESSURE_LASTS: Duration = Duration::from_secs(300);

impl Node {
    pub(crate) fn new(config: Config, machine: Machine) -> Self {
        Self {
            config,
            machine,
            usage: Usage::default(),
            runtime: None,
            online_since: None,
            told: false,
            conditions: BTreeMap::new(),
            outdated: false,
        }
    }

    pub(crate) fn handle_usage(&mut self, usage: Usage, now: Moment) {
        self.outdated |= self.usage.disk_bytes != usage.disk_bytes;
        self.usage = usage;
        // The kubelet's default thresholds: 100 MiB of memory, a tenth of the disk, a twentieth of inodes.
        let memory = usage.memory_available < 100 << 20;
        let disk = usage.disk_available < usage.disk_bytes / 10 || usage.inodes_available < usage.inodes / 20;
        let pids = usage.pids > usage.pids_max / 10 * 9;
        let words = [
            ("MemoryPressure", memory, ["KubeletHasSufficientMemory", "KubeletHasInsufficientMemory"]),
            ("DiskPressure", disk, ["KubeletHasNoDiskPressure", "KubeletHasDiskPressure"]),
            ("PIDPressure", pids, ["KubeletHasSufficientPID", "KubeletHasInsufficientPID"]),
        ];
        for (kind, bad, [good_reason, bad_reason]) in words {
            let known = self.conditions.get(kind);
            let bad_at = if bad { Some(now.at) } else { known.and_then(|known| known.bad_at) };
            let holds = bad || bad_at.is_some_and(|bad_at| now.at < bad_at + PRESSURE_LASTS);
            let reason = if holds { bad_reason } else { good_reason };
            self.set(kind, holds, reason, String::new(), bad_at, now);
        }
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
                self.set("Ready", true, "KubeletReady", message, None, now);
            }
            Some(Ok(info)) => {
                let message = info.not_ready.join("; ");
                self.set("Ready", false, "KubeletNotReady", message, None, now);
            }
            Some(Err(error)) => {
                let message = format!("container runtime is down: {error}");
                self.set("Ready", false, "KubeletNotReady", message, None, now);
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
        self.online_since.filter(|_| !self.told).map(|since| since + PATIENCE)
    }

    /// The node's report, if it is due: at the beginning of a session, and when something has changed.
    pub(crate) fn poll_report(&mut self, now: Moment) -> Option<Report> {
        let since = self.online_since?;
        if self.runtime.is_none() && now.at < since + PATIENCE {
            return None;
        }
        if self.told && !self.outdated {
            return None;
        }
        if self.runtime.is_none() {
            let message = "the container runtime has not answered yet".to_owned();
            self.set("Ready", false, "KubeletNotReady", message, None, now);
        }
        (self.told, self.outdated) = (true, false);
        Some(Report::Node(NodeReport { json: self.json(now).to_string().into() }))
    }

    fn set(
        &mut self,
        kind: &'static str,
        holds: bool,
        reason: &'static str,
        message: String,
        bad_at: Option<Instant>,
        now: Moment,
    ) {
        let known = self.conditions.get(kind);
        let same = known
            .is_some_and(|known| (known.holds, known.reason, &known.message) == (holds, reason, &message));
        self.outdated |= !same;
        let since_ms = known.filter(|known| known.holds == holds).map_or(now.unix_ms, |known| known.since_ms);
        self.conditions.insert(kind, Condition { holds, since_ms, reason, message, bad_at });
    }

    fn json(&self, now: Moment) -> Value {
        let Self { config, machine, usage, .. } = self;
        let name = config.node.as_str();
        let mut labels: BTreeMap<&str, &str> = BTreeMap::from([
            ("kubernetes.io/hostname", name),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", architecture()),
            ("beta.kubernetes.io/os", "linux"),
            ("beta.kubernetes.io/arch", architecture()),
            // KubeEdge's own two, by which its users select edge nodes.
            ("node-role.kubernetes.io/edge", ""),
            ("node-role.kubernetes.io/agent", ""),
        ]);
        labels.extend(config.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        let resources = json!({
            "cpu": machine.cpus.to_string(),
            "memory": format!("{}Ki", machine.memory_bytes / 1024),
            "ephemeral-storage": usage.disk_bytes.to_string(),
            "pods": config.max_pods.to_string(),
        });
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
                "capacity": resources,
                "allocatable": resources,
                "conditions": conditions,
                "addresses": addresses,
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
