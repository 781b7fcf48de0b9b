//! What becomes of a message for the cloud: accepted, stored, sent, done. Nothing here waits or writes.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    time::{Duration, Instant},
};

use kubeedge_core::{
    message::{Publish, UploadId, UploadedPublish},
    pipe::Settle,
    store::{Batch, StoreError},
};

use super::{
    Backlog,
    record::{self, Kept},
};

/// What is kept at most, and how much of it in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Messages accepted and not done.
    pub(super) count_max: u64,
    /// Bytes of them.
    pub(super) bytes_max: u64,
    /// Bytes that wait for one commit.
    pub(super) arriving_bytes_max: u64,
    /// Messages handed to the link whose arrival it has not told.
    pub(super) window: usize,
    /// Bytes of them; one message may always go.
    pub(super) window_bytes: u64,
    /// Bytes of stored messages that are also in memory, so that they need not be read to be sent.
    pub(super) ready_bytes_max: u64,
    /// Records of done messages that are removed by a commit of their own.
    pub(super) done_max: usize,
    /// How long records of done messages wait for a commit that is made anyway.
    pub(super) done_pause: Duration,
}

/// Records that one look into the store reads.
const READ_MAX: u64 = 64;

/// The messages for the cloud, in the order of their numbers, which the store's keys have as well.
#[derive(Debug)]
pub(super) struct State {
    limits: Limits,
    run: u64,
    /// The number of the next message.
    next: u64,
    /// All messages below this number are stored, or done.
    stored: u64,
    /// All stored messages below this number are in `ready` or `sent`; those from here on are in the store only.
    unread: u64,
    arriving: Vec<Arriving>,
    arriving_bytes: u64,
    storing: Vec<Arriving>,
    removing: Vec<u64>,
    reading: bool,
    ready: VecDeque<Kept>,
    ready_bytes: u64,
    /// By number, which is the same in the id, in the key of the record, and in the order of sending.
    sent: BTreeMap<u64, Sent>,
    sent_bytes: u64,
    done: Vec<u64>,
    done_since: Option<Instant>,
    count: u64,
    bytes: u64,
    refused: u64,
}

/// Accepted, not stored; the sender waits for `settle`, if it waits at all.
#[derive(Debug)]
struct Arriving {
    kept: Kept,
    settle: Option<Settle>,
}

/// Handed to the link.
#[derive(Debug, Clone, Copy)]
struct Sent {
    run: u64,
    bytes: u64,
    since_ms: u64,
}

/// What a look into the store at the start found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// The first and the last number.
    pub(super) numbers: Option<(u64, u64)>,
    pub(super) count: u64,
    pub(super) bytes: u64,
}

impl Found {
    pub(super) fn add(&mut self, kept: &Kept) {
        let number = kept.id.number;
        let first = self.numbers.map_or(number, |(first, _)| first);
        self.numbers = Some((first, number));
        self.count += 1;
        self.bytes += kept.size();
    }
}

impl State {
    /// Begins with what an earlier run has left. `run` tells this run's messages from those of all others.
    pub(super) fn restore(limits: Limits, run: u64, found: Found) -> Self {
        let (first, next) = found.numbers.map_or((1, 1), |(first, last)| (first, last + 1));
        Self {
            limits,
            run,
            next,
            stored: next,
            unread: first,
            arriving: Vec::new(),
            arriving_bytes: 0,
            storing: Vec::new(),
            removing: Vec::new(),
            reading: false,
            ready: VecDeque::new(),
            ready_bytes: 0,
            sent: BTreeMap::new(),
            sent_bytes: 0,
            done: Vec::new(),
            done_since: None,
            count: found.count,
            bytes: found.bytes,
            refused: 0,
        }
    }

    /// Whether a message fits. Ask before [`State::handle_message`].
    pub(super) fn has_room(&mut self, publish: &Publish) -> bool {
        let size = record::size(publish);
        let limits = &self.limits;
        let fits = self.count < limits.count_max
            && self.bytes + size <= limits.bytes_max
            && (self.arriving.is_empty() || self.arriving_bytes + size <= limits.arriving_bytes_max);
        if !fits {
            self.refused += 1;
        }
        fits
    }

    /// Accepts a message; `settle` is told when it is stored.
    pub(super) fn handle_message(&mut self, publish: Publish, settle: Option<Settle>, wall_ms: u64) {
        let id = UploadId { run: self.run, number: self.next };
        self.next += 1;
        let kept = Kept { id, since_ms: wall_ms, publish };
        self.count += 1;
        self.bytes += kept.size();
        self.arriving_bytes += kept.size();
        self.arriving.push(Arriving { kept, settle });
    }

    /// The next commit: all that has arrived, and what is to be removed. One at a time; it ends with
    /// [`State::handle_committed`] or [`State::handle_commit_failed`].
    pub(super) fn poll_batch(&mut self, now: Instant) -> Result<Option<Batch>, StoreError> {
        if !(self.storing.is_empty() && self.removing.is_empty()) {
            return Ok(None);
        }
        let removal_due = self.done.len() >= self.limits.done_max
            || self.done_since.is_some_and(|since| now >= since + self.limits.done_pause);
        if self.arriving.is_empty() && !removal_due {
            return Ok(None);
        }
        self.take_batch().map(Some)
    }

