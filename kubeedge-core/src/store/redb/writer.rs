use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use ::redb::Database;
use tokio::sync::{mpsc, oneshot};

use super::{Opener, Shared, TABLE, failure::Failure};
use crate::store::{Batch, Change};

/// A commit that waits.
pub(super) struct Request {
    pub(super) batch: Batch,
    pub(super) answer: oneshot::Sender<Result<(), Failure>>,
}

/// The thread that does all writing.
pub(super) struct Writer {
    shared: Arc<Shared>,
    opener: Opener,
    queue: mpsc::Receiver<Request>,
    quick_repair: bool,
    /// When opening may be tried again, after it has failed.
    retry_at: Option<Instant>,
}

/// Bytes of values after which a group is committed even if more waits, so that what redb holds in memory
/// until the commit is bounded.
const GROUP_BYTES: usize = 4 << 20;

/// Batches in one group at most.
const GROUP_BATCHES: usize = 256;

/// How long commits fail at once after the file could not be opened again: a dead disk is not asked faster.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        opener: Opener,
        queue: mpsc::Receiver<Request>,
        quick_repair: bool,
    ) -> Self {
        Self { shared, opener, queue, quick_repair, retry_at: None }
    }

    /// Commits groups until the store is dropped.
    pub(super) fn run(mut self) {
        while let Some(first) = self.queue.blocking_recv() {
            let group = self.gather(first);
            let outcome = self.commit(&group);
            for request in group {
                // An asker who has gone does not matter: the batch is applied whole all the same.
                let _ = request.answer.send(outcome.clone());
            }
        }
    }

    /// Takes what waits already; waiting for more would slow down whoever commits alone.
    fn gather(&mut self, first: Request) -> Vec<Request> {
        let mut bytes = size(&first.batch);
        let mut group = vec![first];
        while bytes < GROUP_BYTES && group.len() < GROUP_BATCHES {
            let Ok(next) = self.queue.try_recv() else { break };
            bytes += size(&next.batch);
            group.push(next);
        }
        group
    }

    /// Commits the group; if that fails, opens the file again and tries once more.
    ///
    /// The second try also settles whether a commit whose sync failed had been applied: its changes are written
    /// again, and so are durable when it succeeds.
    fn commit(&mut self, group: &[Request]) -> Result<(), Failure> {
        if self.shared.suspect.swap(false, Ordering::Relaxed) && self.retry_at.is_none() {
            self.retry_at = Some(Instant::now());
        }
        if self.retry_at.is_some() {
            self.reopen()?;
        }
        if group.iter().all(|request| request.batch.is_empty()) {
            return Ok(());
        }
        let Err(failure) = self.shared.with(|database| apply(database, group, self.quick_repair)) else {
            return Ok(());
        };
        tracing::warn!(store = self.shared.name, error = %failure, "a commit failed; the metadata store is opened again");
        self.retry_at = Some(Instant::now());
        if let Err(error) = self.reopen() {
            tracing::warn!(store = self.shared.name, %error, "the metadata store cannot be opened again; tried at the next commits");
            return Err(failure);
        }
        if failure.is_full() {
            return Err(failure);
        }
        let second = self.shared.with(|database| apply(database, group, self.quick_repair));
        if second.is_err() {
            self.retry_at = Some(Instant::now());
        }
        second
    }

    fn reopen(&mut self) -> Result<(), Failure> {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return Err(Failure::closed(&self.shared.name));
        }
        self.shared.close();
        match (self.opener)() {
            Ok(database) => {
                self.shared.replace(database);
                self.retry_at = None;
                Ok(())
            }
            Err(error) => {
                self.retry_at = Some(Instant::now() + REOPEN_PAUSE);
                Err(error.into())
            }
        }
    }
}

fn size(batch: &Batch) -> usize {
    let value = |change: &Change| match change {
        Change::Put(_, value) => value.len(),
        Change::Delete(_) => 0,
    };
    batch.changes().iter().map(value).sum()
}

/// Writes all batches in one transaction, with redb's default durability: synced before this returns.
fn apply(database: &Database, group: &[Request], quick_repair: bool) -> Result<(), Failure> {
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(quick_repair);
    {
        let mut table = transaction.open_table(TABLE)?;
        for change in group.iter().flat_map(|request| request.batch.changes()) {
            match change {
                Change::Put(key, value) => drop(table.insert(key.as_str(), &value[..])?),
                Change::Delete(key) => drop(table.remove(key.as_str())?),
            }
        }
    }
    Ok(transaction.commit()?)
}
