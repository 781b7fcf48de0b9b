//! What the broker keeps of one client: its subscriptions and the messages on their way to it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Instant,
};

use super::{
    QoS,
    codec::{Message, Outgoing},
    state::{ConnectionId, Limits, PATIENCE},
};
use crate::eventbus::topic;

/// One client, connected or, if its session is persistent, between two connections.
#[derive(Debug, Default)]
pub(super) struct Session {
    pub(super) connection: Option<ConnectionId>,
    pub(super) clean: bool,
    pub(super) user: Option<String>,
    /// Packet identifiers of messages of QoS 2 that were taken and are not released yet.
    pub(super) received: BTreeSet<u16>,
    pub(super) will: Option<Message>,
    /// Grows with each connect and disconnect, so that the session unused for longest can be found.
    pub(super) used: u64,
    filters: BTreeMap<String, QoS>,
    /// Answers to the client's packets; they pass the messages.
    answers: VecDeque<Outgoing>,
    queue: VecDeque<Message>,
    queue_bytes: usize,
    /// Since when the queue has been longer than it should be; it is forgotten once half of it is gone.
    crowded_since: Option<Instant>,
    inflight: VecDeque<Inflight>,
    last_id: u16,
}

#[derive(Debug)]
struct Inflight {
    id: u16,
    message: Message,
    /// Whether it is on this connection; a later connection sends it again as a duplicate.
    sent: bool,
    duplicate: bool,
}

/// What putting a message in line came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pushed {
    /// Messages that had to go.
    pub(super) dropped: u64,
    /// None had to go yet, but the senders should pause.
    pub(super) crowded: bool,
}

impl Session {
    /// Adds a subscription; `None` when the client has too many.
    pub(super) fn subscribe(&mut self, filter: &str, qos: QoS, limits: &Limits) -> Option<QoS> {
        let known = self.filters.contains_key(filter);
        let fits = filter.len() <= limits.filter_bytes_max && self.filters.len() < limits.filters_max;
        if !topic::is_filter(filter) || !(known || fits) {
            return None;
        }
        self.filters.insert(filter.to_owned(), qos);
        Some(qos)
    }

    pub(super) fn unsubscribe(&mut self, filter: &str) {
        self.filters.remove(filter);
    }

    /// The QoS with which the client wants messages on this topic: the highest of all filters that match, so
    /// that overlapping subscriptions bring one copy.
    pub(super) fn wants(&self, name: &str) -> Option<QoS> {
        self.filters.iter().filter(|(filter, _)| topic::matches(filter, name)).map(|(_, qos)| *qos).max()
    }

    /// Puts an answer in line; false when the client sends and does not read.
    pub(super) fn answer(&mut self, packet: Outgoing, limits: &Limits) -> bool {
        self.answers.push_back(packet);
        self.answers.len() <= limits.answers_max
    }

    /// Puts a message in line. A queue that is too long loses of QoS 0 the oldest, else the oldest; but a certain
    /// message for a connected client waits for [`PATIENCE`] first, if its sender can be held up, as `now` says.
    pub(super) fn push(&mut self, message: Message, limits: &Limits, now: Option<Instant>) -> Pushed {
        let certain = message.qos == QoS::AtLeastOnce;
        if self.connection.is_none() && !certain {
            // Nobody listens, and the standard leaves QoS 0 for absent clients to the server (§3.1.2.4).
            return Pushed::default();
        }
        self.queue_bytes += message.size();
        self.queue.push_back(message);
        if !self.is_longer_than(limits) {
            return Pushed::default();
        }
        if let Some(now) = now.filter(|_| certain && self.connection.is_some()) {
            let since = *self.crowded_since.get_or_insert(now);
            if now < since + PATIENCE {
                return Pushed { dropped: 0, crowded: true };
            }
        }
        let mut dropped = 0;
        while self.queue.len() > 1 && self.is_longer_than(limits) {
            // A certain message does not go for one that is not.
            let others = if certain { self.queue.len() - 1 } else { self.queue.len() };
            let uncertain = |message: &Message| message.qos == QoS::AtMostOnce;
            let victim = self.queue.iter().take(others).position(uncertain).unwrap_or(0);
            self.queue_bytes -= self.queue.remove(victim).map_or(0, |message| message.size());
            dropped += 1;
        }
        Pushed { dropped, crowded: false }
    }

    /// Whether a further message would cost one that waits, and the client may still catch up: it has [`PATIENCE`] for
    /// that since its queue was full.
    pub(super) fn is_behind(&mut self, limits: &Limits, now: Instant) -> bool {
        let full = self.queue.len() >= limits.queue_max || self.queue_bytes >= limits.queue_bytes_max;
        if !full || self.connection.is_none() {
            return false;
        }
        now < *self.crowded_since.get_or_insert(now) + PATIENCE
    }

    fn is_longer_than(&self, limits: &Limits) -> bool {
        self.queue.len() > limits.queue_max || self.queue_bytes > limits.queue_bytes_max
    }

    /// Whether the queue was crowded and half of it is gone, or all of it.
    pub(super) fn is_relieved(&mut self, limits: &Limits) -> bool {
        let short =
            self.queue.len() <= limits.queue_max / 2 && self.queue_bytes <= limits.queue_bytes_max / 2;
        (short || self.queue.is_empty()) && self.crowded_since.take().is_some()
    }

    /// The next packet for the client's connection.
    pub(super) fn poll_packet(&mut self, limits: &Limits) -> Option<Outgoing> {
        if let Some(answer) = self.answers.pop_front() {
            return Some(answer);
        }
        if let Some(unsent) = self.inflight.iter_mut().find(|inflight| !inflight.sent) {
            unsent.sent = true;
            return Some(unsent.packet());
        }
        match self.queue.front()?.qos {
            QoS::AtMostOnce => {
                let message = self.pop()?;
                Some(Outgoing::Publish { message, id: 0, duplicate: false })
            }
            // Order holds within a client, so QoS 0 behind a full window waits too.
            QoS::AtLeastOnce if self.inflight.len() >= limits.inflight_max => None,
            QoS::AtLeastOnce => {
                let message = self.pop()?;
                let inflight = Inflight { id: self.next_id(), message, sent: true, duplicate: false };
                let packet = inflight.packet();
                self.inflight.push_back(inflight);
                Some(packet)
            }
        }
    }

    /// The client has the message; an id that is not in flight means nothing.
    pub(super) fn acknowledge(&mut self, id: u16) {
        self.inflight.retain(|inflight| inflight.id != id);
    }

    /// The connection is over: what was in flight is sent again on the next one.
    pub(super) fn detach(&mut self) {
        self.connection = None;
        self.will = None;
        self.answers.clear();
        self.crowded_since = None;
        for inflight in &mut self.inflight {
            inflight.sent = false;
            inflight.duplicate = true;
        }
    }

    fn pop(&mut self) -> Option<Message> {
        let message = self.queue.pop_front()?;
        self.queue_bytes -= message.size();
        Some(message)
    }

    fn next_id(&mut self) -> u16 {
        // The window is far smaller than the number of ids, so this ends.
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if self.inflight.iter().all(|inflight| inflight.id != self.last_id) {
                return self.last_id;
            }
        }
    }
}

impl Inflight {
    fn packet(&self) -> Outgoing {
        Outgoing::Publish { message: self.message.clone(), id: self.id, duplicate: self.duplicate }
    }
}