    /// The last commit: what is to be removed. What has arrived stays unsaid, since its sender is not told.
    pub(super) fn last_batch(&mut self) -> Result<Batch, StoreError> {
        self.handle_commit_failed();
        self.arriving.clear();
        self.take_batch()
    }

    fn take_batch(&mut self) -> Result<Batch, StoreError> {
        let mut batch = Batch::new();
        for arriving in &self.arriving {
            batch.put(record::key(arriving.kept.id.number)?, record::encode(&arriving.kept));
        }
        for number in &self.done {
            batch.delete(record::key(*number)?);
        }
        self.storing = std::mem::take(&mut self.arriving);
        self.removing = std::mem::take(&mut self.done);
        (self.arriving_bytes, self.done_since) = (0, None);
        Ok(batch)
    }

    /// The commit is durable: senders are told.
    pub(super) fn handle_committed(&mut self) {
        self.removing.clear();
        for Arriving { kept, settle } in std::mem::take(&mut self.storing) {
            let number = kept.id.number;
            self.stored = number + 1;
            let follows = self.unread == number && !self.reading;
            if follows && self.ready_bytes + kept.size() <= self.limits.ready_bytes_max {
                self.unread = number + 1;
                self.make_ready(kept);
            }
            settle.into_iter().for_each(Settle::settle);
        }
    }

    /// The commit has failed: it is to be tried again, and nobody is told anything.
    pub(super) fn handle_commit_failed(&mut self) {
        let newer = std::mem::take(&mut self.arriving);
        self.arriving = std::mem::take(&mut self.storing);
        self.arriving.extend(newer);
        self.arriving_bytes = self.arriving.iter().map(|arriving| arriving.kept.size()).sum();
        self.done.append(&mut self.removing);
    }

    /// Numbers whose records are to be read; [`State::handle_read`] follows.
    pub(super) fn poll_read(&mut self) -> Option<Range<u64>> {
        let room = self.ready_bytes <= self.limits.ready_bytes_max / 2;
        if self.reading || self.unread >= self.stored || !room {
            return None;
        }
        self.reading = true;
        Some(self.unread..self.stored.min(self.unread + READ_MAX))
    }

    /// The records below `upto`. Numbers without a record were done already.
    pub(super) fn handle_read(&mut self, upto: u64, records: Vec<Kept>) {
        self.reading = false;
        self.unread = upto;
        records.into_iter().for_each(|kept| self.make_ready(kept));
    }

    /// The records could not be read.
    pub(super) fn handle_read_failed(&mut self) {
        self.reading = false;
    }

    fn make_ready(&mut self, kept: Kept) {
        self.ready_bytes += kept.size();
        self.ready.push_back(kept);
    }

    /// The next message for the link. If the link does not take it, [`State::handle_unsent`] follows.
    pub(super) fn poll_send(&mut self) -> Option<UploadedPublish> {
        let kept = self.ready.front()?;
        let fits = self.sent.is_empty()
            || (self.sent.len() < self.limits.window
                && self.sent_bytes + kept.size() <= self.limits.window_bytes);
        if !fits {
            return None;
        }
        let kept = self.ready.pop_front()?;
        let bytes = kept.size();
        self.ready_bytes -= bytes;
        self.sent_bytes += bytes;
        let sent = Sent { run: kept.id.run, bytes, since_ms: kept.since_ms };
        self.sent.insert(kept.id.number, sent);
        Some(UploadedPublish { id: kept.id, publish: kept.publish })
    }

    /// The link had no room for the message that was polled last.
    pub(super) fn handle_unsent(&mut self, upload: UploadedPublish) {
        let UploadedPublish { id, publish } = upload;
        if let Some(sent) = self.sent.remove(&id.number) {
            self.sent_bytes -= sent.bytes;
            self.ready_bytes += sent.bytes;
            self.ready.push_front(Kept { id, since_ms: sent.since_ms, publish });
        }
    }

    /// The cloud has the message.
    pub(super) fn handle_uploaded(&mut self, id: UploadId, now: Instant) {
        if self.sent.get(&id.number).is_none_or(|sent| sent.run != id.run) {
            return;
        }
        let Some(sent) = self.sent.remove(&id.number) else { return };
        self.sent_bytes -= sent.bytes;
        self.count -= 1;
        self.bytes -= sent.bytes;
        self.done.push(id.number);
        self.done_since.get_or_insert(now);
    }

    /// When [`State::poll_batch`] has something to remove, unless something else happens before.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.done_since.map(|since| since + self.limits.done_pause)
    }

    pub(super) fn backlog(&self) -> Backlog {
        let sent = self.sent.values().next().map(|sent| sent.since_ms);
        let ready = self.ready.front().map(|kept| kept.since_ms);
        let mut unstored = self.storing.iter().chain(&self.arriving).map(|arriving| arriving.kept.since_ms);
        let oldest = sent.or(ready).or_else(|| unstored.next());
        Backlog { messages: self.count, bytes: self.bytes, oldest_since_ms: oldest, refused: self.refused }
    }
}
