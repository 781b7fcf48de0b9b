use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::controller::{Outcome, now};

/// Why an event of a node was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum Dropped {
    /// The node may not record it, or it cannot be read; see [`EdgeController::denials`](super::EdgeController::denials).
    Denied,
    /// It has the name of an event of somebody else.
    OthersName,
    /// The API refuses it for good, as when its namespace is being deleted.
    Refused,
    /// The API fails with it, though it takes others.
    Failed,
    /// It could not be written for an hour, after which an API server forgets events.
    Late,
    /// The node has more of them waiting than an edge sends.
    TooMany,
}

impl Dropped {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Denied, Self::OthersName, Self::Refused, Self::Failed, Self::Late, Self::TooMany];

    /// What it is called in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::OthersName => "others-name",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Late => "late",
            Self::TooMany => "too-many",
        }
    }
}

/// What EdgeController has done for its nodes since the start.
#[derive(Debug, Default)]
pub struct Counts {
    recorded: AtomicU64,
    retried: AtomicU64,
    waiting: AtomicUsize,
    dropped: [AtomicU64; Dropped::ALL.len()],
    events_held_back: AtomicU64,
    questions_held_back: AtomicU64,
    reports: Tried,
    leases: Tried,
}

/// What became of writes of one sort, and what of them waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Writing {
    /// Writes that the API has taken.
    pub done: u64,
    /// Writes that it refuses for good.
    pub refused: u64,
    /// Attempts that failed and are made again.
    pub retried: u64,
    /// For how long the one that waits for longest has been to be written.
    pub oldest: Option<Duration>,
    /// For how long something has been to be written without the API having taken or refused anything.
    pub stalled: Option<Duration>,
}

#[derive(Debug, Default)]
struct Tried {
    done: AtomicU64,
    refused: AtomicU64,
    retried: AtomicU64,
    moments: Mutex<Moments>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Moments {
    /// Since when the one that waits for longest is to be written.
    oldest: Option<Instant>,
    answered: Option<Instant>,
}

impl Tried {
    fn note(&self, outcome: &Outcome) {
        let (count, answered) = match outcome {
            Outcome::Done => (&self.done, true),
            Outcome::Refused(_) => (&self.refused, true),
            Outcome::Retry(_) => (&self.retried, false),
        };
        count.fetch_add(1, Relaxed);
        if answered {
            self.moments.lock().unwrap_or_else(PoisonError::into_inner).answered = Some(now());
        }
    }

    fn set_oldest(&self, oldest: Option<Instant>) {
        self.moments.lock().unwrap_or_else(PoisonError::into_inner).oldest = oldest;
    }

    fn read(&self) -> Writing {
        let Moments { oldest, answered } = *self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        // A write whose time is yet to come waits for nobody.
        let oldest = oldest.filter(|since| *since <= now()).map(|since| now().duration_since(since));
        let answered = answered.map(|answered| now().duration_since(answered));
        let stalled = oldest.map(|oldest| answered.map_or(oldest, |answered| answered.min(oldest)));
        Writing {
            done: self.done.load(Relaxed),
            refused: self.refused.load(Relaxed),
            retried: self.retried.load(Relaxed),
            oldest,
            stalled,
        }
    }
}

impl Counts {
    /// Events that the API has taken.
    pub fn events_recorded(&self) -> u64 {
        self.recorded.load(Relaxed)
    }

    /// Attempts to write an event that failed and are made again.
    pub fn events_retried(&self) -> u64 {
        self.retried.load(Relaxed)
    }

    /// Events that wait for the API; their nodes keep them as well.
    pub fn events_waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// Events that were given up, by reason.
    pub fn events_dropped(&self) -> [(Dropped, u64); Dropped::ALL.len()] {
        Dropped::ALL.map(|reason| (reason, self.dropped[reason as usize].load(Relaxed)))
    }

    /// Events that had to wait because another of their node was under way.
    pub fn events_held_back(&self) -> u64 {
        self.events_held_back.load(Relaxed)
    }

    /// Questions that had to wait because their node had as many under way as it may.
    pub fn questions_held_back(&self) -> u64 {
        self.questions_held_back.load(Relaxed)
    }

    /// What became of the states that nodes report.
    pub fn reports(&self) -> Writing {
        self.reports.read()
    }

    /// What became of the renewals of nodes' Leases.
    pub fn leases(&self) -> Writing {
        self.leases.read()
    }

    pub(super) fn note_report(&self, outcome: &Outcome) {
        self.reports.note(outcome);
    }

    pub(super) fn note_lease(&self, outcome: &Outcome) {
        self.leases.note(outcome);
    }

    pub(super) fn set_oldest(&self, report: Option<Instant>, lease: Option<Instant>) {
        self.reports.set_oldest(report);
        self.leases.set_oldest(lease);
    }

    pub(super) fn note_recorded(&self) {
        self.recorded.fetch_add(1, Relaxed);
    }

    pub(super) fn note_retried(&self) {
        self.retried.fetch_add(1, Relaxed);
    }

    pub(super) fn note_dropped(&self, reason: Dropped) {
        self.dropped[reason as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn set_events(&self, waiting: usize, held_back: u64) {
        self.waiting.store(waiting, Relaxed);
        self.events_held_back.store(held_back, Relaxed);
    }

    pub(super) fn set_questions(&self, held_back: u64) {
        self.questions_held_back.store(held_back, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn writes_are_stalled_while_something_waits_and_the_api_takes_nothing() {
        let counts = Counts::default();
        let wait = |seconds| tokio::time::advance(Duration::from_secs(seconds));
        let stalled = || counts.reports().stalled.map(|stalled| stalled.as_secs());
        wait(100).await;
        assert_eq!(stalled(), None, "nothing is to be written");
        counts.set_oldest(Some(now()), Some(now() + Duration::from_secs(10)));
        wait(5).await;
        counts.note_report(&Outcome::Retry("down".to_owned()));
        assert_eq!((stalled(), counts.leases().oldest), (Some(5), None));
        counts.note_report(&Outcome::Done);
        wait(3).await;
        assert_eq!(stalled(), Some(3), "one that fails alone is no reason to go elsewhere");
        let reports = counts.reports();
        assert_eq!((reports.done, reports.retried, reports.oldest), (1, 1, Some(Duration::from_secs(8))));
        counts.set_oldest(None, None);
        assert_eq!(stalled(), None);
    }
}
