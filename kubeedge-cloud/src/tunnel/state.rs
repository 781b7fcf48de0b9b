//! How far both directions of a tunnel are, and for how long a node that does not answer is waited for. Pure.

use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use kubeedge_core::message::{TunnelResponse, TunnelStep};

use super::failed;
use crate::node::{Failed, misanswered};

/// The direction to the node.
#[derive(Debug, Default)]
pub(super) struct Upward {
    taken: u64,
    rest: Bytes,
    end: bool,
    told: bool,
}

impl Upward {
    /// The client says this; nothing means that it has said all.
    pub(super) fn handle_said(&mut self, data: Bytes) {
        self.end |= data.is_empty();
        self.rest = data;
    }

    /// What the node is to be told; `None` if it knows all.
    pub(super) fn step(&self, wait: Duration) -> Option<TunnelStep> {
        let due = !self.rest.is_empty() || self.end && !self.told;
        due.then(|| TunnelStep::Push { offset: self.taken, data: self.rest.clone(), end: self.end, wait })
    }

    /// The node answers the step.
    pub(super) fn handle_answer(&mut self, answer: &TunnelResponse) -> Result<(), Failed> {
        let TunnelResponse::Taken(taken) = answer else { return Err(misanswered()) };
        let count = taken.checked_sub(self.taken).and_then(|count| usize::try_from(count).ok());
        let Some(count) = count.filter(|count| *count <= self.rest.len()) else { return Err(misanswered()) };
        self.rest.advance(count);
        self.taken = *taken;
        self.told |= self.end && self.rest.is_empty();
        Ok(())
    }
}

/// The direction from the node.
#[derive(Debug, Default)]
pub(super) struct Downward {
    received: u64,
}

impl Downward {
    /// What the node is to be asked.
    pub(super) fn step(&self, wait: Duration) -> TunnelStep {
        TunnelStep::Pull { offset: self.received, wait }
    }

    /// The node's answer: the bytes, and whether they are the last.
    pub(super) fn handle_answer(&mut self, answer: TunnelResponse) -> Result<(Bytes, bool), Failed> {
        let TunnelResponse::Piece { data, end } = answer else { return Err(misanswered()) };
        if data.len() > TunnelStep::DATA_MAX {
            return Err(failed(502, "the node says more at once than it may"));
        }
        self.received += data.len() as u64;
        Ok((data, end))
    }
}

/// Whether one step is tried again.
#[derive(Debug)]
pub(super) struct Patience {
    lasts: Duration,
    since: Option<Instant>,
}

/// The pause before a step is tried again. A node that has lost its link is back within a second or two.
pub(super) const AGAIN: Duration = Duration::from_millis(250);

impl Patience {
    /// Waits for `lasts` at most for a node to be back.
    pub(super) fn new(lasts: Duration) -> Self {
        Self { lasts, since: None }
    }

    /// The step failed. Says whether another attempt may help: the node, or the way to it, may be back.
    pub(super) fn handle_failure(&mut self, failed: &Failed, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        matches!(failed.code, 502..=504) && now.duration_since(since) < self.lasts
    }
}
