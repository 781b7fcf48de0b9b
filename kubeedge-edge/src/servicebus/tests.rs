use std::{convert::Infallible, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
    routing::{any, get},
};
use bytes::Bytes;
use kubeedge_core::{
    message::{Response, ServiceRequest, ServiceResponse},
    pipe::Caller,
};
use tokio::{io::AsyncWriteExt, net::TcpListener};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Allowed, Config, ServiceBus, pipes, request::allowed};

const PATIENCE: Duration = Duration::from_secs(20);

fn call(port: u16, method: &str, path: &str) -> ServiceRequest {
    ServiceRequest { port, method: method.into(), path: path.into(), headers: Vec::new(), body: Bytes::new() }
}

fn everything() -> Config {
    Config { allow_all_ports: true, ..Config::default() }
}

fn start(config: Config) -> (Caller<ServiceRequest, Response>, DropGuard) {
    let (inbox, outside) = pipes();
    let stop = CancellationToken::new();
    tokio::spawn(ServiceBus::new(config, inbox).run(stop.clone()));
    (outside.services, stop.drop_guard())
}

async fn echo(request: Request) -> impl IntoResponse {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let mut headers: Vec<_> =
        head.headers.iter().map(|(k, v)| format!("{k}={}", v.to_str().unwrap())).collect();
    headers.sort();
    let text =
        format!("{} {} {} {}", head.method, head.uri, headers.join(","), String::from_utf8_lossy(&body));
    let mut answer = HeaderMap::new();
    answer.insert("x-answer", "yes".parse().unwrap());
    answer.insert("connection", "x-hop".parse().unwrap());
    answer.insert("x-hop", "1".parse().unwrap());
    (StatusCode::CREATED, answer, text)
}

async fn server() -> u16 {
    let app = Router::new()
        .route("/echo", any(echo))
        .route("/slow", get(std::future::pending::<()>))
        .route("/big", get(|| async { vec![b'x'; 3 << 20] }))
        .route("/bigger", get(|| async { vec![b'x'; (3 << 20) + 1] }))
        .route(
            "/endless",
            get(|| async {
                Body::from_stream(futures::stream::repeat(Ok::<_, Infallible>(Bytes::from_static(
                    &[0; 4096],
                ))))
            }),
        );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, app).await });
    port
}

fn service(answer: Response) -> ServiceResponse {
    match answer {
        Response::Service(response) => response,
        other @ (Response::Failed { .. } | Response::Logs(_) | Response::Published | Response::Tunnel(_)) => {
            panic!("{other:?}")
        }
    }
}

fn failure(answer: Response) -> (u16, String) {
    match answer {
        Response::Failed { code, message } => (code, message),
        other @ (Response::Service(_) | Response::Logs(_) | Response::Published | Response::Tunnel(_)) => {
            panic!("{other:?}")
        }
    }
}

#[tokio::test]
async fn a_call_carries_method_path_headers_and_body_and_nothing_of_the_connection() {
    let (services, _stop) = start(everything());
    let port = server().await;
    let mut question = call(port, "PUT", "/echo?a=b%20c");
    let headers = [
        ("X-One", "1"),
        ("Connection", "close, X-Private"),
        ("X-Private", "p"),
        ("Keep-Alive", "1"),
        ("Host", "elsewhere"),
        ("Content-Length", "99"),
        ("Transfer-Encoding", "chunked"),
        ("Upgrade", "websocket"),
    ];
    question.headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    question.body = Bytes::from_static(b"hello");
    let answer = service(services.call(question, PATIENCE).await.unwrap());
    assert_eq!(answer.status, 201);
    assert_eq!(
        String::from_utf8_lossy(&answer.body),
        format!("PUT /echo?a=b%20c content-length=5,host=127.0.0.1:{port},x-one=1 hello"),
    );
    let names: Vec<_> = answer.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.contains(&"x-answer") && !names.contains(&"x-hop"), "{names:?}");
}

#[tokio::test]
async fn nothing_may_be_called_by_default_and_the_refusal_names_the_key() {
    let (services, _stop) = start(Config::default());
    let port = server().await;
    let (code, message) = failure(services.call(call(port, "GET", "/echo"), PATIENCE).await.unwrap());
    assert_eq!(code, 403);
    assert!(message.contains("kubeedgeRs.serviceBus.allow"), "{message}");
}

