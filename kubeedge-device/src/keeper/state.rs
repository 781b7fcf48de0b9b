//! What is kept, what goes, and what is sent next; pure.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use kubeedge_core::device::{PushMethod, Sample};

use super::{
    Config, Destination, Kept, Query, Stats,
    block::Block,
    outgoing::{Delivered, Queue},
};

/// The time of an input: for waiting, and for people.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) at: Instant,
    /// Milliseconds since the Unix epoch.
    pub(super) wall_ms: u64,
}

/// All that is kept.
#[derive(Debug)]
pub(super) struct State {
    config: Config,
    /// The sequence number of the next sample.
    next: u64,
    /// All samples before this sequence number are durable.
    durable: u64,
    blocks: VecDeque<Info>,
    /// The blocks that have something that is not durable, and the last while it still grows.
    unsaved: VecDeque<Open>,
    unsaved_bytes: usize,
    queues: BTreeMap<Destination, Queue>,
    /// Blocks to delete with the next commit.
    evicted: Vec<u64>,
    cursors: Vec<Destination>,
    /// Since when something waits to be committed.
    dirty_since: Option<Instant>,
    /// The commit that is under way.
    committing: Option<Committing>,
    retry: Option<Retry>,
    upkeep_at: Instant,
    stats: Stats,
}

/// What is known of a block without reading it.
#[derive(Debug, Clone, Copy)]
struct Info {
    first: u64,
    end: u64,
    bytes: u64,
    oldest_ms: u64,
    newest_ms: u64,
}

#[derive(Debug)]
struct Open {
    block: Block,
    bytes: usize,
    /// How many of its samples are durable.
    saved: usize,
}

#[derive(Debug)]
struct Committing {
    next: u64,
    accepted: u64,
    evicted: Vec<u64>,
}

/// The store has failed.
#[derive(Debug, Clone, Copy)]
struct Retry {
    at: Instant,
    pause: Duration,
}

/// What is to be made durable at once.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Commit {
    pub(super) blocks: Vec<(u64, Vec<u8>)>,
    pub(super) deleted: Vec<u64>,
    /// How far destinations have come; `None` if that is no longer of interest.
    pub(super) cursors: Vec<(Destination, Option<u64>)>,
}

/// A block to deliver.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Delivery {
    pub(super) destination: Destination,
    pub(super) block: u64,
    pub(super) from: u64,
}

/// The last block grows until it has as many bytes as a page of the disk; writing less costs a page all the same.
const PAGE: usize = 4_096;

/// What a sample takes in a block besides its value, about.
const SAMPLE_BYTES: usize = 8;

/// How often ages are looked at.
const UPKEEP: Duration = Duration::from_secs(10);

const STORE_RETRY_MIN: Duration = Duration::from_millis(500);
const STORE_RETRY_MAX: Duration = Duration::from_secs(10);

impl State {
    pub(super) fn new(config: Config, now: Instant) -> Self {
        Self {
            config,
            next: 1,
            durable: 1,
            blocks: VecDeque::new(),
            unsaved: VecDeque::new(),
            unsaved_bytes: 0,
            queues: BTreeMap::new(),
            evicted: Vec::new(),
            cursors: Vec::new(),
            dirty_since: None,
            committing: None,
            retry: None,
            upkeep_at: now + UPKEEP,
            stats: Stats::default(),
        }
    }

    /// Takes how far a destination had come in an earlier run; before the blocks.
    pub(super) fn restore_cursor(&mut self, destination: Destination, cursor: u64, now: Instant) {
        self.next = self.next.max(cursor);
        self.durable = self.next;
        self.queues.insert(destination, Queue::new(&self.config.outgoing, cursor, now));
    }

    /// Takes a block of an earlier run; in order.
    pub(super) fn restore_block(&mut self, block: &Block, bytes: usize, now: Instant) {
        let Some(sample) = block.samples.first() else { return self.evicted.push(block.first) };
        let time = sample.timestamp_ms;
        let mut info = Info {
            first: block.first,
            end: block.end(),
            bytes: bytes as u64,
            oldest_ms: time,
            newest_ms: time,
        };
        for (sequence, sample) in (block.first..).zip(&block.samples) {
            info.note(sample.timestamp_ms);
            for push in &*sample.push {
                let queue = self
                    .queues
                    .entry(Destination::of(push))
                    .or_insert_with(|| Queue::new(&self.config.outgoing, 0, now));
                if sequence >= queue.cursor {
                    queue.restore(block.first, sequence, sample.timestamp_ms);
                }
            }
        }
        self.count(&info, true);
        self.blocks.push_back(info);
        self.next = self.next.max(info.end);
        self.durable = self.next;
    }

