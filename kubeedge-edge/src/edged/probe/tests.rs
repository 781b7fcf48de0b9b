//! Probes and hooks against real servers on this machine.

use std::sync::Arc;

use kubeedge_core::runtime::{
    ContainerConfig, ContainerId, Execution, SandboxConfig,
    memory::{Exec, MemoryRuntime},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;
use crate::edged::action::HttpTask;

const SOON: Duration = Duration::from_secs(5);

/// A server that answers each request by what `answer` makes of it, and its port.
async fn server(answer: fn(&str) -> &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = vec![0; 4096];
            let length = stream.read(&mut bytes).await.unwrap_or(0);
            let request = String::from_utf8_lossy(&bytes[..length]).into_owned();
            let _ = stream.write_all(answer(&request).as_bytes()).await;
        }
    });
    port
}

fn get(port: u16, path: &str) -> HttpTask {
    HttpTask { https: false, host: "127.0.0.1".into(), port, path: path.into(), headers: Vec::new() }
}

async fn probed(task: Task, within: Duration) -> ProbeResult {
    probe(&MemoryRuntime::new(), task, within).await
}

fn failed(result: ProbeResult) -> String {
    match result {
        ProbeResult::Failure(why) => why,
        ProbeResult::Success | ProbeResult::Errored(_) => panic!("{result:?}"),
    }
}

/// A port that nobody listens on.
async fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn an_http_probe_goes_by_the_status_code_and_follows_a_redirect_that_stays() {
    let port = server(|request| match request.split(' ').nth(1).unwrap_or_default() {
        "/ok?full=1" => "HTTP/1.1 204 No Content\r\n\r\n",
        "/moved" => "HTTP/1.1 302 Found\r\nLocation: /gone\r\nContent-Length: 0\r\n\r\n",
        "/away" => "HTTP/1.1 301 Moved\r\nLocation: https://example.com/\r\nContent-Length: 0\r\n\r\n",
        "/round" => "HTTP/1.1 302 Found\r\nLocation: /round\r\nContent-Length: 0\r\n\r\n",
        "/broken" => "what?",
        _ => "HTTP/1.1 503 Unavailable\r\nContent-Length: 2\r\n\r\nno",
    })
    .await;
    assert_eq!(probed(Task::Http(get(port, "/ok?full=1")), SOON).await, ProbeResult::Success);
    assert_eq!(probed(Task::Http(get(port, "/away")), SOON).await, ProbeResult::Success);
    let why = failed(probed(Task::Http(get(port, "/moved")), SOON).await);
    assert_eq!(why, "HTTP probe failed with statuscode: 503");
    let why = failed(probed(Task::Http(get(port, "/round")), SOON).await);
    assert!(why.ends_with("stopped after 10 redirects"), "{why}");
    failed(probed(Task::Http(get(port, "/broken")), SOON).await);
    let port = closed_port().await;
    let why = failed(probed(Task::Http(get(port, "/")), SOON).await);
    let expected = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
    assert_eq!(why, format!("Get \"http://127.0.0.1:{port}/\": {expected}"));
}

#[tokio::test]
async fn headers_of_the_pod_replace_ours() {
    let port = server(|request| {
        let lower = request.to_ascii_lowercase();
        let fine = lower.contains("host: app.example\r\n")
            && lower.contains("x-mine: 1\r\n")
            && lower.contains("user-agent: kube-probe/1.33\r\n")
            && lower.matches("host:").count() == 1;
        if fine { "HTTP/1.1 200 OK\r\n\r\n" } else { "HTTP/1.1 400 Bad\r\n\r\n" }
    })
    .await;
    let headers = [("Host", "app.example"), ("X-Mine", "1")];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let task = HttpTask { headers, ..get(port, "/") };
    assert_eq!(probed(Task::Http(task), SOON).await, ProbeResult::Success);
}

#[tokio::test]
async fn what_never_answers_ends_by_its_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let within = Duration::from_millis(200);
    let why = failed(probed(Task::Http(get(port, "/")), within).await);
    assert!(why.contains("context deadline exceeded"), "{why}");
    let connects = probed(Task::Tcp { host: "127.0.0.1".into(), port }, SOON).await;
    assert_eq!(connects, ProbeResult::Success);
    let port = closed_port().await;
    let why = failed(probed(Task::Tcp { host: "127.0.0.1".into(), port }, SOON).await);
    assert_eq!(why, format!("dial tcp 127.0.0.1:{port}: connect: connection refused"));
}

/// A runtime with one container, whose commands do what they say: `ok`, `fail`, `hang`, anything else is absent.
async fn runtime() -> (MemoryRuntime, ContainerId) {
    let runtime = MemoryRuntime::new();
    runtime.add_image("app:1");
    runtime.on_exec("web/app", |command| match command[0].as_str() {
        "ok" => Exec::Exit(Execution::default()),
        "fail" => {
            let (stdout, stderr) = (b"not well".to_vec(), b"!".to_vec());
            Exec::Exit(Execution { exit_code: 3, stdout, stderr })
        }
        "hang" => Exec::ExitAfter(Duration::from_secs(3600), Execution::default()),
        _ => Exec::Fail("no such command".into()),
    });
    let sandbox = SandboxConfig { uid: kubeedge_core::id::Uid::new("web"), ..SandboxConfig::default() };
    let sandbox = runtime.run_sandbox(&sandbox).await.unwrap();
    let config = ContainerConfig { name: "app".into(), image: "app:1".into(), ..ContainerConfig::default() };
    let id = runtime.create_container(&sandbox, &config).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    (runtime, id)
}

