//! The HTTPS server that nodes ask: `/ca.crt`, `/edge.crt` and `/node/<name>` as KubeEdge has them.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER},
};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use kubeedge_core::{
    id::NodeName,
    tls::{Lifetime, Refusal},
};
use rustls::pki_types::CertificateDer;
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{
    Error, REASON_HEADER, Refused,
    driver::{Driver, since_1970},
    policy::Claim,
    rate::Rate,
};
use crate::accept::accept;

/// Where a node finds all authorities that are trusted, as PEM. KubeEdge has no such path.
const BUNDLE_PATH: &str = "/kubeedge-rs/ca-bundle.pem";

/// How many headers a request may have. KubeEdge's have six.
const HEADERS_MAX: usize = 32;

type Answer = Response<Full<Bytes>>;

#[derive(Debug, Clone)]
pub(super) struct Server {
    driver: Driver,
    acceptor: Acceptor,
    /// For who has shown a token or a certificate that is good.
    joins: Arc<Mutex<Rate>>,
    /// For whoever asks whether a name is taken.
    names: Arc<Mutex<Rate>>,
}

#[derive(Clone)]
struct Acceptor(TlsAcceptor);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

impl Server {
    pub(super) fn new(driver: &Driver) -> Result<Self, Error> {
        let mut tls = driver.tls.asking_server_config()?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let limits = &driver.config.limits;
        let rate = || {
            let rate = Rate::new(limits.requests_per_second, limits.requests_burst, Instant::now());
            Arc::new(Mutex::new(rate))
        };
        let acceptor = Acceptor(Arc::new(tls).into());
        Ok(Self { driver: driver.clone(), acceptor, joins: rate(), names: rate() })
    }

    /// Accepts connections and serves them until `stop`, all in this one future.
    pub(super) async fn run(self, listener: TcpListener, stop: CancellationToken) {
        let at_once = self.driver.config.limits.connections;
        let served = accept(&listener, at_once, "joining", |stream, _| self.clone().connection(stream));
        stop.run_until_cancelled(served).await;
    }

    async fn connection(self, stream: TcpStream) {
        let lasts = self.driver.config.limits.connection_lasts;
        let counts = self.driver.counts();
        match timeout(lasts, self.serve(stream)).await {
            Ok(Ok(())) => {}
            Ok(Err(refused)) => counts.refuse(refused),
            Err(_) => counts.refuse(Refused::TooSlow),
        }
    }

