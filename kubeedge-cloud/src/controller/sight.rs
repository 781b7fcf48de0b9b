//! What of the API is seen at present, for those who watch over the cloud.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::watch;

/// The kinds that cannot be watched at present, each with the reason; empty if all is well.
pub(crate) type Unwatched = BTreeMap<&'static str, String>;

/// Where watches note whether they see the API. Clones note in one place.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sight {
    unwatched: Arc<watch::Sender<Unwatched>>,
    listed: Arc<AtomicBool>,
}

impl Sight {
    /// What is noted, and what will be.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Unwatched> {
        self.unwatched.subscribe()
    }

    /// The kind cannot be watched.
    pub(super) fn lost(&self, kind: &'static str, why: &str) {
        self.unwatched.send_if_modified(|unwatched| {
            let changed = unwatched.get(kind).map(String::as_str) != Some(why);
            if changed {
                unwatched.insert(kind, why.to_owned());
            }
            changed
        });
    }

    /// The kind is watched.
    pub(super) fn regained(&self, kind: &'static str) {
        self.unwatched.send_if_modified(|unwatched| unwatched.remove(kind).is_some());
    }

    /// The API has let a kind be listed.
    pub(super) fn note_listed(&self) {
        self.listed.store(true, Ordering::Relaxed);
    }

    /// Whether the API has ever let a kind be listed.
    pub(super) fn has_listed(&self) -> bool {
        self.listed.load(Ordering::Relaxed)
    }
}
