//! The next steps of one pod: pure, and from what is observed only.

mod containers;
mod ending;

pub(crate) use self::ending::LEAST_GRACE;

use std::time::{Duration, Instant};

use kubeedge_core::runtime::ObservedSandbox;

use super::{
    Moment, Verdict,
    entry::{Entry, Stage},
    exits::{exit_code, is_final, is_running, may_not_restart, newest},
    steps::Busy,
};
use crate::edged::{
    Config,
    action::{Action, Slot},
    admission::Amounts,
    events::Note,
    make,
    pod::{Container, Pod, RestartPolicy},
    resolve::Facts,
    volumes,
};

/// What the plan of one pod looks at.
pub(crate) struct Planner<'a> {
    pub(crate) config: &'a Config,
    pub(crate) facts: Facts<'a>,
    /// What the node offers, if it is known.
    pub(crate) offered: Option<&'a Amounts>,
    /// The pod's sandboxes, the newest last.
    pub(crate) sandboxes: &'a [ObservedSandbox],
    /// Whether every pod that the node had is known: only then is a sandbox nobody's.
    pub(crate) settled: bool,
    /// Whether it may take a step towards running; there are only so many at once.
    pub(crate) may_start: bool,
    /// How many images may be fetched besides those that are.
    pub(crate) may_pull: usize,
    pub(crate) now: Moment,
}

/// What is to be done for a pod.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    pub(crate) begin: Vec<(Slot, Action)>,
    pub(crate) abort: Vec<Slot>,
}

impl Steps {
    fn begin(&mut self, entry: &mut Entry, slot: Slot, action: Action, now: Instant) {
        entry.begin(&slot, &action, now);
        self.begin.push((slot, action));
    }
}

/// How long a pull that failed is shown as `ErrImagePull` before it is `ImagePullBackOff`: long enough to be seen.
const PULL_FAILURE_SHOWN: Duration = Duration::from_secs(2);

