//! Takes requests of applications in the cloud, and gives them to nodes.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request as HttpRequest, Response as HttpResponse, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use kubeedge_core::{
    message::{Publish, Request, Response, ServiceRequest, ToNode},
    pipe::{CallError, Caller},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};

use super::{
    Config,
    rules::{Downward, Name, Rules},
};
use crate::accept::accept;

/// How a request ended, for the counters of its rule.
pub(super) type Ended = (Name, Option<String>);

/// How long a client may take for the head of a request.
const HEAD_DEADLINE: Duration = Duration::from_secs(15);

/// Header fields that belong to one connection, or that the node's client writes itself.
const NOT_PASSED_ON: [HeaderName; 6] = [
    header::CONNECTION,
    header::HOST,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::TE,
];

/// What requests are answered with.
#[derive(Clone)]
pub(super) struct Rest {
    pub(super) config: Arc<Config>,
    pub(super) rules: watch::Receiver<Arc<Rules>>,
    pub(super) requests: Caller<ToNode<Request>, Response>,
    pub(super) ended: mpsc::Sender<Ended>,
}

type Answer = HttpResponse<Full<Bytes>>;

impl Rest {
    /// Accepts connections and serves them, all in this one future.
    pub(super) async fn run(self, listener: TcpListener) {
        accept(&listener, self.config.requests_max, "the router", |socket, _| self.serve(socket)).await;
    }

    async fn serve(&self, socket: TcpStream) {
        let service = service_fn(|request| async move { Ok::<_, Infallible>(self.answer(request).await) });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_DEADLINE)
            .serve_connection(TokioIo::new(socket), service);
        if let Err(error) = served.await {
            tracing::debug!(%error, "a connection to the router ended");
        }
    }

    async fn answer(&self, request: HttpRequest<Incoming>) -> Answer {
        let rules = self.rules.borrow().clone();
        let path = request.uri().path().to_owned();
        let meant = match rules.of_request(&path) {
            Ok(meant) => meant,
            Err(error) => return text(StatusCode::NOT_FOUND, format!("Request error: {error}")),
        };
        let (head, body) = request.into_parts();
        let body = match self.body(body).await {
            Ok(body) => body,
            Err(answer) => return answer,
        };
        let question = match meant.target {
            Downward::Topic(topic) => Request::Publish(Publish { topic, payload: body }),
            Downward::Service { port, path } => {
                let path = head.uri.query().map_or(path.clone(), |query| format!("{path}?{query}"));
                let headers = head.headers.iter().filter(|(name, _)| !NOT_PASSED_ON.contains(name));
                let headers = headers
                    .filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())));
                let (headers, method) = (headers.collect(), head.method.to_string());
                Request::Service(ServiceRequest { port, method, path, headers, body })
            }
        };
        let asked =
            self.requests.call(ToNode { node: meant.node, message: question }, self.config.rest_timeout);
        let (answer, failure) = answer_of(asked.await);
        // A counter that is missed when very many end at once is no loss worth waiting for.
        let _ = self.ended.try_send((meant.rule, failure));
        answer
    }

    async fn body(&self, body: Incoming) -> Result<Bytes, Answer> {
        let most = self.config.body_bytes_max;
        let read = tokio::time::timeout(self.config.rest_timeout, Limited::new(body, most).collect()).await;
        match read {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                Err(text(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is longer than {most} bytes")))
            }
            Ok(Err(error)) => Err(text(StatusCode::BAD_REQUEST, format!("the body cannot be read: {error}"))),
            Err(_) => Err(text(StatusCode::REQUEST_TIMEOUT, "the body did not come in time".to_owned())),
        }
    }
}

fn answer_of(answered: Result<Response, CallError>) -> (Answer, Option<String>) {
    match answered {
        Ok(Response::Published) => (text(StatusCode::OK, "message delivered".to_owned()), None),
        Ok(Response::Service(service)) => {
            let status = StatusCode::from_u16(service.status).unwrap_or(StatusCode::BAD_GATEWAY);
            let mut answer = HttpResponse::new(Full::new(service.body));
            *answer.status_mut() = status;
            for (name, value) in service.headers {
                if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(&value))
                    && !NOT_PASSED_ON.contains(&name)
                {
                    answer.headers_mut().append(name, value);
                }
            }
            let failure = (!status.is_success()).then(|| format!("the server on the node answered {status}"));
            (answer, failure)
        }
        Ok(Response::Failed { code, message }) => {
            let status = StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_GATEWAY);
            (text(status, message.clone()), Some(message))
        }
        Ok(other @ (Response::Logs(_) | Response::Tunnel(_))) => {
            let why = format!("the node answered something else: {other:?}");
            (text(StatusCode::BAD_GATEWAY, why.clone()), Some(why))
        }
        Err(error @ CallError::Late(..)) => (
            text(StatusCode::GATEWAY_TIMEOUT, "the node did not answer in time".to_owned()),
            Some(error.to_string()),
        ),
        Err(error) => (text(StatusCode::SERVICE_UNAVAILABLE, error.to_string()), Some(error.to_string())),
    }
}

fn text(status: StatusCode, text: String) -> Answer {
    let mut answer = HttpResponse::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    answer
}
