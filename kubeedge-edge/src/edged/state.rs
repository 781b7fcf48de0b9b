//! What Edged decides: from the pods that should run and the sandboxes that do, the next steps for each pod.
//!
//! A slot of a pod (the pod itself, or a container) is planned only on an observation that began after the slot's
//! last step ended, or on what that step's outcome says. So a step is never taken twice because its effect had not
//! been seen yet, and a restart is nothing special: the first observation finds what an earlier process started,
//! by the pod's UID, and the plan goes on from there.

mod admit;
mod entry;
mod exits;
mod plan;
mod probes;
mod resize;
mod statics;
mod steps;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use kubeedge_core::{
    id::Uid,
    message::{
        Answer, Connectivity, Object, ObjectEvent, ObjectRef, PodReport, PodState, Report, TokenRequest,
        Upload,
    },
    runtime::{ContainerId, ObservedSandbox, RuntimeError},
};
use tracing::{debug, info, warn};

use self::statics::Static;
pub(crate) use self::{
    entry::{Entry, Stage},
    exits::{LastWords, exit_code, is_running, may_not_restart, newest},
    plan::LEAST_GRACE,
    probes::{ProbeKey, ProbeKind, ProbeResult},
};
use super::{
    Config, KnownPod,
    action::{Action, Outcome, Slot, Task},
    admission::Room,
    events::{About, Note, Recorder},
    eviction::Pressure,
    host::HostFiles,
    pod::{Admission, Pod},
    record::Record,
    resolve::Facts,
    status, tasks,
    tokens::Tokens,
    words,
};

/// The time, as the driver reads it once for each input.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    /// For waiting.
    pub(crate) at: Instant,
    /// For what people read: milliseconds since the Unix epoch.
    pub(crate) unix_ms: u64,
}

/// What the driver is to do.
#[derive(Debug)]
pub(crate) enum Output {
    /// Perform the action, and hand its outcome to [`State::handle_done`].
    Do(Uid, Slot, Action),
    /// Drop the slot's action in flight; its outcome is [`Outcome::Aborted`].
    Abort(Uid, Slot),
    /// Make a probe within the time, and hand its result to [`State::handle_probe`].
    Probe(Uid, ProbeKey, Task, Duration),
    /// Read a container's last words, and hand them to [`State::handle_words`].
    Read(Uid, ContainerId, words::Source),
    /// Observe the runtime, and hand the outcome to [`State::handle_observed`].
    Observe,
    /// Report to the cloud.
    Report(Report),
    /// Ask for a token, and hand the answer to [`State::handle_token`].
    Token(TokenRequest),
    /// Keep the pod's record, for after a restart.
    Keep(Uid, Record),
    /// Remove the record of a pod that is not there any more.
    Forget(Uid),
    /// Ask the cloud for the node as the API has it, and hand it to [`State::handle_node`].
    AskForNode,
}

/// That a pod has failed as a whole, whatever its containers do: they are stopped, and it stays as it is until
/// it is deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Such as `DeadlineExceeded` or `Evicted`.
    pub(crate) reason: String,
    pub(crate) message: String,
    /// How long its containers may take; `None` means as long as the pod says.
    pub(crate) grace: Option<Duration>,
    /// The reason of the condition `DisruptionTarget`, if the pod gets it.
    pub(crate) disruption: Option<&'static str>,
}

impl Verdict {
    fn deadline() -> Self {
        Self {
            reason: "DeadlineExceeded".to_owned(),
            message: "Pod was active on the node longer than the specified deadline".to_owned(),
            grace: None,
            disruption: None,
        }
    }
}

