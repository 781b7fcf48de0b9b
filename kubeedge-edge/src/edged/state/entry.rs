//! What is remembered of one pod between its steps.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use kubeedge_core::{
    id::Uid,
    message::{ObjectRef, PodReport, PodState},
    runtime::{ContainerId, ContainerState, ObservedSandbox},
};

use super::{
    Moment, Verdict,
    exits::{Crash, LastWords, Trouble, exit_code, newest_of},
    probes::Probes,
    resize::{Given, Resize},
    steps::Busy,
};
use crate::edged::{
    Config,
    action::Slot,
    events::{Kind, Note},
    pod::{InvalidPod, Pod},
    record::{Held, Record},
    status::Shown,
    volumes, words,
};

/// A pod that should run, that should go, or whose sandbox was found.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) reference: ObjectRef,
    pub(crate) uid: Uid,
    /// `None` for an orphan.
    pub(crate) pod: Option<Result<Arc<Pod>, InvalidPod>>,
    pub(crate) stage: Stage,
    /// Its object is gone from the API.
    pub(crate) deleted: bool,
    pub(crate) since: Moment,
    /// Since when what runs of it is being stopped.
    pub(crate) ending: Option<Instant>,
    /// That the pod has failed as a whole, whatever its containers do.
    pub(crate) verdict: Option<Verdict>,
    /// It waits for its release.
    pub(crate) held: bool,
    /// It fits on the node, or was judged before and ran.
    pub(crate) admitted: bool,
    /// Devices are being chosen for it.
    pub(crate) allocating: bool,
    /// An earlier process of ours has run it.
    pub(crate) ran: bool,
    /// It was released, or ran already.
    pub(crate) released: bool,
    pub(crate) busy: BTreeMap<Slot, Busy>,
    /// The state's epoch when the last step of a slot ended, until an observation has seen its effect.
    pub(crate) touched: BTreeMap<Slot, u64>,
    /// Something has happened that the next plan has to look at.
    pub(crate) changed: bool,
    /// When to look again without anything happening.
    pub(crate) wake: Option<Instant>,
    /// Its volumes have to be written.
    pub(crate) dirty: bool,
    /// Its volumes were written since this process started.
    pub(crate) prepared: bool,
    /// What is referred to and is not here, by container; under the empty name by volumes.
    pub(crate) unresolved: BTreeMap<String, String>,
    /// What failed last, by container; under the empty name what concerns the whole pod.
    pub(crate) troubles: BTreeMap<String, Trouble>,
    pub(crate) crashes: BTreeMap<String, Crash>,
    /// How far the image of each container has been seen to for its next start.
    pub(crate) images: BTreeMap<String, Image>,
    /// Containers of which a start is under way, with what is next for them.
    pub(crate) starting: BTreeMap<String, Starting>,
    /// Containers whose preStop hook has been run, or that are to be stopped without it.
    pub(crate) hooked: BTreeSet<ContainerId>,
    /// The highest attempt of each container.
    pub(crate) attempts: BTreeMap<String, u32>,
    /// What containers said at their end.
    pub(crate) last_words: BTreeMap<ContainerId, LastWords>,
    /// Other resources that its object asks for than it was allotted.
    pub(crate) resize: Option<Resize>,
    /// What the newest instance of each container was given.
    pub(crate) given: BTreeMap<String, Given>,
    /// What an earlier process has allotted.
    pub(crate) allotments: BTreeMap<String, Held>,
    pub(crate) probes: Probes,
    pub(crate) ips: Vec<String>,
    /// What the cloud was told last.
    pub(crate) shown: Shown,
    /// What is to be recorded as events.
    pub(crate) notes: Vec<Note>,
}

/// How far a pod has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Sandboxes were found and no pod is known for them. Ends by the pod becoming known, or by time.
    Orphan,
    /// The pod is known; what should be of it is in its object. Ends when it has to go and nothing is left.
    Wanted,
    /// Nothing of it is left on the node. Ends when the API has forgotten it.
    Gone,
}

/// How far an image has been seen to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Image {
    /// Whether it is here is known; it has to be fetched.
    Wanted { here: bool },
    /// It can be used.
    Ready,
}

/// What is next for a container that is being started. Ends with its start, or its hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Starting {
    /// It was created and is to be started.
    Created(ContainerId),
    /// It was started and its postStart hook is to be run.
    Started(ContainerId),
    /// Its postStart hook failed, and it is to be stopped.
    HookFailed(ContainerId),
}

