//! Whose turn it is, when many want to speak and the listener is slow. Pure.
//!
//! A key that was quiet goes at once. One that keeps changing has a small credit, and then one turn per interval, at
//! which the newest is told. What people wait for (an answer, a connection that is lost) is [`Urgency::Urgent`]: it
//! goes before everything ordinary and has a credit of its own, so that neither a chatty key nor a crowd of them
//! holds it up.
//!
//! ```
//! use std::time::{Duration, Instant};
//!
//! use kubeedge_core::pace::{Credit, Pace, Rates, Urgency};
//!
//! let ordinary = Credit { interval: Duration::from_secs(10), burst: 1 };
//! let urgent = Credit { interval: Duration::from_secs(1), burst: 1 };
//! let mut pace = Pace::new(Rates { ordinary, urgent, per_second: None });
//! let now = Instant::now();
//! pace.put("sensor", Urgency::Ordinary, now);
//! assert_eq!(pace.poll(now), Some("sensor"));
//! pace.put("sensor", Urgency::Ordinary, now);
//! assert_eq!((pace.poll(now), pace.poll_timeout()), (None, Some(now + Duration::from_secs(10))));
//! pace.put("sensor", Urgency::Urgent, now);
//! assert_eq!(pace.poll(now), Some("sensor"));
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    time::{Duration, Instant},
};

/// How much may be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// What each key may say.
    pub ordinary: Credit,
    /// What each key may say besides, if it is urgent.
    pub urgent: Credit,
    /// How many turns all keys have together in a second, after a first second's worth at once.
    pub per_second: Option<NonZeroU32>,
}

/// How often something may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credit {
    /// Once per interval in the long run.
    pub interval: Duration,
    /// And so often at once after a silence; zero counts as one.
    pub burst: u32,
}

/// How a key's turn is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// In its time.
    Ordinary,
    /// Before everything ordinary.
    Urgent,
}

/// Keys that wait for their turn.
#[derive(Debug)]
pub struct Pace<K> {
    rates: Rates,
    entries: BTreeMap<K, Entry>,
    /// When each waiting key is due, by urgency; keys of one instant in the order in which they came.
    urgent: BTreeSet<(Instant, u64, K)>,
    ordinary: BTreeSet<(Instant, u64, K)>,
    all: Spent,
    next_number: u64,
    /// With so many entries it is looked which of them say nothing any more.
    prune_at: usize,
    coalesced: u64,
}

#[derive(Debug, Default)]
struct Entry {
    ordinary: Spent,
    urgent: Spent,
    waiting: Option<Waiting>,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    urgency: Urgency,
    due: Instant,
    number: u64,
}

/// The instant at which all turns so far would be over, had they been evenly spaced (ITU-T I.371, GCRA).
#[derive(Debug, Default, Clone, Copy)]
struct Spent(Option<Instant>);

impl Spent {
    fn free_at(self, credit: Credit, now: Instant) -> Instant {
        let ahead = credit.interval.saturating_mul(credit.burst.saturating_sub(1));
        self.0.and_then(|until| until.checked_sub(ahead)).map_or(now, |free| free.max(now))
    }

    fn spend(&mut self, credit: Credit, now: Instant) {
        self.0 = Some(self.0.map_or(now, |until| until.max(now)) + credit.interval);
    }

    fn is_whole(self, now: Instant) -> bool {
        self.0.is_none_or(|until| until <= now)
    }
}

/// Fewer entries than this are not worth a look.
const PRUNE_MIN: usize = 64;

impl<K: Ord + Clone> Pace<K> {
    /// Creates it without keys.
    pub fn new(rates: Rates) -> Self {
        Self {
            rates,
            entries: BTreeMap::new(),
            urgent: BTreeSet::new(),
            ordinary: BTreeSet::new(),
            all: Spent::default(),
            next_number: 0,
            prune_at: PRUNE_MIN,
            coalesced: 0,
        }
    }

    /// Wants a turn for `key`. One that waits already has one turn for both, and the greater urgency.
    pub fn put(&mut self, key: K, urgency: Urgency, now: Instant) {
        self.prune(now);
        let rates = self.rates;
        let entry = self.entries.entry(key.clone()).or_default();
        if let Some(waiting) = entry.waiting {
            self.coalesced += 1;
            if waiting.urgency >= urgency {
                return;
            }
            self.ordinary.remove(&(waiting.due, waiting.number, key.clone()));
        }
        let ordinary = entry.ordinary.free_at(rates.ordinary, now);
        let (due, queue) = match urgency {
            Urgency::Ordinary => (ordinary, &mut self.ordinary),
            Urgency::Urgent => (ordinary.min(entry.urgent.free_at(rates.urgent, now)), &mut self.urgent),
        };
        let number = self.next_number;
        self.next_number += 1;
        entry.waiting = Some(Waiting { urgency, due, number });
        queue.insert((due, number, key));
    }

