use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{
    StreamExt as _,
    stream::{self, BoxStream, SelectAll},
};
use kubeedge_core::{
    hub::NodeLink,
    id::NodeName,
    message::{FromNode, Request, Response, Ruling, SessionState, ToNode},
    pipe::{Call, CallError},
    transport::{Connection, Listener, Peer},
    wire::{Codec, Line},
};
use tokio::{
    sync::mpsc,
    task::{Id, JoinError, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    CloudHub, Config, Error, Gauges, Inbox, Outbox,
    session::{Admission, Admitted, Asked, Ends, FULL, Reply, Session, Word, now},
};

/// Accepts connections, knows which session is a node's, and brings to it what is for the node.
pub(super) struct Driver {
    config: Arc<Config>,
    codec: Arc<dyn Codec>,
    inbox: Inbox,
    outbox: Arc<Outbox>,
    connections: Connections,
    /// One task per connection, owned by this part.
    tasks: JoinSet<()>,
    open: BTreeMap<Id, (NodeName, u64)>,
    /// The one session of each node that has said hello.
    sessions: BTreeMap<NodeName, Ends>,
    /// Nodes that get no session.
    shut_out: BTreeSet<NodeName>,
    last_session: u64,
    last_request: u64,
    gauges: Gauges,
    admission: mpsc::Sender<Admission>,
    admissions: mpsc::Receiver<Admission>,
}

type Connections = SelectAll<BoxStream<'static, Result<Box<dyn Connection>, Error>>>;

/// How many connections one node may have at once: a session, its successor, and attempts that overlap.
const CONNECTIONS_PER_NODE: usize = 8;

/// How often some of the nodes are sent elsewhere when the part stops.
const DRAIN_STEP: Duration = Duration::from_millis(10);

/// How long sessions may take to say goodbye when the part stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

impl Driver {
    pub(super) fn new(hub: CloudHub) -> Self {
        let CloudHub { config, listeners, codec, inbox, outbox, gauges } = hub;
        let (admission, admissions) = mpsc::channel(64);
        Self {
            config: Arc::new(config),
            codec,
            inbox,
            outbox: Arc::new(outbox),
            connections: stream::select_all(listeners.into_iter().map(accept)),
            tasks: JoinSet::new(),
            open: BTreeMap::new(),
            sessions: BTreeMap::new(),
            shut_out: BTreeSet::new(),
            last_session: 0,
            last_request: 0,
            gauges,
            admission,
            admissions,
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<(), Error> {
        // Sessions end by a token of their own, so that they also end when this part fails.
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        let outcome = loop {
            tokio::select! {
                () = stop.cancelled() => break Ok(()),
                Some(connection) = self.connections.next() => match connection {
                    Ok(connection) => self.handle_connection(connection, &ended),
                    Err(error) => break Err(error),
                },
                Some(admission) = self.admissions.recv() => self.handle_admission(admission),
                Some(done) = self.tasks.join_next_with_id() => self.handle_end(done),
                Some(ToNode { node, message }) = self.inbox.downstream.recv() => {
                    if let Some(session) = self.sessions.get(&node) {
                        let _ = session.objects.send(message);
                    }
                }
                Some(ToNode { node, message }) = self.inbox.acked.recv() => {
                    if let Some(session) = self.sessions.get(&node) {
                        let _ = session.acked.send(message);
                    }
                }
                Some(ToNode { node, message }) = self.inbox.taken.recv() => {
                    if let Some(session) = self.sessions.get(&node) {
                        let _ = session.taken.send(message);
                    }
                }
                Some(ruling) = self.inbox.lost.recv() => self.handle_ruling(ruling),
                Some(call) = self.inbox.requests.recv() => self.handle_request(call),
                Some(call) = self.inbox.relayed.recv() => self.handle_relayed(call),
            }
        };
        if outcome.is_ok() {
            self.drain().await;
        }
        drop(guard);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(STOP_TIMEOUT, all).await.is_err() {
            warn!("some nodes did not take the goodbye in time");
        }
        outcome
    }

    /// Sends the nodes elsewhere, a few at a time. Nobody listens any more, so they do not come back here; reports that
    /// are not in the API by then are sent again from where they come to be.
    async fn drain(&mut self) {
        self.connections = SelectAll::new();
        let nodes = self.sessions.len();
        let steps = (self.config.drain.as_millis() / DRAIN_STEP.as_millis()).max(1);
        let each = nodes.div_ceil(usize::try_from(steps).unwrap_or(usize::MAX)).max(1);
        if nodes > 0 {
            info!(nodes, over = ?self.config.drain, "sending the nodes elsewhere");
        }
        let leave: Vec<_> = self.sessions.values().map(|session| session.leave.clone()).collect();
        for some in leave.chunks(each) {
            some.iter().for_each(CancellationToken::cancel);
            let done = sleep(DRAIN_STEP);
            tokio::pin!(done);
            loop {
                tokio::select! {
                    () = &mut done => break,
                    // What controllers have said before they stopped is passed on, so that it is not sent again.
                    Some(ToNode { node, message }) = self.inbox.acked.recv() => {
                        if let Some(session) = self.sessions.get(&node) {
                            let _ = session.acked.send(message);
                        }
                    }
                    Some(done) = self.tasks.join_next_with_id() => self.handle_end(done),
                }
            }
        }
    }

    fn handle_connection(&mut self, connection: Box<dyn Connection>, ended: &CancellationToken) {
        let Peer::Node(node) = connection.peer().clone() else {
            // Dropping a connection closes it.
            return warn!(path = connection.path(), "a peer that is no node tried to connect");
        };
        // One node must not take the places of the others; some connections of a node may be dying of old age.
        if self.open.values().filter(|(other, _)| *other == node).count() >= CONNECTIONS_PER_NODE {
            self.gauges.note_refused();
            return warn!(%node, "the node has too many connections, one is dropped");
        }
        // Connections that have not said hello are bounded too.
        if self.tasks.len() >= self.config.max_sessions.saturating_mul(2) {
            self.gauges.note_refused();
            return warn!(%node, "too many connections, one is dropped");
        }
        self.last_session += 1;
        let number = self.last_session;
        let mut link = NodeLink::new(self.config.link.clone(), node.clone(), number, now());
        let account = self.gauges.open(number);
        let full = if account.is_none() {
            Some("the cloud has no memory for another session")
        } else if self.sessions.len() >= self.config.max_sessions && !self.sessions.contains_key(&node) {
            Some(FULL)
        } else {
            None
        };
        if self.shut_out.contains(&node) {
            debug!(%node, "a node that is shut out is refused");
            self.gauges.note_refused();
            link.handle_shut_out();
        } else if let Some(reason) = full {
            warn!(%node, reason, "a node is refused");
            self.gauges.note_refused();
            link.handle_refuse(reason, self.config.retry_after);
        }
        let line = Line::new(connection, self.codec.clone());
        let leave = ended.child_token();
        let session = Session::new(
            self.config.clone(),
            link,
            line,
            self.outbox.clone(),
            account,
            self.admission.clone(),
            leave.clone(),
        );
        let task = self.tasks.spawn(Box::new(session).run(leave));
        self.open.insert(task.id(), (node, number));
    }

    fn handle_ruling(&mut self, ToNode { node, message }: ToNode<Ruling>) {
        let session = self.sessions.get(&node);
        match message {
            Ruling::Elsewhere => {
                if let Some(session) = session {
                    info!(%node, session = session.number, "another cloud has taken the node; it is sent there");
                    session.leave.cancel();
                }
                // The newest word about a node stands for all before, also for one that was not read: that it is let in.
                self.shut_out.remove(&node);
            }
            Ruling::ShutOut => {
                warn!(%node, "the node is shut out");
                if let Some(session) = session {
                    let _ = session.requests.send(Word::ShutOut);
                }
                self.shut_out.insert(node);
            }
            Ruling::LetIn => {
                if self.shut_out.remove(&node) {
                    info!(%node, "the node is shut out no longer");
                }
            }
        }
    }

    /// A session has said hello. It takes the place of an older one of its node; a newer one keeps it.
    fn handle_admission(&mut self, admission: Admission) {
        let Admission { node, ends, admitted } = admission;
        if self.shut_out.contains(&node) {
            // It has connected before that was known.
            let _ = admitted.send(Admitted::ShutOut);
            return;
        }
        match self.sessions.get(&node) {
            Some(current) if current.number > ends.number => {
                let _ = admitted.send(Admitted::Newer);
                return;
            }
            Some(older) => {
                debug!(%node, session = older.number, by = ends.number, "a newer session takes over");
                older.replaced.cancel();
            }
            None if self.sessions.len() >= self.config.max_sessions => {
                warn!(%node, reason = FULL, "a node is refused");
                self.gauges.note_refused();
                let _ = admitted.send(Admitted::Full);
                return;
            }
            None => {}
        }
        self.sessions.insert(node.clone(), ends);
        self.gauges.set_sessions(self.sessions.len());
        let _ = self.outbox.sessions.send(FromNode { node, message: SessionState::Online });
        let _ = admitted.send(Admitted::Yes);
    }

    fn handle_end(&mut self, done: Result<(Id, ()), JoinError>) {
        let id = match &done {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        let Some((node, number)) = self.open.remove(&id) else { return };
        if let Err(error) = done {
            error!(%node, session = number, %error, "a session's task failed");
        }
        // The end of a session that was replaced says nothing about the node.
        if self.sessions.get(&node).is_some_and(|current| current.number == number) {
            self.sessions.remove(&node);
            self.gauges.set_sessions(self.sessions.len());
            let _ = self.outbox.sessions.send(FromNode { node, message: SessionState::Offline });
        }
    }

    fn handle_request(&mut self, call: Call<ToNode<Request>, Response>) {
        if self.sessions.contains_key(&call.question.node) {
            let (question, replier) = call.split();
            return self.ask(question, Reply::Here(replier));
        }
        let forwarded = match &self.outbox.elsewhere {
            Some(elsewhere) => elsewhere.forward(call),
            None => Err((CallError::Closed("elsewhere"), call)),
        };
        if let Err((error, call)) = forwarded {
            let node = &call.question.node;
            let message = if matches!(error, CallError::Full(_)) {
                format!(
                    "node {node} is not connected here, and too many requests for such nodes wait already"
                )
            } else {
                format!("node {node} is not connected")
            };
            call.answer(Response::Failed { code: 503, message });
        }
    }

    fn handle_relayed(&mut self, call: Call<ToNode<Request>, Option<Response>>) {
        if !self.sessions.contains_key(&call.question.node) {
            return call.answer(None);
        }
        let (question, replier) = call.split();
        self.ask(question, Reply::Elsewhere(replier));
    }

    fn ask(&mut self, question: ToNode<Request>, reply: Reply) {
        let ToNode { node, message } = question;
        let Some(session) = self.sessions.get(&node) else { return };
        let (waiting, _) = session.requests.depth_and_coalesced();
        if waiting >= self.config.link.calls_max {
            let message = format!("node {node} has too many requests");
            return reply.answer(Response::Failed { code: 503, message });
        }
        self.last_request += 1;
        // A session that has just ended drops it, which whoever asked is told.
        let _ =
            session.requests.send(Word::Ask(Asked { number: self.last_request, request: message, reply }));
    }
}

/// All connections of a listener, up to its first error.
fn accept(listener: Box<dyn Listener>) -> BoxStream<'static, Result<Box<dyn Connection>, Error>> {
    stream::unfold(Some(listener), |listener| async move {
        let listener = listener?;
        Some(match listener.accept().await {
            Ok(connection) => (Ok(connection), Some(listener)),
            Err(source) => (Err(Error::Listener { address: listener.local_address(), source }), None),
        })
    })
    .boxed()
}
