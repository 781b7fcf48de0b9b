//! Bodies without an end, in both directions.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use kubeedge_cloud::{
    enrollment::{self, Enrollment},
    standalone::{self, ApiServer},
};
use kubeedge_core::{
    message::ServiceRequest,
    tls::{self, Live},
};
use kubeedge_edge::{
    certificates::{self, Files, Server},
    servicebus::{self, ServiceBus},
};
use kubeedge_tests::api::Api;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

/// Far more than any limit here, and more than a test machine would miss.
const ENDLESS: usize = 256 << 20;

const PATIENCE: Duration = Duration::from_secs(30);

/// Writes until the other side has had enough; how much it took.
async fn pour(stream: &mut (impl AsyncWrite + Unpin)) -> usize {
    let (chunk, mut poured) = (vec![b'x'; 64 << 10], 0);
    while poured < ENDLESS && stream.write_all(&chunk).await.is_ok() {
        poured += chunk.len();
    }
    poured
}

/// Answers every connection with a body that does not end; gives how much the first one took.
async fn endless_server(listener: TcpListener, tls: Option<TlsAcceptor>) -> Result<usize> {
    let (stream, _) = listener.accept().await?;
    match tls {
        None => endless_answer(stream).await,
        Some(tls) => endless_answer(tls.accept(stream).await?).await,
    }
}

async fn endless_answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<usize> {
    let mut request = [0; 4096];
    ensure!(stream.read(&mut request).await? > 0, "no request");
    stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n").await?;
    Ok(pour(&mut stream).await)
}

#[tokio::test]
async fn cve_2022_31073_a_server_of_the_node_that_answers_without_end_is_cut_off() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let server = tokio::spawn(endless_server(listener, None));
    let (inbox, outside) = servicebus::pipes();
    let bus =
        ServiceBus::new(servicebus::Config { allow_all_ports: true, ..servicebus::Config::default() }, inbox);
    let stop = CancellationToken::new();
    let running = tokio::spawn(bus.run(stop.clone()));
    let request = ServiceRequest {
        port,
        method: "GET".into(),
        path: "/".into(),
        headers: Vec::new(),
        body: bytes::Bytes::new(),
    };
    let answered = timeout(PATIENCE, outside.services.call(request, PATIENCE)).await.context("no end")?;
    drop(answered);
    let poured = timeout(PATIENCE, server).await???;
    ensure!(poured < 64 << 20, "{poured} bytes were taken");
    stop.cancel();
    running.await??;
    Ok(())
}

#[tokio::test]
async fn cve_2022_31074_the_api_reads_no_body_over_its_limit() -> Result<()> {
    let api = ApiServer::open(None, standalone::Config::default()).await?;
    let service = api.service();
    let large = format!("{{\"kind\":\"ConfigMap\",\"data\":{{\"a\":\"{}\"}}}}", "x".repeat(8 << 20));
    let request = http::Request::post("/api/v1/namespaces/default/configmaps")
        .header("content-type", "application/json")
        .body(kube::client::Body::from(large.into_bytes()))?;
    let answer = tower::ServiceExt::oneshot(service, request).await?;
    ensure!(answer.status() == 413, "{}", answer.status());
    Ok(())
}

/// A server for joining, and what a client needs to talk to it.
struct Cloud {
    port: u16,
    tls: TlsConnector,
    stop: CancellationToken,
}

impl Cloud {
    async fn start() -> Result<Self> {
        let api = Api::start().await?;
        let trusted = enrollment::open_authority(&api.client(), "kubeedge").await?;
        let roots = tls::roots_from_pem(trusted.bundle_pem().as_bytes())?;
        let tls = TlsConnector::from(Arc::new(tls::other_client_config(None, roots)?));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let config = enrollment::Config::default();
        let opened = Enrollment::open(config, trusted, api.client(), Live::empty(), Some(listener)).await?;
        let stop = CancellationToken::new();
        tokio::spawn(opened.run(stop.clone()));
        Ok(Self { port, tls, stop })
    }
}