    /// Takes a block of an earlier run that cannot be read; its key is deleted.
    pub(super) fn restore_damaged(&mut self, first: u64) {
        self.evicted.push(first);
        self.stats.lost += 1;
        self.next = self.next.max(first + 1);
        self.durable = self.next;
    }

    /// Whether there is room for more samples.
    pub(super) fn has_room(&self) -> bool {
        self.unsaved_bytes < self.config.unsaved_bytes_max
    }

    /// Takes a sample.
    pub(super) fn handle_sample(&mut self, mut sample: Sample, now: Now) {
        if self.config.history.count_max == 0 && sample.push.is_empty() {
            return;
        }
        self.stats.accepted += 1;
        let grows = |open: &Open, config: &Config| {
            open.bytes < config.block_bytes && (open.saved == 0 || open.bytes < PAGE)
        };
        if !self.unsaved.back().is_some_and(|open| grows(open, &self.config)) {
            let block = Block { first: self.next, samples: Vec::new() };
            self.unsaved.push_back(Open { block, bytes: 0, saved: 0 });
            let time = sample.timestamp_ms;
            self.blocks.push_back(Info {
                first: self.next,
                end: self.next,
                bytes: 0,
                oldest_ms: time,
                newest_ms: time,
            });
        }
        let (Some(open), Some(info)) = (self.unsaved.back_mut(), self.blocks.back_mut()) else { return };
        let first = open.block.first;
        let bytes = sample.value.len() + SAMPLE_BYTES;
        info.end += 1;
        info.bytes += bytes as u64;
        info.note(sample.timestamp_ms);
        self.stats.stored += 1;
        self.stats.stored_bytes += bytes as u64;
        self.next += 1;
        let queued: Vec<bool> =
            sample.push.iter().map(|push| self.queue(push, first, sample.timestamp_ms, now.at)).collect();
        if queued.contains(&false) {
            let wanted = sample.push.iter().zip(&queued).filter(|(_, queued)| **queued);
            sample.push = wanted.map(|(push, _)| push.clone()).collect();
        }
        if let Some(open) = self.unsaved.back_mut() {
            self.unsaved_bytes += sample.size();
            open.bytes += bytes;
            open.block.samples.push(sample);
        }
        self.dirty_since.get_or_insert(now.at);
        self.evict(now.wall_ms);
    }

    fn queue(&mut self, push: &PushMethod, block: u64, time_ms: u64, now: Instant) -> bool {
        let destination = Destination::of(push);
        if !self.queues.contains_key(&destination) {
            if self.queues.len() >= self.config.outgoing.destinations_max {
                let idle = self.queues.iter().find(|(_, queue)| queue.is_idle()).map(|(id, _)| id.clone());
                let Some(idle) = idle else {
                    self.stats.without_outbox += 1;
                    return false;
                };
                self.queues.remove(&idle);
                self.cursors.push(idle);
            }
            let queue = Queue::new(&self.config.outgoing, self.next - 1, now);
            self.queues.insert(destination.clone(), queue);
        }
        let (config, sequence) = (&self.config.outgoing, self.next - 1);
        let queue = self.queues.get_mut(&destination);
        queue.is_some_and(|queue| queue.push(config, block, sequence, time_ms))
    }

    /// Lets the oldest blocks go that nobody needs, and those that there is no room for.
    fn evict(&mut self, wall_ms: u64) {
        while self.blocks.len() > 1
            && let Some(front) = self.blocks.front().copied()
        {
            let needed = self.queues.values().any(|queue| queue.needs(front.first));
            let room = self.config.history.bytes_max.saturating_add(self.config.outgoing.bytes_max);
            let kept = !self.is_beyond_history(&front, wall_ms) || needed;
            if kept && self.stats.stored_bytes <= room {
                return;
            }
            for queue in self.queues.values_mut().filter(|queue| queue.needs(front.first)) {
                queue.drop_block(front.first);
            }
            self.remove_front(front);
        }
    }

    fn is_beyond_history(&self, front: &Info, wall_ms: u64) -> bool {
        let history = &self.config.history;
        let age_max = u64::try_from(history.age_max.as_millis()).unwrap_or(u64::MAX);
        self.stats.stored > history.count_max
            || self.stats.stored_bytes > history.bytes_max
            || front.newest_ms.saturating_add(age_max) < wall_ms
    }

