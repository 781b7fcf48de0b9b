//! The loop that performs what the state asks.

use std::{future::pending, sync::Arc, time::Instant};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use kubeedge_core::{
    message::{Answer, Object, ObjectEvent, ObjectRef, Query},
    pipe::{Call, CallError, LatestSender, Replier},
    store::{Batch, MetaStore, Prefix, StoreError},
};
use tokio_util::sync::CancellationToken;

use super::{
    Config, Error, Inbox, MetaManager, Outbox, Read, ReadError,
    record::{self, Unreadable},
    state::{Audience, Output, State},
    tokens,
};

type ReadReplier = Replier<Result<Vec<Object>, ReadError>>;
type Asked = (ObjectRef, ReadReplier, Result<Answer, CallError>);

impl MetaManager {
    /// Hands out what the store holds, then stores, acknowledges and hands out what comes, until `stop`.
    ///
    /// A store that fails for a while is tried again, with a pause that grows, and nothing is acknowledged meanwhile.
    ///
    /// # Errors
    /// If the store is damaged.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        let Self { config, store, mut inbox, outbox } = self;
        let restored = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            restored = restore(&config, &*store, &outbox) => restored?,
        };
        let mut driver = Driver {
            config,
            store,
            outbox,
            state: restored,
            asked: FuturesUnordered::new(),
            asked_tokens: FuturesUnordered::new(),
        };
        loop {
            driver.perform_all().await?;
            let Driver { state, asked, asked_tokens, .. } = &mut driver;
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(call) = inbox.inventory.recv() => call.answer(state.inventory().clone()),
                Some(call) = inbox.reads.recv() => {
                    let online = inbox.connectivity.borrow().is_online();
                    driver.read(call, online).await;
                }
                Some(answered) = asked.next(), if !asked.is_empty() => conclude(answered),
                Some(call) = inbox.tokens.recv() => {
                    let online = inbox.connectivity.borrow().is_online();
                    driver.token(call, online).await;
                }
                Some(answered) = asked_tokens.next(), if !asked_tokens.is_empty() => {
                    driver.conclude_token(answered).await;
                }
                Some(delivered) = inbox.objects.recv(), if state.has_room() => {
                    state.handle_object(delivered);
                    take_what_waits(state, &mut inbox);
                }
                () = sleep_until(state.poll_timeout()) => state.handle_timeout(now()),
            }
        }
    }
}

/// Takes more objects without waiting, so that they share a commit.
fn take_what_waits(state: &mut State, inbox: &mut Inbox) {
    while state.has_room()
        && let Some(delivered) = inbox.objects.try_recv()
    {
        state.handle_object(delivered);
    }
}

pub(super) struct Driver {
    pub(super) config: Config,
    pub(super) store: Arc<dyn MetaStore>,
    pub(super) outbox: Outbox,
    state: State,
    /// Questions to the cloud that are under way.
    asked: FuturesUnordered<BoxFuture<'static, Asked>>,
    /// And questions for tokens.
    pub(super) asked_tokens: FuturesUnordered<BoxFuture<'static, tokens::Asked>>,
}

impl Driver {
    async fn perform_all(&mut self) -> Result<(), Error> {
        while let Some(output) = self.state.poll_output() {
            match output {
                Output::Persist(batch) => self.persist(batch).await?,
                Output::Ack(acked) => {
                    // Without EdgeHub nobody waits for it; the same holds for the parts below.
                    let _ = self.outbox.acked.send(acked);
                }
                Output::Notify(audience, event) => {
                    self.forget_tokens(&event).await;
                    notify(&self.outbox, audience, event);
                }
            }
        }
        Ok(())
    }

    /// A token goes with its pod. One that stays is swept at the next start.
    async fn forget_tokens(&mut self, event: &ObjectEvent) {
        if let ObjectEvent::Deleted { reference, uid } = event
            && reference.kind() == "Pod"
            && let Err(error) = tokens::forget(&*self.store, uid).await
        {
            tracing::debug!(pod = %reference, %error, "the tokens of a pod stay until the next start");
        }
    }

