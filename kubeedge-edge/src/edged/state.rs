//! What Edged decides: from the pods that should run and the sandboxes that do, the next steps for each pod.
//!
//! A slot of a pod (the pod itself, or a container) is planned only on an observation that began after the slot's
//! last step ended, or on what that step's outcome says. So a step is never taken twice because its effect had not
//! been seen yet, and a restart is nothing special: the first observation finds what an earlier process started,
//! by the pod's UID, and the plan goes on from there.

mod admit;
mod entry;
mod exits;
mod objects;
mod observing;
mod output;
mod plan;
mod probes;
mod resize;
mod settling;
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
        Answer, Connectivity, Object, ObjectRef, PodReport, PodState, Report, TokenRequest, UploadedEvent,
    },
    runtime::{ContainerId, ObservedSandbox},
};
use tracing::{debug, info};

pub(crate) use self::{
    entry::{Entry, Stage},
    exits::{LastWords, exit_code, is_running, may_not_restart, newest},
    output::{Moment, Output, Verdict},
    plan::LEAST_GRACE,
    probes::{ProbeKey, ProbeKind, ProbeResult},
};
use self::{settling::Settled, statics::Static};
use super::{
    Config, KnownPod,
    action::{Outcome, Slot, Task},
    admission::Room,
    events::{About, Note, Recorder},
    eviction::Pressure,
    host::HostFiles,
    pod::Pod,
    record::{Record, UNKNOWN_RUNTIME},
    resolve::Facts,
    status, tasks,
    tokens::Tokens,
};

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
    /// What the pods that share the processors by their requests were given together.
    shared: Option<i64>,
    outputs: VecDeque<Output>,
}

/// What the node has, for limits and for the out-of-memory score.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Capacity {
    pub(crate) cpu_milli: i64,
    pub(crate) memory_bytes: i64,
}

impl State {
    pub(crate) fn new(config: Config, capacity: Capacity, now: Moment) -> Self {
        let earliest = now.at + config.orphan_grace;
        Self {
            events: Recorder::new(config.node.as_str()),
            config,
            capacity,
            runtime: UNKNOWN_RUNTIME.to_owned(),
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
            shared: None,
            outputs: VecDeque::new(),
        }
    }

    /// Takes what an earlier process kept of a pod. To be called before anything else is heard of it.
    pub(crate) fn restore(&mut self, uid: Uid, record: Record) {
        // The runtime may be seen to run them before it says what it is.
        if let Some(runtime) = record.runtime().filter(|_| self.runtime == UNKNOWN_RUNTIME) {
            runtime.clone_into(&mut self.runtime);
        }
        self.records.insert(uid, record);
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
        let mut planned = false;
        for uid in due {
            let Some(mut entry) = self.pods.remove(&uid) else { continue };
            let chosen_for = entry.allocating && !entry.is_ending();
            if chosen_for || (self.room.is_some() && !entry.admitted) {
                self.pods.insert(uid, entry);
                continue;
            }
            self.plan(&mut entry, &mut starting, &mut pulling, now);
            self.pods.insert(uid, entry);
            planned = true;
        }
        if planned && self.config.cgroups.is_some() {
            self.share();
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
            offered: self.room.as_ref().map(|room| &room.allocatable),
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
    pub(crate) fn next_event(&self) -> Option<UploadedEvent> {
        if self.online { self.events.next() } else { None }
    }

    /// Takes that the event which [`Self::next_event`] gave is on its way.
    pub(crate) fn handle_event_sent(&mut self) {
        self.events.sent();
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

    /// The pods of the node, those that are on their way out too.
    pub(crate) fn known_pods(&self) -> Vec<KnownPod> {
        let entries = self.pods.values().filter(|entry| entry.stage == Stage::Wanted && !entry.deleted);
        let known = entries.filter_map(|entry| {
            Some(KnownPod { json: entry.wanted()?.json.clone(), status: entry.shown.status.clone() })
        });
        known.collect()
    }

    /// The pod of this name, newest UID first, and its sandboxes.
    pub(crate) fn find(&self, reference: &ObjectRef) -> Option<(&Entry, &[ObservedSandbox])> {
        let of_name = self.pods.values().filter(|entry| entry.reference == *reference);
        let entry = of_name.min_by_key(|entry| (entry.deleted, entry.stage == Stage::Gone))?;
        Some((entry, self.observed.get(&entry.uid).map_or(&[], Vec::as_slice)))
    }
}