    fn remove_front(&mut self, front: Info) {
        self.blocks.pop_front();
        self.count(&front, false);
        if self.unsaved.front().is_some_and(|open| open.block.first == front.first)
            && let Some(open) = self.unsaved.pop_front()
        {
            self.unsaved_bytes -= open.block.samples.iter().map(Sample::size).sum::<usize>();
        }
        self.evicted.push(front.first);
    }

    fn count(&mut self, info: &Info, add: bool) {
        let (count, bytes) = (info.end - info.first, info.bytes);
        let stats = &mut self.stats;
        (stats.stored, stats.stored_bytes) = if add {
            (stats.stored + count, stats.stored_bytes + bytes)
        } else {
            (stats.stored.saturating_sub(count), stats.stored_bytes.saturating_sub(bytes))
        };
    }

    /// Looks at ages, if it is time to.
    pub(super) fn handle_timeout(&mut self, now: Now) {
        if self.upkeep_at > now.at {
            return;
        }
        self.upkeep_at = now.at + UPKEEP;
        for (destination, queue) in &mut self.queues {
            let before = queue.cursor;
            queue.expire(&self.config.outgoing, now.wall_ms);
            if queue.cursor != before {
                self.cursors.push(destination.clone());
            }
        }
        self.evict(now.wall_ms);
        if !self.evicted.is_empty() || !self.cursors.is_empty() {
            self.dirty_since.get_or_insert(now.at);
        }
    }

    /// What is to be made durable now. One commit is under way at a time.
    pub(super) fn poll_commit(&mut self, now: Instant) -> Option<Commit> {
        if self.committing.is_some() || self.commit_at().is_none_or(|at| at > now) {
            return None;
        }
        self.dirty_since = None;
        let mut blocks = Vec::new();
        for open in self.unsaved.iter().filter(|open| open.block.samples.len() > open.saved) {
            let bytes = open.block.encode();
            let place = self.blocks.binary_search_by_key(&open.block.first, |info| info.first);
            if let Some(info) = place.ok().and_then(|place| self.blocks.get_mut(place)) {
                let before = std::mem::replace(&mut info.bytes, bytes.len() as u64);
                self.stats.stored_bytes = (self.stats.stored_bytes + info.bytes).saturating_sub(before);
            }
            blocks.push((open.block.first, bytes));
        }
        let deleted = std::mem::take(&mut self.evicted);
        self.cursors.sort();
        self.cursors.dedup();
        let cursor = |id: &Destination| self.queues.get(id).map(|queue| queue.cursor);
        let cursors =
            std::mem::take(&mut self.cursors).into_iter().map(|id| (id.clone(), cursor(&id))).collect();
        self.committing =
            Some(Committing { next: self.next, accepted: self.stats.accepted, evicted: deleted.clone() });
        Some(Commit { blocks, deleted, cursors })
    }

    fn commit_at(&self) -> Option<Instant> {
        let since = self.dirty_since?;
        let full = self.unsaved.iter().filter(|open| open.saved == 0).map(|open| open.bytes).sum::<usize>()
            >= self.config.block_bytes;
        let at = if full { since } else { since + self.config.commit_within };
        Some(self.retry.map_or(at, |retry| at.max(retry.at)))
    }

    /// Takes what became of the commit.
    pub(super) fn handle_committed(&mut self, succeeded: bool, now: Now) {
        let Some(Committing { next, accepted, evicted }) = self.committing.take() else { return };
        if succeeded {
            self.retry = None;
            self.durable = next;
            self.stats.durable = accepted.saturating_sub(self.stats.lost);
            for open in &mut self.unsaved {
                let saved = next.saturating_sub(open.block.first).min(open.block.samples.len() as u64);
                open.saved = usize::try_from(saved).unwrap_or(usize::MAX);
            }
            let done = |open: &Open| open.saved == open.block.samples.len() && open.saved > 0;
            // The last block is needed while it grows.
            while self.unsaved.front().is_some_and(done)
                && (self.unsaved.len() > 1 || self.unsaved.front().is_some_and(|open| open.bytes >= PAGE))
                && let Some(open) = self.unsaved.pop_front()
            {
                self.unsaved_bytes -= open.block.samples.iter().map(Sample::size).sum::<usize>();
            }
            return;
        }
        let pause = self.retry.map_or(STORE_RETRY_MIN, |retry| (retry.pause * 2).min(STORE_RETRY_MAX));
        self.retry = Some(Retry { at: now.at + pause, pause });
        self.evicted.extend(evicted);
        self.cursors.extend(self.queues.keys().cloned());
        self.dirty_since = Some(now.at);
        self.give_up_unsaved();
    }

