//! Connections over QUIC (RFC 9000): the default link between an edge and a cloud of this implementation.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::{path::Path, sync::Arc};
//! use kubeedge_core::{tls, transport::{Transport, quic::{QuicConfig, QuicTransport}}};
//!
//! let identity = tls::Identity::from_files(Path::new("server.crt"), Path::new("server.key"))?;
//! let roots = tls::roots_from_file(Path::new("rootCA.crt"))?;
//! let config = QuicConfig::new("cloud.example:10000", Arc::new(tls::client_config(&identity, roots)?));
//! let connection = QuicTransport::new(config)?.connect().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # On the wire
//! ALPN is `kubeedge/1`, TLS 1.3, and both sides show a certificate. Each lane is one unidirectional stream per
//! direction, opened with its first frame: one byte with the lane's number, then frames, each a big-endian
//! `u32` length and that many bytes. The server opens its Heartbeat lane at once; this first byte tells the
//! client that its certificate was accepted, which in TLS 1.3 it would not learn otherwise.
//!
//! A lane is a stream of its own, so a lost packet holds up only the lanes whose bytes it carried. A node that
//! changes its network keeps its connection (RFC 9000 §9): the client notices its new address and moves.
//!
//! # Memory
//! The cloud holds thousands of connections that are mostly silent. An idle one takes some 20 KiB there, nearly all of
//! it the state of QUIC and TLS: the cloud's end is quinn's state machine with I/O of our own, which adds one task and
//! neither queues nor buffers. `recv` reads the streams directly, and what nobody receives waits at the sender. At worst a
//! peer can make this side hold [`RECEIVE_WINDOW`] plus the frame that is being put together per lane, which grows with
//! the bytes that have arrived, not with the length that was announced.

mod accepted;
mod connection;
mod endpoint;
mod incoming;
mod listener;
mod outgoing;
mod reset;
mod session;
#[cfg(test)]
mod tests;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use quinn::{
    EndpointConfig, IdleTimeout, TokioRuntime, TransportConfig, VarInt, crypto::rustls::QuicClientConfig,
};
use tokio::time::timeout;

pub use self::{
    connection::{QuicConnection, Traffic},
    listener::{QuicListener, QuicListenerConfig},
    reset::ResetSecret,
};
use super::{
    Connection, Transport, TransportError,
    address::{Address, Attempts},
};
use crate::message::Lane;

/// The application protocol in the TLS handshake (ALPN).
pub const ALPN: &[u8] = b"kubeedge/1";

/// How many bytes a peer may send ahead of `recv`, over all lanes.
pub const RECEIVE_WINDOW: u32 = 1 << 20;

/// How many bytes a node may send ahead of `recv` on one lane: 2.5 MB/s at a round trip of 100 ms.
const STREAM_RECEIVE_WINDOW: u32 = 256 << 10;

/// How many bytes the cloud may send ahead of a node's `recv` on one lane: 5 MB/s at a round trip of 200 ms. The cloud has
/// much for a node, and a node has one cloud.
const NODE_STREAM_RECEIVE_WINDOW: u32 = RECEIVE_WINDOW;

/// How many bytes may be sent and not yet acknowledged, over all lanes.
const SEND_WINDOW: u64 = 1 << 20;

/// The codes with which a connection is closed; the reason follows as text.
mod code {
    use quinn::VarInt;

    pub(super) const ORDERLY: VarInt = VarInt::from_u32(0);
    pub(super) const DROPPED: VarInt = VarInt::from_u32(1);
    pub(super) const REFUSED: VarInt = VarInt::from_u32(2);
    pub(super) const TOO_LONG: VarInt = VarInt::from_u32(3);
    pub(super) const MALFORMED: VarInt = VarInt::from_u32(4);
}

/// How an edge dials the cloud over QUIC.
#[derive(Debug, Clone)]
pub struct QuicConfig {
    /// The cloud as `host:port`; the host is what its certificate must be issued for.
    pub endpoint: String,
    /// The node's certificate and whom it trusts, as [`tls::client_config`](crate::tls::client_config) builds it.
    pub tls: Arc<rustls::ClientConfig>,
    /// How long a dial may take, over all addresses of the host. 10 s: a handshake takes a few round trips.
    pub dial_timeout: Duration,
    /// After how long without a packet the connection is over. 60 s: four heartbeats of KubeEdge. There is no
    /// keep-alive here, because the link above pings.
    pub idle_timeout: Duration,
    /// How often the client looks whether its address has changed. 2 s; one route lookup, no packet.
    pub rebind_check: Duration,
    /// The local address, or `None` to let the system choose and to follow its choice when the network changes.
    pub bind: Option<IpAddr>,
    /// Whether the kernel splits packets (GSO). Off: some edge hardware accepts it and then fails to send.
    pub segmentation_offload: bool,
}

impl QuicConfig {
    /// Dials `endpoint` with the defaults of the fields.
    pub fn new(endpoint: impl Into<String>, tls: Arc<rustls::ClientConfig>) -> Self {
        Self {
            endpoint: endpoint.into(),
            tls,
            dial_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            rebind_check: Duration::from_secs(2),
            bind: None,
            segmentation_offload: false,
        }
    }
}

