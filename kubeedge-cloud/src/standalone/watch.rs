//! A watch: the history, as one client sees it.

use std::{sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use futures::Stream;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::{
    failure::Failure,
    history::{Change, History},
    resource::Resource,
    respond::Form,
    selector::Selector,
    store,
};

/// How many changes one turn takes from the history, and so how much text is ready at once for a client that
/// reads slowly.
const TURN: usize = 32;

/// What a client watches, and how far it has seen.
pub(crate) struct Watch {
    pub(crate) history: Arc<History>,
    pub(crate) resource: &'static Resource,
    /// How the keys of what is watched begin.
    pub(crate) prefix: Vec<u8>,
    pub(crate) selector: Selector,
    pub(crate) form: Form,
    /// Everything up to this version has been told.
    pub(crate) version: u64,
    /// What exists at the beginning and is still to be told, the last first.
    pub(crate) initial: Vec<Bytes>,
    /// Whether the end of what exists at the beginning is marked.
    pub(crate) mark_initial: bool,
    pub(crate) bookmarks: bool,
    pub(crate) bookmark_every: Duration,
    /// When the watch ends.
    pub(crate) until: Instant,
}

impl Watch {
    /// The events as lines of JSON. The stream ends when the time is up, or after an error event.
    pub(crate) fn lines(self) -> impl Stream<Item = Bytes> + Send {
        let changed = self.history.subscribe();
        let bookmark_at = Instant::now() + self.bookmark_every;
        let turn = Turn { watch: self, changed, bookmark_at, heads: true, ended: false };
        futures::stream::unfold(turn, |mut turn| async move {
            let lines = turn.next().await?;
            Some((lines, turn))
        })
    }
}

struct Turn {
    watch: Watch,
    changed: tokio::sync::watch::Receiver<u64>,
    bookmark_at: Instant,
    /// Whether the next table still has to say what its columns are.
    heads: bool,
    ended: bool,
}

impl Turn {
    async fn next(&mut self) -> Option<Bytes> {
        let mut lines = BytesMut::new();
        while lines.is_empty() {
            if self.ended {
                return None;
            }
            if self.initial(&mut lines) {
                break;
            }
            self.changed.borrow_and_update();
            if let Err(failure) = self.take(&mut lines) {
                self.ended = true;
                line(&mut lines, "ERROR", failure.status().to_string().as_bytes());
                break;
            }
            if lines.is_empty() && !self.wait(&mut lines).await {
                return None;
            }
        }
        Some(lines.freeze())
    }

    /// Tells of what exists at the beginning. Returns whether there was any left.
    fn initial(&mut self, lines: &mut BytesMut) -> bool {
        for _ in 0..TURN {
            let Some(object) = self.watch.initial.pop() else { break };
            self.object(lines, "ADDED", object);
        }
        if self.watch.initial.is_empty() {
            self.watch.initial.shrink_to_fit();
            if std::mem::take(&mut self.watch.mark_initial) {
                self.bookmark(lines, true);
            }
        }
        !lines.is_empty()
    }

    /// Tells of what has changed since.
    fn take(&mut self, lines: &mut BytesMut) -> Result<(), Failure> {
        let watch = &self.watch;
        let wanted = |change: &Change| {
            std::ptr::eq(change.resource, watch.resource) && change.key.starts_with(&watch.prefix)
        };
        let (changes, version) = watch.history.after(watch.version, TURN, wanted)?;
        for change in changes {
            if let Some((kind, object)) = self.seen(&change)? {
                self.object(lines, kind, object);
            }
        }
        self.watch.version = version;
        Ok(())
    }

    /// What a change is to this watcher: an object that no longer matches the selector is gone for it, and
    /// one that begins to match is new.
    fn seen(&self, change: &Change) -> Result<Option<(&'static str, Bytes)>, Failure> {
        let selector = &self.watch.selector;
        let (was, is) = if selector.is_empty() {
            (change.old.is_some(), !change.deleted)
        } else {
            let was = match &change.old {
                Some(old) => selector.matches(&store::decode(old)?),
                None => false,
            };
            (was, !change.deleted && selector.matches(&store::decode(&change.new)?))
        };
        let kind = match (was, is) {
            (false, false) => return Ok(None),
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
        };
        if kind != "DELETED" || change.deleted {
            return Ok(Some((kind, change.new.clone())));
        }
        // It tells the last state that matched, with the version of the change that ended it.
        let Some(old) = &change.old else { return Ok(None) };
        let mut last = store::decode(old)?;
        last["metadata"]["resourceVersion"] = change.version.to_string().into();
        Ok(Some((kind, last.to_string().into())))
    }

    /// Waits for news, or for the time of a bookmark. Returns false when the watch is over.
    async fn wait(&mut self, lines: &mut BytesMut) -> bool {
        let until = self.watch.until.min(self.bookmark_at);
        tokio::select! {
            changed = self.changed.changed() => changed.is_ok(),
            () = sleep_until(until) => {
                if Instant::now() >= self.watch.until {
                    return false;
                }
                self.bookmark_at = Instant::now() + self.watch.bookmark_every;
                if self.watch.bookmarks {
                    self.bookmark(lines, false);
                }
                true
            }
        }
    }

    fn object(&mut self, lines: &mut BytesMut, kind: &str, object: Bytes) {
        let object = self.watch.form.object(self.watch.resource, object, self.heads);
        self.heads = false;
        line(lines, kind, &object);
    }

    fn bookmark(&mut self, lines: &mut BytesMut, initial_end: bool) {
        let mut meta =
            json!({ "resourceVersion": self.watch.version.to_string(), "creationTimestamp": null });
        if initial_end {
            meta["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let mut object = json!({
            "kind": self.watch.resource.kind, "apiVersion": self.watch.resource.api_version(), "metadata": meta,
        });
        // Clients that decode the kind strictly need the members that it cannot be without.
        if self.watch.resource.kind == "Pod" {
            object["spec"] = json!({ "containers": Value::Null });
        }
        line(lines, "BOOKMARK", &self.watch.form.bookmark(object));
    }
}

/// Writes one event. `type` comes first, so that clients can tell what follows before they read it.
fn line(lines: &mut BytesMut, kind: &str, object: &[u8]) {
    lines.reserve(object.len() + 40);
    lines.put_slice(b"{\"type\":\"");
    lines.put_slice(kind.as_bytes());
    lines.put_slice(b"\",\"object\":");
    lines.put_slice(object);
    lines.put_slice(b"}\n");
}