impl Entry {
    pub(crate) fn orphan(reference: ObjectRef, uid: Uid, now: Moment) -> Self {
        Self {
            reference,
            uid,
            pod: None,
            stage: Stage::Orphan,
            deleted: false,
            since: now,
            ending: None,
            verdict: None,
            held: false,
            released: false,
            admitted: false,
            allocating: false,
            ran: false,
            busy: BTreeMap::new(),
            touched: BTreeMap::new(),
            changed: true,
            wake: None,
            dirty: true,
            prepared: false,
            unresolved: BTreeMap::new(),
            troubles: BTreeMap::new(),
            crashes: BTreeMap::new(),
            images: BTreeMap::new(),
            starting: BTreeMap::new(),
            hooked: BTreeSet::new(),
            attempts: BTreeMap::new(),
            last_words: BTreeMap::new(),
            resize: None,
            given: BTreeMap::new(),
            allotments: BTreeMap::new(),
            probes: Probes::default(),
            ips: Vec::new(),
            shown: Shown::default(),
            notes: Vec::new(),
        }
    }

    pub(crate) fn apply(&mut self, pod: Result<Pod, InvalidPod>) {
        // A pod that is being deleted does not come back, even if an older version of it arrives late.
        let was_deleting = self.wanted().is_some_and(Pod::is_deleting);
        if was_deleting && pod.as_ref().is_ok_and(|pod| !pod.is_deleting()) {
            return;
        }
        if pod.as_ref().is_ok_and(Pod::is_deleting) && !was_deleting {
            // What kept it from starting must not keep it from going.
            self.troubles.clear();
        }
        self.shown.seed(pod.as_ref().ok());
        let pod = pod.map(|pod| self.keep_allotted(pod));
        let note = match (&pod, &self.pod) {
            (Err(error), Some(Err(known))) if error.message == known.message => None,
            (Err(error), _) => Some(Note::of_pod(Kind::Warning, error.reason, error.message.as_str())),
            (Ok(pod), _) => pod
                .undone
                .as_deref()
                .filter(|undone| !self.has_undone(undone))
                .map(|undone| Note::of_pod(Kind::Warning, "UnsupportedField", undone)),
        };
        self.pod = Some(pod.map(Arc::new));
        self.notes.extend(note);
        if self.stage == Stage::Orphan {
            // It was not nobody's after all, even if its removal has begun.
            (self.stage, self.deleted, self.ending) = (Stage::Wanted, false, None);
        }
        self.dirty = true;
        self.changed = true;
    }

    fn has_undone(&self, undone: &str) -> bool {
        self.wanted().is_some_and(|pod| pod.undone.as_deref() == Some(undone))
    }

    pub(crate) fn delete(&mut self) {
        self.troubles.clear();
        self.deleted = true;
        self.changed = true;
    }

    pub(crate) fn object_changed(&mut self, reference: &ObjectRef) {
        let Some(pod) = self.wanted() else { return };
        if !reference.namespace().is_empty() && reference.namespace() != pod.reference.namespace() {
            return;
        }
        let in_volume = volumes::depend_on(pod, reference);
        self.dirty |= in_volume;
        self.changed |= in_volume || !self.unresolved.is_empty();
    }

    /// The pod, if it could be read.
    pub(crate) fn wanted(&self) -> Option<&Pod> {
        self.pod.as_ref()?.as_ref().ok().map(Arc::as_ref)
    }

    /// Whether what runs of it has to stop and all of it to go.
    pub(crate) fn is_ending(&self) -> bool {
        let going = match &self.pod {
            Some(Ok(pod)) => pod.is_deleting(),
            Some(Err(refused)) => refused.deleting,
            None => true,
        };
        self.deleted || going
    }

    pub(crate) fn is_starting(&self) -> bool {
        let starts =
            |busy: &Busy| matches!(busy, Busy::Prepare | Busy::RunSandbox | Busy::Create | Busy::Start(_));
        self.busy.values().any(starts)
    }

    pub(crate) fn pulls(&self) -> usize {
        self.busy.values().filter(|busy| matches!(busy, Busy::Pull)).count()
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.changed || self.wake.is_some_and(|wake| wake <= now)
    }

    /// Whether the slot may take a step: none is in flight, and the effect of the last one was observed.
    pub(crate) fn is_free(&self, slot: &Slot) -> bool {
        !self.busy.contains_key(slot) && !self.touched.contains_key(slot)
    }

    /// The addresses of the newest sandbox that runs, the last ones known without one.
    pub(crate) fn remember_ips(&mut self, sandboxes: &[ObservedSandbox], node_ip: &str) {
        let host = self.wanted().is_some_and(|pod| pod.spec.host_network);
        if let Some(ready) = sandboxes.last().filter(|sandbox| sandbox.ready) {
            // A runtime that gives no addresses of its own runs its pods in the node's network.
            let of_node = host || ready.ips.is_empty();
            self.ips = if of_node { vec![node_ip.to_owned()] } else { ready.ips.clone() };
            self.ips.retain(|ip| !ip.is_empty());
        }
    }

