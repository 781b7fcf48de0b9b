//! Which pods are let in: in the order of their creation, each beside those that were before.
//!
//! A pod that ran here was let in once, and is never turned away afterwards, whatever has changed of the node.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use kubeedge_core::{id::Uid, message::Object, runtime::ObservedSandbox};
use serde::Deserialize;
use tracing::info;

use super::{Entry, Moment, Output, QUIET, Settled, Stage, State, Verdict, is_running};
use crate::edged::{
    Taint,
    admission::{self, Judgement, Refusal, Room},
    events::{Kind, Note},
    eviction::Pressure,
    make::qos_class,
    pod::Pod,
};

/// How long the API's answer about the node is waited for. 10 s: then what the node knows of itself has to do.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// What the API has of this node.
#[derive(Deserialize)]
struct NodeObject {
    metadata: NodeMetadata,
    #[serde(default)]
    spec: NodeSpec,
}

#[derive(Deserialize)]
struct NodeMetadata {
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
struct NodeSpec {
    #[serde(default)]
    taints: Vec<NodeTaint>,
}

#[derive(Deserialize)]
struct NodeTaint {
    key: String,
    #[serde(default)]
    value: String,
    effect: String,
}

impl State {
    /// Takes what the node offers, and what it is short of.
    pub(crate) fn handle_room(&mut self, room: Room, pressures: BTreeSet<Pressure>) {
        self.pressures = pressures;
        match &mut self.room {
            // What the API has said of labels and taints holds longer than what the node knows.
            Some(known) => (known.allocatable, known.pods) = (room.allocatable, room.pods),
            None => self.room = Some(room),
        }
    }

    /// Takes what the API has of the node; `None` if it could not be asked.
    pub(crate) fn handle_node(&mut self, node: Option<&Object>) {
        self.asking = None;
        let Some(room) = &mut self.room else { return };
        let node = node.and_then(|node| serde_json::from_slice::<NodeObject>(&node.json).ok());
        let confirmed = node.is_some();
        if let Some(node) = node {
            room.labels = node.metadata.labels;
            let taint = |taint: NodeTaint| Taint { key: taint.key, value: taint.value, effect: taint.effect };
            room.taints = node.spec.taints.into_iter().map(taint).collect();
        }
        // It holds for those that wait: a later pod may want a label that is set in the meantime.
        let room = Room { confirmed, ..room.clone() };
        self.judge_waiting(&room, None);
    }

    /// Judges the pods that are not let in yet. Before everything is known that ran, nothing is judged.
    pub(super) fn admit(&mut self, now: Moment) {
        let Some(room) = self.room.clone() else { return };
        let observed = &self.observed;
        for entry in self.pods.values_mut().filter(|entry| !entry.admitted) {
            entry.admitted = observed.contains_key(&entry.uid) || entry.needs_no_judgement();
        }
        let late = self.asking.is_some_and(|until| now.at >= until);
        if (self.asking.is_some() && !late) || self.others_may_run(now) {
            return;
        }
        self.asking = None;
        let may_ask = self.online && !late;
        self.judge_waiting(&room, may_ask.then_some(now.at + ANSWER_WAIT));
        self.judge_resizes(&room);
    }

    /// Judges one after the other; `ask` is until when the API would be waited for, if it may be asked.
    fn judge_waiting(&mut self, room: &Room, ask: Option<Instant>) {
        let waiting = self.pods.values().filter(|entry| !entry.admitted && !self.waits_for_older(entry));
        let waiting = waiting.filter_map(|entry| Some((entry.wanted()?.rank(), entry.uid.clone())));
        let mut waiting: Vec<_> = waiting.collect();
        waiting.sort();
        for (_, uid) in waiting {
            match (self.judge(&uid, room), ask) {
                (Some(Judgement::Refused(refusal)), _) => self.refuse(&uid, refusal),
                (Some(Judgement::AskForNode), Some(until)) => {
                    self.asking = Some(until);
                    self.outputs.push_back(Output::AskForNode);
                    return;
                }
                // Where nobody can be asked, the scheduler that has chosen this node will have known.
                (Some(Judgement::Admitted | Judgement::AskForNode), _) => self.let_in(&uid),
                (None, _) => {}
            }
        }
    }

    fn judge(&self, uid: &Uid, room: &Room) -> Option<Judgement> {
        let pod = self.pods.get(uid)?.wanted()?;
        if let Some(refusal) = under_pressure(pod, &self.pressures) {
            return Some(Judgement::Refused(refusal));
        }
        let others = self.pods.values();
        let others = others.filter(|other| other.uid != *uid && other.admitted && other.takes_room());
        Some(admission::admit(pod, others.filter_map(Entry::wanted), room, pod.is_static()))
    }

    /// All sandboxes that were seen last.
    pub(crate) fn sandboxes(&self) -> impl Iterator<Item = &ObservedSandbox> {
        self.observed.values().flatten()
    }

