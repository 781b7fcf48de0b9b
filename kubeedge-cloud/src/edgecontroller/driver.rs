use futures::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{BoxStream, FuturesUnordered, SelectAll},
};
use jiff::Timestamp;
use kubeedge_core::{
    id::NodeName,
    message::{Answer, FromNode, Object, ObjectRef, Query, UploadedEvent},
    pipe::{Call, Replier},
};
use tokio_util::sync::CancellationToken;

use super::{
    Config, EdgeController, Inbox, Outbox,
    autonomy::Policy,
    requests,
    state::{Output, Plan, State, WATCHED, Wanted, WriteKey},
};
use crate::{
    authorization::Denials,
    controller::{Backoff, Change, Outcome, Timing, api::Api, now, sleep_until, watch_in},
};

/// How many questions and events of nodes are worked on at once; the rest waits in its pipe.
const ASKED_AT_ONCE: usize = 32;

/// How many questions for a snapshot wait for the first lists; each edge asks again after its deadline.
const WAITING_AT_ONCE: usize = 65_536;

/// What a write was about and was to tell, what became of it, and the policy that it has seen of the node.
type WriteEnded = (WriteKey, Wanted, Outcome, Option<Policy>);

/// The loop that performs what the state asks.
pub(super) struct Driver {
    config: Config,
    api: Api,
    inbox: Inbox,
    outbox: Outbox,
    state: State,
    changes: SelectAll<BoxStream<'static, Change>>,
    writing: FuturesUnordered<BoxFuture<'static, WriteEnded>>,
    tolerating: FuturesUnordered<BoxFuture<'static, (ObjectRef, Outcome)>>,
    renewing: FuturesUnordered<BoxFuture<'static, (NodeName, Outcome)>>,
    asked: FuturesUnordered<BoxFuture<'static, ()>>,
    absent: FuturesUnordered<BoxFuture<'static, Vec<NodeName>>>,
    waiting: Vec<(NodeName, Replier<Vec<Object>>)>,
    started: Timestamp,
    denials: Denials,
}

