//! Connections of clients, and the answer to each of their requests.

use std::{
    convert::Infallible,
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Frame, Incoming},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use kubeedge_core::runtime::{ContainerRuntime, RuntimeError, Streaming};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tracing::{debug, warn};

use super::{
    Outbox,
    figures::Figures,
    logs, metrics, pods,
    route::{PodPath, Refused, Route, route},
    splice::{self, Spliced},
    stats,
    token::Token,
};

/// What is answered.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What goes on over a connection after its request was answered.
pub(super) type Afterwards = BoxFuture<'static, ()>;

/// How long a client may take for the head of a request.
const HEAD: Duration = Duration::from_secs(10);

/// How long Edged may take to say what it has.
const ASK: Duration = Duration::from_secs(10);

/// How soon the next connection is tried after the system gave none, as when there are no more descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

#[derive(Clone)]
pub(super) struct Server(Arc<Shared>);

struct Shared {
    connections: Arc<Semaphore>,
    /// Without one, only the cloud is served.
    token: OnceLock<Token>,
    runtime: Arc<dyn ContainerRuntime>,
    streaming: Option<Arc<dyn Streaming>>,
    outbox: Outbox,
    figures: Figures,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("runtime", &self.0.runtime).finish_non_exhaustive()
    }
}

impl Server {
    pub(super) fn new(
        connections_max: usize,
        runtime: Arc<dyn ContainerRuntime>,
        streaming: Option<Arc<dyn Streaming>>,
        outbox: Outbox,
        figures: Figures,
    ) -> Self {
        let connections = Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS)));
        let token = OnceLock::new();
        Self(Arc::new(Shared { connections, token, runtime, streaming, outbox, figures }))
    }

    /// Serves those who have this token. An earlier one stays.
    pub(super) fn admit(&self, token: Token) {
        let _ = self.0.token.set(token);
    }

    /// Serves for ever. What it has begun ends when it is dropped.
    pub(super) async fn serve(self, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => self.connect(&mut connections, stream, peer),
                    Err(error) => {
                        warn!(%error, "a connection to the kubelet's interface was not taken");
                        tokio::time::sleep(ACCEPT_AGAIN).await;
                    }
                },
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
            }
        }
    }

    fn connect(&self, connections: &mut JoinSet<()>, stream: TcpStream, peer: SocketAddr) {
        if !peer.ip().is_loopback() {
            return;
        }
        let Ok(permit) = Arc::clone(&self.0.connections).try_acquire_owned() else {
            debug!(%peer, "there are as many connections as there may be");
            return;
        };
        let server = self.clone();
        connections.spawn(async move {
            server.connection(stream, false).await;
            drop(permit);
        });
    }

    /// Serves one connection to its end. Who is `known` needs no token.
    pub(super) async fn connection<S>(&self, stream: S, known: bool)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let afterwards: Mutex<Option<Afterwards>> = Mutex::new(None);
        let service = service_fn(async |request| {
            let (response, next) = self.respond(request, known).await;
            *afterwards.lock().unwrap_or_else(PoisonError::into_inner) = next;
            Ok::<_, Infallible>(response)
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            debug!(%error, "a client of the kubelet's interface");
        }
        let next = afterwards.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(next) = next {
            next.await;
        }
    }

    async fn respond(&self, request: Request<Incoming>, known: bool) -> (Response<Body>, Option<Afterwards>) {
        let shown = request.headers().get(header::AUTHORIZATION);
        let token = self.0.token.get();
        let has_token = token.zip(shown).is_some_and(|(token, shown)| token.is_in(shown.as_bytes()));
        if !known && !has_token {
            let mut response = text(StatusCode::UNAUTHORIZED, "Unauthorized\n");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
            return (response, None);
        }
        match self.answer(request).await {
            Ok(answered) => answered,
            Err(Refused(code, message)) => {
                let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                (text(status, format!("{message}\n")), None)
            }
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<(Response<Body>, Option<Afterwards>), Refused> {
        let Shared { runtime, outbox, figures, .. } = &*self.0;
        let route = route(request.uri().path(), request.uri().query(), now_ms())?;
        let response = match route {
            Route::Health => {
                self.known_pods().await?;
                text(StatusCode::OK, "ok")
            }
            Route::Pods => json(&pods::list(&self.known_pods().await?)),
            Route::RunningPods => json(&pods::running(&runtime.observe().await.map_err(failed)?)),
            Route::Summary => json(&stats::summary(&figures.read().await.map_err(failed)?)),
            Route::ResourceMetrics => prometheus(match figures.read().await {
                Ok(snapshot) => metrics::resources(&snapshot),
                Err(error) => {
                    debug!(%error, "figures cannot be read");
                    metrics::scrape_error()
                }
            }),
            Route::Metrics => prometheus(metrics::own(&figures.read().await.map_err(failed)?)),
            Route::Logs { request, follow } => {
                let pieces = logs::open(outbox.logs.clone(), request, follow).await?;
                let frames = StreamBody::new(pieces.map(|piece| Ok(Frame::data(piece))));
                typed(StatusCode::OK, "text/plain", UnsyncBoxBody::new(frames))
            }
            Route::Exec { .. } | Route::Attach { .. } | Route::PortForward { .. } => {
                return self.stream(route, request).await;
            }
        };
        Ok((response, None))
    }

    async fn stream(
        &self,
        route: Route,
        request: Request<Incoming>,
    ) -> Result<(Response<Body>, Option<Afterwards>), Refused> {
        let streaming = self.0.streaming.as_ref();
        let streaming =
            streaming.ok_or_else(|| Refused(501, "this container runtime has no streams".to_owned()))?;
        splice::wants_upgrade(&request)?;
        let observed = self.0.runtime.observe().await.map_err(failed)?;
        let container = |pod: &PodPath, name: &str| pods::running_container(&observed, pod, name);
        let url = match route {
            Route::Exec { pod, container: name, command, streams } => {
                streaming.exec_url(&container(&pod, &name)?, &command, streams).await
            }
            Route::Attach { pod, container: name, streams } => {
                streaming.attach_url(&container(&pod, &name)?, streams).await
            }
            Route::PortForward { pod, ports } => {
                streaming.port_forward_url(&pods::ready_sandbox(&observed, &pod)?, &ports).await
            }
            Route::Health
            | Route::Pods
            | Route::RunningPods
            | Route::Summary
            | Route::Metrics
            | Route::ResourceMetrics
            | Route::Logs { .. } => return Err(Refused(404, "404 page not found".to_owned())),
        };
        let Spliced { response, afterwards } = splice::splice(request, &url.map_err(failed)?).await?;
        Ok((response, afterwards))
    }

    async fn known_pods(&self) -> Result<Vec<super::KnownPod>, Refused> {
        self.0.outbox.pods.call((), ASK).await.map_err(|error| Refused(503, error.to_string()))
    }
}

fn failed(error: RuntimeError) -> Refused {
    let code = match &error {
        RuntimeError::NotFound { .. } => 404,
        RuntimeError::Invalid { .. } => 400,
        RuntimeError::Unavailable { .. } | RuntimeError::RegistryUnavailable { .. } => 503,
        RuntimeError::TimedOut { .. } => 504,
        RuntimeError::Refused { .. } | RuntimeError::NoSpace { .. } | RuntimeError::Failed { .. } | _ => 500,
    };
    Refused(code, error.to_string())
}

pub(super) fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    typed(status, "text/plain; charset=utf-8", whole(text))
}

fn json(value: &Value) -> Response<Body> {
    typed(StatusCode::OK, "application/json", whole(value.to_string()))
}

fn prometheus(text: String) -> Response<Body> {
    typed(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", whole(text))
}

fn whole(bytes: impl Into<Bytes>) -> Body {
    UnsyncBoxBody::new(Full::new(bytes.into()).map_err(|never| match never {}))
}

fn typed(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
