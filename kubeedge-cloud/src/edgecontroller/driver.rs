use std::{collections::BTreeMap, sync::Arc};

use futures::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{self, AbortHandle, BoxStream, FuturesUnordered, SelectAll},
};
use jiff::Timestamp;
use kubeedge_core::{
    id::NodeName,
    message::{
        Answer, Delivered, FromNode, Object, ObjectRef, Query, Ruling, SessionState, Snapshot, ToNode,
    },
    pipe::{Call, Replier},
};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Config, Counts, EdgeController, Inbox, Outbox,
    events::{self, Event, Events, Recorded},
    ownership::{self, Claim, Renewed},
    questions::Questions,
    requests,
    state::{FETCHED, NODES, Output, PODS, State, WATCHED, Wanted, WriteKey, Written},
};
use crate::{
    authorization::Denials,
    controller::{
        Backoff, Change, Kind, Outcome, Timing, api::Api, now, sleep_until, watch_in, watch_metadata_in,
    },
};

/// How many questions for a snapshot wait for the first lists; each edge asks again after its deadline.
const WAITING_AT_ONCE: usize = 65_536;

/// What a write was about and was to tell, and what became of it.
type WriteEnded = (WriteKey, Wanted, Written);

/// An object, and how the API has it, that it has none, or why that is not known.
type Fetched = (ObjectRef, Result<Option<Object>, String>);

/// The loop that performs what the state asks.
pub(super) struct Driver {
    config: Config,
    api: Api,
    inbox: Inbox,
    outbox: Outbox,
    state: State,
    changes: SelectAll<BoxStream<'static, Change>>,
    nodes: BoxStream<'static, Change>,
    /// Begins to watch the pods.
    watch_pods: Box<dyn Fn() -> BoxStream<'static, Change> + Send>,
    /// Ends the watch of the pods that there is.
    watching_pods: AbortHandle,
    /// Watches that begin when those are listed that refer to their objects.
    later: Vec<BoxStream<'static, Change>>,
    fetching: FuturesUnordered<BoxFuture<'static, Fetched>>,
    writing: FuturesUnordered<BoxFuture<'static, WriteEnded>>,
    tolerating: FuturesUnordered<BoxFuture<'static, (ObjectRef, Outcome)>>,
    /// The number is that of the session for which the Lease is renewed.
    renewing: FuturesUnordered<BoxFuture<'static, (NodeName, u64, Renewed)>>,
    /// The sessions of nodes, by the numbers that they have here, with the claims that this cloud has on their nodes.
    claims: BTreeMap<NodeName, (u64, Option<Claim>)>,
    last_session: u64,
    /// Ends the first renewals of sessions that have ended: a Lease is not taken for one that is no more.
    taking: BTreeMap<NodeName, DropGuard>,
    questions: Questions,
    answering: FuturesUnordered<BoxFuture<'static, NodeName>>,
    events: Events,
    counts: Arc<Counts>,
    recording: FuturesUnordered<BoxFuture<'static, (NodeName, Event, Recorded)>>,
    absent: BoxStream<'static, (Vec<NodeName>, Timestamp)>,
    waiting: Vec<(NodeName, Replier<Snapshot>)>,
    denials: Denials,
    listed: watch::Sender<bool>,
    unread: watch::Sender<usize>,
}

/// Objects per page of a list of kinds whose objects may have a mebibyte each.
const LARGE_KIND_PAGE: u32 = 100;

