//! Messages for the cloud, kept in the node's store until the cloud says that it has them.
//!
//! A message is committed before its sender is told that it has been taken; those that arrive while a commit is under
//! way share the next one. The link gets them in order, a window of them at a time, so that a backlog of days
//! costs disk and no memory. After a restart what is left is sent again, with the ids that it had.

use std::{
    hash::{BuildHasher, RandomState},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture};
use kubeedge_core::{
    message::{Publish, Upload, UploadId},
    pipe::{EventSender, LatestReceiver, Receipt, SendError},
    store::{Batch, Key, MetaStore, StoreError},
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{Error, broker::Offer, config};

mod record;
mod state;
#[cfg(test)]
mod tests;

use record::Kept;
use state::{Found, Limits, State};

/// What waits for the cloud.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Messages.
    pub messages: u64,
    /// Bytes that they take in the store.
    pub bytes: u64,
    /// Since when the oldest waits, milliseconds since the Unix epoch.
    pub oldest_since_ms: Option<u64>,
    /// How often a message found no room so far. One of QoS 1 is offered again, one of QoS 0 is lost.
    pub refused: u64,
}

/// The pause after a failed commit or read; it doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(100);

/// The longest pause after failures.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// How often the link's pipe is tried again when it was full: others use it too, and nobody says when they are through.
const SEND_AGAIN: Duration = Duration::from_millis(20);

/// How often it is logged that messages wait, and how old the oldest has to be for it.
const LOG_EVERY: Duration = Duration::from_secs(600);
const OLD: Duration = Duration::from_secs(60);

/// How long the last commit may take when the part is stopped.
const LAST_COMMIT: Duration = Duration::from_secs(3);

/// The messages, between those who bring them and the link.
#[derive(Debug)]
pub(super) struct Uploads {
    store: Arc<dyn MetaStore>,
    store_deadline: Duration,
    client_id: String,
    link: EventSender<Upload>,
    state: Mutex<State>,
    changed: Notify,
    backlog: watch::Sender<Backlog>,
}

/// What the loop waits for.
#[derive(Default)]
struct Waiting {
    commit: Option<BoxFuture<'static, Result<(), Failure>>>,
    read: Option<BoxFuture<'static, Read>>,
    /// The link's pipe was full.
    link_full: bool,
    /// After a failure of the store: when it is asked again, and how long the next pause is.
    pause: Option<Instant>,
    next_pause: Option<Duration>,
    log_at: Option<Instant>,
}

/// Records, and the number that follows them.
type Read = Result<(u64, Vec<Kept>), Failure>;

/// What the store did not do.
#[derive(Debug)]
enum Failure {
    Store(StoreError),
    Stuck,
}

