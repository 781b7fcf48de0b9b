//! A destination's outbox, pure: what waits for it, and when it is tried.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use kubeedge_core::device::PushMethod;

use super::{Outgoing, Overflow};

/// A server or broker that values are pushed to. All that goes there waits in one outbox, in order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Destination {
    /// An HTTP server, by host and port.
    Http(String, u16),
    /// An MQTT broker, by host and port.
    Mqtt(String, u16),
}

impl Destination {
    /// The destination of a push method.
    pub fn of(push: &PushMethod) -> Self {
        match push {
            PushMethod::Http(http) => Self::Http(http.host.clone(), http.port),
            PushMethod::Mqtt(mqtt) => Self::Mqtt(mqtt.host.clone(), mqtt.port),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(host, port) => write!(f, "http://{host}:{port}"),
            Self::Mqtt(host, port) => write!(f, "mqtt://{host}:{port}"),
        }
    }
}

/// How a destination is doing, in numbers since the start unless they say otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DestinationStats {
    /// How many values wait, from earlier runs too.
    pub unsent: u64,
    /// When the oldest of the block that waits longest was read, milliseconds since the Unix epoch.
    pub oldest_unsent_ms: Option<u64>,
    /// How many were sent and taken.
    pub sent: u64,
    /// How many the destination refused for good.
    pub refused: u64,
    /// How many were dropped because too many waited.
    pub dropped: u64,
    /// How many were dropped because they waited too long.
    pub expired: u64,
    /// Why the last try failed, while it is still true.
    pub failure: Option<String>,
}

/// What waits for a destination.
#[derive(Debug)]
pub(super) struct Queue {
    /// All values before this sequence number are done with.
    pub(super) cursor: u64,
    /// How many values of which block wait, and when the oldest of the block was read.
    blocks: BTreeMap<u64, Share>,
    phase: Phase,
    /// How long to wait after the next failure.
    pause: Duration,
    /// How often the destination has failed at the value under the cursor.
    tries: u32,
    pub(super) stats: DestinationStats,
}

#[derive(Debug, Clone, Copy)]
struct Share {
    count: u64,
    /// The sequence number after that of its last value.
    end: u64,
    oldest_ms: u64,
    newest_ms: u64,
}

/// What a destination is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It ends when a block waits and the time has come.
    Idle { from: Instant },
    /// A delivery is under way; it ends with its outcome.
    Busy,
}

/// What became of a delivery.
#[derive(Debug)]
pub(super) struct Delivered {
    /// All values before this sequence number are done with.
    pub(super) through: u64,
    /// How many of the destination's values were taken.
    pub(super) sent: u64,
    /// How many it refused for good.
    pub(super) refused: u64,
    /// Why it ended before the block did.
    pub(super) failure: Option<Failure>,
}

/// Why a delivery ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The destination does not answer, or not now.
    #[error("{0}")]
    Away(String),
    /// It ended the connection at a value: perhaps it does not want this one.
    #[error("{0}")]
    Broke(String),
    /// The block cannot be read; it is lost.
    #[error("{0}")]
    Unreadable(String),
}

/// How many connections a value may see end before it is taken for their reason.
const TRIES_MAX: u32 = 10;

impl Queue {
    pub(super) fn new(config: &Outgoing, cursor: u64, now: Instant) -> Self {
        Self {
            cursor,
            blocks: BTreeMap::new(),
            phase: Phase::Idle { from: now },
            pause: config.retry_min,
            tries: 0,
            stats: DestinationStats::default(),
        }
    }

    /// Takes a value of a block. Returns whether it is queued.
    pub(super) fn push(&mut self, config: &Outgoing, block: u64, sequence: u64, time_ms: u64) -> bool {
        if self.stats.unsent >= config.count_max.max(1) {
            let first = self.blocks.first_key_value().map(|(first, _)| *first);
            match (config.overflow, first) {
                (Overflow::DropOldest, Some(first)) if first < block => self.drop_block(first),
                // What is in the block that grows cannot be taken out of it.
                (Overflow::DropOldest | Overflow::DropNewest, _) => {
                    self.stats.dropped += 1;
                    return false;
                }
            }
        }
        self.restore(block, sequence, time_ms);
        true
    }

