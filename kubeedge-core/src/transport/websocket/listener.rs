//! Accepting connections in the cloud.

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Mutex,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_tungstenite::{
    accept_hdr_async_with_config,
    tungstenite::{
        handshake::server::{ErrorResponse, Request, Response},
        http::{HeaderValue, StatusCode, header::SEC_WEBSOCKET_PROTOCOL},
    },
};
use tracing::warn;

use super::{PROTOCOL, connection::WebSocketConnection, limits, socket_like};
use crate::{
    id::NodeName,
    tls,
    transport::{Connection, Listener, Peer, TransportError, handshakes::Handshakes},
};

/// How many connections the kernel keeps until their handshake begins.
const BACKLOG: u32 = 1024;

/// How long to wait when the system gives no socket, which is mostly because there are too many.
const PAUSE: Duration = Duration::from_millis(100);

/// How the cloud accepts connections over WebSocket.
#[derive(Debug, Clone)]
pub struct WebSocketListenerConfig {
    /// How long TLS and the upgrade may take together. 10 s, as a dial may.
    pub handshake_timeout: Duration,
    /// How many handshakes may be under way. 256: each takes tens of KiB and some CPU time.
    pub handshakes_max: usize,
}

impl Default for WebSocketListenerConfig {
    fn default() -> Self {
        Self { handshake_timeout: Duration::from_secs(10), handshakes_max: 256 }
    }
}

/// Accepts connections of nodes over WebSocket.
///
/// Handshakes go on side by side, each with a deadline, so a slow or silent client holds up nobody.
pub struct WebSocketListener {
    listener: TcpListener,
    tls: TlsAcceptor,
    config: WebSocketListenerConfig,
    handshakes: Mutex<Handshakes<WebSocketConnection>>,
}

impl WebSocketListener {
    /// Listens at a TCP address; port 0 lets the system choose. Must be called within a tokio runtime.
    ///
    /// `tls` is what [`tls::server_config`](crate::tls::server_config) builds: it must demand a client certificate.
    ///
    /// # Errors
    /// [`TransportError::Config`] if the address cannot be bound.
    pub fn bind(
        address: SocketAddr,
        tls: Arc<rustls::ServerConfig>,
        config: WebSocketListenerConfig,
    ) -> Result<Self, TransportError> {
        let listener = listen(address)
            .map_err(|error| TransportError::Config(format!("cannot listen on TCP {address}: {error}")))?;
        Ok(Self { listener, tls: tls.into(), config, handshakes: Mutex::default() })
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    // Accepted sockets inherit the send buffer.
    let socket = socket_like(address)?;
    // A restarted cloud listens again at once, though connections of its predecessor linger in the kernel.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[async_trait]
impl Listener for WebSocketListener {
    async fn accept(&self) -> Result<Box<dyn Connection>, TransportError> {
        let mut handshakes = self.handshakes.lock().await;
        loop {
            tokio::select! {
                Some(done) = handshakes.next() => if let Some(connection) = done {
                    return Ok(Box::new(connection));
                },
                accepted = self.listener.accept(), if handshakes.len() < self.config.handshakes_max.max(1) => match accepted {
                    Ok((stream, from)) => {
                        let handshake = handshake(self.tls.clone(), stream, from);
                        handshakes.begin(from, self.config.handshake_timeout, handshake);
                    }
                    Err(error) => {
                        warn!(%error, "a connection could not be accepted");
                        sleep(PAUSE).await;
                    }
                },
            }
        }
    }

    fn local_address(&self) -> String {
        self.listener.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string())
    }
}

impl fmt::Debug for WebSocketListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebSocketListener").field("address", &self.local_address()).finish_non_exhaustive()
    }
}

async fn handshake(
    tls: TlsAcceptor,
    tcp: TcpStream,
    from: SocketAddr,
) -> Result<WebSocketConnection, String> {
    tcp.set_nodelay(true).map_err(|error| error.to_string())?;
    let stream = match tls.accept(tcp).into_fallible().await {
        Ok(stream) => TlsStream::Server(stream),
        Err((error, tcp)) => {
            part(tcp).await;
            return Err(error.to_string());
        }
    };
    let node = identify(&stream);
    #[expect(clippy::result_large_err, reason = "tungstenite's callback has this type")]
    let answer = |request: &Request, response| match &node {
        Ok(_) => agree(request, response),
        Err(reason) => Err(refuse(StatusCode::FORBIDDEN, reason)),
    };
    let upgraded = accept_hdr_async_with_config(stream, answer, Some(limits())).await;
    let (node, ends) = node?;
    let stream = upgraded.map_err(|error| error.to_string())?;
    Ok(WebSocketConnection::new(stream, from, Peer::Node(node), Some(ends)))
}

/// Lets the client read the TLS alert: closing a socket with bytes unread would reset the connection before.
async fn part(mut tcp: TcpStream) {
    let drain = async {
        tcp.shutdown().await?;
        let mut unread = [0; 512];
        while tcp.read(&mut unread).await? > 0 {}
        io::Result::Ok(())
    };
    // Whatever becomes of it, the connection is over.
    drop(timeout(Duration::from_secs(1), drain).await);
}

fn identify(stream: &TlsStream<TcpStream>) -> Result<(NodeName, Duration), String> {
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    tls::node_until(certificate.ok_or("no certificate was shown")?).map_err(|error| tls::explain(&error))
}

#[expect(clippy::result_large_err, reason = "tungstenite's callback has this type")]
fn agree(request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    let offers = request.headers().get_all(SEC_WEBSOCKET_PROTOCOL);
    let mut offers = offers.iter().filter_map(|value| value.to_str().ok()).flat_map(|list| list.split(','));
    if !offers.any(|offer| offer.trim() == PROTOCOL) {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            &format!("this server speaks the sub-protocol {PROTOCOL} only"),
        ));
    }
    response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
    Ok(response)
}

fn refuse(status: StatusCode, reason: &str) -> ErrorResponse {
    let mut response = ErrorResponse::new(Some(reason.to_owned()));
    *response.status_mut() = status;
    response
}
