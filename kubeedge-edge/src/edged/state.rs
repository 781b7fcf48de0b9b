//! What Edged decides: from the pods that should run and the sandboxes that do, the next step for each pod.
//!
//! A pod is planned only on an observation that began after its last step ended. So a step is never taken
//! twice because its effect had not been seen yet, and a restart is nothing special: the first observation
//! finds what an earlier process started, by the pod's UID, and the plan goes on from there.

mod entry;
mod plan;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use kubeedge_core::{
    id::Uid,
    message::{Connectivity, Object, ObjectEvent, ObjectRef, PodReport, PodState, Report},
    runtime::{ObservedSandbox, RuntimeError},
};
use tracing::{debug, info, warn};

pub(crate) use self::{
    entry::{Entry, Stage},
    plan::{exit_code, is_final, newest_of},
};
use super::{
    Config,
    action::{Action, Outcome},
    pod::Pod,
    resolve::Facts,
    status,
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
    Do(Uid, Action),
    /// Drop the pod's action in flight; its outcome is [`Outcome::Aborted`].
    Abort(Uid),
    /// Observe the runtime, and hand the outcome to [`State::handle_observed`].
    Observe,
    /// Report to the cloud.
    Report(Report),
}

/// All that Edged knows of pods.
#[derive(Debug)]
pub(crate) struct State {
    config: Config,
    capacity: Capacity,
    /// The runtime's name, the scheme of container ids.
    runtime: String,
    pods: BTreeMap<Uid, Entry>,
    objects: BTreeMap<ObjectRef, Object>,
    observed: BTreeMap<Uid, Vec<ObservedSandbox>>,
    /// Counts ended actions; an observation is as new as the count when it began.
    epoch: u64,
    observing: Option<u64>,
    observed_epoch: Option<u64>,
    observe_at: Instant,
    settled: Settled,
    online: bool,
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
            config,
            capacity,
            runtime: "unknown".to_owned(),
            pods: BTreeMap::new(),
            objects: BTreeMap::new(),
            observed: BTreeMap::new(),
            epoch: 0,
            observing: None,
            observed_epoch: None,
            observe_at: now.at,
            settled: Settled::Waiting { earliest, synchronized: false, quiet_since: now.at },
            online: false,
            outputs: VecDeque::new(),
        }
    }

    /// Takes what became of a Pod, ConfigMap or Secret.
    pub(crate) fn handle_object(&mut self, event: ObjectEvent, now: Moment) {
        if let Settled::Waiting { quiet_since, .. } = &mut self.settled {
            *quiet_since = now.at;
        }
        match (event.key().kind(), &event) {
            ("Pod", ObjectEvent::Applied(object)) => self.apply_pod(object, now),
            ("Pod", ObjectEvent::Deleted { reference, .. }) => self.delete_pod(reference),
            ("ConfigMap" | "Secret", _) => self.change_object(event),
            (kind, _) => debug!(kind, "an object that pods are not made of"),
        }
    }

    /// Takes that no more objects will come.
    pub(crate) fn handle_closed(&mut self) {
        self.settled = Settled::Never;
    }

    fn apply_pod(&mut self, object: &Object, now: Moment) {
        let parsed = Pod::parse(object);
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
                let entry = Entry::new(object.reference.clone(), object.uid.clone(), parsed, now);
                self.pods.insert(object.uid.clone(), entry);
            }
        }
        self.observe_at = self.observe_at.min(now.at + self.config.observe_interval);
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
                warn!(%error, "the runtime cannot be observed");
                self.observe_at = now.at + self.config.observe_interval;
                return;
            }
        };
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
            let seen = entry.touched > 0 && entry.touched <= began;
            if seen {
                entry.touched = 0;
            }
            entry.changed |= first || seen || self.observed.get(uid) != by_pod.get(uid);
        }
        for (uid, of_pod) in &by_pod {
            if !self.pods.contains_key(uid)
                && let Some(first) = of_pod.first()
            {
                let reference = ObjectRef::pod(&first.namespace, &first.name);
                self.pods.insert(uid.clone(), Entry::orphan(reference, uid.clone(), now));
            }
        }
        self.observed = by_pod;
        let stale = self.pods.values().any(|entry| entry.busy.is_none() && entry.touched > began);
        let live = self.pods.values().any(|entry| entry.stage != Stage::Gone);
        self.observe_at = match (stale, live) {
            (true, _) => now.at,
            (false, true) => now.at + self.config.observe_interval,
            (false, false) => now.at + self.config.idle_interval,
        };
    }

    /// Takes the outcome of the action that was asked for by [`Output::Do`].
    pub(crate) fn handle_done(&mut self, uid: &Uid, outcome: Outcome, now: Moment) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        self.epoch += 1;
        if entry.done(outcome, self.epoch, now) {
            self.observe_at = now.at;
        }
        if entry.stage == Stage::Gone {
            if entry.deleted {
                self.pods.remove(uid);
            } else {
                let (reference, uid) = (entry.reference.clone(), entry.uid.clone());
                let gone = PodReport { reference, uid, state: PodState::Gone };
                self.outputs.push_back(Output::Report(Report::Pod(gone)));
            }
        }
    }

    /// Takes the runtime's name.
    pub(crate) fn handle_runtime(&mut self, name: &str) {
        if self.runtime != name {
            name.clone_into(&mut self.runtime);
            self.pods.values_mut().for_each(|entry| entry.changed = true);
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
            let all: Vec<Report> =
                self.pods.values().filter_map(Entry::last_report).map(Report::Pod).collect();
            self.outputs.extend(all.into_iter().map(Output::Report));
        }
    }

    /// Takes that time has passed: decides for every pod that something has changed for. To be called after
    /// every input.
    pub(crate) fn handle_timeout(&mut self, now: Moment) {
        self.settle(now);
        if self.observing.is_none() && now.at >= self.observe_at {
            self.observing = Some(self.epoch);
            self.outputs.push_back(Output::Observe);
        }
        if self.observed_epoch.is_none() {
            return;
        }
        // Pulls are counted apart: a slow registry must not keep pods from starting whose images are here.
        let mut starting = self.pods.values().filter(|entry| entry.is_starting()).count();
        let mut pulling = self.pods.values().filter(|entry| entry.is_pulling()).count();
        let due: Vec<Uid> =
            self.pods.values().filter(|entry| entry.is_due(now.at)).map(|entry| entry.uid.clone()).collect();
        for uid in due {
            let (Some(mut entry), sandboxes) = (self.pods.remove(&uid), self.observed.get(&uid)) else {
                continue;
            };
            let sandboxes = sandboxes.map_or(&[][..], Vec::as_slice);
            if entry.wake.is_some_and(|wake| wake <= now.at) {
                entry.wake = None;
                entry.changed = true;
            }
            entry.remember_ips(sandboxes, &self.config.node_ip);
            let pod_ips = entry.ips.clone();
            let facts = Facts {
                objects: &self.objects,
                node_name: self.config.node.as_str(),
                host_ip: &self.config.node_ip,
                pod_ips: &pod_ips,
                cpu_milli: self.capacity.cpu_milli,
                memory_bytes: self.capacity.memory_bytes,
            };
            let settled = matches!(self.settled, Settled::Yes);
            let planner = plan::Planner { config: &self.config, facts, sandboxes, settled, now };
            let fresh = entry.touched == 0;
            if entry.busy.is_some() {
                if planner.wants_abort(&mut entry) {
                    self.outputs.push_back(Output::Abort(uid.clone()));
                }
            } else if !fresh {
                entry.rest();
            } else if starting < self.config.parallel_starts || entry.is_ending() {
                match planner.next(&mut entry) {
                    None => entry.rest(),
                    Some(Action::Pull { .. }) if pulling >= self.config.parallel_pulls => {}
                    Some(action) => {
                        debug!(pod = %entry.reference, ?action, "next step");
                        entry.begin(&action);
                        starting += usize::from(entry.is_starting());
                        pulling += usize::from(entry.is_pulling());
                        self.outputs.push_back(Output::Do(uid.clone(), action));
                    }
                }
            }
            if let Some(report) = status::changed(&mut entry, sandboxes, &self.config, &self.runtime, now) {
                self.outputs.push_back(Output::Report(Report::Pod(report)));
            }
            self.pods.insert(uid, entry);
        }
    }

    fn settle(&mut self, now: Moment) {
        if self.settles_at().is_some_and(|at| now.at >= at) {
            self.settled = Settled::Yes;
            for entry in self.pods.values_mut().filter(|entry| entry.stage == Stage::Orphan) {
                info!(pod = %entry.reference, uid = %entry.uid, "a sandbox of no known pod will be removed");
                entry.changed = true;
            }
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
        let wakes = self.pods.values().filter_map(|entry| entry.wake);
        let observe = if self.observing.is_none() { Some(self.observe_at) } else { None };
        let far = self.observe_at + Duration::from_secs(3600);
        wakes.chain(observe).chain(self.settles_at()).min().unwrap_or(far)
    }

    /// The pod of this name, newest UID first, and its sandboxes.
    pub(crate) fn find(&self, reference: &ObjectRef) -> Option<(&Entry, &[ObservedSandbox])> {
        let of_name = self.pods.values().filter(|entry| entry.reference == *reference);
        let entry = of_name.min_by_key(|entry| (entry.deleted, entry.stage == Stage::Gone))?;
        Some((entry, self.observed.get(&entry.uid).map_or(&[], Vec::as_slice)))
    }
}
