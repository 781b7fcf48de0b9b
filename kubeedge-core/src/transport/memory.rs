//! Connections inside one process, for tests, simulations and an edge and a cloud that share a program.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
//! use kubeedge_core::{message::Lane, transport::{Listener, Transport, memory}};
//!
//! let (network, listener) = memory::network();
//! let transport = network.transport("edge-1".parse().unwrap());
//! let edge = transport.connect().await.unwrap();
//! let cloud = listener.accept().await.unwrap();
//! edge.send(Lane::Heartbeat, "hello".into()).await.unwrap();
//! assert_eq!(cloud.recv().await.unwrap(), Some((Lane::Heartbeat, "hello".into())));
//!
//! network.cut();     // frames vanish from here on, and nobody is told
//! network.restore(); // nodes can connect again
//! # });
//! ```
//!
//! A lane holds up to 64 KiB or 64 frames; then `send` waits. All waits use tokio's time, so they obey a paused clock.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    Connection, Listener, Peer, Transport, TransportError,
    lanes::{End, Lanes, check_length},
};
use crate::{id::NodeName, message::Lane};

/// How long [`MemoryTransport`] tries while the network is cut, or the listener accepts nothing.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// How many connections wait to be accepted before dialling waits.
const BACKLOG: usize = 128;

/// Creates two connected ends without a network: the edge's, and the cloud's.
pub fn pair(node: NodeName) -> (Box<dyn Connection>, Box<dyn Connection>) {
    let wire = Wire::new(node, watch::channel(Cuts::default()).1);
    (Box::new(wire.clone().end(Side::Edge)), Box::new(wire.end(Side::Cloud)))
}

/// Creates a network without nodes, and the cloud's listener on it.
pub fn network() -> (MemoryNetwork, MemoryListener) {
    let network = MemoryNetwork {
        shared: Arc::new(Shared { cuts: watch::Sender::default(), state: Mutex::default() }),
    };
    let listener = network.listen();
    (network, listener)
}

/// A network in memory with switches for faults. Clones are the same network.
#[derive(Debug, Clone)]
pub struct MemoryNetwork {
    shared: Arc<Shared>,
}

impl MemoryNetwork {
    /// The transport of one node.
    pub fn transport(&self, node: NodeName) -> MemoryTransport {
        MemoryTransport { network: self.clone(), node, dial_timeout: DIAL_TIMEOUT }
    }

    /// Listens in place of the last listener, as a cloud does that has restarted.
    pub fn listen(&self) -> MemoryListener {
        let (incoming, accepted) = mpsc::channel(BACKLOG);
        self.shared.lock().listener = Some(incoming);
        MemoryListener { accepted: tokio::sync::Mutex::new(accepted) }
    }

    /// Cuts every link: frames and closes vanish without an error, and connecting times out.
    ///
    /// A connection that has lost anything stays dead after [`restore`](Self::restore), since it could no
    /// longer keep its lanes free of gaps; one that was silent meanwhile goes on. Ends learn of neither.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| cuts.all = true);
    }

    /// Cuts the links of one node, as [`cut`](Self::cut) does for all.
    pub fn cut_node(&self, node: &NodeName) {
        self.shared.cuts.send_modify(|cuts| {
            cuts.nodes.insert(node.clone());
        });
    }

    /// Ends every cut.
    pub fn restore(&self) {
        let ended = |cuts: &Cuts| Cuts { identities_end: cuts.identities_end, ..Cuts::default() };
        self.shared.cuts.send_modify(|cuts| *cuts = ended(cuts));
    }

    /// Ends the cut of one node; a cut of all stays.
    pub fn restore_node(&self, node: &NodeName) {
        self.shared.cuts.send_modify(|cuts| {
            cuts.nodes.remove(node);
        });
    }

    /// Lets what proves the identities of all nodes end at this time, since 1970, also for connections that are open.
    pub fn end_identities(&self, at: Duration) {
        self.shared.cuts.send_modify(|cuts| cuts.identities_end = Some(at));
    }

    /// Breaks all connections that are open; both ends see an error at once and can connect again.
    pub fn drop_connections(&self) {
        for wire in self.shared.lock().wires.drain(..).filter_map(|wire| wire.upgrade()) {
            wire.break_off("the network dropped the connection");
        }
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.shared.lock().wires.iter().filter(|wire| wire.strong_count() > 0).count()
    }
}

struct Shared {
    cuts: watch::Sender<Cuts>,
    state: Mutex<State>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("cuts", &*self.cuts.borrow()).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    listener: Option<mpsc::Sender<MemoryConnection>>,
    wires: Vec<Weak<Wire>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code of others runs under the lock, so a poisoned state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Clone, Default)]
