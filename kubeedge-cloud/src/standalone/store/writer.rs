//! The one who writes.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use redb::{Database, WriteTransaction};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{META, OBJECTS, Txn, VERSION, broken};
use crate::standalone::{
    failure::Failure,
    history::{Change, History},
};

/// How many writes share a commit. With one fsync for all of them, hundreds of nodes can renew their leases
/// on a disk that does a few dozen fsyncs a second.
const BATCH_MAX: usize = 64;

/// A write that waits for its turn: it decides on its changes, and is told whether they were committed.
pub(super) type Job = Box<dyn FnOnce(&mut Txn<'_, '_>) -> Decided + Send>;

/// Tells who waits what became of the commit.
pub(super) type Answer = Box<dyn FnOnce(Result<(), Failure>) + Send>;

/// What a job has decided.
pub(super) struct Decided {
    /// Whether the changes are to be kept.
    pub(super) keep: bool,
    pub(super) answer: Answer,
}

/// Who writes, and no one else.
pub(super) struct Writer {
    pub(super) database: Arc<Database>,
    pub(super) history: Arc<History>,
    pub(super) version: u64,
    /// Told when the store has failed.
    pub(super) failed: CancellationToken,
}

impl Writer {
    /// Does jobs until all their senders are gone. Jobs that have gathered meanwhile share a commit.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        // Also if this thread dies: without it nothing can be written.
        let _guard = self.failed.clone().drop_guard();
        while let Some(first) = queue.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH_MAX
                && let Ok(job) = queue.try_recv()
            {
                batch.push(job);
            }
            self.perform(batch);
        }
    }

    /// Does the jobs in one commit, and answers them.
    pub(super) fn perform(&mut self, batch: Vec<Job>) {
        let mut answers = Vec::with_capacity(batch.len());
        let outcome = self.commit(batch, &mut answers).map_err(|error| {
            tracing::error!(%error, "the store of the standalone API failed");
            self.failed.cancel();
            broken(error)
        });
        for answer in answers {
            answer(outcome.clone());
        }
    }

    fn commit(&mut self, batch: Vec<Job>, answers: &mut Vec<Answer>) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        let (changes, version) = self.decide(batch, &transaction, answers)?;
        if changes.is_empty() {
            transaction.abort()?;
            return Ok(());
        }
        self.history.stage(changes);
        if let Err(error) = transaction.commit() {
            self.history.unstage(self.version);
            return Err(error.into());
        }
        self.version = version;
        self.history.publish(version);
        Ok(())
    }

    fn decide(
        &self,
        batch: Vec<Job>,
        transaction: &WriteTransaction,
        answers: &mut Vec<Answer>,
    ) -> Result<(Vec<Change>, u64), redb::Error> {
        let mut table = transaction.open_table(OBJECTS)?;
        let (mut all, mut version) = (Vec::new(), self.version);
        for job in batch {
            let mut txn = Txn {
                table: &table,
                overlay: BTreeMap::new(),
                changes: Vec::new(),
                version,
                now: Timestamp::now(),
            };
            let decided = job(&mut txn);
            let Txn { overlay, changes, version: reached, .. } = txn;
            answers.push(decided.answer);
            if !decided.keep {
                continue;
            }
            for (key, value) in overlay {
                match value {
                    Some(value) => table.insert(key.as_slice(), &value[..])?,
                    None => table.remove(key.as_slice())?,
                };
            }
            all.extend(changes);
            version = reached;
        }
        transaction.open_table(META)?.insert(VERSION, version)?;
        Ok((all, version))
    }
}