#[tokio::test]
async fn cve_2022_31075_a_request_for_a_certificate_is_not_read_beyond_its_limit() -> Result<()> {
    let cloud = Cloud::start().await?;
    for length in ["Content-Length: 1000000000", "Transfer-Encoding: chunked"] {
        let stream = TcpStream::connect(("127.0.0.1", cloud.port)).await?;
        let mut stream = cloud.tls.connect("localhost".try_into()?, stream).await?;
        let head =
            format!("GET /edge.crt HTTP/1.1\r\nHost: x\r\nNodeName: edge-1\r\n{length}\r\n\r\nfffffff\r\n");
        stream.write_all(head.as_bytes()).await?;
        let poured = timeout(PATIENCE, pour(&mut stream)).await?;
        ensure!(poured < 16 << 20, "{length}: {poured} bytes were taken");
    }
    cloud.stop.cancel();
    Ok(())
}

/// What an edge makes of a cloud that answers so.
async fn joining(answer: &'static [u8], endless: bool) -> Result<(certificates::Error, usize)> {
    let authority = kubeedge_cloud::pki::Authority::create()?;
    let issued = authority.issue_server(&["127.0.0.1".into()], Duration::from_secs(60))?;
    let identity = tls::Identity::from_pem(issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes())?;
    let tls = TlsAcceptor::from(Arc::new(tls::web_server_config(&identity)?));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let cloud = Server { host: "127.0.0.1".into(), port: listener.local_addr()?.port() };
    let server = tokio::spawn(async move {
        if endless {
            return endless_server(listener, Some(tls)).await;
        }
        let (stream, _) = listener.accept().await?;
        let mut stream = tls.accept(stream).await?;
        let mut request = [0; 4096];
        ensure!(stream.read(&mut request).await? > 0, "no request");
        stream.write_all(answer).await?;
        stream.shutdown().await?;
        Ok(0)
    });
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    let files = Files { ca: at("ca"), certificate: at("crt"), key: at("key") };
    let config = certificates::Config::new("edge-1".parse()?, cloud, files);
    let token = format!("{}.a.b.c", "ab".repeat(32)).parse()?;
    let error = match timeout(PATIENCE, certificates::enroll(&config, &token)).await? {
        Ok(_) => anyhow::bail!("it joined"),
        Err(error) => error,
    };
    Ok((error, timeout(PATIENCE, server).await???))
}

#[tokio::test]
async fn cve_2022_31078_an_answer_of_the_cloud_that_does_not_end_is_cut_off() -> Result<()> {
    let (error, poured) = joining(b"", true).await?;
    ensure!(matches!(error, certificates::Error::Unreachable { .. }), "{error}");
    ensure!(poured < 16 << 20, "{poured} bytes were taken");
    Ok(())
}

#[tokio::test]
async fn cve_2022_31077_an_answer_of_null_is_an_error_and_no_crash() -> Result<()> {
    let null = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull";
    let (error, _) = joining(null, false).await?;
    ensure!(matches!(error, certificates::Error::ForeignAuthority { .. }), "{error}");
    let (error, _) = joining(b"null", false).await?;
    ensure!(matches!(error, certificates::Error::Unreachable { .. }), "{error}");
    Ok(())
}

#[tokio::test]
async fn cve_2022_31076_a_request_of_null_is_refused_and_no_crash() -> Result<()> {
    let api = ApiServer::open(None, standalone::Config::default()).await?;
    for (method, path) in [
        ("POST", "/api/v1/namespaces/default/pods"),
        ("POST", "/api/v1/nodes"),
        ("PUT", "/api/v1/namespaces/default/pods/a/status"),
        ("PATCH", "/api/v1/namespaces/kubeedge/secrets/casecret"),
    ] {
        for body in ["null", "[]", "\"\"", "0", "{\"metadata\":null}", "{\"metadata\":{\"name\":null}}"] {
            let request = http::Request::builder()
                .method(method)
                .uri(path)
                .header(
                    "content-type",
                    if method == "PATCH" { "application/merge-patch+json" } else { "application/json" },
                )
                .body(kube::client::Body::from(body.as_bytes().to_vec()))?;
            let answer = tower::ServiceExt::oneshot(api.service(), request).await?;
            ensure!(answer.status().is_client_error(), "{method} {path} {body}: {}", answer.status());
        }
    }
    Ok(())
}