/// Dials the cloud over QUIC.
#[derive(Debug, Clone)]
pub struct QuicTransport {
    config: QuicConfig,
    address: Address,
    client: quinn::ClientConfig,
}

impl QuicTransport {
    /// Checks the configuration; nothing is dialled yet.
    ///
    /// # Errors
    /// [`TransportError::Config`] if the endpoint is no `host:port` or TLS 1.3 is not allowed.
    pub fn new(config: QuicConfig) -> Result<Self, TransportError> {
        let address = Address::parse(&config.endpoint)?;
        let mut tls = (*config.tls).clone();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let crypto = QuicClientConfig::try_from(tls).map_err(|error| {
            TransportError::Config(format!("the TLS configuration does not allow QUIC: {error}"))
        })?;
        let mut client = quinn::ClientConfig::new(Arc::new(crypto));
        client.transport_config(Arc::new(transport_config(
            config.idle_timeout,
            config.segmentation_offload,
            NODE_STREAM_RECEIVE_WINDOW,
        )?));
        Ok(Self { config, address, client })
    }

    /// Opens a connection, as [`Transport::connect`] does, and gives it in its own type, which can
    /// [`rebind`](QuicConnection::rebind).
    ///
    /// # Errors
    /// As [`Transport::connect`].
    pub async fn dial(&self) -> Result<QuicConnection, TransportError> {
        let mut attempts = Attempts::begin(&self.address, self.config.dial_timeout).await?;
        while let Some(attempt) = attempts.next() {
            let outcome = timeout(attempt.within, self.dial_one(attempt.server)).await;
            if let Some(connection) = attempts.judge(attempt.server, outcome) {
                return Ok(connection);
            }
        }
        Err(attempts.failed())
    }

    async fn dial_one(&self, server: SocketAddr) -> Result<QuicConnection, TransportError> {
        let unreachable = |source| TransportError::Unreachable {
            to: server.to_string(),
            within: self.config.dial_timeout,
            source,
        };
        let local = SocketAddr::new(self.config.bind.unwrap_or_else(|| any_address_like(server)), 0);
        // A socket of its own for each connection: only then can one move without the others.
        let endpoint = UdpSocket::bind(local)
            .and_then(|socket| {
                quinn::Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime))
            })
            .map_err(|error| unreachable(error.into()))?;
        let connecting = endpoint
            .connect_with(self.client.clone(), server, self.address.host())
            .map_err(|error| TransportError::Config(error.to_string()))?;
        let failed = |error| match refusal(&error) {
            Some(reason) => TransportError::Refused { peer: server.to_string(), reason },
            None => unreachable(error.into()),
        };
        let connection = connecting.await.map_err(failed)?;
        let follow = self.config.bind.is_none().then_some(self.config.rebind_check);
        QuicConnection::dialled(connection, endpoint, follow).await.map_err(failed)
    }
}

#[async_trait]
impl Transport for QuicTransport {
    fn name(&self) -> &'static str {
        "quic"
    }

    async fn connect(&self) -> Result<Box<dyn Connection>, TransportError> {
        Ok(Box::new(self.dial().await?))
    }
}

/// What both sides allow each other.
fn transport_config(
    idle_timeout: Duration,
    segmentation_offload: bool,
    stream_receive_window: u32,
) -> Result<TransportConfig, TransportError> {
    let idle = IdleTimeout::try_from(idle_timeout).map_err(|error| {
        TransportError::Config(format!("the idle timeout {idle_timeout:?} is too long: {error}"))
    })?;
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(None)
        .max_concurrent_uni_streams(VarInt::from_u32(Lane::ALL.len() as u32))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(stream_receive_window))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(None)
        .enable_segmentation_offload(segmentation_offload);
    Ok(config)
}

fn any_address_like(server: SocketAddr) -> IpAddr {
    match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Why the handshake was refused, or `None` if it failed in a way that trying again may mend.
fn refusal(error: &quinn::ConnectionError) -> Option<String> {
    // RFC 9001 §4.8: TLS alerts are the error codes 0x100 to 0x1ff.
    let is_alert = |code: quinn::TransportErrorCode| (0x100..0x200).contains(&u64::from(code));
    if let quinn::ConnectionError::ApplicationClosed(close) = error {
        return Some(String::from_utf8_lossy(&close.reason).into_owned());
    }
    let alert = match error {
        quinn::ConnectionError::TransportError(error) => is_alert(error.code),
        quinn::ConnectionError::ConnectionClosed(close) => is_alert(close.error_code),
        quinn::ConnectionError::VersionMismatch => true,
        quinn::ConnectionError::ApplicationClosed(_)
        | quinn::ConnectionError::Reset
        | quinn::ConnectionError::TimedOut
        | quinn::ConnectionError::LocallyClosed
        | quinn::ConnectionError::CidsExhausted => false,
    };
    alert.then(|| error.to_string())
}
