//! The store on disk: one redb file, one writing thread, one sync per group of commits.
//!
//! redb is a B-tree that never writes over what a reader or a crash may still need. What this adapter adds:
//!
//! * **Group commit.** One thread owns all writing. It takes what waits in its queue, commits it with one sync,
//!   and answers all of it; so 32 parts that commit at once cost the flash about as much as one.
//! * **Healing.** After an I/O error redb refuses to go on with an open file. The thread closes it, opens
//!   it again, checks it, and tries the same changes once more before it reports a failure.
//! * **A policy for damage.** A damaged file is renamed aside and an empty store begins, because all of it can be
//!   fetched from the cloud again; a file that is something else is left alone. See [`Recovery`].
//!
//! Reads happen on the calling thread: the content of a node is a few MiB, and what redb's own cache does
//! not hold the page cache does. A store that nobody writes to writes nothing.
//!
//! ```no_run
//! use kubeedge_core::store::{Batch, Key, MetaStore, redb::{RedbConfig, RedbStore}};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let store = RedbStore::open("/var/lib/kubeedge/edgecore.redb", RedbConfig::default())?;
//! let mut batch = Batch::new();
//! batch.put(Key::new(["twins", "default", "sensor-1"])?, "{}");
//! store.commit(batch).await?; // It survives a power cut from here on.
//! # Ok(()) }
//! ```

use std::{
    fmt,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    thread::JoinHandle,
};

use ::redb::{Database, OwnedRange, ReadableDatabase, TableDefinition};
use async_trait::async_trait;
use bytes::Bytes;
use futures_core::stream::{BoxStream, Stream};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};

use super::{Batch, Key, MetaStore, Prefix, StoreError};

mod failure;
mod file;
#[cfg(test)]
mod tests;
mod writer;

use failure::Failure;
use writer::{Request, Writer};

/// The one table: keys as text, values as they are.
const TABLE: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new("meta");

/// How a [`RedbStore`] uses memory and disk.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RedbConfig {
    /// Memory in bytes for pages of the file. The default is 1 MiB: enough for the pages between the root and
    /// the values, and small beside the 15 MiB that a whole edge may take.
    pub cache_bytes: usize,
    /// How many commits may wait for the writing thread before [`MetaStore::commit`] waits to be queued. The
    /// default is 64: a node has fewer parts than that.
    pub queue: usize,
    /// Reads the whole file at each start and verifies its checksums, so that flash that has rotted is noticed
    /// then and not, by a panic of redb, in the middle of the work. On by default: files are small.
    pub check_at_open: bool,
    /// Writes more with each commit (and syncs twice) so that opening after a crash need not walk the file. Off
    /// by default: walking a few MiB is quick, and flash wears.
    pub quick_repair: bool,
}

impl Default for RedbConfig {
    fn default() -> Self {
        Self { cache_bytes: 1 << 20, queue: 64, check_at_open: true, quick_repair: false }
    }
}

/// What [`RedbStore::open`] found, and did about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovery {
    /// There was no file, or an empty one: the store is new.
    Created,
    /// The file had been closed properly.
    Clean,
    /// The file had not been closed: the process was killed or the power went. All that had been committed is there.
    Repaired,
    /// The file was damaged. It was renamed, and the store is new.
    SetAside {
        /// The damaged file's name: `<name>.corrupt-<seconds since the Unix epoch>`.
        renamed_to: PathBuf,
        /// What was wrong with it.
        why: String,
    },
}

/// Says why a store could not be opened. The file is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file is not a store of ours, and nothing says that it may be replaced.
    #[error("{} is {what}, not a metadata store: move it away, or configure another path; it was left as it is", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// Another process has the file open.
    #[error("{} is in use by another process: stop that process, or configure another path", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file or its directory cannot be read or written.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// What the system says.
        source: crate::transport::BoxError,
    },
}

/// Keeps everything in one redb file. Dropping it closes the file, after the commits that wait.
pub struct RedbStore {
    shared: Arc<Shared>,
    recovery: Recovery,
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
}

/// What readers and the writing thread have in common.
struct Shared {
    /// For messages.
    name: String,
    /// A read failed, so the writing thread should open the file again: redb does not recover by itself.
    suspect: AtomicBool,
    /// Absent while the file cannot be opened. Readers hold the lock only to begin, so reopening never waits long.
    database: RwLock<Option<Database>>,
}

/// Opens the database; called again after an I/O error.
type Opener = Box<dyn Fn() -> Result<Database, ::redb::Error> + Send>;