impl Uploads {
    /// Reads what an earlier run has left; tries again for as long as the store is unavailable.
    pub(super) async fn open(
        config: &config::Uploads,
        store: Arc<dyn MetaStore>,
        link: EventSender<Upload>,
        backlog: watch::Sender<Backlog>,
    ) -> Result<Self, Error> {
        let mut pause = RETRY_MIN;
        let (found, client_id) = loop {
            match timeout(config.restore_deadline, restore(&*store)).await {
                Ok(Ok(restored)) => break restored,
                Ok(Err(error)) if error.is_retryable() => {
                    tracing::warn!(%error, retry_in = ?pause, "what waits for the cloud cannot be read");
                    sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
                Ok(Err(error)) => return Err(Error::Store(error)),
                Err(_) => return Err(Error::Stuck(config.restore_deadline)),
            }
        };
        if found.count > 0 {
            tracing::info!(messages = found.count, bytes = found.bytes, "messages still wait for the cloud");
        }
        let limits = Limits {
            count_max: config.count_max,
            bytes_max: config.bytes_max,
            arriving_bytes_max: 4 << 20,
            window: config.window.max(1),
            window_bytes: 2 << 20,
            ready_bytes_max: 2 << 20,
            done_max: 256,
            done_pause: Duration::from_secs(1),
        };
        // The standard library's hasher has a random key: enough for ids that only need to differ.
        let run = RandomState::new().hash_one("uploads");
        let state = Mutex::new(State::restore(limits, run, found));
        let store_deadline = config.store_deadline;
        let uploads = Self { store, store_deadline, client_id, link, state, changed: Notify::new(), backlog };
        uploads.tell_backlog();
        Ok(uploads)
    }

    /// The name under which this node is known at another's broker.
    pub(super) fn client_id(&self) -> &str {
        &self.client_id
    }

    /// Takes a message. One that is `certain` has been taken when the receipt says so.
    pub(super) fn offer(&self, topic: &str, payload: &Bytes, certain: bool) -> Offer {
        if self.link.is_closed() {
            // There will be no cloud for as long as this process runs.
            return Offer::NotMine;
        }
        let publish = Publish { topic: topic.to_owned(), payload: payload.clone() };
        let mut state = self.state();
        if !state.has_room(&publish) {
            return Offer::Full;
        }
        let (settle, receipt) = if certain {
            let (settle, receipt) = Receipt::new("uploads");
            (Some(settle), Some(receipt))
        } else {
            (None, None)
        };
        state.handle_message(publish, settle, wall_ms());
        drop(state);
        self.changed.notify_one();
        receipt.map_or(Offer::Taken, Offer::Promised)
    }

    /// Stores, sends and removes, until the store fails for good.
    pub(super) async fn run(&self, mut uploaded: LatestReceiver<UploadId, UploadId>) -> Error {
        let mut waiting = Waiting::default();
        loop {
            if let Err(error) = self.begin(&mut waiting) {
                return Error::Store(error);
            }
            self.tell_backlog();
            let link_again = waiting.link_full.then(|| Instant::now() + SEND_AGAIN);
            let removal = self.state().poll_timeout().map(Instant::from_std);
            let paused = waiting.pause;
            let outcome = tokio::select! {
                outcome = wait(&mut waiting.commit) => self.handle_committed(outcome, &mut waiting),
                outcome = wait(&mut waiting.read) => self.handle_read(outcome, &mut waiting),
                Some(id) = uploaded.recv() => {
                    let now = Instant::now().into_std();
                    let mut state = self.state();
                    state.handle_uploaded(id, now);
                    while let Some(id) = uploaded.try_recv() {
                        state.handle_uploaded(id, now);
                    }
                    Ok(())
                }
                () = self.changed.notified() => Ok(()),
                () = until(link_again) => Ok(()),
                () = until(removal), if waiting.commit.is_none() && paused.is_none() => Ok(()),
                () = until(paused) => {
                    waiting.pause = None;
                    Ok(())
                }
                () = until(waiting.log_at) => {
                    self.log_backlog();
                    waiting.log_at = None;
                    Ok(())
                }
            };
            match outcome {
                Ok(()) => {}
                Err(Failure::Stuck) => return Error::Stuck(self.store_deadline),
                Err(Failure::Store(error)) => return Error::Store(error),
            }
        }
    }

    /// Begins whatever can be begun.
    fn begin(&self, waiting: &mut Waiting) -> Result<(), StoreError> {
        let mut state = self.state();
        waiting.link_full = false;
        while let Some(upload) = state.poll_send() {
            match self.link.send(Upload::Publish(upload)) {
                Ok(()) => {}
                Err(error) => {
                    waiting.link_full = matches!(error, SendError::Full(_));
                    if let Upload::Publish(upload) = error.into_message() {
                        state.handle_unsent(upload);
                    }
                    break;
                }
            }
        }
        if waiting.pause.is_none() {
            if waiting.commit.is_none()
                && let Some(batch) = state.poll_batch(Instant::now().into_std())?
            {
                waiting.commit = Some(self.commit(batch));
            }
            if waiting.read.is_none()
                && let Some(range) = state.poll_read()
            {
                waiting.read = Some(self.read(range));
            }
        }
        if state.backlog().messages > 0 && waiting.log_at.is_none() {
            waiting.log_at = Some(Instant::now() + LOG_EVERY);
        }
        Ok(())
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'static, Result<(), Failure>> {
        let (store, deadline) = (self.store.clone(), self.store_deadline);
        Box::pin(async move {
            let committed = timeout(deadline, store.commit(batch)).await.map_err(|_| Failure::Stuck)?;
            committed.map_err(Failure::Store)
        })
    }

    fn read(&self, range: Range<u64>) -> BoxFuture<'static, Read> {
        let (store, deadline) = (self.store.clone(), self.store_deadline);
        Box::pin(async move {
            let upto = range.end;
            let read = async {
                let mut records = Vec::new();
                for number in range {
                    let value = store.get(&record::key(number)?).await?;
                    records.extend(value.and_then(record::decode));
                }
                Ok::<_, StoreError>(records)
            };
            let records = timeout(deadline, read).await.map_err(|_| Failure::Stuck)?;
            records.map(|records| (upto, records)).map_err(Failure::Store)
        })
    }

