//! Asking the cloud for certificates, as KubeEdge's edge does.

use std::{error::Error as _, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, header::AUTHORIZATION};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use kubeedge_core::{
    id::NodeName,
    join::JoinToken,
    tls::{self, Identity, Refusal, RootCertStore},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self, CertificateError, ClientConfig,
        pki_types::{CertificateDer, ServerName},
    },
};

use super::{Error, Server};

/// The longest answer that is read: a bundle of authorities has some kilobytes.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Where our cloud has all authorities that are trusted.
const BUNDLE_PATH: &str = "/kubeedge-rs/ca-bundle.pem";

struct Answer {
    status: u16,
    reason: String,
    body: Bytes,
}

impl Answer {
    fn granted(self) -> Result<Bytes, Error> {
        if self.status == 200 {
            return Ok(self.body);
        }
        // What somebody else has written is shown without what could confuse a terminal.
        let text = String::from_utf8_lossy(&self.body);
        let text = text.chars().filter(|c| !c.is_control()).take(300).collect();
        Err(Error::Refused { status: self.status, reason: self.reason, text })
    }
}

/// Gets the authority's certificate from a server that is not known yet, and holds it against the token.
pub(super) async fn authority(
    server: &Server,
    token: &JoinToken,
    within: Duration,
) -> Result<Vec<u8>, Error> {
    // The answer is held against the token instead of the server, and nothing secret is sent.
    let anybody = Arc::new(tls::unverified_client_config());
    let answer = ask(server, anybody, request("/ca.crt")?, within).await?;
    let der = answer.granted()?.to_vec();
    if token.is_of(&der) { Ok(der) } else { Err(Error::ForeignAuthority { server: server.to_string() }) }
}

/// Whether there is a node of this name, as `keadm` asks before it joins.
///
/// # Errors
/// If the server does not answer, or says anything else.
pub async fn name_is_taken(
    server: &Server,
    roots: RootCertStore,
    node: &NodeName,
    within: Duration,
) -> Result<bool, Error> {
    let tls = Arc::new(tls::other_client_config(None, roots)?);
    let answer = ask(server, tls, request(&format!("/node/{node}"))?, within).await?;
    match answer.status {
        404 => Ok(false),
        200 => Ok(true),
        _ => answer.granted().map(|_| true),
    }
}

/// Who asks for a certificate.
pub(super) enum Asker<'a> {
    Token(&'a JoinToken),
    Identity(&'a Identity),
}

/// Asks for a certificate; `csr` and the answer are DER.
pub(super) async fn certificate(
    server: &Server,
    roots: RootCertStore,
    node: &NodeName,
    asker: Asker<'_>,
    csr: Vec<u8>,
    within: Duration,
) -> Result<Vec<u8>, Error> {
    let mut request = request("/edge.crt")?;
    let name = HeaderValue::from_str(node.as_str()).map_err(|error| Error::Request(error.to_string()))?;
    request.headers_mut().insert("NodeName", name);
    let identity = match asker {
        Asker::Identity(identity) => Some(identity),
        Asker::Token(token) => {
            let mut bearer = HeaderValue::from_str(&format!("Bearer {}", token.bearer()))
                .map_err(|error| Error::Request(error.to_string()))?;
            bearer.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, bearer);
            None
        }
    };
    *request.body_mut() = Full::new(csr.into());
    let tls = Arc::new(tls::other_client_config(identity, roots)?);
    Ok(ask(server, tls, request, within).await?.granted()?.to_vec())
}

/// Asks which authorities are trusted. `None` if the cloud is KubeEdge's own, which does not say so.
pub(super) async fn bundle(
    server: &Server,
    roots: RootCertStore,
    within: Duration,
) -> Result<Option<String>, Error> {
    let tls = Arc::new(tls::other_client_config(None, roots)?);
    let answer = ask(server, tls, request(BUNDLE_PATH)?, within).await?;
    if answer.status == 404 {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&answer.granted()?).into_owned()))
}

fn request(path: &str) -> Result<Request<Full<Bytes>>, Error> {
    // KubeEdge's server takes the request for a certificate as the body of a GET.
    Request::get(path).body(Full::default()).map_err(|error| Error::Request(error.to_string()))
}

async fn ask(
    server: &Server,
    tls: Arc<ClientConfig>,
    request: Request<Full<Bytes>>,
    within: Duration,
) -> Result<Answer, Error> {
    match timeout(within, exchange(server, tls, request)).await {
        Ok(answered) => answered,
        Err(_) => Err(unreachable(server, format!("no answer within {within:?}"))),
    }
}

async fn exchange(
    server: &Server,
    tls: Arc<ClientConfig>,
    mut request: Request<Full<Bytes>>,
) -> Result<Answer, Error> {
    let stream = connect(server, tls).await?;
    let failed = |error: hyper::Error| {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        unreachable(server, format!("{error}{cause}"))
    };
    let host = HeaderValue::from_str(&server.to_string())
        .map_err(|_| unreachable(server, "it is no host and port".to_owned()))?;
    request.headers_mut().insert(http::header::HOST, host);
    let mut http = http1::Builder::new();
    http.max_buf_size(32 << 10);
    let (mut sender, connection) = http.handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| unreachable(server, format!("its answer is broken or too long: {error}")))?;
        let reason = head.headers.get("kubeedge-reason").and_then(|reason| reason.to_str().ok());
        let reason = reason.unwrap_or("no reason given").to_owned();
        Ok(Answer { status: head.status.as_u16(), reason, body: body.to_bytes() })
    };
    tokio::pin!(connection);
    tokio::pin!(exchange);
    tokio::select! {
        answer = exchange.as_mut() => return answer,
        // The connection may end with its last byte, and the answer is there all the same.
        _ = connection.as_mut() => {}
    }
    exchange.await
}

async fn connect(server: &Server, tls: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, Error> {
    let name =
        ServerName::try_from(server.host.clone()).map_err(|error| unreachable(server, error.to_string()))?;
    let stream = TcpStream::connect((server.host.as_str(), server.port))
        .await
        .map_err(|error| unreachable(server, error.to_string()))?;
    TlsConnector::from(tls).connect(name, stream).await.map_err(|error| refused(server, &error))
}

/// Says which of the things that can be wrong with a server it is.
fn refused(server: &Server, error: &std::io::Error) -> Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(rejected @ rustls::Error::InvalidCertificate(reason)) = inner else {
        return unreachable(server, format!("TLS: {error}"));
    };
    if let CertificateError::NotValidForNameContext { presented, .. } = reason {
        return Error::NameMismatch { wanted: server.host.clone(), have: presented.clone() };
    }
    let refusal = Refusal::of(rejected, &CertificateDer::from(Vec::new()));
    Error::ServerRefused { server: server.to_string(), refusal }
}

fn unreachable(server: &Server, reason: String) -> Error {
    Error::Unreachable { server: server.to_string(), reason }
}
