//! Where the objects are kept: one redb table, one writer, one counter of versions.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use jiff::Timestamp;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, backends::InMemoryBackend};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{Config, Error, failure::Failure, history::History, resource::Resource};

#[cfg(test)]
mod tests;
mod txn;
mod writer;

pub(crate) use txn::{Snapshot, Txn};
use writer::{Decided, Job, Writer};

/// Objects as JSON, by resource, namespace and name.
const OBJECTS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("objects");
/// The counter of versions.
const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
const VERSION: &str = "version";

/// The store. Dropping it waits for the commit under way.
pub(crate) struct Store {
    database: Arc<Database>,
    history: Arc<History>,
    failed: CancellationToken,
    turn: Turn,
}

/// How a write gets its turn.
enum Turn {
    /// By a queue to a thread, which waits for the disk so that the runtime need not.
    Thread { jobs: Option<mpsc::Sender<Job>>, writer: Option<thread::JoinHandle<()>> },
    /// At once: memory keeps nobody waiting, and tests with paused time see no time pass.
    Here(Mutex<Writer>),
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("version", &self.history.published()).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store in a file, or in memory.
    pub(crate) fn open(path: Option<&Path>, config: &Config) -> Result<Self, Error> {
        let mut builder = Database::builder();
        builder.set_cache_size(config.cache_bytes);
        match path {
            Some(path) => {
                create_private(path)?;
                Self::with(builder.create(path)?, config, true)
            }
            None => Self::with(builder.create_with_backend(InMemoryBackend::new())?, config, false),
        }
    }

    /// Keeps objects in this database, and writes in a thread if writing may wait.
    fn with(database: Database, config: &Config, waits: bool) -> Result<Self, Error> {
        let version = prepare(&database).map_err(Error::Store)?;
        let database = Arc::new(database);
        let history = Arc::new(History::new(version, config.history_changes, config.history_bytes));
        let failed = CancellationToken::new();
        let writer =
            Writer { database: database.clone(), history: history.clone(), version, failed: failed.clone() };
        let turn = if waits {
            // The bound is back-pressure for writers that come faster than the disk.
            let (jobs, queue) = mpsc::channel(256);
            let thread = thread::Builder::new().name("kubernetes-store".into());
            let writer = thread.spawn(move || writer.run(queue)).map_err(Error::Thread)?;
            Turn::Thread { jobs: Some(jobs), writer: Some(writer) }
        } else {
            Turn::Here(Mutex::new(writer))
        };
        Ok(Self { database, history, failed, turn })
    }

    /// What changed lately.
    pub(crate) fn history(&self) -> &Arc<History> {
        &self.history
    }

    /// Lets `decide` read and change objects, alone. When this returns `Ok`, the changes survive power loss;
    /// on an error nothing has changed. With `dry_run` nothing changes either way.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        dry_run: bool,
        decide: impl FnOnce(&mut Txn<'_, '_>) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let (sender, answer) = oneshot::channel();
        let job: Job = Box::new(move |txn| {
            let decided = decide(txn);
            Decided {
                keep: decided.is_ok() && !dry_run,
                answer: Box::new(move |committed| {
                    let _ = sender.send(committed.and(decided));
                }),
            }
        });
        match &self.turn {
            Turn::Thread { jobs, .. } => {
                let jobs = jobs.as_ref().ok_or_else(stopped)?;
                jobs.send(job).await.map_err(|_| stopped())?;
            }
            // A writer that panicked has committed nothing of its batch, and can go on.
            Turn::Here(writer) => writer.lock().unwrap_or_else(PoisonError::into_inner).perform(vec![job]),
        }
        answer.await.map_err(|_| stopped())?
    }

    /// Waits until the store has failed, which is for good: redb takes no more writes before it is reopened.
    pub(crate) async fn failed(&self) {
        self.failed.cancelled().await;
    }

    /// The objects as of now. Does not wait for writers.
    pub(crate) fn read(&self) -> Result<Snapshot, Failure> {
        let transaction = self.database.begin_read().map_err(broken)?;
        let version = transaction.open_table(META).map_err(broken)?.get(VERSION).map_err(broken)?;
        let version = version.map_or(0, |version| version.value());
        Ok(Snapshot { transaction, version })
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // The writer ends when the queue is closed; waiting for it frees the file for who opens it next.
        if let Turn::Thread { jobs, writer } = &mut self.turn {
            *jobs = None;
            if let Some(writer) = writer.take() {
                let _ = writer.join();
            }
        }
    }
}

/// Creates the file, if there is none, so that only its owner reads the Secrets in it.
fn create_private(path: &Path) -> Result<(), Error> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(Error::Create(error)),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn stopped() -> Failure {
    Failure::internal("the store has stopped")
}

pub(crate) fn broken(error: impl std::fmt::Display) -> Failure {
    Failure::internal(format!("the store failed: {error}"))
}

/// Creates the tables and the counter, and returns the counter.
fn prepare(database: &Database) -> Result<u64, redb::Error> {
    let transaction = database.begin_write()?;
    let version = {
        transaction.open_table(OBJECTS)?;
        let mut meta = transaction.open_table(META)?;
        let known = meta.get(VERSION)?.map(|version| version.value());
        match known {
            Some(version) => version,
            None => {
                // Beginning at the time of day, a store that was lost and created anew counts on from above
                // all the versions that clients of the lost one remember.
                let version = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(1);
                meta.insert(VERSION, version)?;
                version
            }
        }
    };
    transaction.commit()?;
    Ok(version)
}

/// The place of an object in the store.
pub(crate) fn key(resource: &Resource, namespace: &str, name: &str) -> Vec<u8> {
    let mut key = prefix(resource, Some(namespace));
    key.extend_from_slice(name.as_bytes());
    key
}

/// How all keys of a resource begin, or those of one namespace. Names cannot hold NUL, so that the parts
/// cannot be mistaken for one another.
pub(crate) fn prefix(resource: &Resource, namespace: Option<&str>) -> Vec<u8> {
    let mut key = format!("{}.{}\0", resource.plural, resource.group).into_bytes();
    if let Some(namespace) = namespace {
        key.extend_from_slice(namespace.as_bytes());
        key.push(0);
    }
    key
}

/// Reads stored JSON.
pub(crate) fn decode(bytes: &[u8]) -> Result<Value, Failure> {
    serde_json::from_slice(bytes).map_err(broken)
}