    /// The store fails, and memory is full: half of what is not durable goes, the oldest first.
    fn give_up_unsaved(&mut self) {
        if self.has_room() {
            return;
        }
        while self.unsaved_bytes > self.config.unsaved_bytes_max / 2
            && let Some(open) = self.unsaved.pop_front()
        {
            self.unsaved_bytes -= open.block.samples.iter().map(Sample::size).sum::<usize>();
            let first = open.block.first;
            self.stats.lost += (open.block.samples.len() - open.saved) as u64;
            if let Ok(place) = self.blocks.binary_search_by_key(&first, |info| info.first)
                && let Some(info) = self.blocks.remove(place)
            {
                self.count(&info, false);
            }
            self.queues.values_mut().for_each(|queue| queue.drop_block(first));
        }
    }

    /// The blocks to deliver now, one for each destination that is free.
    pub(super) fn poll_deliveries(&mut self, now: Instant) -> Vec<Delivery> {
        let durable = self.durable;
        let due = self.queues.iter_mut().filter_map(|(destination, queue)| {
            let (block, from) = queue.poll(durable, now)?;
            Some(Delivery { destination: destination.clone(), block, from })
        });
        due.collect()
    }

    /// Takes what became of a delivery.
    pub(super) fn handle_delivered(&mut self, delivery: Delivery, delivered: Delivered, now: Now) {
        let Delivery { destination, block, .. } = delivery;
        let Some(queue) = self.queues.get_mut(&destination) else { return };
        let whole = delivered.failure.is_none();
        queue.handle_delivered(&self.config.outgoing, block, delivered, now.at);
        let end =
            self.blocks.binary_search_by_key(&block, |info| info.first).map(|place| self.blocks[place].end);
        if whole && end.is_ok_and(|end| end <= queue.cursor) {
            queue.finish(block);
        }
        self.cursors.push(destination);
        self.dirty_since.get_or_insert(now.at);
        self.evict(now.wall_ms);
    }

    /// The answer to a question: what of it is in memory, and the durable blocks that may have more, newest first.
    pub(super) fn plan_query(&self, query: &Query) -> (Vec<Kept>, Vec<u64>) {
        let in_memory = |first: u64| self.unsaved.iter().any(|open| open.block.first == first);
        let mut found = Vec::new();
        for open in self.unsaved.iter().rev() {
            take_matches(query, &open.block, &mut found);
        }
        let overlaps = |info: &&Info| info.newest_ms >= query.from_ms && info.oldest_ms < query.to_ms;
        let blocks = self.blocks.iter().rev().filter(overlaps).map(|info| info.first);
        (found, blocks.filter(|first| !in_memory(*first)).collect())
    }

    /// When there will be something to do.
    pub(super) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let commit = self.commit_at().filter(|_| self.committing.is_none());
        let queues = self.queues.values().filter_map(|queue| queue.timeout(now));
        let upkeep = (!self.blocks.is_empty()).then_some(self.upkeep_at);
        queues.chain(commit).chain(upkeep).min()
    }

    /// Makes everything be committed at once: the end is near.
    pub(super) fn hurry(&mut self) {
        self.config.commit_within = Duration::ZERO;
    }

    pub(super) fn stats(&self) -> Stats {
        let oldest = self.blocks.iter().map(|info| info.oldest_ms).min();
        let destinations = self.queues.iter().map(|(id, queue)| (id.clone(), queue.stats()));
        Stats { oldest_ms: oldest, destinations: destinations.collect(), ..self.stats.clone() }
    }
}

impl Info {
    fn note(&mut self, time_ms: u64) {
        self.oldest_ms = self.oldest_ms.min(time_ms);
        self.newest_ms = self.newest_ms.max(time_ms);
    }
}

/// Adds the samples of a block that a question is about, newest first, up to its limit.
pub(super) fn take_matches(query: &Query, block: &Block, found: &mut Vec<Kept>) {
    let numbered = (block.first..).zip(&block.samples).collect::<Vec<_>>();
    for (sequence, sample) in numbered.into_iter().rev() {
        if found.len() >= query.limit {
            return;
        }
        if query.matches(sample) {
            found.push(Kept { sequence, sample: sample.clone() });
        }
    }
}