    fn handle_committed(&self, outcome: Result<(), Failure>, waiting: &mut Waiting) -> Result<(), Failure> {
        waiting.commit = None;
        match outcome {
            Ok(()) => {
                waiting.next_pause = None;
                self.state().handle_committed();
                Ok(())
            }
            Err(failure) => {
                self.state().handle_commit_failed();
                put_off(failure, waiting)
            }
        }
    }

    fn handle_read(&self, outcome: Read, waiting: &mut Waiting) -> Result<(), Failure> {
        waiting.read = None;
        match outcome {
            Ok((upto, records)) => {
                self.state().handle_read(upto, records);
                Ok(())
            }
            Err(failure) => {
                self.state().handle_read_failed();
                put_off(failure, waiting)
            }
        }
    }

    /// Removes what is done, so that the next run does not send it again.
    pub(super) async fn finish(&self) {
        let batch = self.state().last_batch();
        let committed = async { self.store.commit(batch?).await };
        if !matches!(timeout(LAST_COMMIT, committed).await, Ok(Ok(()))) {
            tracing::warn!("messages that the cloud has could not be removed; they will be sent again");
        }
    }

    fn tell_backlog(&self) {
        let backlog = self.state().backlog();
        self.backlog.send_if_modified(|told| {
            let differs = *told != backlog;
            *told = backlog;
            differs
        });
    }

    fn log_backlog(&self) {
        let backlog = self.state().backlog();
        let oldest = backlog.oldest_since_ms.map(|since| wall_ms().saturating_sub(since));
        let oldest = Duration::from_millis(oldest.unwrap_or_default());
        if oldest >= OLD {
            let Backlog { messages, bytes, refused, .. } = backlog;
            tracing::info!(messages, bytes, refused, ?oldest, "messages wait for the cloud");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code of others runs under the lock, so a poisoned state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notes a failure that may pass; gives back one that does not.
fn put_off(failure: Failure, waiting: &mut Waiting) -> Result<(), Failure> {
    match failure {
        Failure::Store(error) if error.is_retryable() => {
            let pause = waiting.next_pause.unwrap_or(RETRY_MIN);
            tracing::warn!(%error, retry_in = ?pause, "messages for the cloud cannot be stored; senders wait");
            waiting.pause = Some(Instant::now() + pause);
            waiting.next_pause = Some((pause * 2).min(RETRY_MAX));
            Ok(())
        }
        failure @ (Failure::Store(_) | Failure::Stuck) => Err(failure),
    }
}

async fn restore(store: &dyn MetaStore) -> Result<(Found, String), StoreError> {
    Ok((find(store).await?, client_id(store).await?))
}

/// The client id that this node has had from its first start on, so that a broker knows its session again.
async fn client_id(store: &dyn MetaStore) -> Result<String, StoreError> {
    let key = Key::new(["eventbus", "client-id"])?;
    if let Some(id) = store.get(&key).await?.and_then(|id| String::from_utf8(id.to_vec()).ok()) {
        return Ok(id);
    }
    // As KubeEdge's: ten digits.
    let id = format!("hub-client-{:010}", RandomState::new().hash_one("client") % 10_000_000_000);
    let mut batch = Batch::new();
    batch.put(key, id.clone());
    store.commit(batch).await?;
    Ok(id)
}

/// Counts what is in the store, and removes what cannot be read.
async fn find(store: &dyn MetaStore) -> Result<Found, StoreError> {
    let mut found = Found::default();
    let mut damaged = Batch::new();
    let mut scan = store.scan(&record::prefix());
    while let Some(pair) = scan.next().await {
        let (key, value) = pair?;
        match record::decode(value).filter(|kept| record::number(&key) == Some(kept.id.number)) {
            Some(kept) => found.add(&kept),
            None => {
                tracing::error!(%key, "a message for the cloud is damaged in the store; it is removed");
                damaged.delete(key);
            }
        }
    }
    store.commit(damaged).await?;
    Ok(found)
}

async fn wait<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn wall_ms() -> u64 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)
}
