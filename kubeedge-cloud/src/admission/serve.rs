//! Takes the API server's questions over HTTPS.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use kube::{Client, core::params::ListParams};
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsAcceptor;

use super::{
    Config, Listener,
    review::{Around, Question, Review},
};
use crate::accept::accept;

/// After so long a connection is closed, so that a client which is silent does not hold its place for ever; the API server
/// opens another.
const CONNECTION_LASTS: Duration = Duration::from_secs(300);

/// Rules and RuleEndpoints are looked at in pages of so many.
const PAGE: u32 = 500;

type Answer = Response<Full<Bytes>>;

/// Accepts connections and serves them, all in this one future.
pub(super) async fn run(config: Arc<Config>, listener: Listener, client: Client) {
    let Listener { socket, tls } = listener;
    let server = Server { config, client, acceptor: TlsAcceptor::from(tls) };
    let at_once = server.config.connections_max;
    accept(&socket, at_once, "the admission webhook", |stream, _| server.serve(stream)).await;
}

struct Server {
    config: Arc<Config>,
    client: Client,
    acceptor: TlsAcceptor,
}

impl Server {
    async fn serve(&self, stream: TcpStream) {
        let patience = self.config.request_timeout;
        let Ok(Ok(stream)) = timeout(patience, self.acceptor.accept(stream)).await else { return };
        let service = service_fn(|request| async move { Ok::<_, Infallible>(self.answer(request).await) });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(patience)
            .max_buf_size(64 << 10)
            .serve_connection(TokioIo::new(stream), service);
        if let Ok(Err(error)) = timeout(CONNECTION_LASTS, connection).await {
            tracing::debug!(%error, "a connection to the admission webhook ended");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        if head.uri.path() == "/healthz" {
            return text(StatusCode::OK, "ok");
        }
        let Some(question) = Question::of(head.uri.path()) else {
            return text(StatusCode::NOT_FOUND, "there is no such webhook");
        };
        if head.method != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "an AdmissionReview is posted");
        }
        let given =
            head.headers.get(header::CONTENT_TYPE).and_then(|given| given.to_str().ok()).unwrap_or("");
        if given.split(';').next().map(str::trim) != Some("application/json") {
            return text(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the content type must be application/json");
        }
        let body = match read(body, self.config.body_bytes_max, self.config.request_timeout).await {
            Ok(body) => body,
            Err(refusal) => return refusal,
        };
        let review = match Review::read(&body) {
            Ok(review) => review,
            Err(why) => return text(StatusCode::BAD_REQUEST, &why),
        };
        let answer = if review.needs_around(question) {
            match timeout(self.config.lookup_timeout, self.around(&review.request.namespace)).await {
                Ok(Ok(around)) => review.answer(question, &around),
                Ok(Err(error)) => review.unknown(&format!("the namespace's rules cannot be read: {error}")),
                Err(_) => review.unknown("the namespace's rules cannot be read in time"),
            }
        } else {
            review.answer(question, &Around::default())
        };
        let mut response = Response::new(Full::from(answer.to_string()));
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        response
    }

    async fn around(&self, namespace: &str) -> Result<Around, kube::Error> {
        Ok(Around {
            endpoints: self.list(namespace, "ruleendpoints").await?,
            rules: self.list(namespace, "rules").await?,
        })
    }

    async fn list(&self, namespace: &str, plural: &str) -> Result<Vec<Value>, kube::Error> {
        let path = format!("/apis/rules.kubeedge.io/v1/namespaces/{namespace}/{plural}");
        let mut params = ListParams { limit: Some(PAGE), ..ListParams::default() };
        let mut all = Vec::new();
        loop {
            let request = kube::core::Request::new(&path).list(&params).map_err(kube::Error::BuildRequest)?;
            let mut page: Value = self.client.request(request).await?;
            if let Some(items) = page["items"].as_array_mut() {
                all.append(items);
            }
            params.continue_token =
                page["metadata"]["continue"].as_str().filter(|token| !token.is_empty()).map(str::to_owned);
            if params.continue_token.is_none() {
                return Ok(all);
            }
        }
    }
}

/// Reads a body, at most so much of it and for so long.
async fn read<B>(body: B, most: usize, patience: Duration) -> Result<Bytes, Answer>
where
    B: http_body::Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match timeout(patience, Limited::new(body, most).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(text(StatusCode::PAYLOAD_TOO_LARGE, &format!("the body is longer than {most} bytes")))
        }
        Ok(Err(error)) => Err(text(StatusCode::BAD_REQUEST, &format!("the body cannot be read: {error}"))),
        Err(_) => Err(text(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")),
    }
}

/// A refusal ends its connection, so that what is left of a body is not read either.
fn text(status: StatusCode, message: &str) -> Answer {
    let mut response = Response::new(Full::from(message.to_owned()));
    *response.status_mut() = status;
    if !status.is_success() {
        response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    }
    response
}
