//! Answers other clouds for the nodes that have their sessions here.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{Method, Request as HttpRequest, Response as HttpResponse, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use kubeedge_core::{
    hub::Frame,
    id::NodeName,
    message::{Lane, Request, Response, ToNode},
    pipe::{CallError, Caller},
    wire::{Codec, Native},
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{Config, Counts};
use crate::accept::accept;

type Answer = HttpResponse<Full<Bytes>>;

pub(super) struct Server {
    pub(super) acceptor: TlsAcceptor,
    pub(super) hub: Caller<ToNode<Request>, Option<Response>>,
    pub(super) config: Arc<Config>,
    pub(super) counts: Arc<Counts>,
}

impl Server {
    /// Accepts connections and serves them, all in this one future.
    pub(super) async fn run(self, socket: TcpListener) {
        accept(&socket, self.config.connections_max, "the relay", |stream, from| self.serve(stream, from))
            .await;
    }

    /// One request of one connection. Who comes without the certificate of a cloud comes no further than the handshake.
    async fn serve(&self, stream: TcpStream, from: SocketAddr) {
        let patience = self.config.connect_timeout;
        // It only makes answers faster.
        let _ = stream.set_nodelay(true);
        let stream = match timeout(patience, self.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::info!(%from, %error, "a connection to the relay was refused");
                return;
            }
            Err(_) => return,
        };
        let service = service_fn(|request| async move { Ok::<_, Infallible>(self.answer(request).await) });
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(patience)
            .max_buf_size(64 << 10)
            .keep_alive(false);
        let served = builder.serve_connection(TokioIo::new(stream), service);
        if let Ok(Err(error)) = timeout(self.config.deadline + 2 * patience, served).await {
            tracing::debug!(%from, %error, "a connection of another cloud ended");
        }
    }

    async fn answer(&self, request: HttpRequest<Incoming>) -> Answer {
        let path = request.uri().path();
        let node = path.strip_prefix("/v1/nodes/").and_then(|rest| rest.strip_suffix("/request"));
        let Some(node) = node.and_then(|name| name.parse::<NodeName>().ok()) else {
            return text(StatusCode::NOT_FOUND, "there is nothing at this path");
        };
        if request.method() != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "a request is posted");
        }
        let body = match Limited::new(request.into_body(), self.config.bytes_max).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return text(StatusCode::PAYLOAD_TOO_LARGE, "the request is longer than it may be");
            }
            Err(_) => return text(StatusCode::BAD_REQUEST, "the request cannot be read"),
        };
        let Ok(Frame::Request { deadline, request, .. }) = Native.decode(Lane::Bulk, &body) else {
            return text(StatusCode::BAD_REQUEST, "this is no request for a node");
        };
        self.counts.note_answered();
        let question = ToNode { node, message: request };
        match self.hub.call(question, deadline.min(self.config.deadline)).await {
            Ok(Some(response)) => {
                HttpResponse::new(Full::new(Native.encode(&Frame::Response { id: 0, response })))
            }
            // Whoever asked has looked where the node is, and is told that it is not here; nobody else is asked.
            Ok(None) => text(StatusCode::MISDIRECTED_REQUEST, "the node has no session here"),
            Err(error @ CallError::Late(..)) => text(StatusCode::GATEWAY_TIMEOUT, &error.to_string()),
            Err(error) => text(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
        }
    }
}

fn text(status: StatusCode, text: &str) -> Answer {
    let mut answer = HttpResponse::new(Full::new(Bytes::from(text.to_owned())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
    answer
}