/// All that Edged knows of pods.
#[derive(Debug)]
pub(crate) struct State {
    config: Config,
    capacity: Capacity,
    /// The runtime's name, the scheme of container ids.
    runtime: String,
    pods: BTreeMap<Uid, Entry>,
    /// What an earlier process kept of pods that are not known yet.
    records: BTreeMap<Uid, Record>,
    objects: BTreeMap<ObjectRef, Object>,
    tokens: Tokens,
    host: HostFiles,
    observed: BTreeMap<Uid, Vec<ObservedSandbox>>,
    events: Recorder,
    /// Counts ended actions; an observation is as new as the count when it began.
    epoch: u64,
    observing: Option<u64>,
    observed_epoch: Option<u64>,
    observe_at: Instant,
    /// Whether the last observation failed.
    blind: bool,
    settled: Settled,
    online: bool,
    /// What the node offers; nothing is judged before it is known.
    room: Option<Room>,
    pressures: BTreeSet<Pressure>,
    /// The pods of files of the node.
    statics: BTreeMap<ObjectRef, Static>,
    /// The files were read once, so that what is not among them is not wanted.
    statics_known: bool,
    /// Until when the API's answer about the node is waited for.
    asking: Option<Instant>,
    started: Instant,
    outputs: VecDeque<Output>,
}

/// What the node has, for limits and for the out-of-memory score.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Capacity {
    pub(crate) cpu_milli: i64,
    pub(crate) memory_bytes: i64,
}

/// Whether the pods that the node already had have all been told to us.
#[derive(Debug)]
enum Settled {
    /// Not before the first instant, not before the edge was in sync with the cloud once, and not before the
    /// pipe was quiet for a while after that. A quiet pipe alone says nothing: a store that lost what it had
    /// is quiet too, and offline its pods have to run on.
    Waiting {
        earliest: Instant,
        synchronized: bool,
        quiet_since: Instant,
    },
    Yes,
    /// Nobody tells us any more, so nobody's sandboxes cannot be told from others.
    Never,
}

/// The pipe must be quiet this long, in sync with the cloud, before a sandbox counts as nobody's.
const QUIET: Duration = Duration::from_secs(2);

impl State {
    pub(crate) fn new(config: Config, capacity: Capacity, now: Moment) -> Self {
        let earliest = now.at + config.orphan_grace;
        Self {
            events: Recorder::new(config.node.as_str()),
            config,
            capacity,
            runtime: "unknown".to_owned(),
            pods: BTreeMap::new(),
            records: BTreeMap::new(),
            objects: BTreeMap::new(),
            tokens: Tokens::default(),
            host: HostFiles::default(),
            observed: BTreeMap::new(),
            epoch: 0,
            observing: None,
            observed_epoch: None,
            observe_at: now.at,
            blind: false,
            settled: Settled::Waiting { earliest, synchronized: false, quiet_since: now.at },
            online: false,
            room: None,
            pressures: BTreeSet::new(),
            statics: BTreeMap::new(),
            statics_known: false,
            asking: None,
            started: now.at,
            outputs: VecDeque::new(),
        }
    }

    /// Takes what an earlier process kept of a pod. To be called before anything else is heard of it.
    pub(crate) fn restore(&mut self, uid: Uid, record: Record) {
        self.records.insert(uid, record);
    }

    /// Takes what became of a Pod or of something that pods are made of.
    pub(crate) fn handle_object(&mut self, event: ObjectEvent, now: Moment) {
        if let Settled::Waiting { quiet_since, .. } = &mut self.settled {
            *quiet_since = now.at;
        }
        if event.key().kind() == "Pod" && self.handle_mirror(&event) {
            return;
        }
        match (event.key().kind(), &event) {
            ("Pod", ObjectEvent::Applied(object)) => self.apply_pod(object, now),
            ("Pod", ObjectEvent::Deleted { reference, .. }) => self.delete_pod(reference),
            ("ConfigMap" | "Secret" | "PersistentVolumeClaim" | "PersistentVolume" | "RuntimeClass", _) => {
                self.change_object(event);
            }
            (kind, _) => debug!(kind, "an object that pods are not made of"),
        }
    }

    /// Takes that no more objects will come.
    pub(crate) fn handle_closed(&mut self) {
        self.settled = Settled::Never;
    }

