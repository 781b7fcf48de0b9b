//! The loop: commits, delivers and answers as the state says.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use kubeedge_core::{
    pipe::Replier,
    store::{Batch, Key, MetaStore, MetaStoreExt, Prefix, StoreError},
};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Config, Destination, Error, Inbox, Keeper, Kept, Query,
    block::Block,
    deliver::Courier,
    outgoing::Delivered,
    state::{Commit, Delivery, Now, State, take_matches},
};

/// Samples that one turn of the loop takes, so that deliveries and answers get their turn too.
const TURN: usize = 512;

/// How long the last commit may take.
const LAST_COMMIT: Duration = Duration::from_secs(5);

pub(super) async fn run(keeper: Keeper, stop: CancellationToken) -> Result<(), Error> {
    let Keeper { config, store, mut inbox, outbox } = keeper;
    let courier = Courier::new(store.clone(), config.format, config.outgoing.deadline);
    let mut state = restore(config, &*store).await.map_err(Error::Restore)?;
    let mut commit: Option<BoxFuture<'static, bool>> = None;
    let mut deliveries: FuturesUnordered<BoxFuture<'static, (Delivery, Delivered)>> = FuturesUnordered::new();
    let mut answers: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
    let (mut samples_open, mut queries_open) = (true, true);
    outbox.stats.send_replace(state.stats());
    loop {
        if commit.is_none() {
            commit = state.poll_commit(now().at).map(|commit| write(store.clone(), commit).boxed());
        }
        deliveries
            .extend(state.poll_deliveries(now().at).into_iter().map(|delivery| courier.carry(delivery)));
        tokio::select! {
            () = stop.cancelled() => break,
            sample = inbox.samples.recv(), if samples_open && state.has_room() => match sample {
                Some(sample) => {
                    state.handle_sample(sample, now());
                    take_more(&mut state, &mut inbox);
                }
                None => samples_open = false,
            },
            succeeded = finished(&mut commit) => {
                commit = None;
                state.handle_committed(succeeded, now());
                outbox.stats.send_replace(state.stats());
            }
            Some((delivery, delivered)) = deliveries.next(), if !deliveries.is_empty() => {
                if let Some(failure) = &delivered.failure {
                    tracing::debug!(destination = %delivery.destination, %failure, "values could not be pushed");
                }
                state.handle_delivered(delivery, delivered, now());
                outbox.stats.send_replace(state.stats());
            }
            call = inbox.queries.recv(), if queries_open => match call {
                Some(call) => {
                    let (query, replier) = call.split();
                    let (found, blocks) = state.plan_query(&query);
                    answers.push(answer(store.clone(), query, found, blocks, replier).boxed());
                }
                None => queries_open = false,
            },
            Some(()) = answers.next(), if !answers.is_empty() => {}
            () = until(state.poll_timeout(now().at)) => state.handle_timeout(now()),
        }
    }
    finish(state, &mut inbox, commit, &*store).await;
    Ok(())
}

/// Takes what waits already.
fn take_more(state: &mut State, inbox: &mut Inbox) {
    for _ in 0..TURN {
        if !state.has_room() {
            return;
        }
        let Some(sample) = inbox.samples.try_recv() else { return };
        state.handle_sample(sample, now());
    }
}

/// Makes what is in memory and in the pipe durable.
async fn finish(
    mut state: State,
    inbox: &mut Inbox,
    mut commit: Option<BoxFuture<'static, bool>>,
    store: &dyn MetaStore,
) {
    let rest = async {
        if commit.is_some() {
            let succeeded = finished(&mut commit).await;
            state.handle_committed(succeeded, now());
        }
        state.hurry();
        while let Some(sample) = inbox.samples.try_recv() {
            state.handle_sample(sample, now());
        }
        if let Some(last) = state.poll_commit(now().at)
            && let Err(error) = apply(store, last).await
        {
            tracing::warn!(%error, "the last values are not durable");
        }
    };
    if timeout(LAST_COMMIT, rest).await.is_err() {
        tracing::warn!("the last values are not durable: the store did not answer within {LAST_COMMIT:?}");
    }
}

async fn finished(commit: &mut Option<BoxFuture<'static, bool>>) -> bool {
    match commit {
        Some(commit) => commit.await,
        None => std::future::pending().await,
    }
}

