//! Posts one message to an HTTP server.

use std::{pin::pin, sync::Arc};

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, pki_types::ServerName},
};

use super::{
    Config,
    state::{Job, Outcome},
};

/// How much of a failure's body is told in the status of the rule.
const TOLD: usize = 256;

/// Posts the message, as KubeEdge does: the payload as it is, and the node in a header.
pub(super) async fn deliver(job: &Job, config: &Config) -> Outcome {
    let deadline = config.target_timeout;
    let Ok(uri) = job.url.parse::<Uri>() else {
        return Outcome::Refused(format!("{:?} is not a URL", job.url));
    };
    let tls = match (uri.scheme_str(), &config.target_tls) {
        (Some("http"), _) => None,
        (Some("https"), Some(tls)) => Some(tls.clone()),
        (Some("https"), None) => {
            return Outcome::Refused(format!("{}: no authority is configured for https", job.url));
        }
        (Some(_) | None, _) => return Outcome::Refused(format!("{} is neither http nor https", job.url)),
    };
    match timeout(deadline, post(&uri, job, tls)).await {
        Err(_) => Outcome::Retry(format!("{}: no answer within {deadline:?}", job.url)),
        Ok(Err(error)) => Outcome::Retry(format!("{}: {error}", job.url)),
        Ok(Ok((status, _))) if status.is_success() => Outcome::Delivered,
        Ok(Ok((status, body))) => {
            let why = format!("{} answered {status}: {body}", job.url);
            // What a server says of the message itself it would say again.
            let passes = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
            if status.is_client_error() && !passes { Outcome::Refused(why) } else { Outcome::Retry(why) }
        }
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn post(
    uri: &Uri,
    job: &Job,
    tls: Option<Arc<ClientConfig>>,
) -> Result<(StatusCode, String), BoxError> {
    let host = uri.host().ok_or("the URL has no host")?.trim_matches(['[', ']']);
    let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
    let socket = TcpStream::connect((host, port)).await?;
    match tls {
        None => post_over(socket, uri, job).await,
        Some(tls) => {
            let name = ServerName::try_from(host.to_owned())?;
            post_over(TlsConnector::from(tls).connect(name, socket).await?, uri, job).await
        }
    }
}

async fn post_over(
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    uri: &Uri,
    job: &Job,
) -> Result<(StatusCode, String), BoxError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
    let answered = async {
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let request = Request::post(path)
            .header(header::HOST, authority)
            .header("NodeName", job.lane.0.as_str())
            .header("Topic", header::HeaderValue::from_str(&job.publish.topic).unwrap_or(NO_TEXT))
            .header("Message-Id", format!("{:016x}-{}", job.id.run, job.id.number))
            .body(Full::new(job.publish.payload.clone()))?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), TOLD).collect().await;
        let body = body.map_or(Bytes::new(), |body| body.to_bytes());
        Ok((status, String::from_utf8_lossy(&body).trim().to_owned()))
    };
    let mut answered = pin!(answered);
    tokio::select! {
        answered = &mut answered => answered,
        // The connection has to be driven. It may end with the answer, before that has been looked at.
        _ = connection => answered.await,
    }
}

/// In place of a topic that has characters which no header may have.
const NO_TEXT: header::HeaderValue = header::HeaderValue::from_static("?");