    fn apply_pod(&mut self, object: &Object, now: Moment) {
        let node = Admission { sysctls: &self.config.allowed_unsafe_sysctls, apparmor: self.host.apparmor };
        let parsed = Pod::parse(object).and_then(|pod| pod.forbidden(node).map_or(Ok(pod), Err));
        if let Ok(pod) = &parsed {
            self.tokens.want(pod, now.at);
        }
        if let Err(error) = &parsed {
            warn!(pod = %object.reference, %error, "a pod cannot be run");
        }
        // The API has one object of a name: another UID means that the earlier pod's object is gone.
        let replaced = |entry: &&mut Entry| entry.reference == object.reference && entry.uid != object.uid;
        for entry in self.pods.values_mut().filter(replaced) {
            entry.delete();
        }
        self.pods.retain(|_, entry| !(entry.deleted && entry.stage == Stage::Gone));
        match self.pods.get_mut(&object.uid) {
            Some(entry) => entry.apply(parsed),
            None => {
                let mut entry = Entry::orphan(object.reference.clone(), object.uid.clone(), now);
                self.remember(&mut entry);
                entry.apply(parsed);
                self.pods.insert(object.uid.clone(), entry);
            }
        }
        self.observe_at = self.observe_at.min(now.at + self.config.observe_interval);
    }

    fn remember(&mut self, entry: &mut Entry) {
        if let Some(record) = self.records.remove(&entry.uid) {
            entry.restore(record);
        }
    }

    /// Nothing of this name exists any more, whichever UID it had: the pipe keeps only the last event of a
    /// name, so the deletion of a pod may be all that is heard of it and of the end of the one before it.
    fn delete_pod(&mut self, reference: &ObjectRef) {
        for entry in self.pods.values_mut().filter(|entry| entry.reference == *reference) {
            entry.delete();
        }
        self.pods.retain(|_, entry| !(entry.deleted && entry.stage == Stage::Gone));
    }

    fn change_object(&mut self, event: ObjectEvent) {
        let reference = event.key().clone();
        match event {
            ObjectEvent::Applied(object) => {
                let old = self.objects.insert(reference.clone(), object);
                let new = &self.objects[&reference];
                if old.is_some_and(|old| old.json == new.json) {
                    return;
                }
            }
            // Files of an object that is gone stay as they are, as the kubelet leaves them.
            ObjectEvent::Deleted { .. } => {
                if self.objects.remove(&reference).is_none() {
                    return;
                }
            }
        }
        for entry in self.pods.values_mut() {
            entry.object_changed(&reference);
        }
    }

    /// Takes the outcome of an observation that was asked for by [`Output::Observe`].
    pub(crate) fn handle_observed(
        &mut self,
        observed: Result<Vec<ObservedSandbox>, RuntimeError>,
        now: Moment,
    ) {
        let began = self.observing.take().unwrap_or(self.epoch);
        let sandboxes = match observed {
            Ok(sandboxes) => sandboxes,
            Err(error) => {
                if !std::mem::replace(&mut self.blind, true) {
                    warn!(%error, "the runtime cannot be observed");
                }
                self.observe_at = now.at + self.config.observe_interval;
                return;
            }
        };
        if std::mem::replace(&mut self.blind, false) {
            info!("the runtime can be observed again");
            self.pods.values_mut().for_each(|entry| entry.retry_soon(now));
        }
        let mut by_pod: BTreeMap<Uid, Vec<ObservedSandbox>> = BTreeMap::new();
        for sandbox in sandboxes {
            by_pod.entry(sandbox.uid.clone()).or_default().push(sandbox);
        }
        for of_pod in by_pod.values_mut() {
            of_pod.sort_by_key(|sandbox| (sandbox.attempt, sandbox.created_at_ms));
        }
        let first = self.observed_epoch.is_none();
        self.observed_epoch = Some(began);
        for (uid, entry) in &mut self.pods {
            let before = entry.touched.len();
            entry.touched.retain(|_, ended| *ended > began);
            let seen = entry.touched.len() < before;
            entry.changed |= first || seen || self.observed.get(uid) != by_pod.get(uid);
        }
        for (uid, of_pod) in &by_pod {
            if !self.pods.contains_key(uid)
                && let Some(first) = of_pod.first()
            {
                let reference = ObjectRef::pod(&first.namespace, &first.name);
                let mut orphan = Entry::orphan(reference, uid.clone(), now);
                if let Some(record) = self.records.remove(uid) {
                    orphan.restore(record);
                }
                if self.is_stale_static(&orphan) {
                    orphan.delete();
                }
                self.pods.insert(uid.clone(), orphan);
            }
        }
        self.observed = by_pod;
        let stale = self.pods.values().any(|entry| !entry.touched.is_empty());
        let live = self.pods.values().any(|entry| entry.stage != Stage::Gone);
        self.observe_at = match (stale, live) {
            (true, _) => now.at,
            (false, true) => now.at + self.config.observe_interval,
            (false, false) => now.at + self.config.idle_interval,
        };
    }

