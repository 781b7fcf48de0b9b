//! A pod's status, as the kubelet writes it. Pure.

mod conditions;
mod containers;
mod past;
mod phase;

use std::collections::BTreeMap;

use bytes::Bytes;
use kubeedge_core::{
    message::{PodReport, PodState},
    runtime::{ContainerId, ObservedSandbox},
};
use serde_json::{Value, json};

pub(crate) use self::past::Past;
use self::{containers::Scene, past::Live, phase::Phase};
use super::{
    Config,
    make::qos_class,
    pod::Pod,
    state::{Entry, Moment, ProbeKind, Stage},
    text::{rfc3339, unix_ms},
};

/// What of a pod's status is kept between two of them.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    /// The last one.
    pub(crate) status: Option<Bytes>,
    phase: Option<Phase>,
    start_time: Option<String>,
    /// Each condition's status, and since when it has it.
    since: BTreeMap<String, (String, String)>,
    /// The newest ends of each container, the newest last; at most two.
    pasts: BTreeMap<String, Vec<Past>>,
    /// The instance of each container that was last seen running.
    live: BTreeMap<String, Live>,
    /// What an earlier process said of instances that ran: whether they were ready, and had started.
    restored: BTreeMap<String, (bool, bool)>,
    /// The conditions that others have set, as far as the node was told.
    gates: BTreeMap<String, String>,
}

impl Shown {
    /// Takes over the times that the API already knows, so that a restart does not move them.
    pub(crate) fn seed(&mut self, pod: Option<&Pod>) {
        let Some(old) = pod.map(|pod| &pod.status) else { return };
        if self.start_time.is_none() {
            self.start_time.clone_from(&old.start_time);
        }
        self.gates.clear();
        for condition in &old.conditions {
            self.gates.insert(condition.kind.clone(), condition.status.clone());
            if let Some(time) = &condition.last_transition_time {
                let known = (condition.status.clone(), time.clone());
                self.since.entry(condition.kind.clone()).or_insert(known);
            }
        }
    }

    /// Takes over what an earlier process said. Returns the attempts of the containers.
    pub(crate) fn restore(&mut self, status: &Value) -> BTreeMap<String, u32> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        self.phase = Phase::read(&status["phase"]).filter(|phase| phase.is_terminal());
        self.start_time = text(&status["startTime"]);
        for condition in status["conditions"].as_array().into_iter().flatten() {
            let since = (text(&condition["status"]), text(&condition["lastTransitionTime"]));
            if let (Some(kind), (Some(word), Some(time))) = (text(&condition["type"]), since) {
                self.since.insert(kind, (word, time));
            }
        }
        let mut attempts = BTreeMap::new();
        let lists = [&status["initContainerStatuses"], &status["containerStatuses"]];
        for container in lists.into_iter().filter_map(Value::as_array).flatten() {
            let Some(name) = text(&container["name"]) else { continue };
            let attempt =
                container["restartCount"].as_u64().and_then(|it| u32::try_from(it).ok()).unwrap_or(0);
            let id = text(&container["containerID"]).unwrap_or_default();
            if !id.is_empty() {
                attempts.insert(name.clone(), attempt);
            }
            self.pasts.insert(name.clone(), past::read(container, attempt));
            if let Some(live) = Live::read(container, attempt) {
                let flag = |name: &str| container[name] == true;
                self.restored.insert(id, (flag("ready"), flag("started")));
                self.live.insert(name, live);
            }
        }
        attempts
    }

    /// What was known of a running instance's probe before this process.
    pub(crate) fn restored(&self, id: &ContainerId, kind: ProbeKind) -> Option<bool> {
        let found = self.restored.iter().find(|(full, _)| past::bare(full) == id.0);
        found.map(|(_, (ready, started))| match kind {
            ProbeKind::Readiness => *ready,
            ProbeKind::Startup => *started,
            ProbeKind::Liveness => true,
        })
    }

    /// Whether the last one said that the pod has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.phase.is_some_and(Phase::is_terminal)
    }

    /// When the pod was first seen by a node.
    pub(crate) fn started_ms(&self) -> Option<u64> {
        self.start_time.as_deref().and_then(unix_ms)
    }

    /// The newest end of a container.
    pub(crate) fn last_end(&self, container: &str) -> Option<&Past> {
        self.pasts.get(container)?.last()
    }
}

