use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use super::{Ack, config::Flow, frame::Weight};

/// What has to become durable at the peer, on one lane: at most one value per key, the newest.
///
/// A key is dirty (queued), in flight (under one sequence number), or clean, and then nothing of it is kept. When an
/// acknowledgement comes, what counts is the value that the number was first sent with: a repetition carries the
/// newest value, but the peer may have acknowledged the first copy. So a value that changed meanwhile is sent once more.
///
/// Occurrences are states whose keys never repeat.
#[derive(Debug)]
pub(super) struct Outgoing<K, V> {
    flow: Flow,
    slots: BTreeMap<K, Slot<V>>,
    queue: VecDeque<K>,
    flights: BTreeMap<u64, Flight<K>>,
    bytes: usize,
    weight: usize,
    last_seq: u64,
    again: BTreeSet<u64>,
    retry: Option<Retry>,
    resends: u64,
}

#[derive(Debug)]
struct Slot<V> {
    value: V,
    generation: u64,
}

#[derive(Debug)]
struct Flight<K> {
    key: K,
    generation: u64,
    bytes: usize,
    first: Instant,
    sent: Instant,
    skip: bool,
}

/// The peer fell silent about this lane: at `at`, the item that was sent least recently is sent again.
#[derive(Debug)]
struct Retry {
    at: Instant,
    after: Duration,
}

/// The peer acknowledged what it was not sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NeverSent(pub(super) u64);

impl<K: Ord + Clone, V: Clone + Weight> Outgoing<K, V> {
    pub(super) fn new(flow: Flow) -> Self {
        Self {
            flow,
            slots: BTreeMap::new(),
            queue: VecDeque::new(),
            flights: BTreeMap::new(),
            bytes: 0,
            weight: 0,
            last_seq: 0,
            again: BTreeSet::new(),
            retry: None,
            resends: 0,
        }
    }

    /// How many keys are not clean.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// About how many bytes the values of these keys take.
    pub(super) fn weight(&self) -> usize {
        self.weight
    }

    /// How many items were sent again.
    pub(super) fn resends(&self) -> u64 {
        self.resends
    }

