//! The steps of a pod in flight, and what comes of each.

use std::time::{Duration, Instant};

use kubeedge_core::runtime::ContainerId;

use super::{
    Moment,
    entry::{Entry, Image, Stage, Starting},
    exits::Trouble,
};
use crate::edged::{
    action::{Action, Failure, Outcome, Slot},
    events::Note,
    pod::Requirements,
};

/// A step in flight.
#[derive(Debug)]
pub(crate) enum Busy {
    Prepare,
    RunSandbox,
    Inspect,
    Pull,
    Create,
    Start(ContainerId),
    PostStart(ContainerId),
    Resize(Requirements),
    /// `until` when it will have been killed at the latest.
    Stop {
        until: Instant,
        aborting: bool,
    },
    RemoveFiles,
    /// Any other step.
    Step,
}

impl Busy {
    /// Orders the steps that lead to running; the others stand for themselves.
    pub(crate) fn rank(&self) -> u8 {
        match self {
            Self::Prepare | Self::Inspect => 1,
            Self::RunSandbox | Self::Pull => 2,
            Self::Create => 3,
            Self::Start(_) => 4,
            Self::PostStart(_) => 5,
            Self::Resize(_) | Self::Step => 10,
            Self::Stop { .. } => 11,
            Self::RemoveFiles => 12,
        }
    }
}

impl Entry {
    /// Marks the step as in flight.
    pub(crate) fn begin(&mut self, slot: &Slot, action: &Action, now: Instant) {
        let busy = match action {
            Action::Prepare(..) => {
                self.dirty = false;
                Busy::Prepare
            }
            Action::RunSandbox(_) => Busy::RunSandbox,
            Action::Inspect { .. } => Busy::Inspect,
            Action::Pull { .. } => Busy::Pull,
            Action::Create(create) => {
                let name = &create.config.name;
                self.images.remove(name);
                self.note_given(name);
                self.attempts.insert(name.clone(), create.config.attempt);
                if let Some(crash) = self.crashes.get_mut(name) {
                    crash.delay = crash.next_delay();
                }
                Busy::Create
            }
            Action::Start(id) => Busy::Start(id.clone()),
            Action::Resize(..) => Busy::Resize(self.allotted_of(slot.name())),
            Action::PostStart(_) => match self.starting.get(slot.name()) {
                Some(Starting::Started(id)) => Busy::PostStart(id.clone()),
                Some(Starting::Created(_) | Starting::HookFailed(_)) | None => Busy::Step,
            },
            Action::Stop { id, grace, .. } => {
                self.hooked.insert(id.clone());
                Busy::Stop { until: now + *grace, aborting: false }
            }
            Action::RemoveFiles { .. } => Busy::RemoveFiles,
            Action::RemoveContainer { .. } | Action::StopSandbox(_) | Action::RemoveSandbox(_) => Busy::Step,
        };
        self.busy.insert(slot.clone(), busy);
    }

    /// Takes the outcome of the step in flight. Returns whether the runtime has changed by it.
    pub(crate) fn done(&mut self, slot: &Slot, outcome: Outcome, epoch: u64, now: Moment) -> bool {
        let Some(busy) = self.busy.remove(slot) else { return false };
        self.changed = true;
        let name = slot.name().to_owned();
        let touches = match &busy {
            Busy::Prepare
            | Busy::Inspect
            | Busy::Pull
            | Busy::PostStart(_)
            | Busy::Resize(_)
            | Busy::RemoveFiles => false,
            Busy::RunSandbox | Busy::Create | Busy::Start(_) | Busy::Stop { .. } | Busy::Step => true,
        };
        if touches {
            self.touched.insert(slot.clone(), epoch);
        }
        match (outcome, busy) {
            (Outcome::Aborted, busy) => self.aborted(&name, &busy),
            (Outcome::Failed(failure), Busy::Resize(_)) => self.resize_failed(&name, failure, now),
            (Outcome::Failed(failure), busy) => self.failed(name, failure, &busy, now),
            (outcome, busy) => {
                self.forget_trouble(&name, busy.rank());
                self.succeeded(name, outcome, busy);
            }
        }
        touches
    }

    fn aborted(&mut self, name: &str, busy: &Busy) {
        match busy {
            // Whether it was created is for the next observation to say.
            Busy::Create | Busy::Start(_) | Busy::PostStart(_) => drop(self.starting.remove(name)),
            Busy::Prepare => self.dirty = true,
            Busy::RunSandbox
            | Busy::Inspect
            | Busy::Pull
            | Busy::Resize(_)
            | Busy::Stop { .. }
            | Busy::RemoveFiles
            | Busy::Step => {}
        }
    }