    async fn serve(self, stream: TcpStream) -> Result<(), Refused> {
        let limits = self.driver.config.limits;
        // It only makes answers faster.
        let _ = stream.set_nodelay(true);
        let stream = self.acceptor.0.accept(stream).await.map_err(|error| {
            tracing::debug!(%error, "a handshake for joining failed");
            Refused::Garbled
        })?;
        let chain: Arc<[CertificateDer<'static>]> =
            stream.get_ref().1.peer_certificates().unwrap_or_default().iter().cloned().collect();
        let service = service_fn(move |request| {
            let (server, chain) = (self.clone(), chain.clone());
            async move { Ok::<_, Infallible>(server.answer(request, &chain).await) }
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(limits.connection_lasts)
            // hyper's smallest buffer is 8 KiB.
            .max_buf_size(limits.header_bytes.max(8 << 10))
            .max_headers(HEADERS_MAX);
        http.serve_connection(TokioIo::new(stream), service).await.map_err(|error| {
            if error.is_parse_too_large() {
                Refused::HeaderTooLarge
            } else if error.is_timeout() {
                Refused::TooSlow
            } else {
                Refused::Garbled
            }
        })
    }

    async fn answer(&self, request: Request<Incoming>, chain: &[CertificateDer<'static>]) -> Answer {
        let path = request.uri().path().to_owned();
        let answered = self.route(&path, request, chain).await;
        answered.unwrap_or_else(|refused| {
            tracing::info!(path, reason = refused.as_str(), "a request for joining was refused");
            self.driver.counts().refuse(refused);
            refusal(refused)
        })
    }

    async fn route(
        &self,
        path: &str,
        request: Request<Incoming>,
        chain: &[CertificateDer<'static>],
    ) -> Result<Answer, Refused> {
        let name = path.strip_prefix("/node/").filter(|name| !name.is_empty());
        if name.is_none() && !["/ca.crt", "/edge.crt", BUNDLE_PATH].contains(&path) {
            return Err(Refused::NotFound);
        }
        if request.method() != Method::GET {
            return Err(Refused::Method);
        }
        if let Some(name) = name {
            take_turn(&self.names)?;
            return self.node(name).await;
        }
        match path {
            "/ca.crt" => {
                let der = self.driver.trusted().authority().certificate_der();
                Ok(binary(der.map_err(|_| Refused::Unavailable)?.to_vec()))
            }
            "/edge.crt" => self.edge(request, chain).await,
            _ => Ok(plain(StatusCode::OK, self.driver.trusted().bundle_pem().to_owned())),
        }
    }

    /// Whether a name is taken. `keadm` joins only if this says that it is not, which is no refusal.
    async fn node(&self, name: &str) -> Result<Answer, Refused> {
        let name: NodeName = name.parse().map_err(|_| Refused::NodeName)?;
        Ok(match self.driver.known(&name).await? {
            Some(_) => plain(StatusCode::OK, "Node found".to_owned()),
            None => plain(StatusCode::NOT_FOUND, "Node not found".to_owned()),
        })
    }

    async fn edge(
        &self,
        request: Request<Incoming>,
        chain: &[CertificateDer<'static>],
    ) -> Result<Answer, Refused> {
        let headers = request.headers();
        let node: NodeName =
            text(headers, "NodeName").and_then(|name| name.parse().ok()).ok_or(Refused::NodeName)?;
        check_usage(headers)?;
        let claim = if chain.is_empty() {
            self.driver.verify_token(bearer(headers)?)?
        } else {
            // A certificate that is not good is not made good by a token.
            self.claim_of(chain, &node)?
        };
        let too_long = |length: u64| length > self.driver.config.limits.body_bytes as u64;
        if headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok()).is_some_and(too_long) {
            return Err(Refused::BodyTooLarge);
        }
        take_turn(&self.joins)?;
        self.driver.admit(&node, claim).await?;
        let body = Limited::new(request.into_body(), self.driver.config.limits.body_bytes);
        let body = body.collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() { Refused::BodyTooLarge } else { Refused::Garbled }
        })?;
        let certificate = self.driver.grant(&body.to_bytes(), &node).await?;
        self.driver.counts().grant(claim.is_renewal());
        tracing::info!(%node, renewal = claim.is_renewal(), "a node's certificate was issued");
        Ok(binary(certificate))
    }

    fn claim_of(&self, chain: &[CertificateDer<'static>], node: &NodeName) -> Result<Claim, Refused> {
        let tls = &self.driver.tls;
        let (owner, claim) = match tls.judge(chain, since_1970()) {
            Ok(owner) => (owner, Claim::Certificate),
            Err(Refusal::Expired) => {
                // It must have been good on its last day; whether that is enough is a matter of policy.
                let ended =
                    Lifetime::of(&chain[0]).map_err(|_| Refused::Certificate(Refusal::Malformed))?.not_after;
                let owner = tls.judge(chain, ended).map_err(Refused::Certificate)?;
                (owner, Claim::Expired { ended })
            }
            Err(refusal) => return Err(Refused::Certificate(refusal)),
        };
        if owner == *node { Ok(claim) } else { Err(Refused::AnotherNode) }
    }
}

fn take_turn(rate: &Mutex<Rate>) -> Result<(), Refused> {
    let taken = rate.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
    if taken { Ok(()) } else { Err(Refused::TooMany) }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Two words, of which the first is not looked at, as in KubeEdge.
fn bearer(headers: &HeaderMap) -> Result<&str, Refused> {
    let value = headers.get(AUTHORIZATION).ok_or(Refused::NoCredentials)?;
    let (_, token) =
        value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or(Refused::TokenMalformed)?;
    if token.is_empty() || token.contains(' ') {
        return Err(Refused::TokenMalformed);
    }
    Ok(token)
}

/// `ExtKeyUsages` is a list of Go's numbers; absent or 2 is a client's.
fn check_usage(headers: &HeaderMap) -> Result<(), Refused> {
    let Some(usages) = headers.get("ExtKeyUsages") else { return Ok(()) };
    match serde_json::from_slice::<Vec<u32>>(usages.as_bytes()) {
        Ok(usages) if usages.iter().all(|usage| *usage == 2) => Ok(()),
        _ => Err(Refused::Usage),
    }
}

fn plain(status: StatusCode, text: String) -> Answer {
    answer(status, "text/plain; charset=utf-8", text.into())
}

fn binary(bytes: Vec<u8>) -> Answer {
    answer(StatusCode::OK, "application/octet-stream", bytes.into())
}

fn answer(status: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// The connection ends with a refusal: what is left of the request is not read.
fn refusal(refused: Refused) -> Answer {
    let mut answer = plain(refused.status(), refused.to_string());
    let headers = answer.headers_mut();
    headers.insert(REASON_HEADER, HeaderValue::from_static(refused.as_str()));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    if matches!(refused, Refused::TooMany | Refused::Unavailable) {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("10"));
    }
    answer
}