    /// Counts a value of a block that waits.
    pub(super) fn restore(&mut self, block: u64, sequence: u64, time_ms: u64) {
        let empty = Share { count: 0, end: 0, oldest_ms: time_ms, newest_ms: time_ms };
        let share = self.blocks.entry(block).or_insert(empty);
        share.end = sequence + 1;
        share.count += 1;
        share.oldest_ms = share.oldest_ms.min(time_ms);
        share.newest_ms = share.newest_ms.max(time_ms);
        self.stats.unsent += 1;
    }

    /// Gives a block up: what waits of it is dropped.
    pub(super) fn drop_block(&mut self, block: u64) {
        self.stats.dropped += self.take_out(block);
    }

    fn take_out(&mut self, block: u64) -> u64 {
        let Some(share) = self.blocks.remove(&block) else { return 0 };
        self.stats.unsent -= share.count;
        self.cursor = self.cursor.max(share.end);
        share.count
    }

    /// Drops the blocks whose newest value has waited too long.
    pub(super) fn expire(&mut self, config: &Outgoing, wall_ms: u64) {
        let age_max = u64::try_from(config.age_max.as_millis()).unwrap_or(u64::MAX);
        while let Some((first, share)) = self.blocks.first_key_value() {
            if share.newest_ms.saturating_add(age_max) > wall_ms {
                break;
            }
            let first = *first;
            self.stats.expired += self.take_out(first);
        }
    }

    /// Whether a block is still needed.
    pub(super) fn needs(&self, block: u64) -> bool {
        self.blocks.contains_key(&block)
    }

    /// The block to deliver now, and from which sequence number on, if it is durable.
    pub(super) fn poll(&mut self, durable: u64, now: Instant) -> Option<(u64, u64)> {
        let due = matches!(self.phase, Phase::Idle { from } if from <= now);
        let first = *self.blocks.first_key_value().filter(|_| due)?.0;
        let from = first.max(self.cursor);
        if from >= durable {
            return None;
        }
        self.phase = Phase::Busy;
        Some((first, from))
    }

    /// When it is to be tried again.
    pub(super) fn timeout(&self, now: Instant) -> Option<Instant> {
        match self.phase {
            Phase::Idle { from } if from > now && !self.blocks.is_empty() => Some(from),
            Phase::Idle { .. } | Phase::Busy => None,
        }
    }

    /// Takes what became of a delivery of a block.
    pub(super) fn handle_delivered(
        &mut self,
        config: &Outgoing,
        block: u64,
        delivered: Delivered,
        now: Instant,
    ) {
        let Delivered { through, sent, refused, failure } = delivered;
        self.stats.sent += sent;
        self.stats.refused += refused;
        let went_on = through > self.cursor.max(block);
        self.cursor = self.cursor.max(through);
        self.reduce(block, sent + refused);
        if went_on {
            (self.tries, self.pause) = (0, config.retry_min);
        }
        self.stats.failure = failure.as_ref().map(ToString::to_string);
        self.phase = Phase::Idle { from: now };
        match failure {
            None => self.pause = config.retry_min,
            Some(Failure::Unreadable(_)) => self.drop_block(block),
            Some(Failure::Away(_)) => self.wait(config, now),
            Some(Failure::Broke(_)) => {
                self.tries += 1;
                if self.tries >= TRIES_MAX {
                    self.tries = 0;
                    self.cursor = self.cursor.max(block) + 1;
                    self.stats.refused += 1;
                    self.reduce(block, 1);
                }
                self.wait(config, now);
            }
        }
    }

    fn wait(&mut self, config: &Outgoing, now: Instant) {
        self.phase = Phase::Idle { from: now + self.pause };
        self.pause = (self.pause * 2).min(config.retry_max);
    }

    /// Some of what waited of a block is done with.
    fn reduce(&mut self, block: u64, count: u64) {
        // The block may have been given up meanwhile.
        let Some(share) = self.blocks.get_mut(&block) else { return };
        let count = count.min(share.count);
        share.count -= count;
        self.stats.unsent -= count;
        if share.count == 0 {
            self.blocks.remove(&block);
        }
    }

    /// A block was delivered to its end.
    pub(super) fn finish(&mut self, block: u64) {
        self.reduce(block, u64::MAX);
    }

    /// Whether nothing waits, and nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.blocks.is_empty() && self.phase != Phase::Busy
    }

    pub(super) fn stats(&self) -> DestinationStats {
        let oldest = self.blocks.first_key_value().map(|(_, share)| share.oldest_ms);
        DestinationStats { oldest_unsent_ms: oldest, ..self.stats.clone() }
    }
}
