//! What is done when memory, disk or process ids run short, by the kubelet's rules. Pure.
//!
//! First what nobody uses is removed, then one pod at a time ends: those that use more than they asked for
//! before others, the least important first.

mod rank;
mod storage;
#[cfg(test)]
mod tests;
mod threshold;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

pub use self::threshold::{Amount, InvalidThreshold, Signal, Threshold};
pub(crate) use self::{
    rank::{Candidate, Use, choose},
    storage::{Measured, exceeded},
};

/// A condition of the node that keeps pods away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pressure {
    Memory,
    Disk,
    Pids,
}

/// How much there is of something, and how much of it is left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Level {
    pub(crate) capacity: i64,
    pub(crate) available: i64,
}

/// What was measured.
pub(crate) type Levels = BTreeMap<Signal, Level>;

/// That something has to be given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shortage {
    pub(crate) signal: Signal,
    /// Whether pods get no time to speak of.
    pub(crate) hard: bool,
    /// What should be left.
    pub(crate) quantity: i64,
    /// What is left.
    pub(crate) available: i64,
}

/// Watches the levels against the thresholds.
#[derive(Debug)]
pub(crate) struct Watch {
    config: super::Eviction,
    /// Since when each threshold is passed, by its place in hard and soft together.
    passed: BTreeMap<usize, Instant>,
    /// When each pressure was last seen.
    seen: BTreeMap<Pressure, Instant>,
    levels: Levels,
}

impl Watch {
    pub(crate) fn new(config: super::Eviction) -> Self {
        Self { config, passed: BTreeMap::new(), seen: BTreeMap::new(), levels: Levels::new() }
    }

    /// Takes what was measured.
    pub(crate) fn handle_levels(&mut self, levels: Levels, now: Instant) {
        let mut passed = BTreeMap::new();
        for (place, threshold) in self.thresholds() {
            let Some(level) = levels.get(&threshold.signal).filter(|level| level.capacity > 0) else {
                continue;
            };
            let mut least = threshold.least.of(level.capacity);
            let since = self.passed.get(&place);
            if since.is_some() {
                // What was short has to be given back with something on top, or it is short again at once.
                least = least.saturating_add(threshold.reclaim.map_or(0, |more| more.of(level.capacity)));
            }
            if level.available < least {
                passed.insert(place, since.copied().unwrap_or(now));
            }
        }
        self.passed = passed;
        self.levels = levels;
        let due: BTreeSet<Pressure> =
            self.due(now).map(|(_, threshold)| threshold.signal.pressure()).collect();
        self.seen.extend(due.into_iter().map(|pressure| (pressure, now)));
    }

    /// The pressures that the node is under. One lasts for a while after it was last seen, so that pods do not
    /// come back at once to what drove them away.
    pub(crate) fn pressures(&self, now: Instant) -> BTreeSet<Pressure> {
        let lasts = self.config.pressure_lasts;
        self.seen
            .iter()
            .filter(|(_, seen)| now < **seen + lasts || now == **seen)
            .map(|(kind, _)| *kind)
            .collect()
    }

    /// What has to be given back now, the most urgent first: memory, since the kernel takes it by itself otherwise.
    pub(crate) fn shortage(&self, now: Instant) -> Option<Shortage> {
        let hard_ones = self.config.hard.len();
        let (place, threshold) = self.due(now).min_by_key(|(place, threshold)| (threshold.signal, *place))?;
        let level = self.levels.get(&threshold.signal)?;
        Some(Shortage {
            signal: threshold.signal,
            hard: place < hard_ones,
            quantity: threshold.least.of(level.capacity),
            available: level.available,
        })
    }

    fn thresholds(&self) -> impl Iterator<Item = (usize, &Threshold)> {
        self.config.hard.iter().chain(&self.config.soft).enumerate()
    }

    /// The thresholds that are passed for as long as they may be.
    fn due(&self, now: Instant) -> impl Iterator<Item = (usize, &Threshold)> {
        self.thresholds().filter(move |(place, threshold)| {
            self.passed.get(place).is_some_and(|since| now >= *since + threshold.grace)
        })
    }
}
