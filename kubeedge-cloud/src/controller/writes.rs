//! Which write to the API is next: the newest of a key wins, one at a time per key, capped in all.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

/// How long to wait after failures: doubling from `first` up to `max`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backoff {
    /// The wait after the first failure.
    pub(crate) first: Duration,
    /// The longest wait.
    pub(crate) max: Duration,
}

impl Backoff {
    /// The wait after `failures` earlier failures in a row.
    pub(crate) fn after(&self, failures: u32) -> Duration {
        self.first.saturating_mul(1 << failures.min(16)).min(self.max)
    }
}

/// What bounds the writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// How many are in flight at once.
    pub(crate) at_once: usize,
    /// A key is written at most once per interval.
    pub(crate) interval: Duration,
    /// At most so many writes begin per second, after a first second's worth at once.
    pub(crate) per_second: Option<NonZeroU32>,
    /// How long a failed write waits.
    pub(crate) backoff: Backoff,
}

/// Values waiting to be written, at most one per key.
#[derive(Debug)]
pub(crate) struct Writes<K, V> {
    limits: Limits,
    /// Many keys may wait at once, and stand in the order of their turns as well: they are shared.
    entries: BTreeMap<Arc<K>, Entry<V>>,
    /// When each key is looked at next; keys of one instant in the order in which they came.
    due: BTreeSet<(Instant, u64, Arc<K>)>,
    /// Since when each key has something that is to be written and is not.
    since: BTreeSet<(Instant, Arc<K>)>,
    next_number: u64,
    in_flight: usize,
    /// The instant at which all writes begun so far would have begun, had they been evenly spaced.
    spaced_until: Option<Instant>,
}

#[derive(Debug)]
struct Entry<V> {
    /// What waits, and since when it is to be written.
    waiting: Option<(V, Instant)>,
    /// Since when what is in flight is to be written.
    busy_since: Option<Instant>,
    failures: u32,
    due: Option<(Instant, u64)>,
    not_before: Instant,
}

impl<V> Entry<V> {
    fn take_waiting<K: Ord>(&mut self, key: &Arc<K>, all: &mut BTreeSet<(Instant, Arc<K>)>) -> Option<V> {
        let (value, since) = self.waiting.take()?;
        if self.busy_since != Some(since) {
            all.remove(&(since, key.clone()));
        }
        Some(value)
    }
}