    /// The pods that run and may end for the node's sake.
    pub(crate) fn running(&self) -> impl Iterator<Item = (&Entry, &Pod)> {
        let runs = |entry: &&Entry| {
            let sandboxes = self.observed.get(&entry.uid).into_iter().flatten();
            let alive = sandboxes.flat_map(|sandbox| &sandbox.containers).any(is_running);
            alive && entry.verdict.is_none() && !entry.is_ending()
        };
        self.pods.values().filter(runs).filter_map(|entry| Some((entry, entry.wanted()?)))
    }

    /// Whether a pod that had to end still runs.
    pub(crate) fn is_evicting(&self) -> bool {
        let ends = |entry: &Entry| {
            let sandboxes = self.observed.get(&entry.uid).into_iter().flatten();
            let evicted = entry.verdict.as_ref().is_some_and(|verdict| verdict.reason == "Evicted");
            evicted && sandboxes.flat_map(|sandbox| &sandbox.containers).any(is_running)
        };
        self.pods.values().any(ends)
    }

    fn let_in(&mut self, uid: &Uid) {
        if let Some(entry) = self.pods.get_mut(uid) {
            (entry.admitted, entry.changed) = (true, true);
        }
    }

    fn refuse(&mut self, uid: &Uid, refusal: Refusal) {
        let Refusal { reason, message } = refusal;
        if let Some(entry) = self.pods.get_mut(uid) {
            info!(pod = %entry.reference, reason, message, "the pod is turned away");
            entry.admitted = true;
        }
        let note = Note::of_pod(Kind::Warning, reason.clone(), message.clone());
        let message = format!("Pod was rejected: {message}");
        self.handle_verdict(uid, Verdict { reason, message, grace: None, disruption: None }, note);
    }

    /// Whether something runs of which it is not known yet what it was given.
    fn others_may_run(&self, now: Moment) -> bool {
        self.pods.values().any(|entry| entry.stage == Stage::Orphan && !entry.deleted)
            && self.admits_at().is_some_and(|at| now.at < at)
    }

    /// After a start pods come one after the other; a new one must not be judged before those that run.
    fn admits_at(&self) -> Option<Instant> {
        match self.settled {
            Settled::Waiting { quiet_since, .. } => {
                Some((quiet_since + QUIET).min(self.started + self.config.orphan_grace))
            }
            Settled::Yes | Settled::Never => None,
        }
    }

    /// When pods that wait for it are judged at the latest.
    pub(super) fn admission_timeout(&self) -> Option<Instant> {
        let waiting = self.room.is_some()
            && self.pods.values().any(|entry| !entry.admitted && entry.wanted().is_some());
        let observed = self.observed_epoch.is_some();
        if waiting && observed { self.asking.or_else(|| self.admits_at()) } else { None }
    }
}

impl Entry {
    /// Whether it is none of those that may be turned away.
    fn needs_no_judgement(&self) -> bool {
        let known = self.wanted().is_some_and(|pod| pod.had_ended() || pod.status.phase == "Running");
        self.stage != Stage::Wanted
            || self.ran
            || known
            || self.is_ending()
            || self.verdict.is_some()
            || self.wanted().is_none()
    }

    /// Whether what it was given is not free yet.
    pub(super) fn takes_room(&self) -> bool {
        let ended = self.shown.has_ended() || self.wanted().is_some_and(Pod::had_ended);
        self.stage == Stage::Wanted && !ended
    }
}

impl Pod {
    /// Whether it comes from a file of the node.
    pub(crate) fn is_static(&self) -> bool {
        self.metadata.annotations.get("kubernetes.io/config.source").is_some_and(|source| source == "file")
    }

    /// Pods of files before others, as they are what the node needs to work, then by age.
    pub(super) fn rank(&self) -> (bool, String) {
        (!self.is_static(), self.metadata.creation_timestamp.clone().unwrap_or_default())
    }
}

/// Why a node that is short of something takes no more of this pod's kind.
fn under_pressure(pod: &Pod, pressures: &BTreeSet<Pressure>) -> Option<Refusal> {
    let only_memory = pressures.iter().all(|pressure| *pressure == Pressure::Memory);
    let tolerates = || {
        pod.spec.tolerations.iter().any(|toleration| {
            let key = toleration.key == "node.kubernetes.io/memory-pressure" || toleration.key.is_empty();
            key && toleration.operator == "Exists" && ["", "NoSchedule"].contains(&toleration.effect.as_str())
        })
    };
    let spared = pressures.is_empty()
        || admission::is_critical(pod)
        || (only_memory && (qos_class(pod) != "BestEffort" || tolerates()));
    (!spared).then(|| {
        let names = pressures.iter().map(|pressure| match pressure {
            Pressure::Memory => "MemoryPressure",
            Pressure::Disk => "DiskPressure",
            Pressure::Pids => "PIDPressure",
        });
        let names: Vec<_> = names.collect();
        let message = format!("The node had condition: [{}]. ", names.join(" "));
        Refusal { reason: "Evicted".to_owned(), message }
    })
}