impl Driver {
    pub(super) fn new(part: EdgeController) -> Self {
        let EdgeController { config, client, inbox, outbox, denials, counts, sight, listed, unread, leads } =
            part;
        let backoff = Backoff { first: config.retry_first, max: config.retry_max };
        let timing = Timing { backoff, ..Timing::default() };
        let (later, first): (Vec<_>, Vec<_>) = WATCHED.iter().partition(|kind| FETCHED.contains(kind));
        // Most of these are let go as soon as they are read, so little is read at once.
        let of_many = Timing { page: LARGE_KIND_PAGE, ..timing };
        let watch = |timing| {
            let (client, sight) = (client.clone(), sight.clone());
            move |kind: Kind| watch_in(client.clone(), kind, timing, sight.clone()).boxed()
        };
        let watch_pods = {
            let watch = watch(timing);
            Box::new(move || watch(PODS))
        };
        let nodes = watch_metadata_in(client.clone(), NODES, timing, sight.clone()).boxed();
        let (pods, watching_pods) = stream::abortable(watch_pods());
        let mut changes: SelectAll<_> =
            first.into_iter().filter(|kind| *kind != PODS).map(watch(timing)).collect();
        changes.push(pods.boxed());
        let later = later.into_iter().map(watch(of_many)).collect();
        let api = Api::new(client);
        Self {
            state: State::new(&config).counting(denials.clone()),
            changes,
            nodes,
            watch_pods,
            watching_pods,
            later,
            fetching: FuturesUnordered::new(),
            writing: FuturesUnordered::new(),
            tolerating: FuturesUnordered::new(),
            renewing: FuturesUnordered::new(),
            claims: BTreeMap::new(),
            last_session: 0,
            taking: BTreeMap::new(),
            questions: Questions::new(&config, counts.clone()),
            answering: FuturesUnordered::new(),
            events: Events::new(&config, counts.clone()),
            counts,
            recording: FuturesUnordered::new(),
            absent: absent(api.clone(), config.clone(), leads),
            waiting: Vec::new(),
            denials,
            listed,
            unread,
            config,
            api,
            inbox,
            outbox,
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        loop {
            self.perform();
            let next = [self.state.poll_timeout(), self.events.poll_timeout()].into_iter().flatten().min();
            tokio::select! {
                () = stop.cancelled() => return,
                Some(change) = self.changes.next() => self.state.handle_change(change),
                Some(change) = self.nodes.next() => self.state.handle_node(change),
                Some(session) = self.inbox.sessions.recv() => self.handle_session(session),
                Some(report) = self.inbox.statuses.recv() => {
                    // A session is told of before its first report is: so it is known before the report is judged.
                    while let Some(session) = self.inbox.sessions.try_recv() {
                        self.handle_session(session);
                    }
                    self.state.handle_report(report, now());
                }
                Some(clock) = self.inbox.clocks.recv() => {
                    while let Some(session) = self.inbox.sessions.try_recv() {
                        self.handle_session(session);
                    }
                    self.state.handle_clock(&clock, now());
                }
                Some(call) = self.inbox.snapshots.recv() => self.handle_snapshot(call),
                // Before everything is listed it is not known what a node may ask for; it waits for as long as it likes.
                Some(call) = self.inbox.queries.recv(), if self.state.is_complete() => self.handle_query(call),
                // Nor whose pod an event is about; it waits with whoever has sent it.
                Some(event) = self.inbox.events.recv(), if self.state.is_complete() => self.events.handle_event(event),
                Some((reference, fetched)) = self.fetching.next() => {
                    self.state.handle_fetched(&reference, fetched, now());
                }
                Some((pod, outcome)) = self.tolerating.next() => self.state.handle_tolerated(pod, outcome, now()),
                Some((key, wanted, written)) = self.writing.next() => {
                    if let Written::Tried(outcome) = &written {
                        self.counts.note_report(outcome);
                    }
                    self.state.handle_written(key, wanted, written, now());
                }
                Some((node, session, renewed)) = self.renewing.next() => {
                    self.handle_renewed(node, session, renewed);
                }
                Some((nodes, since)) = self.absent.next() => {
                    self.state.handle_edge_nodes(nodes, since, now());
                }
                Some(node) = self.answering.next() => self.questions.handle_answered(&node),
                Some((node, event, recorded)) = self.recording.next() => {
                    self.events.handle_recorded(node, event, recorded, now());
                }
                () = sleep_until(next) => {}
            }
        }
    }

    /// Does all that the state wants done now. A pipe whose other end is gone is no error here: who stops first
    /// when all stop is a matter of chance.
    fn perform(&mut self) {
        let unread = self.state.unread();
        self.unread.send_if_modified(|told| std::mem::replace(told, unread) != unread);
        if !self.later.is_empty() && self.state.may_list_fetched() {
            self.changes.extend(self.later.drain(..));
        }
        if self.state.poll_list_pods() {
            self.watching_pods.abort();
            let (pods, watching_pods) = stream::abortable((self.watch_pods)());
            self.watching_pods = watching_pods;
            self.changes.push(pods.boxed());
        }
        while let Some((kind, reference)) = self.state.poll_fetch(now()) {
            let api = self.api.clone();
            self.fetching.push(
                async move {
                    let fetched = requests::fetch(&api, kind, &reference).await;
                    (reference, fetched)
                }
                .boxed(),
            );
        }
        while let Some(job) = self.state.poll_write(now()) {
            let (api, denials) = (self.api.clone(), self.denials.clone());
            let config = self.config.clone();
            self.writing.push(
                async move {
                    let written = requests::write(&api, &job, &denials, &config).await;
                    (job.key, job.wanted, written)
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
            let (session, claim) = self.claims.get(&node).cloned().unwrap_or_default();
            let ended = CancellationToken::new();
            if claim.is_none() {
                self.taking.insert(node.clone(), ended.clone().drop_guard());
            }
            self.renewing.push(
                async move {
                    let renewed = tokio::select! {
                        () = ended.cancelled() => Renewed::Superseded,
                        renewed = ownership::renew(&api, &node, &config, claim.as_ref()) => renewed,
                    };
                    (node, session, renewed)
                }
                .boxed(),
            );
        }
        while let Some(ruling) = self.state.poll_ruling() {
            // Without CloudHub there is no session to end.
            let _ = self.outbox.lost.send(ruling);
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
        self.answer_questions();
        self.record_events();
        let (report, lease) = self.state.oldest();
        self.counts.set_oldest(report, lease);
    }

    fn answer_questions(&mut self) {
        while let Some((node, question)) = self.questions.poll(now()) {
            let (api, denials) = (self.api.clone(), self.denials.clone());
            self.answering.push(question.answer(api, denials).map(|()| node).boxed());
        }
    }

    fn record_events(&mut self) {
        // Before everything is listed, a pod that is not known may exist all the same.
        while self.state.is_complete()
            && let Some(FromNode { node, message: Delivered { delivery, message } }) =
                self.events.poll_arrived()
        {
            let judged = self.state.read_event(&FromNode { node: node.clone(), message });
            self.events.handle_judged(node, delivery, judged, now());
        }
        while let Some((node, event)) = self.events.poll_write(now()) {
            let api = self.api.clone();
            self.recording.push(
                async move {
                    let recorded = events::record(&api, &node, event.value()).await;
                    (node, event, recorded)
                }
                .boxed(),
            );
        }
        while let Some(taken) = self.events.poll_taken() {
            // Without CloudHub there is no node that waits for it.
            let _ = self.outbox.taken.send(taken);
        }
    }

    fn handle_session(&mut self, session: FromNode<SessionState>) {
        // A new session takes the node anew, from whichever cloud has had it meanwhile.
        self.taking.remove(&session.node);
        self.last_session += 1;
        match session.message {
            SessionState::Online => drop(self.claims.insert(session.node.clone(), (self.last_session, None))),
            SessionState::Offline => drop(self.claims.remove(&session.node)),
        }
        self.state.handle_session(session, now(), Timestamp::now());
    }

    fn handle_renewed(&mut self, node: NodeName, session: u64, renewed: Renewed) {
        match &renewed {
            // The API has answered.
            Renewed::Held(_) | Renewed::Lost(_) => self.counts.note_lease(&Outcome::Done),
            Renewed::Failed(outcome) => self.counts.note_lease(outcome),
            Renewed::Superseded => {}
        }
        let claim = self.claims.get_mut(&node).filter(|(current, _)| *current == session);
        let (Some((_, claim)), false) = (claim, matches!(renewed, Renewed::Superseded)) else {
            // What holds of an earlier session says nothing about the one that there is.
            return self.state.handle_superseded(&node);
        };
        match renewed {
            Renewed::Held(held) => {
                *claim = Some(held);
                self.taking.remove(&node);
                self.state.handle_renewed(node, Outcome::Done, now());
            }
            Renewed::Failed(outcome) => self.state.handle_renewed(node, outcome, now()),
            Renewed::Lost(by) => {
                tracing::info!(%node, by, "the node has its session with another cloud");
                self.claims.remove(&node);
                self.events.handle_lost(&node);
                self.state.handle_lost(&node);
                // The newest word about a node stands for all before.
                let shut_out = self.state.is_shut_out(&node);
                let message = if shut_out { Ruling::ShutOut } else { Ruling::Elsewhere };
                if let Err(closed) = self.outbox.lost.send(ToNode { node, message }) {
                    tracing::trace!(%closed, "nobody listens");
                }
            }
            Renewed::Superseded => {}
        }
    }

    fn handle_snapshot(&mut self, call: Call<NodeName, Snapshot>) {
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
            self.listed.send_if_modified(|listed| !std::mem::replace(listed, true));
            // One that lacks what is only not known yet would take it away at the edge. What the API has not given for long
            // is named in it, and keeps no node waiting.
            let settled = self.waiting.extract_if(.., |(node, _)| self.state.is_settled(node));
            // Who is shut out is told nothing, until the session ends that asks.
            let settled = settled.filter(|(node, _)| !self.state.is_shut_out(node));
            for (node, reply) in settled {
                let (objects, unknown) = (self.state.snapshot(&node), self.state.unknown(&node));
                reply.answer(Snapshot { objects, unknown });
            }
        }
    }

    fn handle_query(&mut self, call: Call<FromNode<Query>, Answer>) {
        let plan = self.state.plan(&call.question);
        let (FromNode { node, .. }, replier) = call.split();
        self.questions.handle(node, plan, replier);
    }
}

/// Says which edge nodes there are, and since when those without a session are away: once, when every edge that is there
/// had time to connect; and again and again while this cloud leads others, which may end and leave their nodes behind.
fn absent(
    api: Api,
    config: Config,
    leads: Option<watch::Receiver<bool>>,
) -> BoxStream<'static, (Vec<NodeName>, Timestamp)> {
    let started = Timestamp::now();
    let backoff = Backoff { first: config.retry_first, max: config.retry_max };
    stream::unfold((api, leads, Some(started)), move |(api, leads, first)| {
        let config = config.clone();
        async move {
            if first.is_none() && leads.is_none() {
                return None;
            }
            let mut failures = 0;
            tokio::time::sleep(config.absent_grace).await;
            loop {
                let looks = first.is_some() || leads.as_ref().is_some_and(|leads| *leads.borrow());
                let wait = if looks {
                    match requests::edge_nodes(&api).await {
                        Ok(nodes) => {
                            let since = first.unwrap_or_else(Timestamp::now);
                            return Some(((nodes, since), (api, leads, None)));
                        }
                        Err(error) => tracing::debug!(%error, "the edge nodes could not be listed"),
                    }
                    failures += 1;
                    backoff.after(failures - 1)
                } else {
                    config.absent_grace
                };
                tokio::time::sleep(wait).await;
            }
        }
    })
    // It is asked on after its end.
    .fuse()
    .boxed()
}