impl<K: Ord + Clone, V> Writes<K, V> {
    /// Creates an empty queue.
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            entries: BTreeMap::new(),
            due: BTreeSet::new(),
            since: BTreeSet::new(),
            next_number: 0,
            in_flight: 0,
            spaced_until: None,
        }
    }

    /// Wants `value` written for `key`, in place of a value that waits; that one comes back.
    pub(crate) fn put(&mut self, key: K, value: V, now: Instant) -> Option<V> {
        self.put_at(key, value, now, now)
    }

    /// As [`put`](Self::put), to be written no sooner than `at`.
    pub(crate) fn put_at(&mut self, key: K, value: V, at: Instant, now: Instant) -> Option<V> {
        let key = Arc::new(key);
        let entry = self.entries.entry(key.clone()).or_insert_with(|| Entry {
            waiting: None,
            busy_since: None,
            failures: 0,
            due: None,
            not_before: now,
        });
        let replaced = match &mut entry.waiting {
            Some((waiting, _)) => Some(std::mem::replace(waiting, value)),
            None => {
                let since = at.max(now);
                entry.waiting = Some((value, since));
                self.since.insert((since, key.clone()));
                None
            }
        };
        if entry.failures == 0 {
            entry.not_before = entry.not_before.max(at);
        }
        self.schedule(&key);
        replaced
    }

    /// As [`put`](Self::put), but whatever the key waited for before, an interval or a failure, it waits for no longer.
    #[cfg(any(test, feature = "edgecontroller"))]
    pub(crate) fn put_now(&mut self, key: K, value: V, now: Instant) {
        let of = Arc::new(key.clone());
        self.put(key, value, now);
        let Some(entry) = self.entries.get_mut(&of) else { return };
        entry.not_before = now;
        if let Some((at, number)) = entry.due.take() {
            self.due.remove(&(at, number, of.clone()));
        }
        self.schedule(&of);
    }

    /// Whether something waits to be written for `key`.
    pub(crate) fn is_waiting(&self, key: &K) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.waiting.is_some())
    }

    /// Whether the last write of `key` has failed, and has not been made since.
    #[cfg(any(test, feature = "edgecontroller"))]
    pub(crate) fn has_failed(&self, key: &K) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.failures > 0)
    }

    /// Whether a write of `key` is in flight.
    #[cfg(any(test, feature = "devicecontroller"))]
    pub(crate) fn is_busy(&self, key: &K) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.busy_since.is_some())
    }

    /// Takes back what waits for `key`; a write in flight goes on.
    pub(crate) fn withdraw(&mut self, key: &K) -> Option<V> {
        let (key, _) = self.entries.get_key_value(key)?;
        let key = key.clone();
        let entry = self.entries.get_mut(&key)?;
        entry.take_waiting(&key, &mut self.since)
    }

    /// Takes back what waits for all keys from `first` on, as far as `of` holds; writes in flight go on.
    #[cfg(any(test, feature = "edgecontroller"))]
    pub(crate) fn withdraw_while(&mut self, first: K, of: impl Fn(&K) -> bool) {
        for (key, entry) in self.entries.range_mut(Arc::new(first)..).take_while(|(key, _)| of(key)) {
            entry.take_waiting(key, &mut self.since);
        }
    }

    /// The next value to write, if one may be written. Each must be followed by [`succeeded`](Self::succeeded)
    /// or [`failed`](Self::failed).
    pub(crate) fn poll_write(&mut self, now: Instant) -> Option<(K, V)> {
        while self.in_flight < self.limits.at_once && self.free_at().is_none_or(|free| free <= now) {
            let first = self.due.first().filter(|(at, _, _)| *at <= now)?.clone();
            self.due.remove(&first);
            let key = first.2;
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            entry.due = None;
            let Some((value, since)) = entry.waiting.take() else {
                // Its interval is over and there is nothing to write: nothing is left to be known of it.
                self.entries.remove(&key);
                continue;
            };
            entry.busy_since = Some(since);
            entry.not_before = now + self.limits.interval;
            self.in_flight += 1;
            self.count(now);
            return Some((K::clone(&key), value));
        }
        None
    }

    /// The write of `key` is done, or will never be.
    pub(crate) fn succeeded(&mut self, key: &K) {
        let Some((entry, since)) = self.finish(key) else { return };
        entry.failures = 0;
        let waits_as_long = matches!(&entry.waiting, Some((_, waiting)) if *waiting == since);
        if !waits_as_long && let Some((key, _)) = self.entries.get_key_value(key) {
            self.since.remove(&(since, key.clone()));
        }
        self.schedule(key);
    }

    /// The write of `key` has to be tried again: with `value`, unless a newer one waits. Returns how often it
    /// failed in a row.
    pub(crate) fn failed(&mut self, key: &K, value: V, now: Instant) -> u32 {
        let backoff = self.limits.backoff;
        let Some((entry, since)) = self.finish(key) else { return 0 };
        // What has taken its place meanwhile waits for as long as it did.
        let (value, newer) = entry.waiting.take().unwrap_or((value, since));
        entry.waiting = Some((value, since));
        entry.not_before = entry.not_before.max(now + backoff.after(entry.failures));
        entry.failures = entry.failures.saturating_add(1);
        let failures = entry.failures;
        if newer != since
            && let Some((key, _)) = self.entries.get_key_value(key)
        {
            self.since.remove(&(newer, key.clone()));
        }
        self.schedule(key);
        failures
    }

    /// When [`poll_write`](Self::poll_write) may have something; `None` if only after another call.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        if self.in_flight >= self.limits.at_once {
            return None;
        }
        let (at, _, _) = self.due.first()?;
        Some(self.free_at().map_or(*at, |free| free.max(*at)))
    }

    /// Since when the one that waits for longest is to be written; it may be in flight, or have failed.
    #[cfg(any(test, feature = "edgecontroller"))]
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.since.first().map(|(since, _)| *since)
    }

    /// When there is room for a value that would be put then, at `at` or later; `None` if only after another call.
    #[cfg(any(test, feature = "devicecontroller"))]
    pub(crate) fn room_at(&self, at: Instant) -> Option<Instant> {
        (self.in_flight < self.limits.at_once).then(|| self.free_at().map_or(at, |free| free.max(at)))
    }

    fn finish(&mut self, key: &K) -> Option<(&mut Entry<V>, Instant)> {
        let entry = self.entries.get_mut(key)?;
        let since = entry.busy_since.take()?;
        self.in_flight -= 1;
        Some((entry, since))
    }

    fn schedule(&mut self, key: &K) {
        let Some((key, _)) = self.entries.get_key_value(key) else { return };
        let key = key.clone();
        let Some(entry) = self.entries.get_mut(&key) else { return };
        if entry.busy_since.is_some() {
            return;
        }
        if let Some((at, number)) = entry.due {
            if at >= entry.not_before {
                return;
            }
            self.due.remove(&(at, number, key.clone()));
        }
        let number = self.next_number;
        self.next_number += 1;
        entry.due = Some((entry.not_before, number));
        self.due.insert((entry.not_before, number, key));
    }

    /// When the cap on all writes lets the next one begin.
    fn free_at(&self) -> Option<Instant> {
        self.limits.per_second?;
        self.spaced_until?.checked_sub(Duration::from_secs(1))
    }

    fn count(&mut self, now: Instant) {
        if let Some(per_second) = self.limits.per_second {
            let step = Duration::from_secs(1) / per_second.get();
            self.spaced_until = Some(self.spaced_until.map_or(now, |until| until.max(now)) + step);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writes(limits: impl FnOnce(&mut Limits)) -> Writes<&'static str, u32> {
        let mut all = Limits {
            at_once: 16,
            interval: Duration::ZERO,
            per_second: None,
            backoff: Backoff { first: Duration::from_secs(1), max: Duration::from_secs(4) },
        };
        limits(&mut all);
        Writes::new(all)
    }

    #[test]
    fn the_newest_value_of_a_key_wins_and_waits_for_the_one_in_flight() {
        let now = Instant::now();
        let mut writes = writes(|_| {});
        assert_eq!(writes.put("a", 1, now), None);
        assert_eq!(writes.put("a", 2, now), Some(1));
        assert_eq!(writes.poll_write(now), Some(("a", 2)));
        writes.put("a", 3, now);
        assert_eq!(writes.poll_write(now), None);
        writes.succeeded(&"a");
        assert_eq!(writes.poll_write(now), Some(("a", 3)));
        writes.succeeded(&"a");
        assert_eq!(writes.poll_write(now), None);
        assert!(writes.entries.is_empty(), "a key with nothing to write costs nothing");
    }

    #[test]
    fn a_failed_write_waits_longer_each_time_and_does_not_block_other_keys() {
        let start = Instant::now();
        let mut writes = writes(|_| {});
        writes.put("a", 1, start);
        let mut now = start;
        for wait in [1, 2, 4, 4] {
            assert_eq!(writes.poll_write(now), Some(("a", 1)));
            writes.failed(&"a", 1, now);
            writes.put("b", 9, now);
            assert_eq!(writes.poll_write(now), Some(("b", 9)));
            writes.succeeded(&"b");
            assert_eq!(writes.poll_write(now), None);
            now += Duration::from_secs(wait);
            assert_eq!(writes.poll_timeout(), Some(now));
        }
        writes.put("a", 2, now);
        assert_eq!(writes.poll_write(now), Some(("a", 2)), "the retry writes the newest");
    }

    #[test]
    fn a_value_that_came_during_a_write_that_failed_is_not_replaced_by_the_older() {
        let now = Instant::now();
        let mut writes = writes(|_| {});
        writes.put("a", 1, now);
        writes.poll_write(now);
        writes.put("a", 2, now);
        writes.failed(&"a", 1, now);
        assert_eq!(writes.poll_write(now + Duration::from_secs(1)), Some(("a", 2)));
    }

    #[test]
    fn a_key_is_written_at_once_and_then_once_per_interval_with_the_newest_at_its_end() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut writes = writes(|limits| limits.interval = second);
        for value in 0..30 {
            let now = start + second * value / 10;
            writes.put("a", value, now);
            if let Some((_, written)) = writes.poll_write(now) {
                assert_eq!(written % 10, 0, "at 0 s, 1 s and 2 s");
                writes.succeeded(&"a");
            }
        }
        assert_eq!(writes.poll_write(start + 3 * second), Some(("a", 29)));
    }

    #[test]
    fn the_oldest_is_what_has_waited_for_longest_in_flight_or_not_and_nothing_that_is_done() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut writes = writes(|_| {});
        assert_eq!(writes.oldest(), None);
        writes.put("a", 1, start);
        writes.put("a", 2, at(1));
        writes.put("b", 1, at(2));
        writes.put_at("c", 1, at(60), at(2));
        assert_eq!(writes.oldest(), Some(start), "a newer value waits for as long");
        writes.poll_write(at(3));
        writes.put("a", 3, at(4));
        writes.failed(&"a", 2, at(5));
        assert_eq!(writes.oldest(), Some(start), "it has failed");
        writes.poll_write(at(5));
        writes.poll_write(at(6));
        writes.put("a", 4, at(7));
        writes.succeeded(&"a");
        assert_eq!(writes.oldest(), Some(at(2)), "b is in flight");
        writes.succeeded(&"b");
        assert_eq!(writes.oldest(), Some(at(7)));
        assert_eq!(writes.withdraw(&"a"), Some(4));
        assert_eq!(writes.oldest(), Some(at(60)), "its time is yet to come");
        writes.withdraw_while("a", |_| true);
        assert_eq!(writes.oldest(), None);
        assert!(writes.since.is_empty());
    }

    #[test]
    fn what_is_to_be_written_now_waits_neither_for_an_interval_nor_for_a_later_time_nor_after_a_failure() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut writes = writes(|limits| limits.interval = Duration::from_secs(60));
        writes.put("a", 1, start);
        assert_eq!(writes.poll_write(start), Some(("a", 1)));
        writes.succeeded(&"a");
        writes.put_at("a", 2, at(100), at(1));
        writes.withdraw(&"a");
        writes.put_now("a", 3, at(2));
        assert_eq!(writes.poll_timeout(), Some(at(2)));
        assert_eq!(writes.poll_write(at(2)), Some(("a", 3)));
        writes.failed(&"a", 3, at(3));
        assert_eq!(writes.poll_write(at(3)), None);
        writes.put_now("a", 4, at(3));
        assert_eq!(writes.poll_write(at(3)), Some(("a", 4)));
        assert_eq!(writes.poll_write(at(300)), None, "it is written once");
    }

    #[test]
    fn all_writes_together_stay_under_the_cap_and_under_the_number_at_once() {
        let start = Instant::now();
        let mut writes = Writes::new(Limits {
            at_once: 100,
            interval: Duration::ZERO,
            per_second: NonZeroU32::new(10),
            backoff: Backoff { first: Duration::from_secs(1), max: Duration::from_secs(1) },
        });
        for key in 0..100 {
            writes.put(key, (), start);
        }
        let mut now = start;
        let mut count = 0;
        while now < start + Duration::from_secs(3) {
            while let Some((key, ())) = writes.poll_write(now) {
                count += 1;
                writes.succeeded(&key);
            }
            now = writes.poll_timeout().unwrap().max(now + Duration::from_millis(1));
        }
        assert!((39..=41).contains(&count), "10 at once, then 10 per second for 3 s: {count}");

        let mut few = Writes::new(Limits {
            at_once: 2,
            interval: Duration::ZERO,
            per_second: None,
            backoff: Backoff { first: Duration::from_secs(1), max: Duration::from_secs(1) },
        });
        for key in 0..3 {
            few.put(key, (), start);
        }
        assert!(few.poll_write(start).is_some() && few.poll_write(start).is_some());
        assert_eq!((few.poll_write(start), few.poll_timeout()), (None, None));
        few.succeeded(&0);
        assert_eq!(few.poll_write(start), Some((2, ())));
    }
}
