//! What is remembered of one pod between its steps.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use kubeedge_core::{
    id::Uid,
    message::{ObjectRef, PodReport, PodState},
    runtime::{ContainerId, ObservedSandbox},
};

use super::Moment;
use crate::edged::{
    action::{Action, Failure, Outcome, PullPolicy},
    pod::{InvalidPod, Pod},
    status::Shown,
    volumes,
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
    pub(crate) busy: Option<Busy>,
    /// The state's epoch when its last step ended; zero once an observation has seen its effect.
    pub(crate) touched: u64,
    /// Something has happened that the next plan has to look at.
    pub(crate) changed: bool,
    /// When to look again without anything happening.
    pub(crate) wake: Option<Instant>,
    /// Its volumes have to be written.
    pub(crate) dirty: bool,
    /// Its volumes were written since this process started.
    pub(crate) prepared: bool,
    /// What it refers to and is not here.
    pub(crate) unresolved: Option<String>,
    /// What failed last, by container; under the empty name what concerns the whole pod.
    pub(crate) troubles: BTreeMap<String, Trouble>,
    pub(crate) crashes: BTreeMap<String, Crash>,
    /// Containers whose image has been seen to for their next start.
    pub(crate) images: BTreeSet<String>,
    /// The highest attempt of each container.
    pub(crate) attempts: BTreeMap<String, u32>,
    pub(crate) ips: Vec<String>,
    /// What the cloud was told last.
    pub(crate) shown: Shown,
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

/// A step in flight.
#[derive(Debug)]
pub(crate) enum Busy {
    Pull {
        container: String,
        policy: PullPolicy,
    },
    Prepare,
    Kill {
        grace: Duration,
        aborting: bool,
    },
    RemoveFiles,
    /// Any other step, and the container that it is about.
    Step {
        container: String,
    },
}

/// A step that failed, and when it is tried again.
#[derive(Debug, Clone)]
pub(crate) struct Trouble {
    pub(crate) failure: Failure,
    pub(crate) count: u32,
    pub(crate) until: Instant,
}

/// How a container keeps ending, as kubelet counts it: the first restart is immediate, the next waits 10 s,
/// then twice as long each time up to 5 min; 10 min of running make good for everything.
#[derive(Debug, Clone)]
pub(crate) struct Crash {
    /// The instance that ended last.
    pub(crate) instance: ContainerId,
    pub(crate) delay: Duration,
    pub(crate) until: Instant,
}

impl Crash {
    pub(crate) fn next_delay(&self) -> Duration {
        (self.delay * 2).clamp(Duration::from_secs(10), Duration::from_secs(300))
    }
}

impl Entry {
    pub(crate) fn new(reference: ObjectRef, uid: Uid, pod: Result<Pod, InvalidPod>, now: Moment) -> Self {
        let mut entry = Self::orphan(reference, uid, now);
        entry.apply(pod);
        entry
    }

    pub(crate) fn orphan(reference: ObjectRef, uid: Uid, now: Moment) -> Self {
        Self {
            reference,
            uid,
            pod: None,
            stage: Stage::Orphan,
            deleted: false,
            since: now,
            busy: None,
            touched: 0,
            changed: true,
            wake: None,
            dirty: true,
            prepared: false,
            unresolved: None,
            troubles: BTreeMap::new(),
            crashes: BTreeMap::new(),
            images: BTreeSet::new(),
            attempts: BTreeMap::new(),
            ips: Vec::new(),
            shown: Shown::default(),
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
        self.pod = Some(pod.map(Arc::new));
        if self.stage == Stage::Orphan {
            // It was not nobody's after all, even if its removal has begun.
            (self.stage, self.deleted) = (Stage::Wanted, false);
        }
        self.dirty = true;
        self.changed = true;
    }

    pub(crate) fn delete(&mut self) {
        self.troubles.clear();
        self.deleted = true;
        self.changed = true;
    }

    pub(crate) fn object_changed(&mut self, reference: &ObjectRef) {
        let Some(pod) = self.wanted() else { return };
        if reference.namespace() != pod.reference.namespace() {
            return;
        }
        let in_volume = volumes::volume_references(pod).contains(reference);
        self.dirty |= in_volume;
        self.changed |= in_volume || self.unresolved.is_some();
    }

    /// The pod, if it could be read.
    pub(crate) fn wanted(&self) -> Option<&Pod> {
        self.pod.as_ref()?.as_ref().ok().map(Arc::as_ref)
    }

    /// Whether what runs of it has to stop.
    pub(crate) fn is_ending(&self) -> bool {
        self.deleted || self.pod.is_none() || self.wanted().is_some_and(Pod::is_deleting)
    }

    pub(crate) fn is_starting(&self) -> bool {
        matches!(self.busy, Some(Busy::Prepare | Busy::Step { .. }))
    }

    pub(crate) fn is_pulling(&self) -> bool {
        matches!(self.busy, Some(Busy::Pull { .. }))
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.changed || self.wake.is_some_and(|wake| wake <= now)
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

    pub(crate) fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    pub(crate) fn begin(&mut self, action: &Action) {
        self.changed = false;
        self.busy = Some(match action {
            Action::Prepare(_) => Busy::Prepare,
            Action::Pull { container, policy, .. } => {
                Busy::Pull { container: container.clone(), policy: *policy }
            }
            Action::Start { config, .. } => {
                self.images.remove(&config.name);
                self.attempts.insert(config.name.clone(), config.attempt);
                if let Some(crash) = self.crashes.get_mut(&config.name) {
                    crash.delay = crash.next_delay();
                }
                Busy::Step { container: config.name.clone() }
            }
            Action::StartCreated { container, .. } => Busy::Step { container: container.clone() },
            Action::Kill { grace, .. } => Busy::Kill { grace: *grace, aborting: false },
            Action::RemoveFiles { .. } => Busy::RemoveFiles,
            Action::RunSandbox(_)
            | Action::Stop { .. }
            | Action::RemoveContainer { .. }
            | Action::StopSandbox(_)
            | Action::RemoveSandbox(_) => Busy::Step { container: String::new() },
        });
    }

    /// Takes the outcome of the step in flight. Returns whether the runtime has changed by it.
    pub(crate) fn done(&mut self, outcome: Outcome, epoch: u64, now: Moment) -> bool {
        let Some(busy) = self.busy.take() else { return false };
        self.changed = true;
        let touches = match &busy {
            Busy::Pull { .. } | Busy::Prepare | Busy::RemoveFiles => false,
            Busy::Kill { .. } | Busy::Step { .. } => true,
        };
        if touches {
            self.touched = epoch;
        }
        let key = match &busy {
            Busy::Pull { container, .. } | Busy::Step { container } => container.clone(),
            Busy::Prepare | Busy::Kill { .. } | Busy::RemoveFiles => String::new(),
        };
        match outcome {
            Outcome::Aborted => {}
            Outcome::Failed(failure) => {
                self.dirty |= matches!(busy, Busy::Prepare);
                self.trouble(key, failure, &busy, now);
            }
            Outcome::Done => {
                self.troubles.remove(&key);
                match busy {
                    Busy::Pull { container, .. } => drop(self.images.insert(container)),
                    Busy::Prepare => self.prepared = true,
                    Busy::RemoveFiles => self.stage = Stage::Gone,
                    Busy::Kill { .. } | Busy::Step { .. } => {}
                }
            }
        }
        touches
    }

    fn trouble(&mut self, key: String, failure: Failure, busy: &Busy, now: Moment) {
        let count = self.troubles.get(&key).map_or(0, |old| old.count) + 1;
        let doubled = |first: u64, most: u64| (first << (count - 1).min(16)).min(most);
        let seconds = match busy {
            // An image that must not be pulled appears by hand, so look at an even pace.
            Busy::Pull { policy: PullPolicy::Never, .. } => 10,
            Busy::Pull { .. } => doubled(10, 300),
            Busy::Prepare | Busy::Kill { .. } | Busy::RemoveFiles | Busy::Step { .. } => doubled(1, 60),
        };
        let until = now.at + Duration::from_secs(seconds);
        self.wake_at(until);
        self.troubles.insert(key, Trouble { failure, count, until });
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