struct Cuts {
    all: bool,
    nodes: BTreeSet<NodeName>,
    identities_end: Option<Duration>,
}

impl Cuts {
    fn covers(&self, node: &NodeName) -> bool {
        self.all || self.nodes.contains(node)
    }
}

/// Dials over a [`MemoryNetwork`] as one node.
#[derive(Debug, Clone)]
pub struct MemoryTransport {
    network: MemoryNetwork,
    node: NodeName,
    dial_timeout: Duration,
}

impl MemoryTransport {
    /// Tries for this long instead of [`DIAL_TIMEOUT`].
    #[must_use]
    pub fn with_dial_timeout(mut self, dial_timeout: Duration) -> Self {
        self.dial_timeout = dial_timeout;
        self
    }

    fn unreachable(&self, why: &str) -> TransportError {
        TransportError::Unreachable { to: "memory".to_owned(), within: self.dial_timeout, source: why.into() }
    }

    async fn dial(&self) -> Result<Box<dyn Connection>, TransportError> {
        let shared = &self.network.shared;
        let mut cuts = shared.cuts.subscribe();
        // The sender lives in `shared`, so this waits for an open way and cannot fail.
        drop(cuts.wait_for(|cuts| !cuts.covers(&self.node)).await);
        let listener = shared.lock().listener.clone();
        let nobody = || self.unreachable("nobody listens");
        let place = listener.ok_or_else(nobody)?.reserve_owned().await.map_err(|_| nobody())?;
        let wire = Wire::new(self.node.clone(), cuts);
        let mut state = shared.lock();
        state.wires.retain(|wire| wire.strong_count() > 0);
        state.wires.push(Arc::downgrade(&wire));
        drop(state);
        place.send(wire.clone().end(Side::Cloud));
        Ok(Box::new(wire.end(Side::Edge)))
    }
}

#[async_trait]
impl Transport for MemoryTransport {
    fn name(&self) -> &'static str {
        "memory"
    }

    async fn connect(&self) -> Result<Box<dyn Connection>, TransportError> {
        timeout(self.dial_timeout, self.dial())
            .await
            .unwrap_or_else(|_| Err(self.unreachable("the network is cut")))
    }
}

/// Accepts connections of a [`MemoryNetwork`].
#[derive(Debug)]
pub struct MemoryListener {
    accepted: tokio::sync::Mutex<mpsc::Receiver<MemoryConnection>>,
}

#[async_trait]
impl Listener for MemoryListener {
    async fn accept(&self) -> Result<Box<dyn Connection>, TransportError> {
        match self.accepted.lock().await.recv().await {
            Some(connection) => Ok(Box::new(connection)),
            None => {
                Err(TransportError::Closed("another listener took its place, or the network is gone".into()))
            }
        }
    }

    fn local_address(&self) -> String {
        "memory".to_owned()
    }
}

/// What both ends of a connection share.
#[derive(Debug)]
struct Wire {
    node: NodeName,
    up: Lanes,
    down: Lanes,
    cuts: watch::Receiver<Cuts>,
    /// Set when something was lost in a cut: what follows would arrive with a gap before it.
    lossy: AtomicBool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Edge,
    Cloud,
}

impl Wire {
    fn new(node: NodeName, cuts: watch::Receiver<Cuts>) -> Arc<Self> {
        let (up, down) = (Lanes::default(), Lanes::default());
        Arc::new(Self { node, up, down, cuts, lossy: AtomicBool::new(false) })
    }

    fn end(self: Arc<Self>, side: Side) -> MemoryConnection {
        let peer = match side {
            Side::Edge => Peer::Cloud,
            Side::Cloud => Peer::Node(self.node.clone()),
        };
        MemoryConnection { wire: self, side, peer, closed: CancellationToken::new() }
    }

    /// Whether what is sent now is lost.
    fn loses(&self) -> bool {
        if self.cuts.borrow().covers(&self.node) {
            self.lossy.store(true, Ordering::Relaxed);
        }
        self.lossy.load(Ordering::Relaxed)
    }

    fn break_off(&self, why: &str) {
        for lanes in [&self.up, &self.down] {
            lanes.end(End::Broken(why.to_owned()));
        }
    }
}

/// One end of a connection in memory.
#[derive(Debug)]
struct MemoryConnection {
    wire: Arc<Wire>,
    side: Side,
    peer: Peer,
    /// Closed by this end, whether or not the other can learn of it.
    closed: CancellationToken,
}

impl MemoryConnection {
    fn outgoing(&self) -> &Lanes {
        match self.side {
            Side::Edge => &self.wire.up,
            Side::Cloud => &self.wire.down,
        }
    }

    fn incoming(&self) -> &Lanes {
        match self.side {
            Side::Edge => &self.wire.down,
            Side::Cloud => &self.wire.up,
        }
    }

