//! The store in memory: for tests and simulations, and for nodes that may forget.
//!
//! It holds what the contract promises except surviving the process, and it has switches that make a disk
//! fail or the power go at an exact commit, which no real disk offers.
//!
//! ```
//! use kubeedge_core::store::{Batch, Key, MetaStore, memory::MemoryStore};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), kubeedge_core::store::StoreError> {
//! let store = MemoryStore::new();
//! let key = Key::new(["twins", "sensor-1"])?;
//! let mut batch = Batch::new();
//! batch.put(key.clone(), "21.5");
//! store.commit(batch).await?;
//!
//! let after = store.cut_power(); // What a restarted node finds; the old handle is dead.
//! assert!(store.get(&key).await.is_err());
//! assert_eq!(after.get(&key).await?.as_deref(), Some(&b"21.5"[..]));
//! # Ok(()) }
//! ```

use std::{
    collections::BTreeMap,
    fmt,
    ops::Bound,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    vec,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::stream::{BoxStream, Stream};

use super::{Batch, Change, Key, MetaStore, Prefix, StoreError};

/// Keeps everything in memory. Clones share the content and the switches.
#[derive(Clone, Default)]
pub struct MemoryStore {
    shared: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    content: BTreeMap<Key, Bytes>,
    /// Commits that changed the content so far.
    commits: u64,
    /// Commits that still succeed, if failing is switched on.
    commits_left: Option<u64>,
    /// Commits that still succeed before the power goes, if that is switched on.
    power_left: Option<u64>,
    dead: bool,
}

impl MemoryStore {
    /// Creates an empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets the next `commits` commits succeed and fails all that follow with
    /// [`StoreError::Unavailable`], until [`MemoryStore::heal`]. Reads go on.
    pub fn fail_commits_after(&self, commits: u64) {
        self.lock().commits_left = Some(commits);
    }

    /// Ends what [`MemoryStore::fail_commits_after`] began.
    pub fn heal(&self) {
        self.lock().commits_left = None;
    }

    /// Cuts the power after the next `commits` commits: from then on everything fails on this handle and its
    /// clones. [`MemoryStore::cut_power`] gives what is left.
    pub fn cut_power_after(&self, commits: u64) {
        self.lock().power_left = Some(commits);
    }

    /// Cuts the power now, if it was not cut before, and returns the store as a restarted process finds it:
    /// all that was committed, and no switch thrown. This handle and its clones fail from now on.
    pub fn cut_power(&self) -> Self {
        let mut inner = self.lock();
        inner.dead = true;
        let content = inner.content.clone();
        drop(inner);
        Self { shared: Arc::new(Mutex::new(Inner { content, ..Inner::default() })) }
    }

    /// Copies the content into a store of its own; this one goes on.
    pub fn snapshot(&self) -> Self {
        let content = self.lock().content.clone();
        Self { shared: Arc::new(Mutex::new(Inner { content, ..Inner::default() })) }
    }

    /// How many commits have succeeded on this store; those of empty batches do not count.
    pub fn commits(&self) -> u64 {
        self.lock().commits
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code of others runs under the lock, so a poisoned state is still whole.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn check_power(&self, what: impl FnOnce() -> String) -> Result<(), StoreError> {
        if self.dead {
            return Err(StoreError::Unavailable { what: what(), source: "the power is cut".into() });
        }
        Ok(())
    }

    fn commit(&mut self, batch: Batch) -> Result<(), StoreError> {
        let what = || "commit".to_owned();
        self.check_power(what)?;
        if batch.is_empty() {
            return Ok(());
        }
        if self.power_left == Some(0) {
            self.dead = true;
            return self.check_power(what);
        }
        if self.commits_left == Some(0) {
            let source = "commits are switched to fail".into();
            return Err(StoreError::Unavailable { what: what(), source });
        }
        for left in [&mut self.power_left, &mut self.commits_left].into_iter().flatten() {
            *left -= 1;
        }
        self.commits += 1;
        for change in batch.into_changes() {
            match change {
                Change::Put(key, value) => {
                    self.content.insert(key, value);
                }
                Change::Delete(key) => {
                    self.content.remove(&key);
                }
            }
        }
        Ok(())
    }

    fn scan(&self, prefix: &Prefix) -> Result<Vec<(Key, Bytes)>, StoreError> {
        self.check_power(|| format!("scan {:?}", prefix.as_str()))?;
        // Keys under one prefix are neighbours, so the walk ends at the first that is not under it.
        let start = Key::from_text(prefix.as_str()).map_or(Bound::Unbounded, Bound::Included);
        let under = self.content.range((start, Bound::Unbounded)).take_while(|(key, _)| prefix.matches(key));
        Ok(under.map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}

#[async_trait]
impl MetaStore for MemoryStore {
    async fn get(&self, key: &Key) -> Result<Option<Bytes>, StoreError> {
        let inner = self.lock();
        inner.check_power(|| format!("get {key}"))?;
        Ok(inner.content.get(key).cloned())
    }

    fn scan(&self, prefix: &Prefix) -> BoxStream<'static, Result<(Key, Bytes), StoreError>> {
        let items = match self.lock().scan(prefix) {
            Ok(pairs) => pairs.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        };
        Box::pin(Items(items.into_iter()))
    }

    async fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        self.lock().commit(batch)
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.lock();
        // Values stay out: they may be Secrets.
        f.debug_struct("MemoryStore")
            .field("keys", &inner.content.len())
            .field("commits", &inner.commits)
            .field("dead", &inner.dead)
            .finish_non_exhaustive()
    }
}

/// A stream of what is there already.
struct Items<T>(vec::IntoIter<T>);

impl<T: Unpin> Stream for Items<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<T>> {
        Poll::Ready(self.0.next())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::MetaStoreExt, *};

    fn put(key: &str) -> Batch {
        let mut batch = Batch::new();
        batch.put(Key::new([key]).unwrap(), "value");
        batch
    }

    #[cfg(feature = "conformance")]
    #[tokio::test]
    async fn it_does_what_the_contract_says() {
        super::super::conformance::run(|| async { MemoryStore::new() }).await;
    }

    #[tokio::test]
    async fn commits_fail_after_the_number_asked_for_until_the_store_heals() {
        let store = MemoryStore::new();
        store.fail_commits_after(1);
        store.commit(put("a")).await.unwrap();
        assert!(store.commit(put("b")).await.unwrap_err().is_retryable());
        store.heal();
        store.commit(put("c")).await.unwrap();
        let keys: Vec<_> = store
            .scan_all(&Prefix::all())
            .await
            .unwrap()
            .into_iter()
            .map(|(key, _)| key.to_string())
            .collect();
        assert_eq!(keys, ["a", "c"]);
        assert_eq!(store.commits(), 2);
    }

    #[tokio::test]
    async fn a_power_cut_ends_the_handle_and_keeps_what_was_committed() {
        let store = MemoryStore::new();
        store.cut_power_after(1);
        store.commit(put("a")).await.unwrap();
        assert!(store.clone().commit(put("b")).await.is_err());
        assert!(store.get(&Key::new(["a"]).unwrap()).await.is_err());
        assert!(store.scan_all(&Prefix::all()).await.is_err());
        let after = store.cut_power();
        assert_eq!(after.scan_all(&Prefix::all()).await.unwrap().len(), 1);
        after.commit(put("b")).await.unwrap();
    }

    #[tokio::test]
    async fn a_snapshot_and_its_origin_go_their_own_ways() {
        let store = MemoryStore::new();
        store.commit(put("a")).await.unwrap();
        let copy = store.snapshot();
        store.commit(put("b")).await.unwrap();
        assert_eq!(copy.scan_all(&Prefix::all()).await.unwrap().len(), 1);
    }
}