async fn write(store: Arc<dyn MetaStore>, commit: Commit) -> bool {
    let outcome = apply(&*store, commit).await;
    if let Err(error) = &outcome {
        tracing::warn!(%error, "values cannot be made durable; tried again");
    }
    outcome.is_ok()
}

async fn apply(store: &dyn MetaStore, commit: Commit) -> Result<(), StoreError> {
    let mut batch = Batch::new();
    for (first, bytes) in commit.blocks {
        batch.put(block_key(first)?, bytes);
    }
    for first in commit.deleted {
        batch.delete(block_key(first)?);
    }
    for (destination, cursor) in commit.cursors {
        match cursor {
            Some(cursor) => batch.put(cursor_key(&destination)?, cursor.to_string()),
            None => batch.delete(cursor_key(&destination)?),
        };
    }
    store.commit(batch).await
}

const BLOCKS: &str = "block";
const CURSORS: &str = "cursor";

/// Sixteen digits, so that the order of keys is that of blocks.
pub(super) fn block_key(first: u64) -> Result<Key, StoreError> {
    Key::new([BLOCKS, &format!("{first:016x}")])
}

fn cursor_key(destination: &Destination) -> Result<Key, StoreError> {
    let (scheme, host, port) = match destination {
        Destination::Http(host, port) => ("http", host, port),
        Destination::Mqtt(host, port) => ("mqtt", host, port),
    };
    Key::new([CURSORS, scheme, host, &port.to_string()])
}

async fn restore(config: Config, store: &dyn MetaStore) -> Result<State, StoreError> {
    let now = now().at;
    let mut state = State::new(config, now);
    for (key, value) in store.scan_all(&Prefix::new([CURSORS])).await? {
        match read_cursor(&key, &value) {
            Some((destination, cursor)) => state.restore_cursor(destination, cursor, now),
            None => tracing::warn!(%key, "how far a destination had come cannot be read"),
        }
    }
    let mut blocks = store.scan(&Prefix::new([BLOCKS]));
    while let Some(pair) = blocks.next().await {
        let (key, value) = pair?;
        let first = key.parts().nth(1).and_then(|digits| u64::from_str_radix(&digits, 16).ok());
        match (first, Block::decode(&value)) {
            (Some(first), Ok(block)) if block.first == first => state.restore_block(&block, value.len(), now),
            (Some(first), _) => {
                tracing::warn!(%key, "a block of values is damaged, and is given up");
                state.restore_damaged(first);
            }
            (None, _) => tracing::warn!(%key, "the store has something that is no block"),
        }
    }
    Ok(state)
}

fn read_cursor(key: &Key, value: &[u8]) -> Option<(Destination, u64)> {
    let parts: Vec<_> = key.parts().collect();
    let [_, scheme, host, port] = &parts[..] else { return None };
    let port = port.parse().ok()?;
    let destination = match scheme.as_str() {
        "http" => Destination::Http(host.clone(), port),
        "mqtt" => Destination::Mqtt(host.clone(), port),
        _ => return None,
    };
    Some((destination, std::str::from_utf8(value).ok()?.parse().ok()?))
}

async fn answer(
    store: Arc<dyn MetaStore>,
    query: Query,
    mut found: Vec<Kept>,
    blocks: Vec<u64>,
    replier: Replier<Result<Vec<Kept>, StoreError>>,
) {
    for first in blocks {
        if found.len() >= query.limit || replier.is_withdrawn() {
            break;
        }
        match load(&*store, first).await {
            Ok(Some(block)) => take_matches(&query, &block, &mut found),
            // It went while the answer was put together.
            Ok(None) => {}
            Err(error) => return replier.answer(Err(error)),
        }
    }
    replier.answer(Ok(found));
}

/// Reads a block; `None` if it is no longer there.
pub(super) async fn load(store: &dyn MetaStore, first: u64) -> Result<Option<Block>, StoreError> {
    let key = block_key(first)?;
    let Some(bytes) = store.get(&key).await? else { return Ok(None) };
    let block = Block::decode(&bytes);
    block
        .map(Some)
        .map_err(|error| StoreError::Corrupt { what: format!("read {key}"), source: Box::new(error) })
}

async fn until(at: Option<std::time::Instant>) {
    match at {
        Some(at) => sleep_until(Instant::from_std(at)).await,
        None => std::future::pending().await,
    }
}

fn now() -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { at: Instant::now().into_std(), wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX) }
}