#[test]
fn the_allow_list_names_ports_and_paths_with_what_is_below() {
    let config = Config {
        allow: vec![Allowed { port: 80, path: "/api/".into() }, Allowed { port: 81, path: "/".into() }],
        ..Config::default()
    };
    for (port, path) in [(80, "/api"), (80, "/api/x"), (81, "/anything"), (81, "/a/../b")] {
        assert!(allowed(&config, port, path), "{port}{path}");
    }
    for (port, path) in [
        (82, "/api"),
        (80, "/"),
        (80, "/apix"),
        (80, "/api/../admin"),
        (80, "/api/%2E%2e/admin"),
        (80, "/api/..%2Fadmin"),
        (80, "/api/..\\admin"),
    ] {
        assert!(!allowed(&config, port, path), "{port}{path}");
    }
}

#[tokio::test]
async fn a_call_that_makes_no_sense_is_refused_before_anything_is_connected() {
    let (services, _stop) = start(everything());
    let header = |name: &str, value: &str| {
        let headers = vec![(name.to_owned(), value.to_owned())];
        ServiceRequest { headers, ..call(1, "GET", "/") }
    };
    let cases = [
        call(1, "GE T", "/"),
        call(1, "CONNECT", "/"),
        call(1, "GET", "x"),
        call(1, "GET", "http://example.com/"),
        call(1, "GET", "/a b"),
        call(1, "GET", "/a\r\nHost: x"),
        header("a b", "c"),
        header("a", "b\r\nc: d"),
    ];
    for question in cases {
        let shown = format!("{question:?}");
        assert_eq!(failure(services.call(question, PATIENCE).await.unwrap()).0, 400, "{shown}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_or_speaks_no_http_is_a_bad_gateway() {
    let (services, _stop) = start(everything());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        socket.write_all(b"SSH-2.0-OpenSSH\r\n\r\n").await.unwrap();
    });
    assert_eq!(failure(services.call(call(port, "GET", "/"), PATIENCE).await.unwrap()).0, 502);
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    assert_eq!(failure(services.call(call(free, "GET", "/"), PATIENCE).await.unwrap()).0, 502);
}

#[tokio::test]
async fn a_slow_server_costs_its_own_call_only() {
    let config = Config { deadline: Duration::from_millis(300), concurrency_max: 2, ..everything() };
    let (services, _stop) = start(config);
    let port = server().await;
    let slow = services.call(call(port, "GET", "/slow"), PATIENCE);
    let quick = services.call(call(port, "GET", "/echo"), PATIENCE);
    let (slow, quick) = tokio::join!(slow, quick);
    assert_eq!(failure(slow.unwrap()).0, 504);
    assert_eq!(service(quick.unwrap()).status, 201);
}

#[tokio::test]
async fn an_answer_longer_than_the_limit_is_given_up() {
    let (services, _stop) = start(everything());
    let port = server().await;
    let fits = service(services.call(call(port, "GET", "/big"), PATIENCE).await.unwrap());
    assert_eq!(fits.body.len(), 3 << 20);
    for path in ["/bigger", "/endless"] {
        let (code, message) = failure(services.call(call(port, "GET", path), PATIENCE).await.unwrap());
        assert_eq!(code, 502);
        assert!(message.contains("longer than 3145728 bytes"), "{message}");
    }
}

#[tokio::test]
async fn more_calls_than_may_run_at_once_wait_their_turn() {
    let (services, _stop) = start(Config { concurrency_max: 2, ..everything() });
    let port = server().await;
    let calls = (0..20).map(|_| services.call(call(port, "GET", "/echo"), PATIENCE));
    for answer in futures::future::join_all(calls).await {
        assert_eq!(service(answer.unwrap()).status, 201);
    }
}

#[tokio::test]
async fn the_part_stops_when_told_also_after_its_callers_are_gone() {
    let (inbox, outside) = pipes();
    let stop = CancellationToken::new();
    let part = tokio::spawn(ServiceBus::new(Config::default(), inbox).run(stop.clone()));
    drop(outside);
    tokio::task::yield_now().await;
    assert!(!part.is_finished());
    stop.cancel();
    tokio::time::timeout(PATIENCE, part).await.unwrap().unwrap().unwrap();
}
