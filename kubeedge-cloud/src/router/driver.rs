use std::sync::Arc;

use futures::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{BoxStream, FuturesUnordered, SelectAll},
};
use kubeedge_core::{
    id::NodeName,
    message::Snapshot,
    pipe::{Call, Replier},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    Config, Inbox, Outbox, Router,
    deliver::deliver,
    rest::{Ended, Rest},
    rules::{Counters, ENDPOINTS, Name, RULES, Rules},
    state::{Job, Outcome as Delivery, State},
    status,
};
use crate::controller::{
    Backoff, Change, Outcome, Timing, Writes, api::Api, now, sleep_until, watch as watch_kind,
};

/// Writes of rules' statuses at once.
const WRITES_AT_ONCE: usize = 8;

/// Nodes that wait to be told their rules; a further one asks again.
const WAITING_MAX: usize = 65_536;

/// Ends of requests that wait to be counted.
const ENDED_MAX: usize = 1024;

/// The loop that performs what the state asks.
pub(super) struct Driver {
    config: Arc<Config>,
    api: Api,
    inbox: Inbox,
    outbox: Outbox,
    state: State,
    changes: SelectAll<BoxStream<'static, Change>>,
    delivering: FuturesUnordered<BoxFuture<'static, (Job, Delivery)>>,
    /// Rules whose counters have changed.
    writes: Writes<Name, ()>,
    writing: FuturesUnordered<BoxFuture<'static, (Name, Counters, Outcome)>>,
    rules: watch::Sender<Arc<Rules>>,
    ended: mpsc::Receiver<Ended>,
    rest: BoxFuture<'static, ()>,
    /// Questions that came before all rules were known.
    waiting: Vec<(NodeName, Replier<Snapshot>)>,
}

impl Driver {
    pub(super) fn new(part: Router) -> Self {
        let Router { config, client, listener, inbox, outbox, denials } = part;
        let config = Arc::new(config);
        let kinds = [RULES, ENDPOINTS];
        let changes = kinds.map(|kind| watch_kind(client.clone(), kind, Timing::default()).boxed());
        let (rules, rules_rx) = watch::channel(Arc::default());
        let (ended_tx, ended) = mpsc::channel(ENDED_MAX);
        let requests = outbox.requests.clone();
        let rest = Rest { config: config.clone(), rules: rules_rx, requests, ended: ended_tx };
        let rest = match listener {
            Some(listener) => rest.run(listener).boxed(),
            // It is kept all the same, so that the pipe of the ends stays open.
            None => async move {
                let _rest = rest;
                std::future::pending().await
            }
            .boxed(),
        };
        let limits = crate::controller::Limits {
            at_once: WRITES_AT_ONCE,
            interval: config.status_interval,
            per_second: None,
            backoff: Backoff { first: config.limits.retry_first, max: config.limits.retry_max },
        };
        Self {
            state: State::new(config.limits, kinds.len()).counting(denials),
            api: Api::new(client),
            inbox,
            outbox,
            changes: SelectAll::from_iter(changes),
            delivering: FuturesUnordered::new(),
            writes: Writes::new(limits),
            writing: FuturesUnordered::new(),
            rules,
            ended,
            rest,
            waiting: Vec::new(),
            config,
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        loop {
            self.perform();
            let next = [self.state.poll_timeout(), self.writes.poll_timeout()].into_iter().flatten().min();
            tokio::select! {
                () = stop.cancelled() => return,
                Some(change) = self.changes.next() => {
                    self.state.handle_change(change);
                    self.rules.send_replace(Arc::new(self.state.rules().clone()));
                }
                Some(message) = self.inbox.messages.recv(), if self.state.takes_messages() => {
                    self.state.handle_message(message);
                }
                Some(call) = self.inbox.snapshots.recv() => self.handle_snapshot(call),
                Some((job, outcome)) = self.delivering.next() => {
                    self.state.handle_outcome(&job, outcome, now());
                    if self.state.uncounted(&job.lane.1).is_some() {
                        self.writes.put(job.lane.1, (), now());
                    }
                }
                Some((rule, failure)) = self.ended.recv() => {
                    self.state.count(&rule, failure);
                    self.writes.put(rule, (), now());
                }
                Some((rule, counted, outcome)) = self.writing.next() => {
                    self.handle_written(&rule, &counted, outcome);
                }
                () = &mut self.rest => {}
                () = sleep_until(next) => {}
            }
        }
    }

    fn perform(&mut self) {
        while let Some(job) = self.state.poll_job(now()) {
            let config = self.config.clone();
            self.delivering.push(
                async move {
                    let outcome = deliver(&job, &config).await;
                    (job, outcome)
                }
                .boxed(),
            );
        }
        while let Some(taken) = self.state.poll_taken() {
            // Without CloudHub there is no node that waits for it.
            let _ = self.outbox.taken.send(taken);
        }
        while let Some(event) = self.state.poll_downstream() {
            let _ = self.outbox.downstream.send(event);
        }
        while let Some((rule, ())) = self.writes.poll_write(now()) {
            self.write(rule);
        }
        self.answer_waiting();
    }

    fn handle_snapshot(&mut self, call: Call<NodeName, Snapshot>) {
        if self.waiting.len() >= WAITING_MAX {
            self.waiting.retain(|(_, reply)| !reply.is_withdrawn());
        }
        if self.waiting.len() < WAITING_MAX {
            self.waiting.push(call.split());
        }
    }

    /// Answers once all rules are known: an empty snapshot would take those away that a node has.
    fn answer_waiting(&mut self) {
        if self.state.is_complete() {
            for (node, reply) in self.waiting.drain(..) {
                reply.answer(self.state.snapshot(&node).into());
            }
        }
    }

    fn write(&mut self, rule: Name) {
        let Some(counted) = self.state.uncounted(&rule).cloned() else {
            return self.writes.succeeded(&rule);
        };
        let api = self.api.clone();
        self.writing.push(
            async move {
                let outcome = status::add(&api, &rule, &counted).await;
                (rule, counted, outcome)
            }
            .boxed(),
        );
    }

    fn handle_written(&mut self, rule: &Name, counted: &Counters, outcome: Outcome) {
        match outcome {
            Outcome::Done => {
                self.state.handle_counted(rule, counted);
                self.writes.succeeded(rule);
            }
            Outcome::Refused(why) => {
                tracing::warn!(namespace = rule.0, rule = rule.1, why, "the status of a rule is refused");
                self.writes.succeeded(rule);
            }
            Outcome::Retry(why) => {
                tracing::debug!(
                    namespace = rule.0,
                    rule = rule.1,
                    why,
                    "the status of a rule could not be written"
                );
                self.writes.failed(rule, (), now());
            }
        }
    }
}
