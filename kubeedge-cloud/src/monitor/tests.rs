use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{Duration, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Check, Config, Inbox, Metric, Monitor, serve::answer};

fn inbox(ready: &Arc<AtomicBool>) -> Inbox {
    let ready = ready.clone();
    let figures = || {
        let bytes = Metric::counter("bytes_total", "Bytes.\nAll of them.");
        vec![
            Metric::gauge("sessions", "Sessions.").with(&[], 3.0),
            bytes.with(&[("lane", "pods"), ("way", "a\"b\\c\nd")], 1.5).with(&[("lane", "bulk")], 0.0),
        ]
    };
    Inbox {
        metrics: vec![Box::new(figures)],
        checks: vec![
            Check { name: "link", holds: Box::new(|| true) },
            Check { name: "objects", holds: Box::new(move || ready.load(Ordering::Relaxed)) },
        ],
    }
}

async fn told(method: Method, path: &str, inbox: &Inbox) -> (StatusCode, String) {
    let response = answer(&method, path, inbox);
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn figures_are_written_in_prometheus_format_and_what_needs_escaping_is_escaped() {
    let (status, page) = told(Method::GET, "/metrics", &inbox(&Arc::default())).await;
    assert_eq!(status, StatusCode::OK);
    let expected = r#"# HELP sessions Sessions.
# TYPE sessions gauge
sessions 3
# HELP bytes_total Bytes.\nAll of them.
# TYPE bytes_total counter
bytes_total{lane="pods",way="a\"b\\c\nd"} 1.5
bytes_total{lane="bulk"} 0
"#;
    assert_eq!(page, expected);
}

#[tokio::test]
async fn readiness_names_what_is_missing_and_health_does_not_depend_on_it() {
    let ready = Arc::new(AtomicBool::new(false));
    let inbox = inbox(&ready);
    let not_yet = (StatusCode::SERVICE_UNAVAILABLE, "not ready: objects\n".to_owned());
    assert_eq!(told(Method::GET, "/readyz", &inbox).await, not_yet);
    assert_eq!(told(Method::GET, "/healthz", &inbox).await.0, StatusCode::OK);
    ready.store(true, Ordering::Relaxed);
    assert_eq!(told(Method::GET, "/readyz", &inbox).await, (StatusCode::OK, "ok".to_owned()));
    assert_eq!(told(Method::GET, "/secrets", &inbox).await.0, StatusCode::NOT_FOUND);
    assert_eq!(told(Method::POST, "/metrics", &inbox).await.0, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn clients_that_say_nothing_hold_up_others_no_longer_than_the_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = Config { connections_max: 2, timeout: Duration::from_millis(200) };
    let monitor = Monitor::new(config, listener, inbox(&Arc::new(AtomicBool::new(true))));
    let stop = CancellationToken::new();
    let running = tokio::spawn(monitor.run(stop.clone()));
    let _silent = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
    let asked = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("ok"), "{answer}");
    };
    timeout(Duration::from_secs(10), asked).await.unwrap();
    stop.cancel();
    running.await.unwrap().unwrap();
}
