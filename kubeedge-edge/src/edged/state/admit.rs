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

use super::{
    Entry, Moment, Output, Stage, State, Verdict, is_running,
    settling::{QUIET, Settled},
};
use crate::edged::{
    Taint,
    admission::{self, Judgement, Refusal, Room},
    devices::{Question, Wanted},
    events::{Kind, Note},
    eviction::Pressure,
    make::qos_class,
    pod::{Container, Pod},
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

    /// Whether it is known what the node offers.
    pub(crate) fn knows_room(&self) -> bool {
        self.room.is_some()
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
                (Some(Judgement::Preempts(victims)), _) => self.preempt(&uid, &victims),
                (Some(Judgement::AskForNode), Some(until)) => {
                    self.asking = Some(until);
                    self.outputs.push_back(Output::AskForNode);
                    return;
                }
                // Where nobody can be asked, the scheduler that has chosen this node will have known.
                (Some(Judgement::Admitted | Judgement::AskForNode), _) => self.let_in(&uid),
                (Some(Judgement::Waits) | None, _) => {}
            }
        }
    }

    fn judge(&self, uid: &Uid, room: &Room) -> Option<Judgement> {
        let pod = self.pods.get(uid)?.wanted()?;
        if let Some(refusal) = under_pressure(pod, &self.pressures) {
            return Some(Judgement::Refused(refusal));
        }
        let others = self.others(uid);
        let judgement =
            admission::admit(pod, others.clone().filter_map(Entry::wanted), room, pod.is_static());
        let Judgement::Refused(refusal) = judgement else { return Some(judgement) };
        if !refusal.is_about_room() || !admission::is_critical(pod) {
            return Some(Judgement::Refused(refusal));
        }
        let staying = others.filter(|other| other.verdict.is_none() && !other.is_ending());
        let staying: Vec<&Pod> = staying.filter_map(Entry::wanted).collect();
        if admission::missing(pod, staying.iter().copied(), room).is_none() {
            return Some(Judgement::Waits);
        }
        let victims = admission::victims(pod, &staying, room);
        Some(victims.map_or(Judgement::Refused(refusal), Judgement::Preempts))
    }

    /// The pods besides this one that were let in and have what they were given.
    pub(super) fn others<'a>(&'a self, uid: &'a Uid) -> impl Iterator<Item = &'a Entry> + Clone {
        self.pods.values().filter(move |other| other.uid != *uid && other.admitted && self.takes_room(other))
    }

    /// Whether what a pod was given is not free yet: it has not ended, or some of it still runs.
    fn takes_room(&self, entry: &Entry) -> bool {
        let ended = entry.shown.has_ended() || entry.wanted().is_some_and(Pod::had_ended);
        let mut containers =
            self.observed.get(&entry.uid).into_iter().flatten().flat_map(|sandbox| &sandbox.containers);
        entry.stage == Stage::Wanted && (!ended || containers.any(is_running))
    }

    /// Counts what the pods are promised that share the processors by their requests.
    pub(super) fn share(&mut self) {
        let active = self.pods.values().filter(|entry| entry.admitted && self.takes_room(entry));
        let burstable = active.filter_map(Entry::wanted).filter(|pod| qos_class(pod) == "Burstable");
        let promised = burstable.map(|pod| admission::requests(pod).get("cpu").copied().unwrap_or(0));
        let promised = promised.fold(0, i64::saturating_add);
        if self.shared.replace(promised) != Some(promised) {
            self.outputs.push_back(Output::Share(promised));
        }
    }

    /// Lets pods go so that a critical one can be let in when they have.
    fn preempt(&mut self, uid: &Uid, victims: &[Uid]) {
        let pod = self.pods.get(uid).map(|entry| entry.reference.to_string()).unwrap_or_default();
        for victim in victims {
            info!(pod, %victim, "a pod goes so that a critical one fits");
            let verdict = Verdict::preempted();
            let note = Note::of_pod(Kind::Warning, "Preempting", verdict.message.clone());
            self.handle_verdict(victim, verdict, note);
        }
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
        let question = self.device_question(uid);
        if let Some(entry) = self.pods.get_mut(uid) {
            (entry.admitted, entry.changed) = (true, true);
            if let Some(question) = question {
                entry.allocating = true;
                self.outputs.push_back(Output::Allocate(uid.clone(), question));
            }
        }
    }

    fn device_question(&self, uid: &Uid) -> Option<Question> {
        let pod = self.pods.get(uid)?.wanted()?;
        let offered = &self.room.as_ref()?.allocatable;
        let containers: Vec<_> = pod
            .spec
            .init_containers
            .iter()
            .chain(&pod.spec.containers)
            .filter_map(|container| devices_of(pod, container, offered))
            .collect();
        if containers.is_empty() {
            return None;
        }
        // What is not known yet may still run.
        let known = self.pods.values().filter(|entry| self.takes_room(entry) || entry.stage == Stage::Orphan);
        let active = known.map(|entry| &entry.uid).chain(self.records.keys()).cloned().collect();
        Some(Question::Allocate { uid: uid.clone(), containers, active })
    }

    /// Takes whether devices were found for a pod, as was asked for by [`Output::Allocate`].
    pub(crate) fn handle_allocated(&mut self, uid: &Uid, outcome: Result<(), String>) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        (entry.allocating, entry.changed) = (false, true);
        if let Err(why) = outcome {
            let message = format!("Allocate failed due to {why}, which is unexpected");
            self.refuse(uid, Refusal { reason: "UnexpectedAdmissionError".to_owned(), message });
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

/// The devices that a container wants, of those that the node offers.
pub(super) fn devices_of(pod: &Pod, container: &Container, offered: &admission::Amounts) -> Option<Wanted> {
    let limits = container.resources.limits.iter();
    let counts = limits.filter(|(name, _)| admission::is_extended(name) && offered.contains_key(*name));
    let counts = counts.map(|(name, count)| (name.clone(), u32::try_from(count.units()).unwrap_or(u32::MAX)));
    let counts: BTreeMap<String, u32> = counts.filter(|(_, count)| *count > 0).collect();
    let ends_before_others = pod.is_init(&container.name) && !container.is_sidecar();
    (!counts.is_empty()).then(|| Wanted { container: container.name.clone(), ends_before_others, counts })
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
