//! A proxy before a Kubernetes API that can be told to misbehave.
//!
//! It speaks plain HTTP/1.1 to its client, one request a connection, and as much of it as kube's client needs.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use futures::{AsyncReadExt as _, io::AsyncRead};
use http::{Request, header};
use kube::{Client, Config, client::Body, config::Kubeconfig};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// How the API behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    /// As the API behind the proxy does.
    Helpful,
    /// Connections end at once, those that were there too.
    Gone,
    /// Nothing is answered.
    Silent,
    /// What is answered is no JSON.
    Garbage,
    /// Every request has this HTTP status.
    Refuses(u16),
}

/// A proxy; it ends with the value.
pub(crate) struct ApiProxy {
    address: SocketAddr,
    mood: watch::Sender<Mood>,
    accepting: JoinHandle<()>,
}

impl ApiProxy {
    /// Starts before the API that a kubeconfig leads to.
    pub(crate) async fn start(kubeconfig: &Path) -> Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config =
            Config::from_custom_kubeconfig(Kubeconfig::read_from(kubeconfig)?, &Default::default()).await?;
        let client = Client::try_from(config)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (mood, moods) = watch::channel(Mood::Helpful);
        let accepting = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                tokio::spawn(serve(connection, client.clone(), moods.clone()));
            }
        });
        Ok(Self { address, mood, accepting })
    }

    /// Changes how the API behaves, for requests under way as well.
    pub(crate) fn set(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// A kubeconfig that leads to the proxy.
    pub(crate) fn kubeconfig(&self) -> String {
        let server = format!("http://{}", self.address);
        serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "proxy",
            "clusters": [{ "name": "proxy", "cluster": { "server": server } }],
            "users": [{ "name": "proxy", "user": {} }],
            "contexts": [{ "name": "proxy", "context": { "cluster": "proxy", "user": "proxy" } }],
        })
        .to_string()
    }
}

impl Drop for ApiProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Serves one request, or what becomes of it when the mood changes.
async fn serve(mut connection: TcpStream, client: Client, mut moods: watch::Receiver<Mood>) {
    let mood = *moods.borrow_and_update();
    let served = async {
        match mood {
            Mood::Gone => Ok(()),
            Mood::Silent => std::future::pending().await,
            Mood::Helpful => forward(&mut connection, &client).await,
            Mood::Garbage => {
                request(&mut connection).await?;
                answer(&mut connection, 200, "{\"kind\":\"Nonsense\",\u{1}<html>").await
            }
            Mood::Refuses(code) => {
                request(&mut connection).await?;
                let status = format!(
                    r#"{{"kind":"Status","apiVersion":"v1","status":"Failure","message":"a test","code":{code}}}"#
                );
                answer(&mut connection, code, &status).await
            }
        }
    };
    tokio::select! {
        result = served => {
            if let Err(error) = result {
                tracing::debug!(%error, "the proxied request ended");
            }
        }
        // Whoever waited or watched is cut off, as by an API server that restarts.
        _ = moods.changed() => {}
    }
}

/// Reads a whole request.
async fn request(connection: &mut TcpStream) -> Result<Request<Body>> {
    let mut read = Vec::new();
    let end = loop {
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if connection.read_buf(&mut read).await? == 0 || read.len() > 64 << 10 {
            bail!("no request");
        }
    };
    let head = String::from_utf8(read[..end].to_vec())?;
    let mut body = read.split_off(end + 4);
    let mut lines = head.split("\r\n");
    let mut first = lines.next().context("no request line")?.split(' ');
    let (method, path) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
    let mut request = Request::builder().method(method).uri(path);
    let mut length = 0;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
        if name == "content-length" {
            length = value.parse()?;
        } else if ["accept", "content-type"].contains(&name.as_str()) {
            request = request.header(name, value);
        }
    }
    while body.len() < length {
        if connection.read_buf(&mut body).await? == 0 {
            bail!("the request ended early");
        }
    }
    Ok(request.body(Body::from(body))?)
}

/// Hands a request to the API and its answer back, piece by piece as it comes.
async fn forward(connection: &mut TcpStream, client: &Client) -> Result<()> {
    let request = request(connection).await?;
    let answer = client.send(request).await?;
    let kind = answer.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let head = format!(
        "HTTP/1.1 {} -\r\ncontent-type: {}\r\nconnection: close\r\n\r\n",
        answer.status().as_u16(),
        kind.unwrap_or("application/json")
    );
    connection.write_all(head.as_bytes()).await?;
    let body = answer.into_body();
    let stream = http_body_util::BodyExt::into_data_stream(body);
    let mut reader =
        futures::TryStreamExt::into_async_read(futures::TryStreamExt::map_err(stream, std::io::Error::other));
    copy(&mut reader, connection).await
}

async fn copy(from: &mut (impl AsyncRead + Unpin), to: &mut TcpStream) -> Result<()> {
    let mut piece = vec![0; 16 << 10];
    loop {
        match from.read(&mut piece).await? {
            0 => return Ok(to.shutdown().await?),
            length => to.write_all(&piece[..length]).await?,
        }
    }
}

async fn answer(connection: &mut TcpStream, code: u16, body: &str) -> Result<()> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {code} -\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    connection.write_all(head.as_bytes()).await?;
    connection.write_all(body.as_bytes()).await?;
    // The client reads to the end before it sees that the connection is.
    tokio::time::sleep(Duration::from_millis(10)).await;
    Ok(connection.shutdown().await?)
}