impl Planner<'_> {
    /// The next steps; none if everything is as it should be or has to wait.
    pub(crate) fn plan(&mut self, entry: &mut Entry) -> Steps {
        let mut steps = Steps::default();
        entry.changed = false;
        if entry.stage == Stage::Gone {
            return steps;
        }
        if entry.stage == Stage::Orphan && !entry.deleted {
            let due = entry.since.at + self.config.orphan_grace;
            if self.now.at < due {
                entry.wake_at(due);
                return steps;
            }
            // Settling wakes it; to wait for a time that has passed would be to ask again and again.
            if !self.settled {
                return steps;
            }
            entry.deleted = true;
        }
        if entry.is_ending() {
            self.end(entry, &mut steps);
            return steps;
        }
        if let Some(Ok(pod)) = entry.pod.clone() {
            entry.note_exits(&pod, self.sandboxes, self.now);
            self.run(entry, &pod, &mut steps);
        }
        steps
    }

    fn run(&mut self, entry: &mut Entry, pod: &Pod, steps: &mut Steps) {
        self.watch_deadline(entry, pod);
        if entry.verdict.is_some() || self.is_over(entry, pod) {
            return self.wind_down(entry, pod, steps);
        }
        entry.held = pod.is_held() && !entry.released && self.sandboxes.is_empty();
        if entry.held {
            return;
        }
        if !entry.is_free(&Slot::Pod) {
            // While the sandbox is made, the images of its containers can be seen to.
            if matches!(entry.busy.get(&Slot::Pod), Some(Busy::RunSandbox)) {
                self.images_ahead(entry, pod, steps);
            }
            return;
        }
        if self.must_wait(entry, "") {
            return;
        }
        if let Some(action) = self.volumes(entry, pod) {
            return self.begin_start(entry, Slot::Pod, action, steps);
        }
        let newest = self.sandboxes.last();
        match newest.filter(|sandbox| sandbox.ready) {
            Some(sandbox) => self.containers(entry, pod, sandbox, steps),
            None => self.new_sandbox(entry, pod, steps),
        }
    }

    fn new_sandbox(&mut self, entry: &mut Entry, pod: &Pod, steps: &mut Steps) {
        if !entry.prepared || entry.busy.keys().any(|slot| *slot != Slot::Pod) {
            return;
        }
        let old = self.sandboxes.last();
        if let Some(running) = old.filter(|old| old.containers.iter().any(is_running)) {
            return steps.begin(entry, Slot::Pod, Action::StopSandbox(running.id.clone()), self.now.at);
        }
        let attempt = old.map_or(0, |old| old.attempt + 1);
        let config = match make::sandbox(pod, attempt, self.config, &self.facts) {
            Ok(config) => config,
            Err(missing) => {
                let note =
                    Note::of_pod(crate::edged::events::Kind::Warning, "FailedCreatePodSandBox", &missing.0);
                return Self::miss(entry, missing.0, note);
            }
        };
        entry.unresolved.remove("");
        entry.starting.clear();
        if old.is_some() && self.may_start {
            entry.say(Note::sandbox_changed());
        }
        self.begin_start(entry, Slot::Pod, Action::RunSandbox(Box::new(config)), steps);
        self.images_ahead(entry, pod, steps);
    }

    /// Begins a step towards running, if there is room for one.
    fn begin_start(&self, entry: &mut Entry, slot: Slot, action: Action, steps: &mut Steps) {
        if self.may_start {
            steps.begin(entry, slot, action, self.now.at);
        } else {
            // It is looked at again as soon as another pod has taken its step.
            entry.changed = true;
        }
    }

    /// Whether the last failure under this name was too short ago.
    fn must_wait(&self, entry: &mut Entry, name: &str) -> bool {
        let image = entry.image_of(name);
        let Some(trouble) = entry.troubles.get_mut(name).filter(|trouble| trouble.until > self.now.at) else {
            return false;
        };
        let (until, told) = (trouble.until, trouble.since + PULL_FAILURE_SHOWN);
        if trouble.failure.reason == "ErrImagePull" && !trouble.said {
            if told > self.now.at {
                entry.wake_at(told);
            } else {
                trouble.said = true;
                entry.say(Note::back_off_pulling(name, &image));
                entry.say(Note::failed(name, "Error: ImagePullBackOff"));
            }
        }
        entry.wake_at(until);
        true
    }

    /// Whether the pod has ended for good.
    fn is_over(&self, entry: &Entry, pod: &Pod) -> bool {
        let policy = pod.spec.restart_policy;
        let over = |container: &Container| match newest(self.sandboxes, &container.name) {
            Some(one) => is_final(one, policy),
            None => self.ended_before(entry, &container.name, policy),
        };
        let init_failed = pod.spec.init_containers.iter().any(|container| {
            policy == RestartPolicy::Never
                && !container.is_sidecar()
                && newest(self.sandboxes, &container.name)
                    .is_some_and(|one| exit_code(one).is_some_and(|code| code != 0))
        });
        // A pod that may not be restarted is over when its sandbox died under it.
        let lost = policy == RestartPolicy::Never
            && self.sandboxes.last().is_some_and(|sandbox| !sandbox.ready && !sandbox.containers.is_empty());
        let ended_before = pod.had_ended() || entry.shown.has_ended();
        pod.spec.containers.iter().all(over)
            || init_failed
            || lost
            || (ended_before && self.sandboxes.is_empty())
    }

    /// Whether a container that the runtime knows nothing of any more ended for good in an earlier sandbox.
    fn ended_before(&self, entry: &Entry, name: &str, policy: RestartPolicy) -> bool {
        let attempt = entry.attempts.get(name).copied().unwrap_or(0);
        let last = entry.shown.last_end(name).filter(|past| past.attempt >= attempt);
        last.is_some_and(|past| may_not_restart(past.code, policy))
    }

    /// `activeDeadlineSeconds` of the pod.
    fn watch_deadline(&self, entry: &mut Entry, pod: &Pod) {
        let Some(seconds) = pod.spec.active_deadline_seconds.filter(|_| entry.verdict.is_none()) else {
            return;
        };
        if self.is_over(entry, pod) {
            return;
        }
        let started_ms = entry.shown.started_ms().unwrap_or(self.now.unix_ms);
        let active = Duration::from_millis(self.now.unix_ms.saturating_sub(started_ms));
        let left = Duration::from_secs(seconds).saturating_sub(active);
        if left.is_zero() {
            let verdict = Verdict::deadline();
            entry.say(Note::of_pod(crate::edged::events::Kind::Normal, "DeadlineExceeded", &verdict.message));
            entry.verdict = Some(verdict);
        } else {
            entry.wake_at(self.now.at + left);
        }
    }

    fn volumes(&self, entry: &mut Entry, pod: &Pod) -> Option<Action> {
        if !entry.dirty {
            return None;
        }
        match volumes::prepare(pod, self.config, &self.facts) {
            Ok(prepare) => {
                entry.unresolved.remove("");
                let exact = entry.resizing(self.sandboxes).is_none();
                Some(Action::Prepare(make::cgroup(pod, self.config, exact), prepare))
            }
            // What runs keeps the files that it has.
            Err(missing) => {
                let note = Note::failed_mount(&missing.0);
                Self::miss(entry, missing.0, note);
                None
            }
        }
    }

    /// Remembers what the pod as a whole refers to and is not here, and says it once.
    fn miss(entry: &mut Entry, missing: String, note: Note) {
        if entry.unresolved.get("") != Some(&missing) {
            entry.say(note);
        }
        entry.unresolved.insert(String::new(), missing);
    }
}
