//! Takes an API server's requests over HTTPS.

use std::{
    convert::Infallible,
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures::{
    StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use http::{Method, Request, Response, header};
use http_body::Frame;
use http_body_util::StreamBody;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use kube::Client;
use kubeedge_core::tls;
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    Config, Listener, Outbox,
    route::{Question, Refusal, Route},
};
use crate::{
    accept::accept,
    node::{Failed, Node},
    tunnel::{Spliced, splice},
};

type Pieces = BoxStream<'static, Result<Frame<Bytes>, Infallible>>;
type Answer = Response<StreamBody<Pieces>>;

/// An answer, and what goes on over its connection afterwards.
type Answered = (Answer, Option<BoxFuture<'static, ()>>);

impl From<Failed> for Refusal {
    fn from(failed: Failed) -> Self {
        Self::new(failed.code, failed.message)
    }
}

/// Accepts connections and serves them, all in this one future.
pub(super) async fn run(config: Config, listener: Listener, client: Client, outbox: Outbox) {
    let Listener { socket, tls } = listener;
    let server = Server { config, client, outbox, acceptor: TlsAcceptor::from(tls) };
    let at_once = server.config.connections_max;
    accept(&socket, at_once, "the pods of nodes", |stream, _| server.serve(stream)).await;
}

struct Server {
    config: Config,
    client: Client,
    outbox: Outbox,
    acceptor: TlsAcceptor,
}

impl Server {
    async fn serve(&self, stream: TcpStream) {
        let peer = stream.peer_addr().ok();
        let patience = self.config.request_timeout;
        let stream = match timeout(patience, self.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::warn!(?peer, %error, "a caller for a node's pods was refused");
                return;
            }
            Err(_) => return,
        };
        let caller = caller(&stream);
        let known = self.config.callers.contains(&caller);
        if !known {
            tracing::warn!(
                ?peer,
                caller,
                "a caller for a node's pods was refused: it is not among the callers"
            );
        }
        let afterwards = Mutex::new(None);
        let service = service_fn(|request| {
            let afterwards = &afterwards;
            async move {
                let answered = if known { self.answer(request).await } else { Err(stranger()) };
                let (answer, next) = answered.unwrap_or_else(|refusal| (refuse(refusal), None));
                *afterwards.lock().unwrap_or_else(PoisonError::into_inner) = next;
                Ok::<_, Infallible>(answer)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(patience)
            .max_buf_size(64 << 10)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        if let Ok(Err(error)) = timeout(self.config.connection_lasts, connection).await {
            tracing::debug!(%error, "a connection for a node's pods ended");
        }
        let next = afterwards.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(next) = next {
            next.await;
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Answered, Refusal> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        match Route::read(request.uri().path(), request.uri().query(), now)? {
            Route::Log(_) if request.method() != Method::GET => {
                Err(Refusal::new(405, "a log is read by GET"))
            }
            Route::Log(question) => Ok((self.log(question).await?, None)),
            Route::Stream { namespace, pod } => {
                let node = self.node_of(&namespace, &pod).await?;
                let path = request.uri().path().to_owned();
                let spliced = splice(request, &path, node, self.config.connection_lasts).await?;
                let Spliced { response, afterwards } = spliced;
                Ok((response.map(whole), afterwards))
            }
        }
    }

    async fn log(&self, question: Question) -> Result<Answer, Refusal> {
        let node = self.node_of(&question.request.namespace, &question.request.pod).await?;
        let pieces = node.logs(question.request, question.follow).await?;
        let mut answer = Response::new(StreamBody::new(pieces.map(|piece| Ok(Frame::data(piece))).boxed()));
        answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
        Ok(answer)
    }

    /// The node that a pod is on.
    async fn node_of(&self, namespace: &str, pod: &str) -> Result<Node, Refusal> {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}");
        let request =
            Request::get(path).body(Vec::new()).map_err(|error| Refusal::new(400, error.to_string()))?;
        let asked = timeout(self.config.node_timeout, self.client.request::<Value>(request)).await;
        let pod = match asked {
            Ok(Ok(pod)) => pod,
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
                return Err(Refusal::new(404, format!("pod {pod:?} not found")));
            }
            Ok(Err(error)) => return Err(Refusal::new(503, format!("the pod cannot be looked up: {error}"))),
            Err(_) => return Err(Refusal::new(504, "the pod cannot be looked up in time")),
        };
        let name = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        let name = name.parse().map_err(|_| Refusal::new(404, "the pod is on no node"))?;
        Ok(Node::new(self.outbox.requests.clone(), name, self.config.node_timeout))
    }
}

/// The name in the certificate of a caller; empty if it has none that can be read.
fn caller(stream: &TlsStream<TcpStream>) -> String {
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    certificates.first().and_then(|certificate| tls::common_name(certificate).ok()).unwrap_or_default()
}

fn whole(bytes: Bytes) -> StreamBody<Pieces> {
    let pieces = (!bytes.is_empty()).then_some(Ok(Frame::data(bytes)));
    StreamBody::new(stream::iter(pieces).boxed())
}

fn stranger() -> Refusal {
    Refusal::new(403, "only the API server's kubelet client is answered here")
}

/// A refusal ends its connection, so that what is left of a body is not read either.
fn refuse(refusal: Refusal) -> Answer {
    let mut answer = Response::new(whole(Bytes::from(refusal.message)));
    *answer.status_mut() = refusal.code.try_into().unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
    answer
}