    /// The key whose turn it is; what is told of it must be the newest.
    pub fn poll(&mut self, now: Instant) -> Option<K> {
        let all = self.all_credit();
        if all.is_some_and(|credit| self.all.free_at(credit, now) > now) {
            return None;
        }
        let is_due =
            |queue: &BTreeSet<(Instant, u64, K)>| queue.first().is_some_and(|(due, _, _)| *due <= now);
        let queue = if is_due(&self.urgent) { &mut self.urgent } else { &mut self.ordinary };
        if !is_due(queue) {
            return None;
        }
        let (_, _, key) = queue.pop_first()?;
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.waiting = None;
            // What is urgent uses up what is ordinary first: a device that says something rarely has one rate.
            if entry.ordinary.free_at(self.rates.ordinary, now) <= now {
                entry.ordinary.spend(self.rates.ordinary, now);
            } else {
                entry.urgent.spend(self.rates.urgent, now);
            }
        }
        if let Some(credit) = all {
            self.all.spend(credit, now);
        }
        Some(key)
    }

    /// When [`Pace::poll`] may have something; `None` if only after another [`Pace::put`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let first = [&self.urgent, &self.ordinary].into_iter().filter_map(|queue| queue.first());
        let due = first.map(|(due, _, _)| *due).min()?;
        Some(self.all_credit().map_or(due, |credit| self.all.free_at(credit, due)))
    }

    /// Takes back the turn that `key` waits for.
    pub fn withdraw(&mut self, key: &K) {
        let Some(waiting) = self.entries.get_mut(key).and_then(|entry| entry.waiting.take()) else { return };
        let queue = match waiting.urgency {
            Urgency::Ordinary => &mut self.ordinary,
            Urgency::Urgent => &mut self.urgent,
        };
        queue.remove(&(waiting.due, waiting.number, key.clone()));
    }

    /// How many keys wait.
    pub fn waiting(&self) -> usize {
        self.urgent.len() + self.ordinary.len()
    }

    /// How many wishes so far were met by a turn that was wanted already.
    pub fn coalesced(&self) -> u64 {
        self.coalesced
    }

    fn all_credit(&self) -> Option<Credit> {
        let per_second = self.rates.per_second?.get();
        Some(Credit { interval: Duration::from_secs(1) / per_second, burst: per_second })
    }

    /// Forgets the keys that have nothing to say and all of their credit, whenever there are twice as many as
    /// were left the last time.
    fn prune(&mut self, now: Instant) {
        if self.entries.len() < self.prune_at {
            return;
        }
        self.entries.retain(|_, entry| {
            entry.waiting.is_some() || !entry.ordinary.is_whole(now) || !entry.urgent.is_whole(now)
        });
        self.prune_at = (self.entries.len() * 2).max(PRUNE_MIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn pace(burst: u32, per_second: Option<u32>) -> Pace<u32> {
        Pace::new(Rates {
            ordinary: Credit { interval: 10 * SECOND, burst },
            urgent: Credit { interval: SECOND, burst: 2 },
            per_second: per_second.and_then(NonZeroU32::new),
        })
    }

    /// Polls every 10 ms of `seconds`, and says when whose turn it was.
    fn turns(pace: &mut Pace<u32>, start: Instant, seconds: u64) -> Vec<(u128, u32)> {
        let mut turns = Vec::new();
        for step in 0..seconds * 100 {
            let now = start + Duration::from_millis(10 * step);
            while let Some(key) = pace.poll(now) {
                turns.push(((now - start).as_millis(), key));
            }
        }
        turns
    }

    #[test]
    fn a_quiet_key_goes_at_once_and_a_busy_one_once_per_interval_after_its_credit() {
        let start = Instant::now();
        let mut pace = pace(3, None);
        let mut turns = Vec::new();
        for step in 0..400 {
            let now = start + SECOND / 10 * step;
            pace.put(1, Urgency::Ordinary, now);
            turns.extend(pace.poll(now).map(|_| (now - start).as_millis()));
        }
        assert_eq!(turns, [0, 100, 200, 10_000, 20_000, 30_000]);
        assert!(pace.coalesced() > 380);
    }

    #[test]
    fn the_urgent_goes_first_even_of_a_key_that_has_used_its_credit() {
        let start = Instant::now();
        let mut pace = pace(1, Some(10));
        for key in 0..100 {
            pace.put(key, Urgency::Ordinary, start);
        }
        while pace.poll(start).is_some() {}
        pace.put(99, Urgency::Urgent, start);
        pace.put(0, Urgency::Urgent, start);
        let turns = turns(&mut pace, start, 1);
        assert_eq!(turns[..2], [(100, 99), (200, 0)], "of all others the oldest wait");
    }

    #[test]
    fn urgency_has_its_limit_too() {
        let start = Instant::now();
        let mut pace = pace(1, None);
        let mut count = 0;
        for step in 0..1_000 {
            let now = start + SECOND / 100 * step;
            pace.put(1, Urgency::Urgent, now);
            count += usize::from(pace.poll(now).is_some());
        }
        assert!((12..=13).contains(&count), "1 ordinary, 2 urgent, then one a second: {count}");
    }

    #[test]
    fn all_keys_together_keep_to_the_limit_and_each_gets_its_turn() {
        let start = Instant::now();
        let mut pace = pace(1, Some(50));
        for key in 0..1_000 {
            pace.put(key, Urgency::Ordinary, start);
        }
        let turns = turns(&mut pace, start, 21);
        let mut keys: Vec<u32> = turns.iter().map(|(_, key)| *key).collect();
        keys.sort_unstable();
        assert_eq!(keys, (0..1_000).collect::<Vec<_>>());
        let (last, _) = turns[999];
        assert!((18_900..=19_100).contains(&last), "50 at once, then 50 a second: {last}");
        assert_eq!(pace.poll_timeout(), None);
    }

    #[test]
    fn a_turn_can_be_taken_back_and_what_is_quiet_costs_nothing() {
        let start = Instant::now();
        let mut pace = pace(1, None);
        pace.put(1, Urgency::Ordinary, start);
        pace.put(2, Urgency::Urgent, start);
        pace.withdraw(&1);
        pace.withdraw(&2);
        assert_eq!((pace.poll(start), pace.poll_timeout(), pace.waiting()), (None, None, 0));
        for key in 0..10_000 {
            let now = start + SECOND * key;
            pace.put(key, Urgency::Ordinary, now);
            assert_eq!(pace.poll(now), Some(key));
        }
        assert!(pace.entries.len() < 200, "{}", pace.entries.len());
    }
}