    /// Takes the outcome of the action that was asked for by [`Output::Do`].
    pub(crate) fn handle_done(&mut self, uid: &Uid, slot: &Slot, outcome: Outcome, now: Moment) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        self.epoch += 1;
        if entry.done(slot, outcome, self.epoch, now) {
            self.observe_at = now.at;
        }
        if entry.stage == Stage::Gone {
            self.events.forget(uid);
            self.tokens.forget(uid);
            self.outputs.push_back(Output::Forget(uid.clone()));
            if entry.deleted {
                let reference = entry.reference.clone();
                self.pods.remove(uid);
                self.forget_mirror(&reference, uid);
            } else {
                let (reference, uid) = (entry.reference.clone(), entry.uid.clone());
                let gone = PodReport { reference, uid, state: PodState::Gone };
                self.outputs.push_back(Output::Report(Report::Pod(gone)));
            }
        }
    }

    /// Takes the result of the probe that was asked for by [`Output::Probe`].
    pub(crate) fn handle_probe(&mut self, uid: &Uid, key: &ProbeKey, result: &ProbeResult, now: Moment) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        let Some(followed) = entry.probes.handle(key, result, now.at) else { return };
        let (title, name) = (key.kind.title(), &key.container);
        match result {
            ProbeResult::Success => {}
            ProbeResult::Failure(why) => {
                entry.say(Note::unhealthy(name, format!("{title} probe failed: {why}")));
            }
            ProbeResult::Errored(why) => {
                let message = format!("{title} probe errored and resulted in unknown state: {why}");
                entry.say(Note::unhealthy(name, message));
            }
        }
        entry.changed |= followed.changed;
        Self::tell(&mut self.events, entry, now);
    }

    /// Takes the last words that were asked for by [`Output::Read`].
    pub(crate) fn handle_words(&mut self, uid: &Uid, id: &ContainerId, said: String) {
        if let Some(entry) = self.pods.get_mut(uid) {
            entry.last_words.insert(id.clone(), LastWords::Read(said));
            entry.changed = true;
        }
    }

    /// Lets a pod start that waits for its release. Returns whether there was one.
    pub(crate) fn handle_release(&mut self, reference: &ObjectRef) -> bool {
        let held = |entry: &&mut Entry| entry.reference == *reference && entry.held;
        let Some(entry) = self.pods.values_mut().find(held) else { return false };
        info!(pod = %reference, "released");
        (entry.held, entry.released, entry.changed) = (false, true, true);
        true
    }

    /// Takes that a pod has failed as a whole, as it does when it is evicted.
    pub(crate) fn handle_verdict(&mut self, uid: &Uid, verdict: Verdict, note: Note) {
        if let Some(entry) = self.pods.get_mut(uid).filter(|entry| entry.verdict.is_none()) {
            entry.say(note);
            entry.verdict = Some(verdict);
            entry.changed = true;
        }
    }

    /// Takes the runtime's name.
    pub(crate) fn handle_runtime(&mut self, name: &str) {
        if self.runtime != name {
            name.clone_into(&mut self.runtime);
            self.pods.values_mut().for_each(|entry| entry.changed = true);
        }
    }

    /// Takes what the node has in `/etc`.
    pub(crate) fn handle_host(&mut self, host: HostFiles) {
        self.host = host;
    }

    /// Takes what was answered to [`Output::Token`].
    pub(crate) fn handle_token(
        &mut self,
        request: &TokenRequest,
        answer: Result<Answer, String>,
        now: Moment,
    ) {
        if self.tokens.handle_answer(request, answer, now)
            && let Some(entry) = self.pods.get_mut(&request.pod_uid)
        {
            (entry.dirty, entry.changed) = (true, true);
        }
    }

    /// Takes whether there is a session. At its beginning everything is reported again.
    pub(crate) fn handle_connectivity(&mut self, connectivity: Connectivity, now: Moment) {
        if let Settled::Waiting { synchronized, quiet_since, .. } = &mut self.settled
            && connectivity == Connectivity::Synchronized
            && !*synchronized
        {
            // What came just before may still be on its way through MetaManager.
            (*synchronized, *quiet_since) = (true, now.at);
        }
        let was = std::mem::replace(&mut self.online, connectivity.is_online());
        if !was && self.online {
            self.tokens.handle_online(now.at);
            let all: Vec<PodReport> = self.pods.values().filter_map(Entry::last_report).collect();
            all.into_iter().for_each(|report| self.report(report));
            self.report_mirrors();
        }
    }

    /// Takes that time has passed: decides for every pod that something has changed for. To be called after
    /// every input.
    pub(crate) fn handle_timeout(&mut self, now: Moment) {
        self.settle(now);
        while let Some(request) = self.tokens.poll_request(now.at) {
            self.outputs.push_back(Output::Token(request));
        }
        if self.observing.is_none() && now.at >= self.observe_at {
            self.observing = Some(self.epoch);
            self.outputs.push_back(Output::Observe);
        }
        if self.observed_epoch.is_none() {
            return;
        }
        self.admit(now);
        // Pulls are counted apart: a slow registry must not keep pods from starting whose images are here.
        let mut starting = self.pods.values().filter(|entry| entry.is_starting()).count();
        let mut pulling = self.pods.values().map(Entry::pulls).sum();
        let due: Vec<Uid> =
            self.pods.values().filter(|entry| entry.is_due(now.at)).map(|entry| entry.uid.clone()).collect();
        for uid in due {
            let Some(mut entry) = self.pods.remove(&uid) else { continue };
            if self.room.is_some() && !entry.admitted {
                self.pods.insert(uid, entry);
                continue;
            }
            self.plan(&mut entry, &mut starting, &mut pulling, now);
            self.pods.insert(uid, entry);
        }
        self.probe(now);
    }

    /// Decides for one pod.
    fn plan(&mut self, entry: &mut Entry, starting: &mut usize, pulling: &mut usize, now: Moment) {
        let uid = entry.uid.clone();
        let sandboxes = self.observed.get(&uid).map_or(&[][..], Vec::as_slice);
        if entry.wake.is_some_and(|wake| wake <= now.at) {
            entry.wake = None;
        }
        entry.remember_ips(sandboxes, &self.config.node_ip);
        entry.sync_probes(sandboxes, now);
        for (id, source) in entry.unheard_words(sandboxes, &self.config) {
            self.outputs.push_back(Output::Read(uid.clone(), id, source));
        }
        let pod_ips = entry.ips.clone();
        let facts = Facts {
            objects: &self.objects,
            tokens: &self.tokens,
            host: &self.host,
            node_labels: &self.config.labels,
            kubernetes: &self.config.kubernetes_service,
            node_name: self.config.node.as_str(),
            host_ip: &self.config.node_ip,
            pod_ips: &pod_ips,
            cpu_milli: self.capacity.cpu_milli,
            memory_bytes: self.capacity.memory_bytes,
        };
        let (was_starting, pulled) = (entry.is_starting(), entry.pulls());
        let limit = self.config.parallel_starts;
        let mut planner = plan::Planner {
            config: &self.config,
            facts,
            sandboxes,
            settled: matches!(self.settled, Settled::Yes),
            // What has begun goes on, so that few pods are half started.
            may_start: was_starting || *starting < limit || !entry.starting.is_empty(),
            may_pull: self.config.parallel_pulls.saturating_sub(*pulling),
            now,
        };
        let steps = planner.plan(entry);
        for slot in steps.abort {
            self.outputs.push_back(Output::Abort(uid.clone(), slot));
        }
        for (slot, action) in steps.begin {
            debug!(pod = %entry.reference, ?slot, ?action, "next step");
            self.outputs.push_back(Output::Do(uid.clone(), slot, action));
        }
        *starting += usize::from(entry.is_starting() && !was_starting);
        *pulling += entry.pulls() - pulled;
        if let Some(report) = status::changed(entry, sandboxes, &self.config, &self.runtime, now) {
            if let PodState::Status(status) = &report.state {
                let record = Record::new(status, entry.released, entry.held_resources());
                self.outputs.push_back(Output::Keep(uid, record));
            }
            self.report(report);
        }
        Self::tell(&mut self.events, entry, now);
    }

    /// Begins the probes that are due.
    fn probe(&mut self, now: Moment) {
        for (uid, entry) in &mut self.pods {
            if entry.is_ending() {
                continue;
            }
            let due = entry.probes.due(now.at);
            let Some(pod) = entry.wanted() else { continue };
            let host = tasks::host(&entry.ips);
            for (key, timeout) in due {
                let container = pod.container(&key.container);
                let probe = container.and_then(|container| Some((container, key.kind.of(container)?)));
                let task = match probe {
                    Some((container, probe)) => tasks::probe(probe, container, &key.instance, &host),
                    None => Task::Impossible("the container has no such probe any more".to_owned()),
                };
                self.outputs.push_back(Output::Probe(uid.clone(), key, task, timeout));
            }
        }
    }

    /// Records what has happened to the pod.
    fn tell(events: &mut Recorder, entry: &mut Entry, now: Moment) {
        if entry.notes.is_empty() {
            return;
        }
        let about = About { reference: entry.reference.clone(), uid: entry.uid.clone() };
        for note in std::mem::take(&mut entry.notes) {
            let init = entry.wanted().is_some_and(|pod: &Pod| pod.is_init(note.container()));
            events.record(&about, if init { note.into_init() } else { note }, now);
        }
    }

    /// The next event for the cloud, while there is a session. [`Self::handle_event_sent`] takes it off the list.
    pub(crate) fn next_event(&self) -> Option<Upload> {
        if self.online { self.events.next() } else { None }
    }

    /// Takes that the event which [`Self::next_event`] gave is on its way.
    pub(crate) fn handle_event_sent(&mut self) {
        self.events.sent();
    }

    fn settle(&mut self, now: Moment) {
        if self.settles_at().is_some_and(|at| now.at >= at) {
            self.settled = Settled::Yes;
            for entry in self.pods.values_mut().filter(|entry| entry.stage == Stage::Orphan) {
                info!(pod = %entry.reference, uid = %entry.uid, "a sandbox of no known pod will be removed");
                entry.changed = true;
            }
            let left = std::mem::take(&mut self.records).into_keys();
            self.outputs.extend(left.map(Output::Forget));
        }
    }

    /// When every pod that the node had counts as known, if that is only a matter of time.
    fn settles_at(&self) -> Option<Instant> {
        match self.settled {
            Settled::Waiting { earliest, synchronized: true, quiet_since } => {
                Some(earliest.max(quiet_since + QUIET))
            }
            Settled::Waiting { synchronized: false, .. } | Settled::Yes | Settled::Never => None,
        }
    }

    /// The next thing to do, if any.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] is to be called at the latest.
    pub(crate) fn poll_timeout(&self) -> Instant {
        let wakes = self.pods.values().filter_map(Entry::next_wake);
        let observe = if self.observing.is_none() { Some(self.observe_at) } else { None };
        let far = self.observe_at + Duration::from_secs(3600);
        let tokens = self.tokens.poll_timeout();
        let admission = self.admission_timeout();
        wakes.chain(observe).chain(self.settles_at()).chain(tokens).chain(admission).min().unwrap_or(far)
    }

    /// The pod of this name, newest UID first, and its sandboxes.
    /// The pods of the node, those that are on their way out too.
    pub(crate) fn known_pods(&self) -> Vec<KnownPod> {
        let entries = self.pods.values().filter(|entry| entry.stage == Stage::Wanted && !entry.deleted);
        let known = entries.filter_map(|entry| {
            Some(KnownPod { json: entry.wanted()?.json.clone(), status: entry.shown.status.clone() })
        });
        known.collect()
    }

    pub(crate) fn find(&self, reference: &ObjectRef) -> Option<(&Entry, &[ObservedSandbox])> {
        let of_name = self.pods.values().filter(|entry| entry.reference == *reference);
        let entry = of_name.min_by_key(|entry| (entry.deleted, entry.stage == Stage::Gone))?;
        Some((entry, self.observed.get(&entry.uid).map_or(&[], Vec::as_slice)))
    }
}
