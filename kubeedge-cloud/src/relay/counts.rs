use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Reason;

/// What the relay has done since the start.
#[derive(Debug, Default)]
pub struct Counts {
    passed_on: AtomicU64,
    answered: AtomicU64,
    failed: [AtomicU64; Reason::ALL.len()],
}

impl Counts {
    /// Requests of this cloud that another has answered.
    pub fn passed_on(&self) -> u64 {
        self.passed_on.load(Relaxed)
    }

    /// Requests of other clouds that were answered, also that the node is not here.
    pub fn answered(&self) -> u64 {
        self.answered.load(Relaxed)
    }

    /// Requests of this cloud that no other has answered, by reason.
    pub fn failed(&self) -> [(Reason, u64); Reason::ALL.len()] {
        Reason::ALL.map(|reason| (reason, self.failed[reason as usize].load(Relaxed)))
    }

    pub(super) fn note_passed_on(&self) {
        self.passed_on.fetch_add(1, Relaxed);
    }

    pub(super) fn note_answered(&self) {
        self.answered.fetch_add(1, Relaxed);
    }

    pub(super) fn note_failed(&self, reason: Reason) {
        self.failed[reason as usize].fetch_add(1, Relaxed);
    }
}