    fn closed_here() -> TransportError {
        TransportError::Closed("closed by this end".to_owned())
    }
}

#[async_trait]
impl Connection for MemoryConnection {
    fn peer(&self) -> &Peer {
        &self.peer
    }

    fn identity_ends(&self) -> Option<Duration> {
        (self.side == Side::Cloud).then(|| self.wire.cuts.borrow().identities_end).flatten()
    }

    fn path(&self) -> String {
        format!("memory, node {}", self.wire.node)
    }

    async fn send(&self, lane: Lane, frame: Bytes) -> Result<(), TransportError> {
        check_length(lane, frame.len())?;
        if self.closed.is_cancelled() {
            return Err(Self::closed_here());
        }
        if let Some(end) = self.outgoing().ended() {
            return Err(end.error());
        }
        if self.wire.loses() {
            return Ok(());
        }
        self.outgoing().push(lane, frame).await
    }

    async fn recv(&self) -> Result<Option<(Lane, Bytes)>, TransportError> {
        tokio::select! {
            biased;
            () = self.closed.cancelled() => Err(Self::closed_here()),
            received = self.incoming().pop() => received,
        }
    }

    async fn close(&self, reason: &str) {
        self.closed.cancel();
        if !self.wire.loses() {
            self.outgoing().end(End::Orderly(reason.to_owned()));
            self.incoming().end(End::Broken(reason.to_owned()));
        }
    }
}

impl Drop for MemoryConnection {
    fn drop(&mut self) {
        // In order is only what `close` ended; that end is the first and stays.
        if !self.wire.loses() && self.outgoing().ended().is_none() {
            self.wire.break_off("the peer dropped the connection");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeName {
        "edge-1".parse().unwrap()
    }

    async fn connected() -> (MemoryNetwork, MemoryListener, Box<dyn Connection>, Box<dyn Connection>) {
        let (network, listener) = network();
        let edge = network.transport(node()).connect().await.unwrap();
        let cloud = listener.accept().await.unwrap();
        (network, listener, edge, cloud)
    }

    #[cfg(feature = "conformance")]
    #[tokio::test(start_paused = true)]
    async fn it_does_what_every_transport_must() {
        crate::transport::conformance::run(|| async {
            let (network, listener) = network();
            (network.transport(node()), listener)
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_swallows_frames_without_telling_anybody() {
        let (network, _listener, edge, cloud) = connected().await;
        network.cut();
        edge.send(Lane::Pods, Bytes::from_static(b"lost")).await.unwrap();
        network.restore();
        edge.send(Lane::Pods, Bytes::from_static(b"after a gap")).await.unwrap();
        timeout(Duration::from_secs(60), cloud.recv()).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_was_silent_during_a_cut_goes_on() {
        let (network, _listener, edge, cloud) = connected().await;
        network.cut();
        tokio::time::sleep(Duration::from_secs(10)).await;
        network.restore();
        edge.send(Lane::Pods, Bytes::from_static(b"here")).await.unwrap();
        assert!(cloud.recv().await.unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn connecting_times_out_in_a_cut_and_works_once_it_is_over() {
        let (network, listener) = network();
        let transport = network.transport(node());
        network.cut_node(&node());
        let error = transport.connect().await.unwrap_err();
        assert!(matches!(error, TransportError::Unreachable { .. }), "{error}");
        let other = network.transport("edge-2".parse().unwrap());
        other.connect().await.unwrap();
        listener.accept().await.unwrap();

        let healing = network.clone();
        let restore = async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            healing.restore_node(&node());
        };
        let (connected, ()) = tokio::join!(transport.connect(), restore);
        connected.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_close_in_a_cut_does_not_arrive() {
        let (network, _listener, edge, cloud) = connected().await;
        network.cut();
        edge.close("bye").await;
        drop(edge);
        timeout(Duration::from_secs(60), cloud.recv()).await.unwrap_err();
    }

    #[tokio::test]
    async fn dropped_connections_fail_at_both_ends() {
        let (network, _listener, edge, cloud) = connected().await;
        assert_eq!(network.connections(), 1);
        network.drop_connections();
        assert!(edge.recv().await.is_err());
        assert!(cloud.recv().await.is_err());
        assert!(cloud.send(Lane::Pods, Bytes::new()).await.is_err());
    }

    #[tokio::test]
    async fn a_cloud_that_restarts_takes_over_the_network() {
        let (network, listener) = network();
        drop(listener);
        let error = network.transport(node()).connect().await.unwrap_err();
        assert!(error.to_string().contains("nobody listens"), "{error}");
        let listener = network.listen();
        network.transport(node()).connect().await.unwrap();
        assert_eq!(listener.accept().await.unwrap().peer(), &Peer::Node(node()));
    }
}