impl Driver {
    pub(super) fn new(part: EdgeController) -> Self {
        let EdgeController { config, client, inbox, outbox, denials, sight } = part;
        let backoff = Backoff { first: config.retry_first, max: config.retry_max };
        let timing = Timing { backoff, ..Timing::default() };
        let changes = WATCHED.map(|kind| watch_in(client.clone(), kind, timing, sight.clone()).boxed());
        let api = Api::new(client);
        Self {
            state: State::new(&config).counting(denials.clone()),
            changes: SelectAll::from_iter(changes),
            writing: FuturesUnordered::new(),
            tolerating: FuturesUnordered::new(),
            renewing: FuturesUnordered::new(),
            asked: FuturesUnordered::new(),
            absent: FuturesUnordered::from_iter([absent(api.clone(), config.clone()).boxed()]),
            waiting: Vec::new(),
            started: Timestamp::now(),
            denials,
            config,
            api,
            inbox,
            outbox,
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        loop {
            self.perform();
            let may_ask = self.asked.len() < ASKED_AT_ONCE;
            tokio::select! {
                () = stop.cancelled() => return,
                Some(change) = self.changes.next() => self.state.handle_change(change),
                Some(session) = self.inbox.sessions.recv() => {
                    self.state.handle_session(session, now(), Timestamp::now());
                }
                Some(report) = self.inbox.statuses.recv() => {
                    // A session is told of before its first report is: so it is known before the report is judged.
                    while let Some(session) = self.inbox.sessions.try_recv() {
                        self.state.handle_session(session, now(), Timestamp::now());
                    }
                    self.state.handle_report(report, now());
                }
                Some(call) = self.inbox.snapshots.recv() => self.handle_snapshot(call),
                Some(call) = self.inbox.queries.recv(), if may_ask => self.handle_query(call),
                Some(event) = self.inbox.events.recv(), if may_ask => self.handle_event(event),
                Some((pod, outcome)) = self.tolerating.next() => self.state.handle_tolerated(pod, outcome, now()),
                Some((key, wanted, outcome, policy)) = self.writing.next() => {
                    if let Some(policy) = policy {
                        self.state.handle_policy(&key.0, policy);
                    }
                    self.state.handle_written(key, wanted, outcome, now());
                }
                Some((node, outcome)) = self.renewing.next() => {
                    self.state.handle_renewed(node, outcome, now());
                }
                Some(nodes) = self.absent.next() => {
                    self.state.handle_edge_nodes(nodes, self.started, now());
                }
                Some(()) = self.asked.next() => {}
                () = sleep_until(self.state.poll_timeout()) => {}
            }
        }
    }

    /// Does all that the state wants done now. A pipe whose other end is gone is no error here: who stops first
    /// when all stop is a matter of chance.
    fn perform(&mut self) {
        while let Some(job) = self.state.poll_write(now()) {
            let (api, denials) = (self.api.clone(), self.denials.clone());
            self.writing.push(
                async move {
                    let (outcome, policy) = requests::write(&api, &job.key.0, &job.write, &denials).await;
                    (job.key, job.wanted, outcome, policy)
                }
                .boxed(),
            );
        }
        while let Some((pod, patch)) = self.state.poll_toleration(now()) {
            let api = self.api.clone();
            self.tolerating.push(
                async move {
                    let outcome = requests::merge_pod(&api, &pod, &patch).await;
                    (pod, outcome)
                }
                .boxed(),
            );
        }
        while let Some(node) = self.state.poll_renewal(now()) {
            let (api, config) = (self.api.clone(), self.config.clone());
            self.renewing.push(
                async move {
                    let outcome = requests::renew(&api, &node, &config).await;
                    (node, outcome)
                }
                .boxed(),
            );
        }
        // After the writes, because a report that is dropped is acknowledged when its write is asked for.
        while let Some(output) = self.state.poll_output() {
            let sent = match output {
                Output::Downstream(event) => self.outbox.downstream.send(event),
                Output::Acked(acked) => self.outbox.acked.send(acked),
            };
            if let Err(closed) = sent {
                tracing::trace!(%closed, "nobody listens");
            }
        }
        self.answer_waiting();
    }

    fn handle_snapshot(&mut self, call: Call<NodeName, Vec<Object>>) {
        if self.waiting.len() >= WAITING_AT_ONCE {
            self.waiting.retain(|(_, reply)| !reply.is_withdrawn());
        }
        if self.waiting.len() < WAITING_AT_ONCE {
            self.waiting.push(call.split());
        }
    }

    /// Answers once it is known what exists: an empty snapshot would delete everything at the edge.
    fn answer_waiting(&mut self) {
        if self.state.is_complete() {
            for (node, reply) in self.waiting.drain(..) {
                reply.answer(self.state.snapshot(&node));
            }
        }
    }

    fn handle_query(&mut self, call: Call<FromNode<Query>, Answer>) {
        match self.state.plan(&call.question) {
            Plan::Answer(answer) => call.answer(answer),
            Plan::Ask(kind, reference) => {
                let api = self.api.clone();
                self.asked
                    .push(async move { call.answer(requests::answer(&api, kind, &reference).await) }.boxed());
            }
            Plan::Issue(request) => {
                let api = self.api.clone();
                self.asked.push(async move { call.answer(requests::issue(&api, &request).await) }.boxed());
            }
        }
    }

    fn handle_event(&mut self, event: FromNode<UploadedEvent>) {
        let node = event.node.clone();
        match self.state.read_event(&event) {
            Ok(event) => {
                let api = self.api.clone();
                self.asked.push(async move { requests::record(&api, &node, event).await }.boxed());
            }
            Err(why) => tracing::debug!(%node, %why, "an event of the edge is dropped"),
        }
    }
}

/// Waits until every edge that is there had time to connect, and says which edge nodes there are.
async fn absent(api: Api, config: Config) -> Vec<NodeName> {
    tokio::time::sleep(config.absent_grace).await;
    let backoff = Backoff { first: config.retry_first, max: config.retry_max };
    let mut failures = 0;
    loop {
        match requests::edge_nodes(&api).await {
            Ok(nodes) => return nodes,
            Err(error) => tracing::debug!(%error, "the edge nodes could not be listed"),
        }
        tokio::time::sleep(backoff.after(failures)).await;
        failures += 1;
    }
}