#[tokio::test(start_paused = true)]
async fn an_exec_probe_goes_by_the_exit_code_and_one_that_hangs_has_failed() {
    let (runtime, id) = runtime().await;
    let exec = |command: &str| Task::Exec { id: id.clone(), command: vec![command.to_owned()] };
    assert_eq!(probe(&runtime, exec("ok"), SOON).await, ProbeResult::Success);
    assert_eq!(failed(probe(&runtime, exec("fail"), SOON).await), "not well!");
    let why = failed(probe(&runtime, exec("hang"), SOON).await);
    assert_eq!(why, "command timed out: \"hang\" timed out after 5s");
    assert!(matches!(probe(&runtime, exec("absent"), SOON).await, ProbeResult::Errored(_)));
    assert_eq!(hook(&runtime, exec("ok"), SOON).await, Ok(()));
    let why = hook(&runtime, exec("fail"), SOON).await.unwrap_err();
    assert_eq!(why, "command 'fail' exited with 3: not well!");
    assert!(hook(&runtime, exec("hang"), SOON).await.is_err());
    let began = tokio::time::Instant::now();
    assert_eq!(hook(&runtime, Task::Sleep(Duration::from_secs(3)), SOON).await, Ok(()));
    assert_eq!(began.elapsed(), Duration::from_secs(3));
}

#[tokio::test]
async fn a_hook_that_gets_an_error_over_http_has_failed() {
    let port = server(|_| "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n").await;
    let why = hook(&MemoryRuntime::new(), Task::Http(get(port, "/")), SOON).await.unwrap_err();
    assert_eq!(why, format!("Get \"http://127.0.0.1:{port}/\": HTTP status 500"));
}

#[cfg(feature = "edged-https")]
mod https {
    use tokio_rustls::{
        TlsAcceptor,
        rustls::{
            ServerConfig,
            crypto::ring,
            pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
        },
    };

    use super::*;

    #[tokio::test]
    async fn a_certificate_that_nobody_knows_is_fine() {
        let key = rcgen::generate_simple_self_signed(vec!["somebody.example".to_owned()]).unwrap();
        let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.signing_key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![key.cert.der().clone()], private)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut bytes = vec![0; 4096];
                let _ = stream.read(&mut bytes).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
                let _ = stream.flush().await;
            }
        });
        let task = HttpTask { https: true, ..get(port, "/healthz") };
        assert_eq!(probed(Task::Http(task), SOON).await, ProbeResult::Success);
        let plain = server(|_| "HTTP/1.1 400 Bad Request\r\n\r\n").await;
        let task = HttpTask { https: true, ..get(plain, "/") };
        let why = failed(probed(Task::Http(task), SOON).await);
        assert!(why.starts_with(&format!("Get \"https://127.0.0.1:{plain}/\": tls: ")), "{why}");
    }
}

#[cfg(feature = "edged-grpc")]
mod grpc {
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};
    use hyper::{HeaderMap, Request, Response, body::Incoming, server::conn::http2, service::service_fn};
    use hyper_util::rt::{TokioExecutor, TokioIo};

    use super::*;

    /// Serves the health of the services `up` and `down`, and of the whole server, which is up.
    async fn health(
        request: Request<Incoming>,
    ) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = std::convert::Infallible>>, hyper::Error>
    {
        let path = request.uri().path().to_owned();
        let asked = request.into_body().collect().await?.to_bytes();
        let service = asked.get(7..).unwrap_or_default();
        let (status, code) = match (path.as_str(), service) {
            ("/grpc.health.v1.Health/Check", b"" | b"up") => (&[0, 0, 0, 0, 2, 8, 1][..], "0"),
            ("/grpc.health.v1.Health/Check", b"down") => (&[0, 0, 0, 0, 2, 8, 2][..], "0"),
            ("/grpc.health.v1.Health/Check", _) => (&[][..], "5"),
            _ => (&[][..], "12"),
        };
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", code.parse().unwrap());
        let body = Full::new(Bytes::from_static(status)).with_trailers(async move { Some(Ok(trailers)) });
        Ok(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
    }

    #[tokio::test]
    async fn a_grpc_probe_asks_for_the_health_of_its_service() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let serve = http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service_fn(health));
                tokio::spawn(serve);
            }
        });
        let ask = async |service: &str, port: u16| {
            let task = Task::Grpc { host: "127.0.0.1".into(), port, service: service.into() };
            probed(task, SOON).await
        };
        assert_eq!(ask("", port).await, ProbeResult::Success);
        assert_eq!(ask("up", port).await, ProbeResult::Success);
        let why = failed(ask("down", port).await);
        assert_eq!(why, "service unhealthy (responded with \"NOT_SERVING\")");
        let why = failed(ask("other", port).await);
        assert!(why.starts_with("error: health rpc probe failed: rpc error: code = 5"), "{why}");
        let plain = server(|_| "HTTP/1.1 200 OK\r\n\r\n").await;
        failed(ask("", plain).await);
        failed(ask("", closed_port().await).await);
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = silent.local_addr().unwrap().port();
        let task = Task::Grpc { host: "127.0.0.1".into(), port, service: String::new() };
        let why = failed(probed(task, Duration::from_millis(200)).await);
        assert!(why.contains("context deadline exceeded"), "{why}");
    }
}
