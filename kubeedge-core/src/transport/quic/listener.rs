//! Accepting connections in the cloud.

use std::{
    any::Any,
    fmt,
    future::poll_fn,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use quinn_proto::Incoming;
use rustls_pki_types::CertificateDer;
use tokio::sync::Mutex;

use super::{
    ALPN, ResetSecret, STREAM_RECEIVE_WINDOW, accepted::AcceptedConnection, endpoint::Endpoint,
    reset::endpoint_config, session::SessionConfig, transport_config,
};
use crate::{
    tls,
    transport::{Connection, Listener, Peer, TransportError, handshakes::Handshakes},
};

/// How many connection attempts wait before handshakes begin; more are turned away by QUIC itself.
const BACKLOG: usize = 1024;

/// How many bytes of one attempt, and of all, are kept until its handshake begins.
const BACKLOG_BYTES: (u64, u64) = (64 << 10, 16 << 20);

/// How the cloud accepts connections over QUIC.
#[derive(Debug, Clone)]
pub struct QuicListenerConfig {
    /// How long a handshake may take. 10 s, as a dial may.
    pub handshake_timeout: Duration,
    /// How many handshakes may be under way. 128: each takes tens of KiB and some CPU time.
    pub handshakes_max: usize,
    /// After how long without a packet a connection is over. 60 s, as for the edge; the shorter of both counts.
    pub idle_timeout: Duration,
    /// Whether the kernel splits packets (GSO). Off: it saves CPU time where much is sent to few, and some network hardware
    /// accepts it and then fails to send.
    pub segmentation_offload: bool,
    /// What connection resets are signed with. With a secret that stays the same, edges notice a restart of the
    /// cloud with their next packet; without one, only when the link's pings stay unanswered.
    pub reset_secret: Option<ResetSecret>,
}

impl Default for QuicListenerConfig {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            handshakes_max: 128,
            idle_timeout: Duration::from_secs(60),
            segmentation_offload: false,
            reset_secret: None,
        }
    }
}

/// Accepts connections of nodes over QUIC.
///
/// Handshakes go on side by side, each with a deadline, so a slow or silent client holds up nobody. When a
/// quarter of the places is taken, clients have to prove their address first (RFC 9000 §8.1.2), so that forged
/// addresses cannot take the rest.
pub struct QuicListener {
    endpoint: Arc<Endpoint>,
    config: QuicListenerConfig,
    handshakes: Mutex<Handshakes<AcceptedConnection>>,
}

impl QuicListener {
    /// Listens at a UDP address; port 0 lets the system choose.
    ///
    /// `tls` is what [`tls::server_config`](crate::tls::server_config) builds: it must demand a client certificate.
    ///
    /// # Errors
    /// [`TransportError::Config`] if the address cannot be bound or the TLS configuration does not allow QUIC.
    pub fn bind(
        address: SocketAddr,
        tls: Arc<rustls::ServerConfig>,
        config: QuicListenerConfig,
    ) -> Result<Self, TransportError> {
        let mut tls = (*tls).clone();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        // QUIC knows no limit to early data but none and all; none, since it could be replayed.
        tls.max_early_data_size = 0;
        let crypto = SessionConfig::new(Arc::new(tls)).map_err(|error| {
            TransportError::Config(format!("the TLS configuration does not allow QUIC: {error}"))
        })?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        server
            .transport_config(Arc::new(transport_config(
                config.idle_timeout,
                config.segmentation_offload,
                STREAM_RECEIVE_WINDOW,
            )?))
            .migration(true)
            .max_incoming(BACKLOG)
            .incoming_buffer_size(BACKLOG_BYTES.0)
            .incoming_buffer_size_total(BACKLOG_BYTES.1);
        let endpoint = UdpSocket::bind(address)
            .and_then(|socket| {
                let endpoint = endpoint_config(config.reset_secret.clone());
                Endpoint::new(endpoint, server, socket)
            })
            .map_err(|error| TransportError::Config(format!("cannot listen on UDP {address}: {error}")))?;
        Ok(Self { endpoint: Arc::new(endpoint), config, handshakes: Mutex::default() })
    }

    fn begin(&self, incoming: Incoming, handshakes: &mut Handshakes<AcceptedConnection>) {
        let crowded = handshakes.len() >= self.config.handshakes_max / 4;
        if crowded && !incoming.remote_address_validated() && incoming.may_retry() {
            return self.endpoint.retry(incoming);
        }
        let from = incoming.remote_address();
        let handshake = AcceptedConnection::shake_hands(self.endpoint.clone(), incoming, identify);
        handshakes.begin(from, self.config.handshake_timeout, handshake);
    }
}

#[async_trait]
impl Listener for QuicListener {
    async fn accept(&self) -> Result<Box<dyn Connection>, TransportError> {
        let mut handshakes = self.handshakes.lock().await;
        loop {
            tokio::select! {
                Some(done) = handshakes.next() => if let Some(connection) = done {
                    return Ok(Box::new(connection));
                },
                incoming = poll_fn(|cx| self.endpoint.poll_accept(cx)),
                    if handshakes.len() < self.config.handshakes_max.max(1) =>
                {
                    let gone = |error| TransportError::Closed(format!("the UDP socket has failed: {error}"));
                    self.begin(incoming.map_err(gone)?, &mut handshakes);
                }
            }
        }
    }

    fn local_address(&self) -> String {
        self.endpoint.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string())
    }
}

impl fmt::Debug for QuicListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicListener").field("address", &self.local_address()).finish_non_exhaustive()
    }
}

/// The node that a client's certificate names, and when that certificate ends.
fn identify(identity: Option<Box<dyn Any>>) -> Result<(Peer, Duration), String> {
    let chain = identity.and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
    let certificate = chain.as_ref().and_then(|chain| chain.first()).ok_or("no certificate was shown")?;
    let (node, ends) = tls::node_until(certificate).map_err(|error| tls::explain(&error))?;
    Ok((Peer::Node(node), ends))
}