    /// Takes what an earlier process kept.
    pub(crate) fn restore(&mut self, record: Record) {
        self.released = record.released;
        let given = record.resources.iter().filter_map(|(name, held)| Some((name, held.given.clone()?)));
        self.given = given.map(|(name, given)| (name.clone(), Given::new(given))).collect();
        self.allotments = record.resources;
        let containers = record.status["containerStatuses"].as_array().into_iter().flatten();
        self.ran = containers.into_iter().any(|one| one["containerID"].is_string());
        let text = |name: &str| record.status[name].as_str().unwrap_or_default().to_owned();
        if record.status["phase"] == "Failed" && !text("reason").is_empty() {
            let (reason, message) = (text("reason"), text("message"));
            self.verdict = Some(Verdict { reason, message, grace: None, disruption: None });
        }
        self.attempts = self.shown.restore(&record.status);
    }

    /// Makes the probes be those of the containers that run.
    pub(super) fn sync_probes(&mut self, sandboxes: &[ObservedSandbox], now: Moment) {
        let Some(Ok(pod)) = self.pod.clone() else { return };
        let newest = sandboxes.last().filter(|sandbox| sandbox.ready);
        let mut running = BTreeMap::new();
        for container in pod.containers() {
            let instance = newest.and_then(|sandbox| newest_of(sandbox, &container.name));
            if let Some(instance) = instance
                && let ContainerState::Running { started_at_ms } = instance.state
            {
                running.insert(container.name.clone(), (container, instance.id.clone(), started_at_ms));
            }
        }
        let shown = &self.shown;
        self.probes.sync(&self.uid, &running, |id, kind| shown.restored(id, kind), now);
    }

    /// The ends that have not been looked at: where the containers' last words are.
    pub(super) fn unheard_words(
        &mut self,
        sandboxes: &[ObservedSandbox],
        config: &Config,
    ) -> Vec<(ContainerId, words::Source)> {
        let all = || sandboxes.iter().flat_map(|sandbox| &sandbox.containers);
        self.last_words.retain(|id, _| all().any(|one| one.id == *id));
        let Some(Ok(pod)) = self.pod.clone() else { return Vec::new() };
        let mut unheard = Vec::new();
        for one in all().filter(|one| exit_code(one).is_some() && !self.last_words.contains_key(&one.id)) {
            let fallback = pod.container(&one.name).is_some_and(|container| {
                container.termination_message_policy == "FallbackToLogsOnError" && exit_code(one) != Some(0)
            });
            let path = words::path(&self.uid, &one.name, one.attempt, config);
            unheard.push((one.id.clone(), words::Source { path, log: one.log.clone().filter(|_| fallback) }));
        }
        self.last_words.extend(unheard.iter().map(|(id, _)| (id.clone(), LastWords::Reading)));
        unheard
    }

    /// Lets what failed only because the runtime was away be tried again at once.
    pub(super) fn retry_soon(&mut self, now: Moment) {
        for trouble in self.troubles.values_mut().filter(|trouble| trouble.rank != Busy::Pull.rank()) {
            trouble.until = now.at;
        }
        self.changed = true;
    }

    /// When something is to be done without anything happening.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        let probe = if self.is_ending() { None } else { self.probes.next() };
        self.wake.into_iter().chain(probe).min()
    }

    pub(crate) fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    /// Whether the last words of a container are being read.
    pub(crate) fn is_reading(&self) -> bool {
        self.last_words.values().any(|words| *words == LastWords::Reading)
    }

    pub(super) fn image_of(&self, name: &str) -> String {
        let container = self.wanted().and_then(|pod| pod.container(name));
        container.map(|container| container.image.clone()).unwrap_or_default()
    }

    pub(super) fn hook(&self, name: &str, has: impl Fn(&crate::edged::pod::Lifecycle) -> bool) -> bool {
        let container = self.wanted().and_then(|pod| pod.container(name));
        container.and_then(|container| container.lifecycle.as_ref()).is_some_and(has)
    }

    /// Remembers what is to be recorded as an event. Of an orphan nothing is recorded: no object stands for it.
    pub(crate) fn say(&mut self, note: Note) {
        if self.pod.is_some() {
            self.notes.push(note);
        }
    }

    /// What the cloud was told last, to be told again.
    pub(crate) fn last_report(&self) -> Option<PodReport> {
        let state = match self.stage {
            Stage::Orphan => return None,
            Stage::Gone if self.deleted => return None,
            Stage::Gone => PodState::Gone,
            Stage::Wanted => PodState::Status(self.shown.status.clone()?),
        };
        Some(PodReport { reference: self.reference.clone(), uid: self.uid.clone(), state })
    }
}
