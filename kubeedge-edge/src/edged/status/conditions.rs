//! The conditions of a pod.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{containers::Scene, phase::Phase};
use crate::edged::{state::Moment, text::rfc3339};

/// The conditions of a pod that gets other resources.
const RESIZE_PENDING: &str = "PodResizePending";
const RESIZE_IN_PROGRESS: &str = "PodResizeInProgress";

/// A condition before it is known since when it has been so.
#[derive(Debug, Clone)]
pub(super) struct Condition {
    kind: &'static str,
    status: bool,
    reason: &'static str,
    message: String,
}

impl Condition {
    fn yes(kind: &'static str) -> Self {
        Self { kind, status: true, reason: "", message: String::new() }
    }

    fn no(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, status: false, reason, message: message.into() }
    }

    /// Writes it with the time since when it has its status.
    pub(super) fn write(
        self,
        since: &mut BTreeMap<String, (String, String)>,
        generation: Option<i64>,
        now: Moment,
    ) -> Value {
        let word = if self.status { "True" } else { "False" };
        let known = since.get(self.kind).filter(|(was, _)| *was == word);
        let time = known.map_or_else(|| rfc3339(now.unix_ms), |(_, time)| time.clone());
        since.insert(self.kind.to_owned(), (word.to_owned(), time.clone()));
        let mut value = json!({
            "type": self.kind, "status": word, "lastProbeTime": null, "lastTransitionTime": time,
        });
        if !self.reason.is_empty() {
            value["reason"] = json!(self.reason);
        }
        if !self.message.is_empty() {
            value["message"] = json!(self.message);
        }
        if let Some(generation) = generation {
            value["observedGeneration"] = json!(generation);
        }
        value
    }
}

/// Forgets since when those conditions hold that come and go.
pub(super) fn forget_absent(since: &mut BTreeMap<String, (String, String)>, all: &[Condition]) {
    let absent = |kind: &&str| all.iter().all(|condition| condition.kind != *kind);
    for kind in [RESIZE_PENDING, RESIZE_IN_PROGRESS].iter().filter(|kind| absent(kind)) {
        since.remove(*kind);
    }
}

pub(super) fn of(scene: &Scene<'_>, init: &[Value], containers: &[Value], phase: Phase) -> Vec<Condition> {
    let Scene { entry, sandboxes, .. } = *scene;
    let network = sandboxes.last().is_some_and(|sandbox| sandbox.ready);
    let network = if network {
        Condition::yes("PodReadyToStartContainers")
    } else {
        Condition::no("PodReadyToStartContainers", "", "")
    };
    let containers_ready = containers_ready(scene, init, containers, phase);
    let mut all = vec![
        network,
        initialized(scene, init, containers, phase),
        ready(scene, &containers_ready),
        containers_ready,
        Condition::yes("PodScheduled"),
    ];
    if let Some(verdict) = &entry.verdict
        && let Some(reason) = verdict.disruption
    {
        let message = verdict.message.clone();
        all.push(Condition { kind: "DisruptionTarget", status: true, reason, message });
    }
    if let Some((reason, message)) = entry.resize_refusal() {
        all.push(Condition { kind: RESIZE_PENDING, status: true, reason, message });
    }
    if let Some(failed) = entry.resizing(sandboxes) {
        let (reason, message) = failed.map_or(("", String::new()), |message| ("Error", message));
        all.push(Condition { kind: RESIZE_IN_PROGRESS, status: true, reason, message });
    }
    if entry.held {
        let message = "Upgrade is currently held due to edge-hold-upgrade annotation".to_owned();
        all.push(Condition { kind: "HeldUpgrade", status: true, reason: "HoldUpgradeEnabled", message });
    } else if entry.released && entry.shown.since.contains_key("HeldUpgrade") {
        // What was once said to be so stays in the API until it is said not to be so.
        all.push(Condition::no("HeldUpgrade", "Released", ""));
    }
    all
}

fn initialized(scene: &Scene<'_>, init: &[Value], containers: &[Value], phase: Phase) -> Condition {
    const KIND: &str = "Initialized";
    if phase == Phase::Succeeded {
        return Condition { reason: "PodCompleted", ..Condition::yes(KIND) };
    }
    let begun = containers.iter().any(|one| !one["containerID"].is_null());
    let done = |(container, status): (&crate::edged::pod::Container, &Value)| {
        if container.is_sidecar() { status["started"] == true } else { status["ready"] == true }
    };
    let pairs = scene.pod.spec.init_containers.iter().zip(init);
    let incomplete: Vec<&str> =
        pairs.filter(|pair| !done(*pair)).map(|(container, _)| container.name.as_str()).collect();
    if incomplete.is_empty() || begun {
        return Condition::yes(KIND);
    }
    let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
    Condition::no(KIND, "ContainersNotInitialized", message)
}

fn containers_ready(scene: &Scene<'_>, init: &[Value], containers: &[Value], phase: Phase) -> Condition {
    const KIND: &str = "ContainersReady";
    match phase {
        Phase::Succeeded => return Condition::no(KIND, "PodCompleted", ""),
        Phase::Failed => return Condition::no(KIND, "PodFailed", ""),
        Phase::Pending | Phase::Running => {}
    }
    let pairs = scene.pod.spec.init_containers.iter().zip(init);
    let sidecars = pairs.filter(|(container, _)| container.is_sidecar()).map(|(_, status)| status);
    let unready: Vec<&str> = sidecars
        .chain(containers)
        .filter(|status| status["ready"] != true)
        .filter_map(|status| status["name"].as_str())
        .collect();
    if unready.is_empty() {
        return Condition::yes(KIND);
    }
    let message = format!("containers with unready status: [{}]", unready.join(" "));
    Condition::no(KIND, "ContainersNotReady", message)
}

/// Ready: its containers are, and so say all that the pod's readiness gates name.
fn ready(scene: &Scene<'_>, containers: &Condition) -> Condition {
    const KIND: &str = "Ready";
    if !containers.status {
        return Condition { kind: KIND, ..containers.clone() };
    }
    let gates = scene.pod.spec.readiness_gates.iter().map(|gate| &gate.condition_type);
    let closed = gates.filter_map(|gate| match scene.entry.shown.gates.get(gate).map(String::as_str) {
        None => Some(format!("corresponding condition of pod readiness gate \"{gate}\" does not exist.")),
        Some("True") => None,
        Some(word) => {
            Some(format!("the status of pod readiness gate \"{gate}\" is not \"True\", but {word}"))
        }
    });
    let closed: Vec<String> = closed.collect();
    if closed.is_empty() {
        Condition::yes(KIND)
    } else {
        Condition::no(KIND, "ReadinessGatesNotReady", closed.join(", "))
    }
}
