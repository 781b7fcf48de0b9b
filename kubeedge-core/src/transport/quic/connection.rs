//! One connection at the edge's end.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use quinn::{ConnectionError, RecvStream};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{any_address_like, code, incoming::Incoming, outgoing};
use crate::{
    message::Lane,
    transport::{
        Connection, Peer, TransportError,
        lanes::{End, Lanes, check_length},
    },
};

/// How long `close` waits until the peer has what was sent.
pub(super) const FLUSH: Duration = Duration::from_secs(1);

/// Following the node's address more often than this would only cost CPU time.
const FOLLOW_MIN: Duration = Duration::from_millis(100);

/// What a connection has carried so far: UDP payload, without the headers of UDP and IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that this end has sent.
    pub sent_bytes: u64,
    /// Packets that this end has sent.
    pub sent_packets: u64,
    /// Bytes that this end has received.
    pub received_bytes: u64,
    /// Packets that this end has received.
    pub received_packets: u64,
}

/// A connection over QUIC that this side has dialled.
pub struct QuicConnection {
    connection: quinn::Connection,
    endpoint: quinn::Endpoint,
    peer: Peer,
    outgoing: Arc<Lanes>,
    pub(super) incoming: tokio::sync::Mutex<Incoming<RecvStream>>,
    writer: Mutex<JoinSet<()>>,
    /// Follows the client's address; aborted when it is dropped.
    _follower: Option<JoinSet<()>>,
    closed: CancellationToken,
}

impl QuicConnection {
    /// Wraps a connection that this side has dialled, once the server has accepted it.
    pub(super) async fn dialled(
        connection: quinn::Connection,
        endpoint: quinn::Endpoint,
        follow: Option<Duration>,
    ) -> Result<Self, ConnectionError> {
        let welcome: RecvStream = connection.accept_uni().await?;
        let follower = follow.map(|every| {
            let mut follower = JoinSet::new();
            let every = every.max(FOLLOW_MIN);
            follower.spawn(follow_address(endpoint.clone(), connection.remote_address(), every));
            follower
        });
        let outgoing = Arc::new(Lanes::default());
        let mut writer = JoinSet::new();
        writer.spawn(outgoing::write(connection.clone(), outgoing.clone()));
        let mut incoming = Incoming::default();
        incoming.take(welcome);
        Ok(Self {
            connection,
            endpoint,
            peer: Peer::Cloud,
            outgoing,
            incoming: tokio::sync::Mutex::new(incoming),
            writer: Mutex::new(writer),
            _follower: follower,
            closed: CancellationToken::new(),
        })
    }

    /// Moves the client's end to another local address; the connection goes on (RFC 9000 §9).
    ///
    /// # Errors
    /// If the address cannot be bound; the connection stays where it was.
    pub fn rebind(&self, local: SocketAddr) -> io::Result<()> {
        self.endpoint.rebind(UdpSocket::bind(local)?)
    }

    /// Where the peer is; it changes when the peer moves.
    pub fn remote_address(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// What this connection has carried so far.
    pub fn traffic(&self) -> Traffic {
        let stats = self.connection.stats();
        Traffic {
            sent_bytes: stats.udp_tx.bytes,
            sent_packets: stats.udp_tx.datagrams,
            received_bytes: stats.udp_rx.bytes,
            received_packets: stats.udp_rx.datagrams,
        }
    }

    fn closed_here() -> TransportError {
        TransportError::Closed("closed by this end".to_owned())
    }
}

#[async_trait]
impl Connection for QuicConnection {
    fn peer(&self) -> &Peer {
        &self.peer
    }

    fn path(&self) -> String {
        format!("quic {}", self.connection.remote_address())
    }

    async fn send(&self, lane: Lane, frame: Bytes) -> Result<(), TransportError> {
        check_length(lane, frame.len())?;
        if self.closed.is_cancelled() {
            return Err(Self::closed_here());
        }
        if let Some(error) = self.connection.close_reason() {
            return Err(TransportError::Closed(reason(&error)));
        }
        self.outgoing.push(lane, frame).await
    }

    async fn recv(&self) -> Result<Option<(Lane, Bytes)>, TransportError> {
        let receive = async { self.incoming.lock().await.next(&self.connection).await };
        tokio::select! {
            biased;
            () = self.closed.cancelled() => Err(Self::closed_here()),
            received = receive => received,
        }
    }

    async fn close(&self, reason: &str) {
        self.closed.cancel();
        self.outgoing.end(End::Orderly(reason.to_owned()));
        let mut writer = std::mem::take(&mut *self.writer.lock().unwrap_or_else(PoisonError::into_inner));
        drop(timeout(FLUSH, writer.join_next()).await);
        self.connection.close(code::ORDERLY, reason.as_bytes());
        // A program that ends right after this would take the farewell with it.
        drop(timeout(FLUSH / 10, self.endpoint.wait_idle()).await);
    }
}

impl Drop for QuicConnection {
    fn drop(&mut self) {
        if self.connection.close_reason().is_none() {
            self.connection.close(code::DROPPED, b"the peer dropped the connection");
        }
    }
}

impl fmt::Debug for QuicConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicConnection")
            .field("peer", &self.peer)
            .field("path", &self.path())
            .finish_non_exhaustive()
    }
}

/// Why the connection is over, in the peer's words if it has said.
pub(super) fn reason(error: &ConnectionError) -> String {
    if let ConnectionError::ApplicationClosed(close) = error {
        return String::from_utf8_lossy(&close.reason).into_owned();
    }
    error.to_string()
}

/// Moves the endpoint whenever the system would reach the server from another address.
async fn follow_address(endpoint: quinn::Endpoint, server: SocketAddr, every: Duration) {
    let mut last = source_address(server);
    loop {
        sleep(every).await;
        // No route at all: nothing to move to.
        let Some(now) = source_address(server) else { continue };
        if last.replace(now) == Some(now) {
            continue;
        }
        match UdpSocket::bind((any_address_like(server), 0)).and_then(|socket| endpoint.rebind(socket)) {
            Ok(()) => info!(address = %now, %server, "the network has changed; the connection moves along"),
            Err(error) => {
                warn!(address = %now, %server, %error, "the network has changed; the connection stays")
            }
        }
    }
}

/// The address from which the system would reach `server`: connecting a UDP socket looks up the route and
/// sends nothing.
fn source_address(server: SocketAddr) -> Option<IpAddr> {
    let probe = UdpSocket::bind((any_address_like(server), 0)).ok()?;
    probe.connect(server).ok()?;
    Some(probe.local_addr().ok()?.ip())
}
