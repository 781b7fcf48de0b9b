//! Messages on their way to the external broker: kept until it has acknowledged them.

use std::{collections::VecDeque, fmt};

use kubeedge_core::message::{Publish, Response};

use super::{driver::Asker, topic};

/// Messages sent and not acknowledged. Below the client library's own window, so that the library never
/// stops taking requests, of which the acknowledgements of what came in are some.
pub(super) const WINDOW: usize = 16;

/// The longest packet in bytes, each way.
pub(super) const PACKET_BYTES_MAX: usize = 1 << 20;

/// What a packet has besides topic and payload: header, lengths and packet identifier, rounded up.
const PACKET_OVERHEAD: usize = 16;

/// How many connections the first message of the window may see end before it is taken for their reason.
const TRIES_MAX: u32 = 10;

/// The messages, oldest first.
#[derive(Debug)]
pub(super) struct Pending {
    waiting: VecDeque<Entry>,
    sent: VecDeque<Entry>,
    bytes: usize,
    count_max: usize,
    bytes_max: usize,
    dropped: u64,
}

struct Entry {
    publish: Publish,
    /// Who is to be told when the broker has it.
    asker: Option<Asker>,
    /// The packet identifier, once the client library has told it.
    packet: Option<u16>,
    /// How many connections ended while this was the first unacknowledged message.
    tries: u32,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("publish", &self.publish)
            .field("packet", &self.packet)
            .finish_non_exhaustive()
    }
}

impl Entry {
    fn size(&self) -> usize {
        size(&self.publish)
    }
}

fn size(publish: &Publish) -> usize {
    publish.topic.len() + publish.payload.len() + PACKET_OVERHEAD
}

impl Pending {
    pub(super) fn new(count_max: usize, bytes_max: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            sent: VecDeque::new(),
            bytes: 0,
            count_max: count_max.max(1),
            bytes_max,
            dropped: 0,
        }
    }

    /// Takes a message. If there is no room, the oldest waiting one goes for it.
    pub(super) fn push(&mut self, publish: Publish, asker: Option<Asker>) {
        if !topic::is_name(&publish.topic) || size(&publish) > PACKET_BYTES_MAX {
            tracing::warn!(topic = %publish.topic, bytes = publish.payload.len(), "message cannot be published");
            self.dropped += 1;
            return give_up(asker, "the message is longer than the node's MQTT broker takes");
        }
        let entry = Entry { publish, asker, packet: None, tries: 0 };
        self.bytes += entry.size();
        self.waiting.push_back(entry);
        while self.waiting.len() > 1
            && (self.waiting.len() + self.sent.len() > self.count_max || self.bytes > self.bytes_max)
        {
            self.drop_waiting();
        }
    }

    /// The next message to send, if the window has room.
    pub(super) fn poll_publish(&mut self) -> Option<Publish> {
        if self.sent.len() >= WINDOW {
            return None;
        }
        let entry = self.waiting.pop_front()?;
        let publish = entry.publish.clone();
        self.sent.push_back(entry);
        Some(publish)
    }

    /// The client library gave the next message this packet identifier.
    pub(super) fn handle_sent(&mut self, packet: u16) {
        if let Some(entry) = self.sent.iter_mut().find(|entry| entry.packet.is_none()) {
            entry.packet = Some(packet);
        }
    }

    /// The broker has the message.
    pub(super) fn handle_acknowledged(&mut self, packet: u16) {
        if let Some(at) = self.sent.iter().position(|entry| entry.packet == Some(packet)) {
            let Some(entry) = self.sent.remove(at) else { return };
            self.bytes -= entry.size();
            entry.asker.into_iter().for_each(|asker| asker.answer(Response::Published));
        }
    }

    /// The connection is over: what was not acknowledged is sent again, in order, on the next one.
    pub(super) fn handle_disconnected(&mut self) {
        if let Some(first) = self.sent.front_mut() {
            first.tries += 1;
            if first.tries >= TRIES_MAX {
                let topic = &first.publish.topic;
                tracing::warn!(%topic, tries = first.tries, "the broker does not take a message: it is dropped");
                self.dropped += 1;
                self.sent.pop_front().into_iter().for_each(|entry| self.drop_entry(entry));
            }
        }
        while let Some(mut entry) = self.sent.pop_back() {
            entry.packet = None;
            self.waiting.push_front(entry);
        }
    }

    /// How many messages wait or are not acknowledged.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.sent.len()
    }

    /// How many messages were dropped so far.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    fn drop_waiting(&mut self) {
        if let Some(entry) = self.waiting.pop_front() {
            self.dropped += 1;
            self.drop_entry(entry);
        }
    }

    fn drop_entry(&mut self, entry: Entry) {
        self.bytes -= entry.size();
        give_up(entry.asker, "the node's MQTT broker does not take messages");
    }
}

fn give_up(asker: Option<Asker>, why: &str) {
    asker.into_iter().for_each(|asker| {
        asker.answer(Response::Failed { code: 503, message: why.to_owned() });
    });
}
