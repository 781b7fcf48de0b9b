use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

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
