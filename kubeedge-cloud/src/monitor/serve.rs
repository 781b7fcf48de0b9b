use std::{convert::Infallible, fmt::Write, sync::Arc};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpStream, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{Config, Inbox, Monitor};
use crate::accept::accept;

/// Accepts connections and serves them until `stop`, all in this one future.
pub(super) async fn run(monitor: Monitor, stop: CancellationToken) {
    let Monitor { config, listener, inbox } = monitor;
    let inbox = Arc::new(inbox);
    let served = accept(&listener, config.connections_max, "metrics", |stream, _| {
        serve(stream, inbox.clone(), config.clone())
    });
    stop.run_until_cancelled(served).await;
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
