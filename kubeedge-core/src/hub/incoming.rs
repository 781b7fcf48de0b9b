use std::collections::BTreeMap;

use super::{Ack, outgoing::SPAN};
use crate::message::Lane;

/// What came on one lane: which numbers were seen, and which of them are durable.
#[derive(Debug)]
pub(super) struct Incoming<K> {
    /// Every number up to and including this one is durable.
    upto: u64,
    /// Numbers seen beyond: `None` is durable, else what has to become durable.
    beyond: BTreeMap<u64, Option<Undurable<K>>>,
    /// What those that have to become durable weigh.
    weight: usize,
    ack_due: bool,
}

/// What has to become durable.
#[derive(Debug)]
struct Undurable<K> {
    key: K,
    delivery: u64,
    weight: usize,
}

/// Whether an item has been seen before.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    First,
    Again,
}

/// The item's number is none that the peer could have used.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OutOfWindow {
    pub(super) seq: u64,
    pub(super) upto: u64,
}

impl<K: Ord> Incoming<K> {
    pub(super) fn new() -> Self {
        Self { upto: 0, beyond: BTreeMap::new(), weight: 0, ack_due: false }
    }

    /// About how many bytes have come and are not durable.
    pub(super) fn weight(&self) -> usize {
        self.weight
    }

    /// Looks at an item's number; a repetition of what is durable has its acknowledgement repeated.
    pub(super) fn handle_seq(&mut self, seq: u64) -> Result<Seen, OutOfWindow> {
        if seq == 0 || seq > self.upto + SPAN {
            return Err(OutOfWindow { seq, upto: self.upto });
        }
        if seq <= self.upto || matches!(self.beyond.get(&seq), Some(None)) {
            self.ack_due = true;
            return Ok(Seen::Again);
        }
        Ok(if self.beyond.contains_key(&seq) { Seen::Again } else { Seen::First })
    }

    /// Notes what was delivered to a part under this number.
    pub(super) fn deliver(&mut self, seq: u64, key: K, delivery: u64, weight: usize) {
        self.weight += weight;
        self.beyond.insert(seq, Some(Undurable { key, delivery, weight }));
    }

    /// Notes that there is nothing to deliver under this number.
    pub(super) fn skip(&mut self, seq: u64) {
        self.beyond.insert(seq, None);
        self.advance();
    }

    /// A part has made durable what was delivered for `key`, up to the delivery with this number.
    pub(super) fn handle_durable(&mut self, key: &K, number: u64) {
        let mut changed = false;
        for waiting in self.beyond.values_mut() {
            if let Some(durable) =
                waiting.take_if(|waiting| waiting.key == *key && waiting.delivery <= number)
            {
                self.weight -= durable.weight;
                changed = true;
            }
        }
        if changed {
            self.advance();
        }
    }

    fn advance(&mut self) {
        while let Some(None) = self.beyond.get(&(self.upto + 1)) {
            self.upto += 1;
            self.beyond.remove(&self.upto);
        }
        if self.beyond.is_empty() {
            // A map keeps room for what it had, and most lanes are idle.
            self.beyond = BTreeMap::new();
        }
        self.ack_due = true;
    }

    /// The acknowledgement, if the peer should have one.
    pub(super) fn poll_ack(&mut self, lane: Lane) -> Option<Ack> {
        if !std::mem::take(&mut self.ack_due) {
            return None;
        }
        let mut beyond: Vec<(u64, u64)> = Vec::new();
        for (seq, _) in self.beyond.iter().filter(|(_, waiting)| waiting.is_none()) {
            match beyond.last_mut() {
                Some((_, last)) if *last + 1 == *seq => *last = *seq,
                Some(_) | None => beyond.push((*seq, *seq)),
            }
        }
        beyond.truncate(SPANS_MAX);
        Some(Ack { lane, upto: self.upto, beyond })
    }
}

/// Keeps an acknowledgement small; what does not fit is told when the gaps before it are closed.
const SPANS_MAX: usize = 64;