    /// When the item was first sent that was not acknowledged for longest.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.flights.values().map(|flight| flight.first).min()
    }

    pub(super) fn set(&mut self, key: K, value: V) {
        if self.put(&key, value) {
            self.queue.push_back(key);
        }
    }

    /// As [`set`](Self::set), but it goes before all that is queued.
    pub(super) fn set_first(&mut self, key: K, value: V) {
        if self.put(&key, value) {
            self.queue.push_front(key);
        }
    }

    /// Whether the key was clean, and is to be queued.
    fn put(&mut self, key: &K, value: V) -> bool {
        self.weight += value.weight();
        if let Some(slot) = self.slots.get_mut(key) {
            self.weight -= slot.value.weight();
            slot.value = value;
            slot.generation += 1;
            return false;
        }
        self.slots.insert(key.clone(), Slot { value, generation: 0 });
        true
    }

    /// The next item to send with its number; `None` in its place means that it cannot be carried.
    pub(super) fn poll_transmit(&mut self, now: Instant) -> Option<(u64, Option<V>)> {
        if let Some(seq) = self.again.pop_first() {
            let flight = self.flights.get_mut(&seq)?;
            flight.sent = now;
            let value = self.slots.get(&flight.key).filter(|_| !flight.skip).map(|slot| slot.value.clone());
            return Some((seq, value));
        }
        let key = self.queue.front()?;
        let slot = self.slots.get(key)?;
        let bytes = slot.value.weight();
        let oldest = self.flights.keys().next().copied().unwrap_or(self.last_seq + 1);
        let fits = self.flights.is_empty()
            || self.flights.len() < self.flow.window_items
                && self.bytes + bytes <= self.flow.window_bytes
                && self.last_seq + 1 - oldest < SPAN;
        if !fits {
            return None;
        }
        let (value, generation) = (slot.value.clone(), slot.generation);
        let key = self.queue.pop_front()?;
        self.last_seq += 1;
        self.bytes += bytes;
        self.flights
            .insert(self.last_seq, Flight { key, generation, bytes, first: now, sent: now, skip: false });
        self.retry.get_or_insert(Retry { at: now + self.flow.retry_after, after: self.flow.retry_after });
        Some((self.last_seq, Some(value)))
    }

    /// The transport cannot carry the value under this number: the peer is told that there is nothing under it.
    /// Gives the key, unless the number is not in flight any more.
    pub(super) fn handle_too_long(&mut self, seq: u64) -> Option<K> {
        let flight = self.flights.get_mut(&seq)?;
        flight.skip = true;
        self.again.insert(seq);
        Some(flight.key.clone())
    }

    /// Gives the keys whose value has arrived.
    pub(super) fn handle_ack(&mut self, ack: &Ack, now: Instant) -> Result<Vec<K>, NeverSent> {
        let newest = ack.beyond.last().map_or(ack.upto, |(_, last)| *last);
        if newest > self.last_seq {
            return Err(NeverSent(newest));
        }
        let mut done: Vec<u64> = self.flights.range(..=ack.upto).map(|(seq, _)| *seq).collect();
        for (first, last) in &ack.beyond {
            done.extend(self.flights.range(first..=last).map(|(seq, _)| *seq));
        }
        if !done.is_empty() {
            self.retry = Some(Retry { at: now + self.flow.retry_after, after: self.flow.retry_after });
        }
        let arrived = done.into_iter().filter_map(|seq| self.land(seq)).collect();
        if self.flights.is_empty() {
            self.retry = None;
        }
        Ok(arrived)
    }

    /// Ends the flight under this number; gives the key, which is clean or queued again.
    fn land(&mut self, seq: u64) -> Option<K> {
        let flight = self.flights.remove(&seq)?;
        self.again.remove(&seq);
        self.bytes -= flight.bytes;
        let slot = self.slots.get(&flight.key)?;
        if slot.generation == flight.generation {
            self.remove(&flight.key);
        } else {
            self.queue.push_back(flight.key.clone());
        }
        Some(flight.key)
    }

    fn remove(&mut self, key: &K) {
        self.weight -= self.slots.remove(key).map_or(0, |slot| slot.value.weight());
        if self.slots.is_empty() {
            self.shrink();
        }
    }

    /// Gives back the memory in which there is nothing: most lanes of most sessions are idle.
    fn shrink(&mut self) {
        (self.slots, self.queue, self.again) = (BTreeMap::new(), VecDeque::new(), BTreeSet::new());
        if self.flights.is_empty() {
            self.flights = BTreeMap::new();
        }
    }

    /// A session is over: what was in flight is queued again, before what was queued, for the next session. Gives the
    /// keys of what could not be carried, which end here.
    pub(super) fn reset(&mut self) -> Vec<K> {
        let mut given_up = Vec::new();
        let flights = std::mem::take(&mut self.flights);
        for flight in flights.into_values().rev() {
            let Some(slot) = self.slots.get(&flight.key) else { continue };
            if flight.skip && slot.generation == flight.generation {
                self.remove(&flight.key);
                given_up.push(flight.key);
            } else {
                self.queue.push_front(flight.key);
            }
        }
        self.again.clear();
        (self.bytes, self.last_seq, self.retry) = (0, 0, None);
        given_up
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.retry.as_ref().map(|retry| retry.at)
    }

    /// Sends again what was sent least recently, one item at a time: a link that is merely slow must not be
    /// filled with repetitions.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let Some(retry) = self.retry.as_mut().filter(|retry| retry.at <= now) else { return };
        retry.after = (retry.after * 2).min(self.flow.retry_after_max);
        retry.at = now + retry.after;
        if let Some((seq, _)) = self.flights.iter().min_by_key(|(seq, flight)| (flight.sent, **seq)) {
            self.again.insert(*seq);
            self.resends += 1;
        }
    }
}

/// How far the newest number in flight may be ahead of the oldest. It bounds what the receiver remembers, while
/// one item that its part cannot store for long holds up only what comes a thousand items later.
pub(super) const SPAN: u64 = 1024;
