use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Questions that wait for an answer: each with a number, what belongs to it, and a deadline; bounded.
#[derive(Debug)]
pub(super) struct Calls<T> {
    open: BTreeMap<u64, (Instant, T)>,
    last_id: u64,
    max: usize,
}

impl<T> Calls<T> {
    pub(super) fn new(max: usize) -> Self {
        Self { open: BTreeMap::new(), last_id: 0, max }
    }

    /// Gives a new question its number; `None` if too many wait.
    pub(super) fn open(&mut self, with: T, timeout: Duration, now: Instant) -> Option<u64> {
        if self.open.len() >= self.max {
            return None;
        }
        self.last_id += 1;
        self.open.insert(self.last_id, (now + timeout, with));
        Some(self.last_id)
    }

    /// Gives a number that is not open, for a question that fails at once.
    pub(super) fn skip(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Ends a question; `None` if it is not open, as when its answer is late.
    pub(super) fn close(&mut self, id: u64) -> Option<T> {
        self.open.remove(&id).map(|(_, with)| with)
    }

    /// Ends all questions.
    pub(super) fn close_all(&mut self) -> impl Iterator<Item = (u64, T)> + use<T> {
        std::mem::take(&mut self.open).into_iter().map(|(id, (_, with))| (id, with))
    }

    /// Ends one question whose deadline is over.
    pub(super) fn close_late(&mut self, now: Instant) -> Option<(u64, T)> {
        let id = self.open.iter().find(|(_, (at, _))| *at <= now).map(|(id, _)| *id)?;
        self.close(id).map(|with| (id, with))
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.open.values().map(|(at, _)| *at).min()
    }
}
