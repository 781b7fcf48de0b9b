use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{
    StreamExt as _,
    stream::{self, BoxStream, SelectAll},
};
use kubeedge_core::{
    hub::NodeLink,
    id::NodeName,
    message::{FromNode, Request, Response, SessionState, ToNode},
    pipe::Call,
    transport::{Connection, Listener, Peer},
    wire::{Codec, Line},
};
use tokio::{
    sync::mpsc,
    task::{Id, JoinError, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::{
    CloudHub, Config, Error, Inbox, Outbox,
    session::{Admission, Ends, Session, now},
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
    last_session: u64,
    admission: mpsc::Sender<Admission>,
    admissions: mpsc::Receiver<Admission>,
}

type Connections = SelectAll<BoxStream<'static, Result<Box<dyn Connection>, Error>>>;

/// How many connections one node may have at once: a session, its successor, and attempts that overlap.
const CONNECTIONS_PER_NODE: usize = 8;

/// How long sessions may take to say goodbye when the part stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

impl Driver {
    pub(super) fn new(hub: CloudHub) -> Self {
        let CloudHub { config, listeners, codec, inbox, outbox } = hub;
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
            last_session: 0,
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
                Some(call) = self.inbox.requests.recv() => self.handle_request(call),
            }
        };
        drop(guard);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(STOP_TIMEOUT, all).await.is_err() {
            warn!("some nodes did not take the goodbye in time");
        }
        outcome
    }

    fn handle_connection(&mut self, connection: Box<dyn Connection>, ended: &CancellationToken) {
        let Peer::Node(node) = connection.peer().clone() else {
            // Dropping a connection closes it.
            return warn!(path = connection.path(), "a peer that is no node tried to connect");
        };
        // One node must not take the places of the others; some connections of a node may be dying of old age.
        if self.open.values().filter(|(other, _)| *other == node).count() >= CONNECTIONS_PER_NODE {
            return warn!(%node, "the node has too many connections, one is dropped");
        }
        // Connections that have not said hello are bounded too.
        if self.tasks.len() >= self.config.max_sessions.saturating_mul(2) {
            return warn!(%node, "too many connections, one is dropped");
        }
        self.last_session += 1;
        let number = self.last_session;
        let mut link = NodeLink::new(self.config.link.clone(), node.clone(), number, now());
        if self.sessions.len() >= self.config.max_sessions && !self.sessions.contains_key(&node) {
            warn!(%node, max_sessions = self.config.max_sessions, "too many sessions, a node is refused");
            link.handle_refuse("the cloud has as many sessions as it takes", self.config.retry_after);
        }
        let line = Line::new(connection, self.codec.clone());
        let session =
            Session::new(self.config.clone(), link, line, self.outbox.clone(), self.admission.clone());
        let task = self.tasks.spawn(session.run(ended.clone()));
        self.open.insert(task.id(), (node, number));
    }

    /// A session has said hello. It takes the place of an older one of its node; a newer one keeps it.
    fn handle_admission(&mut self, admission: Admission) {
        let Admission { node, ends, admitted } = admission;
        match self.sessions.get(&node) {
            Some(current) if current.number > ends.number => return,
            Some(older) => {
                debug!(%node, session = older.number, by = ends.number, "a newer session takes over");
                older.replaced.cancel();
            }
            None if self.sessions.len() >= self.config.max_sessions => return,
            None => {}
        }
        self.sessions.insert(node.clone(), ends);
        let _ = self.outbox.sessions.send(FromNode { node, message: SessionState::Online });
        let _ = admitted.send(());
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
            let _ = self.outbox.sessions.send(FromNode { node, message: SessionState::Offline });
        }
    }

    fn handle_request(&mut self, call: Call<ToNode<Request>, Response>) {
        let (ToNode { node, message }, replier) = call.split();
        let refused = match self.sessions.get(&node) {
            None => Some((replier, format!("node {node} is not connected"))),
            Some(session) => session.requests.send((message, replier)).err().map(|error| {
                let (_, replier) = error.into_message();
                (replier, format!("node {node} has too many requests"))
            }),
        };
        if let Some((replier, message)) = refused {
            replier.answer(Response::Failed { code: 503, message });
        }
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
