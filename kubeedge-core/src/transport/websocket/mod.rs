//! Connections over WebSocket (RFC 6455) and TLS: the way through where UDP is blocked.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::{path::Path, sync::Arc};
//! use kubeedge_core::{tls, transport::{Transport, websocket::{WebSocketConfig, WebSocketTransport}}};
//!
//! let identity = tls::Identity::from_files(Path::new("server.crt"), Path::new("server.key"))?;
//! let roots = tls::roots_from_file(Path::new("rootCA.crt"))?;
//! let config = WebSocketConfig::new("cloud.example:10001", Arc::new(tls::client_config(&identity, roots)?));
//! let connection = WebSocketTransport::new(config)?.connect().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # On the wire
//! The sub-protocol is `kubeedge.link.v1`; both sides demand it. A frame travels as one binary message, or as
//! several of 16 KiB when it is longer, so that an urgent frame passes between the pieces of a long one. A
//! message is one byte, the lane's number plus 128 if more of the frame follows, and then the bytes.
//! The lanes share one TCP stream, so here a lost packet holds up all of them; that is why QUIC is preferred.
//!
//! # Memory
//! An idle connection takes some 12 KiB beside the kernel's: one task, 4 KiB for reading, and what TLS keeps. `recv` reads the socket directly:
//! what nobody receives waits in the kernel, then at the sender. At worst a peer can make this side hold one
//! frame that is being put together per lane. The kernel's send buffer is kept small as well, since an urgent
//! frame cannot pass what is in it already.

mod connection;
mod listener;
#[cfg(test)]
mod tests;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    client_async_with_config,
    tungstenite::{ClientRequestBuilder, Error as WsError, http::Uri, protocol::WebSocketConfig as WsConfig},
};

use self::connection::{FRAGMENT, WebSocketConnection};
pub use self::listener::{WebSocketListener, WebSocketListenerConfig};
use super::{
    Connection, Peer, Transport, TransportError,
    address::{Address, Attempts},
};

/// The WebSocket sub-protocol that both sides demand.
pub const PROTOCOL: &str = "kubeedge.link.v1";

/// The kernel's send buffer: as much as may be under way at 100 ms and 2.5 MB/s, and not more.
const SEND_BUFFER: u32 = 256 << 10;

/// How an edge dials the cloud over WebSocket.
#[derive(Debug, Clone)]
pub struct WebSocketConfig {
    /// The cloud as `host:port`; the host is what its certificate must be issued for.
    pub endpoint: String,
    /// The node's certificate and whom it trusts, as [`tls::client_config`](crate::tls::client_config) builds it.
    pub tls: Arc<rustls::ClientConfig>,
    /// The path in the HTTP request, for proxies that tell services apart by it. `/`.
    pub path: String,
    /// How long a dial may take, over all addresses of the host. 10 s: three handshakes of a few round trips.
    pub dial_timeout: Duration,
}

impl WebSocketConfig {
    /// Dials `endpoint` with the defaults of the fields.
    pub fn new(endpoint: impl Into<String>, tls: Arc<rustls::ClientConfig>) -> Self {
        Self { endpoint: endpoint.into(), tls, path: "/".to_owned(), dial_timeout: Duration::from_secs(10) }
    }
}

/// Dials the cloud over WebSocket.
#[derive(Debug, Clone)]
pub struct WebSocketTransport {
    config: WebSocketConfig,
    address: Address,
    uri: Uri,
}

impl WebSocketTransport {
    /// Checks the configuration; nothing is dialled yet.
    ///
    /// # Errors
    /// [`TransportError::Config`] if the endpoint is no `host:port`, or the path no path.
    pub fn new(config: WebSocketConfig) -> Result<Self, TransportError> {
        let address = Address::parse(&config.endpoint)?;
        let uri = Uri::builder()
            .scheme("wss")
            .authority(config.endpoint.as_str())
            .path_and_query(config.path.as_str())
            .build()
            .map_err(|error| TransportError::Config(format!("{:?} is no path: {error}", config.path)))?;
        Ok(Self { config, address, uri })
    }

    async fn dial(&self, server: SocketAddr) -> Result<WebSocketConnection, TransportError> {
        let unreachable = |source| TransportError::Unreachable {
            to: server.to_string(),
            within: self.config.dial_timeout,
            source,
        };
        let refused = |reason| TransportError::Refused { peer: server.to_string(), reason };
        let failed = |error: io::Error| match tls_refusal(&error) {
            Some(reason) => refused(reason),
            None => unreachable(error.into()),
        };
        let tcp = connect_tcp(server).await.map_err(failed)?;
        let connector = TlsConnector::from(self.config.tls.clone());
        let tls = connector.connect(self.address.server_name()?, tcp).await.map_err(failed)?;
        let request = ClientRequestBuilder::new(self.uri.clone()).with_sub_protocol(PROTOCOL);
        let upgraded = client_async_with_config(request, tls.into(), Some(limits())).await;
        let (stream, _response) = upgraded.map_err(|error| {
            if let WsError::Io(error) = error {
                return failed(error);
            }
            // The peer is there and speaks, but says no, or speaks something else.
            refused(if let WsError::Http(response) = error {
                http_refusal(&response)
            } else {
                error.to_string()
            })
        })?;
        Ok(WebSocketConnection::new(stream, server, Peer::Cloud, None))
    }
}

#[async_trait]
impl Transport for WebSocketTransport {
    fn name(&self) -> &'static str {
        "websocket"
    }

    async fn connect(&self) -> Result<Box<dyn Connection>, TransportError> {
        let mut attempts = Attempts::begin(&self.address, self.config.dial_timeout).await?;
        while let Some(attempt) = attempts.next() {
            let outcome = timeout(attempt.within, self.dial(attempt.server)).await;
            if let Some(connection) = attempts.judge(attempt.server, outcome) {
                return Ok(Box::new(connection));
            }
        }
        Err(attempts.failed())
    }
}

async fn connect_tcp(server: SocketAddr) -> io::Result<TcpStream> {
    let stream = socket_like(server)?.connect(server).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn socket_like(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_send_buffer_size(SEND_BUFFER)?;
    Ok(socket)
}

/// What a message may take. Tungstenite allocates its read buffer at once, for each connection.
fn limits() -> WsConfig {
    WsConfig::default()
        .read_buffer_size(4 << 10)
        .write_buffer_size(0)
        .max_write_buffer_size(2 * FRAGMENT)
        .max_message_size(Some(1 + FRAGMENT))
        .max_frame_size(Some(1 + FRAGMENT))
}

/// The TLS error inside an I/O error: one of the sides does not accept the other.
fn tls_refusal(error: &io::Error) -> Option<String> {
    Some(error.get_ref()?.downcast_ref::<rustls::Error>()?.to_string())
}

fn http_refusal(response: &tokio_tungstenite::tungstenite::http::Response<Option<Vec<u8>>>) -> String {
    let body = response.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
    let told: String = body.trim().chars().take(200).collect();
    format!("HTTP {}: {told}", response.status())
}