    fn succeeded(&mut self, name: String, outcome: Outcome, busy: Busy) {
        match (busy, outcome) {
            (Busy::Prepare, _) => self.prepared = true,
            (Busy::RemoveFiles, _) => self.stage = Stage::Gone,
            (Busy::Inspect, Outcome::Found(here)) => drop(self.images.insert(name, Image::Wanted { here })),
            (Busy::Pull, outcome) => {
                if let Outcome::Pulled(took) = outcome {
                    let note = Note::pulled(&name, &self.image_of(&name), took);
                    self.say(note);
                }
                self.images.insert(name, Image::Ready);
            }
            (Busy::Create, Outcome::Created(id)) => {
                self.say(Note::created(&name));
                self.starting.insert(name, Starting::Created(id));
            }
            (Busy::Start(id), _) => {
                self.say(Note::started(&name));
                if self.hook(&name, |lifecycle| lifecycle.post_start.is_some()) {
                    self.starting.insert(name, Starting::Started(id));
                } else {
                    self.starting.remove(&name);
                }
            }
            (Busy::PostStart(_), _) => drop(self.starting.remove(&name)),
            (Busy::Resize(given), _) => self.resized(name, given),
            (Busy::Stop { .. }, Outcome::Stopped { hook, overdue }) => {
                self.starting.remove(&name);
                if let Some(message) = hook {
                    self.say(Note::pre_stop_failed(&name, &message));
                }
                if overdue {
                    self.say(Note::exceeded_grace());
                }
            }
            _ => {}
        }
    }

    fn failed(&mut self, name: String, failure: Failure, busy: &Busy, now: Moment) {
        match busy {
            Busy::Prepare => self.dirty = true,
            Busy::Create | Busy::Start(_) => drop(self.starting.remove(&name)),
            Busy::PostStart(id) => {
                let hook_failed = Starting::HookFailed(id.clone());
                self.starting.insert(name.clone(), hook_failed);
            }
            Busy::RunSandbox
            | Busy::Inspect
            | Busy::Pull
            | Busy::Resize(_)
            | Busy::Stop { .. }
            | Busy::RemoveFiles
            | Busy::Step => {}
        }
        self.trouble(name, failure, busy, now);
    }

    fn trouble(&mut self, name: String, failure: Failure, busy: &Busy, now: Moment) {
        let count = self.troubles.get(&name).map_or(0, |old| old.count) + 1;
        let doubled = |first: u64, most: u64| (first << (count - 1).min(16)).min(most);
        let seconds = match busy {
            Busy::Pull => doubled(10, 300),
            // The container is stopped at once.
            Busy::PostStart(_) => 0,
            Busy::Prepare
            | Busy::RunSandbox
            | Busy::Inspect
            | Busy::Create
            | Busy::Start(_)
            | Busy::Resize(_)
            | Busy::Stop { .. }
            | Busy::RemoveFiles
            | Busy::Step => doubled(1, 60),
        };
        self.set_trouble(name, failure, (count, busy.rank()), Duration::from_secs(seconds), now);
    }

    /// Notes a failure that was found without a step, such as an image that must not be fetched.
    pub(crate) fn note_trouble(&mut self, name: &str, failure: Failure, wait: Duration, now: Moment) {
        let count = self.troubles.get(name).map_or(0, |old| old.count) + 1;
        self.set_trouble(name.to_owned(), failure, (count, Busy::Pull.rank()), wait, now);
    }

    fn set_trouble(
        &mut self,
        name: String,
        failure: Failure,
        (count, rank): (u32, u8),
        wait: Duration,
        now: Moment,
    ) {
        let until = now.at + wait;
        self.wake_at(until);
        let image = self.image_of(&name);
        for note in Note::of_failure(&name, &image, &failure) {
            self.say(note);
        }
        let trouble = Trouble { failure, rank, count, since: now.at, until, said: false };
        self.troubles.insert(name, trouble);
    }

    /// A success makes good for the failures of its step and of those before it.
    fn forget_trouble(&mut self, name: &str, rank: u8) {
        let alone = Busy::Step.rank();
        let made_good = |trouble: &Trouble| trouble.rank == rank || (rank < alone && trouble.rank < rank);
        if self.troubles.get(name).is_some_and(made_good) {
            self.troubles.remove(name);
        }
    }
}
