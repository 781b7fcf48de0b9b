//! What becomes of the events that nodes record: whose is written next, when one is tried again, and when a node need not
//! keep one any longer. Pure.

mod record;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use kubeedge_core::{
    id::NodeName,
    message::{Delivered, Delivery, FromNode, ToNode, UploadedEvent},
};
use serde_json::Value;

use super::{Config, Counts, Dropped, turns::Turns};
use crate::controller::Backoff;
pub(super) use record::{Recorded, record};

/// An event that fails so often while the API takes others is the cause itself. While the API takes none, none is given up
/// for it.
const FAILURES_AMONG_OTHERS: u32 = 5;

/// The events that are not in the API.
#[derive(Debug)]
pub(super) struct Events {
    turns: Turns<Event>,
    backoff: Backoff,
    /// Events of which it is not known whether their nodes may record them.
    arrived: VecDeque<FromNode<Delivered<UploadedEvent>>>,
    taken: VecDeque<ToNode<Delivery>>,
    /// How many were written, to tell whether the API takes any.
    written: u64,
    waiting: usize,
    waiting_max: usize,
    tried_for: Duration,
    counts: Arc<Counts>,
}

/// An event on its way to the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    delivery: Delivery,
    json: Bytes,
    since: Instant,
    failures: u32,
    /// How many of these were followed by a success of another event, and how many had been written at the last.
    among_others: u32,
    written_before: u64,
}

impl Event {
    /// What is to stand in the API.
    pub(super) fn value(&self) -> Value {
        serde_json::from_slice(&self.json).unwrap_or_default()
    }
}

impl Events {
    pub(super) fn new(config: &Config, counts: Arc<Counts>) -> Self {
        Self {
            turns: Turns::new(config.events_at_once.get(), 1),
            backoff: Backoff { first: config.retry_first, max: config.retry_max },
            arrived: VecDeque::new(),
            taken: VecDeque::new(),
            written: 0,
            waiting: 0,
            waiting_max: config.events_waiting_max.get(),
            tried_for: config.events_tried_for,
            counts,
        }
    }

    /// A node has recorded this.
    pub(super) fn handle_event(&mut self, from: FromNode<Delivered<UploadedEvent>>) {
        self.arrived.push_back(from);
    }

    /// An event of which [`Events::handle_judged`] wants to know whether its node may record it. To be asked when it is known
    /// what exists.
    pub(super) fn poll_arrived(&mut self) -> Option<FromNode<Delivered<UploadedEvent>>> {
        self.arrived.pop_front()
    }

    /// The event is to be written like this, or its node may not record it, with the reason.
    pub(super) fn handle_judged(
        &mut self,
        node: NodeName,
        delivery: Delivery,
        judged: Result<Value, String>,
        now: Instant,
    ) {
        // What an earlier session has brought and is not written, the node has sent again.
        self.retain(&node, |event| event.delivery.session >= delivery.session);
        match judged {
            Err(why) => self.drop(node, delivery, Dropped::Denied, &why),
            Ok(_) if self.turns.waiting_of(&node) >= self.waiting_max => {
                self.drop(node, delivery, Dropped::TooMany, "too many events of the node wait");
            }
            Ok(event) => {
                let json = event.to_string().into();
                let event =
                    Event { delivery, json, since: now, failures: 0, among_others: 0, written_before: 0 };
                self.waiting += 1;
                self.turns.put(node, event);
            }
        }
        self.tell();
    }

    /// The next to write; [`Events::handle_recorded`] follows.
    pub(super) fn poll_write(&mut self, now: Instant) -> Option<(NodeName, Event)> {
        self.turns.poll(now)
    }

    /// What became of a write.
    pub(super) fn handle_recorded(&mut self, node: NodeName, event: Event, recorded: Recorded, now: Instant) {
        match recorded {
            Recorded::Retry(why) => self.handle_failed(node, event, &why, now),
            Recorded::Done => {
                self.written += 1;
                self.counts.note_recorded();
                self.settle(node, event.delivery);
            }
            Recorded::Dropped(reason, why) => self.give_up(node, event.delivery, reason, &why),
        }
        self.tell();
    }

    /// Another cloud has the node, and is sent what is not acknowledged here.
    pub(super) fn handle_lost(&mut self, node: &NodeName) {
        self.arrived.retain(|from| from.node != *node);
        self.retain(node, |_| false);
        self.tell();
    }

    /// An event that its node need not keep any longer.
    pub(super) fn poll_taken(&mut self) -> Option<ToNode<Delivery>> {
        self.taken.pop_front()
    }

    /// When [`Events::poll_write`] may have something, unless something else happens before.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.turns.poll_timeout()
    }

    fn handle_failed(&mut self, node: NodeName, mut event: Event, why: &str, now: Instant) {
        if event.failures > 0 && self.written > event.written_before {
            event.among_others += 1;
        }
        event.written_before = self.written;
        if event.among_others >= FAILURES_AMONG_OTHERS {
            return self.give_up(node, event.delivery, Dropped::Failed, why);
        }
        if now.duration_since(event.since) >= self.tried_for {
            return self.give_up(node, event.delivery, Dropped::Late, why);
        }
        tracing::debug!(%node, why, "an event of a node will be tried again");
        let at = now + self.backoff.after(event.failures);
        event.failures = event.failures.saturating_add(1);
        self.counts.note_retried();
        self.turns.again(&node, event, at);
    }

    fn give_up(&mut self, node: NodeName, delivery: Delivery, reason: Dropped, why: &str) {
        self.drop(node.clone(), delivery, reason, why);
        self.waiting -= 1;
        self.turns.done(&node);
    }

    fn drop(&mut self, node: NodeName, delivery: Delivery, reason: Dropped, why: &str) {
        match reason {
            // These are the node's doing, and it could fill the log with them.
            Dropped::Denied | Dropped::OthersName | Dropped::TooMany => {
                tracing::debug!(%node, why, "an event of a node is dropped");
            }
            Dropped::Refused | Dropped::Failed | Dropped::Late => {
                tracing::warn!(%node, reason = reason.as_str(), why, "an event of a node is given up");
            }
        }
        self.counts.note_dropped(reason);
        self.taken.push_back(ToNode { node, message: delivery });
    }

    fn settle(&mut self, node: NodeName, delivery: Delivery) {
        self.waiting -= 1;
        self.turns.done(&node);
        self.taken.push_back(ToNode { node, message: delivery });
    }

    fn retain(&mut self, node: &NodeName, keep: impl Fn(&Event) -> bool) {
        let before = self.turns.waiting_of(node);
        self.turns.retain(node, keep);
        self.waiting -= before - self.turns.waiting_of(node);
    }

    fn tell(&self) {
        self.counts.set_events(self.waiting, self.turns.held_back());
    }
}
