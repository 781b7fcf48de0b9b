//! What changed lately: the bounded memory from which every watch reads, each at its own pace.
//!
//! There is no queue per watcher. A watcher holds a version, asks for what came after it, and is told that
//! it is too late when the history has moved past it. So a slow watcher costs nothing and is closed.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::watch;

use super::{failure::Failure, resource::Resource};

/// One change of one object.
#[derive(Debug)]
pub(crate) struct Change {
    /// The version that the change made.
    pub(crate) version: u64,
    /// What kind of object.
    pub(crate) resource: &'static Resource,
    /// The object's place in the store.
    pub(crate) key: Vec<u8>,
    /// The object before; `None` if it was created.
    pub(crate) old: Option<Bytes>,
    /// The object after; for a deletion its last state, with the version of the deletion.
    pub(crate) new: Bytes,
    /// Whether the object is gone.
    pub(crate) deleted: bool,
}

impl Change {
    fn weight(&self) -> usize {
        // The fixed part stands for the structure itself and its place in the queue.
        self.key.len() + self.new.len() + self.old.as_ref().map_or(0, Bytes::len) + 128
    }
}

/// The changes of the recent past, in order.
#[derive(Debug)]
pub(crate) struct History {
    state: Mutex<State>,
    published: watch::Sender<u64>,
    events_max: usize,
    bytes_max: usize,
}

#[derive(Debug)]
struct State {
    changes: VecDeque<Arc<Change>>,
    bytes: usize,
    /// Changes up to this version are not held.
    floor: u64,
}

impl History {
    /// An empty history that begins after `version`.
    pub(crate) fn new(version: u64, events_max: usize, bytes_max: usize) -> Self {
        Self {
            state: Mutex::new(State { changes: VecDeque::new(), bytes: 0, floor: version }),
            published: watch::Sender::new(version),
            events_max: events_max.max(1),
            bytes_max,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing of others runs under the lock, so a poisoned state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds changes that are about to be committed. Watchers do not see them before [`History::publish`];
    /// a reader of the database may meet them earlier and can then still look back behind them.
    pub(crate) fn stage(&self, changes: Vec<Change>) {
        let mut state = self.lock();
        for change in changes {
            state.bytes += change.weight();
            state.changes.push_back(Arc::new(change));
        }
        while state.changes.len() > self.events_max || state.bytes > self.bytes_max {
            let Some(oldest) = state.changes.pop_front() else { break };
            state.bytes -= oldest.weight();
            state.floor = oldest.version;
        }
    }

    /// Shows the changes up to this version to watchers.
    pub(crate) fn publish(&self, version: u64) {
        self.published.send_replace(version);
    }

    /// Takes staged changes back, because they could not be committed.
    pub(crate) fn unstage(&self, version: u64) {
        let mut state = self.lock();
        while state.changes.back().is_some_and(|change| change.version > version) {
            if let Some(change) = state.changes.pop_back() {
                state.bytes -= change.weight();
            }
        }
    }

    /// The newest version that watchers may see.
    pub(crate) fn published(&self) -> u64 {
        *self.published.borrow()
    }

    /// Wakes when there are newer versions.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.published.subscribe()
    }

    /// The published changes after `version`, at most `count`, that `wanted` lets through, and the version
    /// up to which the history has been read.
    ///
    /// # Errors
    /// 410 if the history no longer reaches back to `version`.
    pub(crate) fn after(
        &self,
        version: u64,
        count: usize,
        wanted: impl Fn(&Change) -> bool,
    ) -> Result<(Vec<Arc<Change>>, u64), Failure> {
        let published = self.published();
        let state = self.lock();
        if version < state.floor {
            return Err(too_old(version, state.floor));
        }
        let begin = state.changes.partition_point(|change| change.version <= version);
        let mut found = Vec::new();
        for change in state.changes.range(begin..) {
            if change.version > published {
                break;
            }
            if wanted(change) {
                found.push(change.clone());
                if found.len() == count {
                    return Ok((found, change.version));
                }
            }
        }
        Ok((found, published.max(version)))
    }

    /// What objects of a resource were at `version`, as far as they changed since: `None` for those that
    /// did not exist. This lets a list go on, page by page, as of the moment at which it began.
    ///
    /// # Errors
    /// 410 if the history no longer reaches back to `version`.
    pub(crate) fn undo(
        &self,
        resource: &'static Resource,
        version: u64,
    ) -> Result<BTreeMap<Vec<u8>, Option<Bytes>>, Failure> {
        let state = self.lock();
        if version < state.floor {
            return Err(too_old(version, state.floor));
        }
        let begin = state.changes.partition_point(|change| change.version <= version);
        let mut undo = BTreeMap::new();
        for change in state.changes.range(begin..).filter(|change| std::ptr::eq(change.resource, resource)) {
            undo.entry(change.key.clone()).or_insert_with(|| change.old.clone());
        }
        Ok(undo)
    }
}

fn too_old(version: u64, floor: u64) -> Failure {
    Failure::expired(format!("too old resource version: {version} ({floor})"))
}