/// The pod's report, if its status is another one than the last.
pub(crate) fn changed(
    entry: &mut Entry,
    sandboxes: &[ObservedSandbox],
    config: &Config,
    runtime: &str,
    now: Moment,
) -> Option<PodReport> {
    // A container's end is told together with what it said.
    if entry.stage != Stage::Wanted || entry.is_reading() {
        return None;
    }
    let status = match entry.pod.clone()? {
        // What its containers were when they stopped is the last word on a pod that goes.
        Ok(_) if entry.is_ending() && sandboxes.iter().all(|sandbox| sandbox.containers.is_empty()) => {
            return None;
        }
        // What the API has is more than an empty node can say of a pod that ended earlier.
        Ok(pod) if sandboxes.is_empty() && pod.had_ended() => return None,
        Ok(pod) => whole(&pod, entry, sandboxes, config, runtime, now),
        Err(invalid) => {
            entry.shown.phase = Some(Phase::Failed);
            json!({ "phase": "Failed", "reason": invalid.reason, "message": invalid.message })
        }
    };
    let bytes = Bytes::from(status.to_string());
    if entry.shown.status.as_ref() == Some(&bytes) {
        return None;
    }
    entry.shown.status = Some(bytes.clone());
    let (reference, uid) = (entry.reference.clone(), entry.uid.clone());
    Some(PodReport { reference, uid, state: PodState::Status(bytes) })
}

fn whole(
    pod: &Pod,
    entry: &mut Entry,
    sandboxes: &[ObservedSandbox],
    config: &Config,
    runtime: &str,
    now: Moment,
) -> Value {
    past::remember(entry, pod, sandboxes, runtime);
    let scene = Scene { pod, entry, sandboxes, runtime, now };
    let init = scene.statuses(&pod.spec.init_containers);
    let containers = scene.statuses(&pod.spec.containers);
    let phase = phase::of(&scene, &init, &containers);
    let conditions = conditions::of(&scene, &init, &containers, phase);
    let shown = &mut entry.shown;
    shown.phase = Some(phase);
    conditions::forget_absent(&mut shown.since, &conditions);
    let start = shown.start_time.get_or_insert_with(|| {
        let created = sandboxes.iter().map(|sandbox| sandbox.created_at_ms).filter(|at| *at > 0).min();
        rfc3339(created.unwrap_or(now.unix_ms).min(now.unix_ms))
    });
    let start = start.clone();
    let generation = pod.metadata.generation.filter(|generation| *generation > 0);
    let conditions: Vec<Value> =
        conditions.into_iter().map(|condition| condition.write(&mut shown.since, generation, now)).collect();
    let mut status = json!({
        "phase": phase.word(),
        "conditions": conditions,
        "startTime": start,
        "qosClass": qos_class(pod),
        "containerStatuses": containers,
    });
    if let Some(generation) = generation {
        status["observedGeneration"] = json!(generation);
    }
    if let Some(verdict) = &entry.verdict {
        status["reason"] = json!(verdict.reason);
        status["message"] = json!(verdict.message);
    }
    if !init.is_empty() {
        status["initContainerStatuses"] = Value::Array(init);
    }
    if !config.node_ip.is_empty() {
        status["hostIP"] = json!(config.node_ip);
        status["hostIPs"] = json!([{ "ip": config.node_ip }]);
    }
    if let Some(ip) = entry.ips.first() {
        status["podIP"] = json!(ip);
        status["podIPs"] = entry.ips.iter().map(|ip| json!({ "ip": ip })).collect();
    }
    status
}