    async fn persist(&mut self, batch: Batch) -> Result<(), Error> {
        let changes = batch.changes().len();
        let limit = self.config.store_deadline;
        let committed = tokio::time::timeout(limit, self.store.commit(batch)).await;
        match committed.map_err(|_| Error::Stuck(limit))? {
            Ok(()) => self.state.handle_committed(),
            Err(error) if error.is_retryable() => {
                let retry_in = self.state.handle_commit_failed(now());
                tracing::warn!(%error, changes, ?retry_in, "objects could not be stored; they are not acknowledged");
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn read(&mut self, call: Call<Read, Result<Vec<Object>, ReadError>>, online: bool) {
        let (read, replier) = call.split();
        match read {
            Read::List { api_version, kind, namespace } => {
                let prefix = record::kind(&api_version, &kind, namespace.as_deref());
                replier.answer(list(&*self.store, &prefix).await.map_err(ReadError::from));
            }
            Read::Get(reference) if self.state.inventory().get(&reference).is_some() => {
                match get(&*self.store, &reference).await {
                    Ok(Some(object)) => replier.answer(Ok(vec![object])),
                    Ok(None) => self.ask(reference, replier, online),
                    Err(error) => replier.answer(Err(error.into())),
                }
            }
            Read::Get(reference) => self.ask(reference, replier, online),
        }
    }

    fn ask(&mut self, reference: ObjectRef, replier: ReadReplier, online: bool) {
        if !online {
            return replier.answer(Err(ReadError::Offline(reference)));
        }
        if self.asked.len() >= self.config.queries_max {
            return replier.answer(Err(ReadError::Busy(reference)));
        }
        let (queries, deadline) = (self.outbox.queries.clone(), self.config.query_deadline);
        self.asked.push(Box::pin(async move {
            let answer = queries.call(Query::Get(reference.clone()), deadline).await;
            (reference, replier, answer)
        }));
    }
}

fn conclude((reference, replier, answer): Asked) {
    replier.answer(match answer {
        Ok(Answer::Object(object)) => Ok(vec![object]),
        Ok(Answer::NotFound) => Err(ReadError::NotFound(reference)),
        Ok(Answer::Refused(why)) => Err(ReadError::Refused { reference, why }),
        Ok(Answer::Token(_)) => {
            Err(ReadError::Refused { reference, why: "the answer is no object".to_owned() })
        }
        Err(error) => Err(error.into()),
    });
}

fn notify(outbox: &Outbox, audience: Audience, event: ObjectEvent) {
    let pipe: &LatestSender<_, _> = match audience {
        Audience::Workloads => &outbox.workloads,
        Audience::Devices => &outbox.devices,
        Audience::Rules => &outbox.rules,
    };
    let _ = pipe.send(event);
}

// -------------------------------------------------------------------------------------------------- the store

/// Reads what is held and hands it out; tries again for as long as the store is unavailable.
async fn restore(config: &Config, store: &dyn MetaStore, outbox: &Outbox) -> Result<State, StoreError> {
    let mut pause = config.commit_pause_min;
    loop {
        match try_restore(config, store, outbox).await {
            Err(error) if error.is_retryable() => {
                tracing::warn!(%error, retry_in = ?pause, "the metadata store cannot be read");
                tokio::time::sleep(pause).await;
                pause = pause.saturating_mul(2).min(config.commit_pause_max);
            }
            outcome => return outcome,
        }
    }
}

async fn try_restore(config: &Config, store: &dyn MetaStore, outbox: &Outbox) -> Result<State, StoreError> {
    let (mut held, mut damaged) = (Vec::new(), Vec::new());
    let mut scan = store.scan(&record::root());
    while let Some(pair) = scan.next().await {
        let (key, value) = pair?;
        match record::decode(&key, value) {
            Ok(object) => {
                held.push(object.entry());
                // Pods come last: a pod is of little use before what it mounts.
                if object.reference.kind() != "Pod" {
                    hand_out(outbox, object);
                }
            }
            Err(error) => {
                tracing::warn!(%key, %error, "a stored object cannot be read; the cloud will be asked for it again");
                match error {
                    Unreadable::Damaged(_) => damaged.push(key),
                    // The later version that wrote it may come back.
                    Unreadable::Version(_) => {}
                }
            }
        }
    }
    for pod in list(store, &record::kind("v1", "Pod", None)).await? {
        hand_out(outbox, pod);
    }
    tracing::info!(objects = held.len(), damaged = damaged.len(), "the node's objects are restored");
    let state = State::restore(held, damaged, config.commit_pause_min, config.commit_pause_max);
    if let Err(error) = tokens::sweep(store, state.inventory()).await {
        tracing::debug!(%error, "tokens of pods that are gone stay until the next start");
    }
    Ok(state)
}

fn hand_out(outbox: &Outbox, object: Object) {
    if let Some(audience) = Audience::of(&object.reference) {
        notify(outbox, audience, ObjectEvent::Applied(object));
    }
}

async fn get(store: &dyn MetaStore, reference: &ObjectRef) -> Result<Option<Object>, StoreError> {
    let key = record::key(reference)?;
    // What cannot be read is as good as absent.
    Ok(store.get(&key).await?.and_then(|value| record::decode(&key, value).ok()))
}

async fn list(store: &dyn MetaStore, prefix: &Prefix) -> Result<Vec<Object>, StoreError> {
    let mut scan = store.scan(prefix);
    let mut objects = Vec::new();
    while let Some(pair) = scan.next().await {
        let (key, value) = pair?;
        objects.extend(record::decode(&key, value));
    }
    Ok(objects)
}

// --------------------------------------------------------------------------------------------------- the time

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => pending().await,
    }
}
