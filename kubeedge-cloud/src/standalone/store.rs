//! Where the objects are kept: one redb table, one writer thread, one counter of versions.

use std::{collections::BTreeMap, path::Path, sync::Arc, thread};

use bytes::Bytes;
use jiff::Timestamp;
use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction,
    backends::InMemoryBackend,
};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    failure::Failure,
    history::{Change, History},
    json,
    resource::Resource,
};

/// Objects as JSON, by resource, namespace and name.
const OBJECTS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("objects");
/// The counter of versions.
const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
const VERSION: &str = "version";

/// How many writes share a commit. With one fsync for all of them, hundreds of nodes can renew their leases
/// on a disk that does a few dozen fsyncs a second.
const BATCH_MAX: usize = 64;

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

/// A write that waits for its turn: it decides on its changes, and is told whether they were committed.
type Job = Box<dyn FnOnce(&mut Txn<'_, '_>) -> Decided + Send>;

struct Decided {
    /// Whether the changes are to be kept.
    keep: bool,
    answer: Box<dyn FnOnce(Result<(), Failure>) + Send>,
}

/// The store. Dropping it waits for the commit under way.
pub(crate) struct Store {
    database: Arc<Database>,
    history: Arc<History>,
    jobs: Option<mpsc::Sender<Job>>,
    failed: CancellationToken,
    writer: Option<thread::JoinHandle<()>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("version", &self.history.published()).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store in a file, or in memory.
    pub(crate) fn open(
        path: Option<&Path>,
        cache_bytes: usize,
        events_max: usize,
        event_bytes_max: usize,
    ) -> Result<Self, super::Error> {
        let mut builder = Database::builder();
        builder.set_cache_size(cache_bytes);
        let database = match path {
            Some(path) => builder.create(path)?,
            None => builder.create_with_backend(InMemoryBackend::new())?,
        };
        let version = prepare(&database).map_err(super::Error::Store)?;
        let database = Arc::new(database);
        let history = Arc::new(History::new(version, events_max, event_bytes_max));
        // The bound is back-pressure for writers that come faster than the disk.
        let (jobs, queue) = mpsc::channel(256);
        let failed = CancellationToken::new();
        let writer =
            Writer { database: database.clone(), history: history.clone(), version, failed: failed.clone() };
        let writer = thread::Builder::new()
            .name("kubernetes-store".into())
            .spawn(move || writer.run(queue))
            .map_err(super::Error::Thread)?;
        Ok(Self { database, history, jobs: Some(jobs), failed, writer: Some(writer) })
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
        let jobs = self.jobs.as_ref().ok_or_else(stopped)?;
        jobs.send(job).await.map_err(|_| stopped())?;
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
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
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

struct Writer {
    database: Arc<Database>,
    history: Arc<History>,
    version: u64,
    failed: CancellationToken,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        while let Some(first) = queue.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH_MAX
                && let Ok(job) = queue.try_recv()
            {
                batch.push(job);
            }
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
    }

    fn commit(
        &mut self,
        batch: Vec<Job>,
        answers: &mut Vec<Box<dyn FnOnce(Result<(), Failure>) + Send>>,
    ) -> Result<(), redb::Error> {
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
        answers: &mut Vec<Box<dyn FnOnce(Result<(), Failure>) + Send>>,
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

/// The objects while one write decides: what is stored, below what the write has changed so far.
pub(crate) struct Txn<'a, 'txn> {
    table: &'a Table<'txn, &'static [u8], &'static [u8]>,
    overlay: BTreeMap<Vec<u8>, Option<Bytes>>,
    changes: Vec<Change>,
    version: u64,
    /// The time of the write.
    pub(crate) now: Timestamp,
}

impl Txn<'_, '_> {
    /// The object of this name.
    pub(crate) fn get(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, Failure> {
        self.bytes(&key(resource, namespace, name))?.map(|bytes| decode(&bytes)).transpose()
    }

    fn bytes(&self, key: &[u8]) -> Result<Option<Bytes>, Failure> {
        if let Some(changed) = self.overlay.get(key) {
            return Ok(changed.clone());
        }
        let stored = self.table.get(key).map_err(broken)?;
        Ok(stored.map(|stored| Bytes::copy_from_slice(stored.value())))
    }

    /// The object with this key.
    pub(crate) fn get_key(&self, key: &[u8]) -> Result<Option<Value>, Failure> {
        self.bytes(key)?.map(|bytes| decode(&bytes)).transpose()
    }

    /// All objects of a resource, or those of one namespace.
    pub(crate) fn list(&self, resource: &Resource, namespace: Option<&str>) -> Result<Vec<Value>, Failure> {
        Ok(self.entries(resource, namespace)?.into_iter().map(|(_, object)| object).collect())
    }

    /// The same, each with its key.
    pub(crate) fn entries(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
    ) -> Result<Vec<(Vec<u8>, Value)>, Failure> {
        let prefix = prefix(resource, namespace);
        let mut found = BTreeMap::new();
        for entry in self.table.range(prefix.as_slice()..).map_err(broken)? {
            let (key, value) = entry.map_err(broken)?;
            if !key.value().starts_with(&prefix) {
                break;
            }
            found.insert(key.value().to_vec(), Some(decode(value.value())?));
        }
        for (key, value) in
            self.overlay.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix))
        {
            found.insert(key.clone(), value.as_deref().map(decode).transpose()?);
        }
        Ok(found.into_iter().filter_map(|(key, object)| Some((key, object?))).collect())
    }

    /// Stores the object under its own names with the next version, and returns it with that.
    pub(crate) fn put(&mut self, resource: &'static Resource, object: Value) -> Result<Value, Failure> {
        self.change(resource, object, false)
    }

    /// Removes the object, and returns its last state.
    pub(crate) fn remove(&mut self, resource: &'static Resource, object: Value) -> Result<Value, Failure> {
        self.change(resource, object, true)
    }

    fn change(
        &mut self,
        resource: &'static Resource,
        mut object: Value,
        deleted: bool,
    ) -> Result<Value, Failure> {
        self.version += 1;
        json::metadata(&mut object).insert("resourceVersion".into(), self.version.to_string().into());
        let names =
            (json::text(&object, &["metadata", "namespace"]), json::text(&object, &["metadata", "name"]));
        let key = key(resource, names.0, names.1);
        let new = Bytes::from(serde_json::to_vec(&object).map_err(broken)?);
        let old = self.bytes(&key)?;
        self.overlay.insert(key.clone(), (!deleted).then(|| new.clone()));
        self.changes.push(Change { version: self.version, resource, key, old, new, deleted });
        Ok(object)
    }
}

/// The objects as of one moment.
pub(crate) struct Snapshot {
    transaction: ReadTransaction,
    /// The version of that moment.
    pub(crate) version: u64,
}

impl Snapshot {
    /// The JSON of the object of this name.
    pub(crate) fn get(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Bytes>, Failure> {
        let table = self.transaction.open_table(OBJECTS).map_err(broken)?;
        let stored = table.get(key(resource, namespace, name).as_slice()).map_err(broken)?;
        Ok(stored.map(|stored| Bytes::copy_from_slice(stored.value())))
    }

    /// Visits key and JSON of every object whose key begins with `prefix` and comes after `after`, in order,
    /// until `visit` returns false.
    pub(crate) fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let table = self.transaction.open_table(OBJECTS).map_err(broken)?;
        for entry in table.range(after.unwrap_or(prefix)..).map_err(broken)? {
            let (key, value) = entry.map_err(broken)?;
            if !key.value().starts_with(prefix) {
                break;
            }
            if after != Some(key.value()) && !visit(key.value(), value.value())? {
                break;
            }
        }
        Ok(())
    }
}

/// Reads stored JSON.
pub(crate) fn decode(bytes: &[u8]) -> Result<Value, Failure> {
    serde_json::from_slice(bytes).map_err(broken)
}
