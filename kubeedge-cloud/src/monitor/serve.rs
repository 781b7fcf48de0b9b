use std::{convert::Infallible, fmt::Write, sync::Arc};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Duration, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Config, Error, Inbox, Monitor};

/// The pause after a connection could not be accepted, as when descriptors have run out.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// How often in a row accepting may fail before the socket counts as broken: a minute.
const FAILURES_MAX: u32 = 600;

pub(super) async fn run(monitor: Monitor, stop: CancellationToken) -> Result<(), Error> {
    let Monitor { config, listener, inbox } = monitor;
    let inbox = Arc::new(inbox);
    let mut connections = JoinSet::new();
    let mut failures = 0;
    loop {
        let may_accept = connections.len() < config.connections_max.max(1);
        let accepted = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if may_accept => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                failures = 0;
                connections.spawn(serve(stream, inbox.clone(), config.clone()));
            }
            Err(error) if failures >= FAILURES_MAX => return Err(Error::Listen(error)),
            Err(error) => {
                failures += 1;
                tracing::debug!(%error, "a connection for metrics cannot be accepted");
                sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

/// One request of one connection: who asks every few seconds needs no connection between.
async fn serve(stream: TcpStream, inbox: Arc<Inbox>, config: Config) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(request.method(), request.uri().path(), &inbox);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(config.timeout).keep_alive(false);
    let served = builder.serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = timeout(config.timeout * 2, served).await {
        tracing::debug!(%error, "a connection for metrics ended");
    }
}

pub(super) fn answer(method: &Method, path: &str, inbox: &Inbox) -> Response<Full<Bytes>> {
    if method != Method::GET && method != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n".to_owned());
    }
    match path {
        "/healthz" | "/livez" => text(StatusCode::OK, "ok".to_owned()),
        "/readyz" => {
            let missing: Vec<_> =
                inbox.checks.iter().filter(|check| !(check.holds)()).map(|check| check.name).collect();
            if missing.is_empty() {
                text(StatusCode::OK, "ok".to_owned())
            } else {
                text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", missing.join(", ")))
            }
        }
        "/metrics" => {
            let mut page = String::new();
            for metric in inbox.metrics.iter().flat_map(|figures| figures()) {
                // Writing to a string does not fail.
                let _ = write!(page, "{metric}");
            }
            let mut response = text(StatusCode::OK, page);
            let format = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, format);
            response
        }
        _ => text(StatusCode::NOT_FOUND, "here are /metrics, /healthz, /livez and /readyz\n".to_owned()),
    }
}

fn text(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let plain = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}
