//! The API over TLS, for `kubectl`.

use std::{convert::Infallible, fmt, io, sync::Arc, time::Duration};

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use http_body_util::Empty;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use ring::{
    digest,
    rand::{SecureRandom as _, SystemRandom},
};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use super::{ApiServer, ApiService, Body, failure::Failure, respond, streams::Afterwards};

/// Paths that tell nothing but that the server is there, and which: probes have no token.
const OPEN_PATHS: [&str; 4] = ["/healthz", "/livez", "/readyz", "/version"];

/// How long requests under way may take when the server stops; watches are cut then.
const STOP_GRACE: Duration = Duration::from_millis(500);

/// The bearer token that a client must present. It is kept as a digest, and does not print.
#[derive(Clone)]
pub struct Token(digest::Digest);

impl Token {
    /// Takes the token.
    pub fn new(token: &str) -> Self {
        Self(digest::digest(&digest::SHA256, token.as_bytes()))
    }

    /// Draws a token: 256 random bits in hexadecimal digits. Gives it as text, since it is shown only here.
    ///
    /// # Errors
    /// If the system gives no randomness.
    pub fn random() -> io::Result<String> {
        let mut bits = [0; 32];
        SystemRandom::new()
            .fill(&mut bits)
            .map_err(|_| io::Error::other("the system gives no randomness"))?;
        Ok(bits.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Whether the request carries the token. Digests are compared, and each bit of them, so that the time
    /// it takes tells nothing of the token.
    fn admits(&self, headers: &HeaderMap) -> bool {
        let presented = headers.get(header::AUTHORIZATION).map_or(&[][..], |value| value.as_bytes());
        let Some(presented) = presented.strip_prefix(b"Bearer ") else { return false };
        let presented = digest::digest(&digest::SHA256, presented);
        let differences = self.0.as_ref().iter().zip(presented.as_ref()).map(|(a, b)| a ^ b);
        differences.fold(0, |all, difference| all | difference) == 0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// Where the API listens, and to whom.
#[derive(Debug)]
pub struct Listener {
    /// The socket.
    pub socket: TcpListener,
    /// The serving certificate. The protocol is HTTP/1.1, so that ALPN must name that or nothing.
    pub tls: Arc<rustls::ServerConfig>,
    /// What a client must present. The token opens everything; without it, only health and version.
    pub token: Token,
}

impl ApiServer {
    /// Serves the API, without a way to nodes, until `stop`.
    ///
    /// # Errors
    /// If the socket can no longer accept connections.
    pub async fn serve(&self, listener: Listener, stop: CancellationToken) -> io::Result<()> {
        serve(self.service(), listener, stop).await
    }
}

/// Serves `service` until `stop`.
pub(super) async fn serve(
    service: ApiService,
    listener: Listener,
    stop: CancellationToken,
) -> io::Result<()> {
    let Listener { socket, tls, token } = listener;
    let permits = Arc::new(Semaphore::new(service.inner.config.connections_max.max(1)));
    let (acceptor, token) = (TlsAcceptor::from(tls), Arc::new(token));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept(&socket, &permits) => accepted,
        };
        match accepted {
            Ok((stream, permit)) => {
                let connection =
                    Connection { service: service.clone(), token: token.clone(), stop: stop.clone() };
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    connection.run(stream, acceptor).await;
                    drop(permit);
                });
            }
            // Out of descriptors, or the peer is gone already: the next one may do better.
            Err(error) => {
                tracing::warn!(%error, "a connection to the API cannot be accepted");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    let _ = timeout(STOP_GRACE * 2, async { while connections.join_next().await.is_some() {} }).await;
    Ok(())
}

async fn accept(
    socket: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = socket.accept().await?;
    Ok((stream, permit))
}

struct Connection {
    service: ApiService,
    token: Arc<Token>,
    stop: CancellationToken,
}

impl Connection {
    async fn run(self, stream: TcpStream, acceptor: TlsAcceptor) {
        let config = &self.service.inner.config;
        let (header_timeout, lifetime) = (config.header_timeout, config.watch_timeout * 2);
        let _ = stream.set_nodelay(true);
        let Ok(Ok(stream)) = timeout(header_timeout, acceptor.accept(stream)).await else { return };
        let (service, token) = (self.service, self.token);
        let afterwards = Afterwards::default();
        let place = afterwards.clone();
        let service = service_fn(move |mut request| {
            request.extensions_mut().insert(place.clone());
            answer(service.clone(), token.clone(), request)
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(header_timeout).max_buf_size(64 << 10);
        let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
        tokio::pin!(connection);
        // A client that stops reading holds its connection until the lifetime ends, and no longer.
        tokio::select! {
            ended = connection.as_mut() => {
                trace(ended);
                if let Some(next) = afterwards.take() {
                    self.stop.run_until_cancelled(next).await;
                }
                return;
            }
            () = self.stop.cancelled() => {}
            () = sleep(lifetime) => {}
        }
        connection.as_mut().graceful_shutdown();
        if let Ok(ended) = timeout(STOP_GRACE, connection).await {
            trace(ended);
        }
    }
}

fn trace(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::trace!(%error, "a connection to the API broke");
    }
}

/// Answers the request. Bodies are read only from who has the token: others cannot fill the memory with them.
async fn answer<B>(
    mut service: ApiService,
    token: Arc<Token>,
    request: Request<B>,
) -> Result<Response<Body>, Infallible>
where
    B: http_body::Body + Send + 'static,
    B::Data: Buf + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let reads = [Method::GET, Method::HEAD].contains(request.method());
    if reads && OPEN_PATHS.contains(&request.uri().path()) {
        return service.call(request.map(|_| Empty::<Bytes>::new())).await;
    }
    if !token.admits(request.headers()) {
        let mut refusal = respond::failure(&Failure::unauthorized());
        // What is left of the body is not read either, not even to get to a next request behind it.
        refusal.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        return Ok(refusal);
    }
    service.call(request).await
}

/// A kubeconfig with which `kubectl` reaches the API at `server`, such as `https://192.0.2.1:6443`.
///
/// `ca_pem` is the certificate, or the CA of the certificate, that the listener serves. The text holds the
/// token: it belongs in a file that only its owner reads.
pub fn kubeconfig(server: &str, ca_pem: &str, token: &str) -> String {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "kubeedge", "cluster": {
            "server": server, "certificate-authority-data": k8s_openapi::ByteString(ca_pem.into()),
        }}],
        "users": [{ "name": "admin", "user": { "token": token } }],
        "contexts": [{ "name": "kubeedge", "context": { "cluster": "kubeedge", "user": "admin" } }],
        "current-context": "kubeedge",
    });
    // JSON is YAML.
    format!("{config:#}\n")
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;
    use crate::standalone::Config;

    /// What is told to a request with this token, or none, whose body never ends.
    async fn told(method: Method, path: &str, token: Option<&str>) -> Response<Body> {
        let endless = futures::stream::poll_fn(|_| -> std::task::Poll<Option<io::Result<_>>> {
            std::task::Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from(vec![b' '; 64 << 10])))))
        });
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(StreamBody::new(endless)).unwrap();
        let api = ApiServer::open(None, Config::default()).await.unwrap();
        answer(api.service(), Arc::new(Token::new("secret")), request).await.unwrap()
    }

    #[tokio::test]
    async fn a_body_is_read_only_from_who_has_the_token() {
        for method in [Method::GET, Method::HEAD] {
            for path in OPEN_PATHS {
                assert_eq!(told(method.clone(), path, None).await.status(), 200, "{method} {path}");
            }
        }
        let body = told(Method::GET, "/healthz", Some("wrong")).await.into_body().collect().await.unwrap();
        assert_eq!(body.to_bytes(), "ok");
        let api = "/api/v1/namespaces";
        for (method, path, token) in [
            (Method::POST, "/healthz", None),
            (Method::PUT, "/version", Some("wrong")),
            (Method::GET, api, None),
            (Method::POST, api, Some("wrong")),
        ] {
            let refusal = told(method, path, token).await;
            assert_eq!(refusal.status(), 401, "{path}");
            assert_eq!(refusal.headers()[header::CONNECTION], "close", "{path}");
        }
        // With the token the body is read, up to what a body may be.
        assert_eq!(told(Method::POST, api, Some("secret")).await.status(), 413);
    }

    #[test]
    fn only_the_whole_token_is_admitted_and_it_does_not_print() {
        let token = Token::new("secret");
        let presented = |text: &str| HeaderMap::from_iter([(header::AUTHORIZATION, text.parse().unwrap())]);
        assert!(token.admits(&presented("Bearer secret")));
        for wrong in ["Bearer secre", "Bearer secret ", "Bearer ", "Basic secret", "secret"] {
            assert!(!token.admits(&presented(wrong)), "{wrong}");
        }
        assert!(!token.admits(&HeaderMap::new()));
        assert_eq!(format!("{token:?}"), "Token");
    }

    #[test]
    fn a_kubeconfig_names_the_server_its_certificate_and_the_token() {
        let config: serde_json::Value = serde_json::from_str(&kubeconfig("https://h:1", "PEM", "t")).unwrap();
        assert_eq!(config["clusters"][0]["cluster"]["server"], "https://h:1");
        assert_eq!(config["clusters"][0]["cluster"]["certificate-authority-data"], "UEVN");
        assert_eq!(config["users"][0]["user"]["token"], "t");
    }
}