impl RedbStore {
    /// Opens the file at `path`, or creates it, and its directory, if there is none; only the owner may read it.
    ///
    /// Blocks while the file is read and checked; call it at start, before there is anything to hold up.
    ///
    /// # Errors
    /// If the file is something else, in use, or cannot be read or written. A damaged file is no error, see
    /// [`Recovery::SetAside`].
    pub fn open(path: impl AsRef<Path>, config: RedbConfig) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let (database, recovery) = file::open(path, &config)?;
        match &recovery {
            Recovery::Created | Recovery::Clean => {
                tracing::debug!(path = %path.display(), ?recovery, "metadata store opened");
            }
            Recovery::Repaired => {
                tracing::warn!(path = %path.display(), "the metadata store had not been closed; it is repaired and whole");
            }
            Recovery::SetAside { renamed_to, why } => {
                tracing::warn!(
                    path = %path.display(), renamed_to = %renamed_to.display(), why,
                    "the metadata store was damaged and is renamed; an empty one begins"
                );
            }
        }
        let opener = file::reopener(path, &config);
        Self::run(path.display().to_string(), database, recovery, opener, &config)
    }

    fn run(
        name: String,
        database: Database,
        recovery: Recovery,
        opener: Opener,
        config: &RedbConfig,
    ) -> Result<Self, OpenError> {
        let shared = Arc::new(Shared {
            name: name.clone(),
            suspect: AtomicBool::new(false),
            database: RwLock::new(Some(database)),
        });
        let (requests, queue) = mpsc::channel(config.queue.max(1));
        let writer = Writer::new(shared.clone(), opener, queue, config.quick_repair);
        let thread = std::thread::Builder::new().name("store-writer".to_owned()).spawn(move || writer.run());
        let thread = thread.map_err(|error| OpenError::Io {
            doing: "start the writing thread of",
            path: name.into(),
            source: error.into(),
        })?;
        Ok(Self { shared, recovery, requests: Some(requests), writer: Some(thread) })
    }

    /// Has the file opened again after a read failed, so that later reads succeed even if nobody commits.
    fn heal(&self, failure: Failure) -> Failure {
        if failure.is_unavailable() {
            self.shared.suspect.store(true, Ordering::Relaxed);
            if let Some(requests) = &self.requests {
                let (answer, _) = oneshot::channel();
                // A full queue wakes the thread just as well.
                let _ = requests.try_send(Request { batch: Batch::new(), answer });
            }
        }
        failure
    }

    /// What opening found, and did about it.
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }
}

impl Drop for RedbStore {
    fn drop(&mut self) {
        // Without senders the thread ends after the commits that wait.
        self.requests = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!(
                store = self.shared.name,
                "the writing thread of the metadata store had panicked"
            );
        }
        self.shared.close();
    }
}

impl fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbStore")
            .field("name", &self.shared.name)
            .field("recovery", &self.recovery)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn close(&self) {
        let database = self.database.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Err(error)) = database.map(Database::close) {
            tracing::warn!(store = self.name, %error, "the metadata store was not closed properly; it will be repaired");
        }
    }

    fn replace(&self, database: Database) {
        *self.database.write().unwrap_or_else(PoisonError::into_inner) = Some(database);
    }

    /// Runs `work` on the database, if it is open.
    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, Failure>) -> Result<T, Failure> {
        match &*self.database.read().unwrap_or_else(PoisonError::into_inner) {
            Some(database) => work(database),
            None => Err(Failure::closed(&self.name)),
        }
    }

    fn get(&self, key: &Key) -> Result<Option<Bytes>, Failure> {
        let table = self.with(|database| Ok(database.begin_read()?.open_table(TABLE)?))?;
        let value = table.get_owned(key.as_str())?;
        Ok(value.map(|value| Bytes::copy_from_slice(value.value())))
    }

    fn scan(&self, prefix: &Prefix) -> Result<OwnedRange<&'static str, &'static [u8]>, Failure> {
        let table = self.with(|database| Ok(database.begin_read()?.open_table(TABLE)?))?;
        Ok(table.range_owned(prefix.as_str()..)?)
    }
}

#[async_trait]
impl MetaStore for RedbStore {
    async fn get(&self, key: &Key) -> Result<Option<Bytes>, StoreError> {
        self.shared.get(key).map_err(|failure| self.heal(failure).during(format!("get {key}")))
    }

    fn scan(&self, prefix: &Prefix) -> BoxStream<'static, Result<(Key, Bytes), StoreError>> {
        let state = match self.shared.scan(prefix) {
            Ok(range) => ScanState::Reading(Box::new(range)),
            Err(failure) => ScanState::Failed(self.heal(failure)),
        };
        Box::pin(Scan { state, prefix: prefix.clone(), in_a_row: 0 })
    }

    async fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        let stopped = || Failure::panicked(&self.shared.name).during("commit".to_owned());
        let (answer, answered) = oneshot::channel();
        // Until it is in the queue nothing is applied; from then on all of it is, even if nobody waits.
        let requests = self.requests.as_ref().ok_or_else(stopped)?;
        requests.send(Request { batch, answer }).await.map_err(|_| stopped())?;
        match answered.await {
            Ok(outcome) => outcome.map_err(|failure| failure.during("commit".to_owned())),
            Err(_) => Err(stopped()),
        }
    }
}

/// Reads a snapshot pair by pair, so that it is never in memory as a whole.
struct Scan {
    state: ScanState,
    prefix: Prefix,
    in_a_row: u32,
}

enum ScanState {
    /// Ends at the first key that is not under the prefix, or at a failure.
    Reading(Box<OwnedRange<&'static str, &'static [u8]>>),
    /// The scan could not begin, which is still to be told.
    Failed(Failure),
    /// Everything has been told.
    Ended,
}

/// Pairs after which a scan lets other tasks of its thread run.
const PAIRS_IN_A_ROW: u32 = 32;

impl Scan {
    fn next(&mut self) -> Option<Result<(Key, Bytes), StoreError>> {
        let what = || format!("scan {:?}", self.prefix.as_str());
        match std::mem::replace(&mut self.state, ScanState::Ended) {
            ScanState::Ended => None,
            ScanState::Failed(failure) => Some(Err(failure.during(what()))),
            ScanState::Reading(mut range) => match range.next()? {
                Err(error) => Some(Err(Failure::from(error).during(what()))),
                Ok((key, _)) if !key.value().starts_with(self.prefix.as_str()) => None,
                Ok((key, value)) => {
                    let pair =
                        Key::from_text(key.value()).map(|key| (key, Bytes::copy_from_slice(value.value())));
                    self.state = ScanState::Reading(range);
                    Some(pair)
                }
            },
        }
    }
}

impl Stream for Scan {
    type Item = Result<(Key, Bytes), StoreError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.in_a_row == PAIRS_IN_A_ROW {
            self.in_a_row = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.in_a_row += 1;
        Poll::Ready(self.next())
    }
}
