//! A GET as the kubelet makes it: certificates are not verified, redirects on the same host are followed.

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Request, StatusCode, Uri, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{address, connect};
use crate::edged::action::HttpTask;

/// How probes and hooks call themselves. The minor version is the one that the node reports.
pub(super) const PROBE: &str = "kube-probe/1.33";
pub(super) const HOOK: &str = "kube-lifecycle/1.33";

/// As many as Go's client follows.
const REDIRECTS_MAX: usize = 10;

impl HttpTask {
    pub(super) fn url(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{}{}", address(&self.host, self.port), self.path)
    }
}

/// Returns the status code. A redirect to another host is what the server says: it is not followed.
pub(super) async fn get(task: &HttpTask, agent: &str) -> Result<u16, String> {
    let mut task = task.clone();
    for _ in 0..=REDIRECTS_MAX {
        let (status, location) = get_once(&task, agent).await?;
        let next =
            location.filter(|_| status.is_redirection()).and_then(|location| on_same_host(&task, &location));
        match next {
            Some(path) => task.path = path,
            None => return Ok(status.as_u16()),
        }
    }
    Err(format!("stopped after {REDIRECTS_MAX} redirects"))
}

/// The path of a redirect that stays where it is.
fn on_same_host(task: &HttpTask, location: &str) -> Option<String> {
    let uri: Uri = location.parse().ok()?;
    let here = match uri.authority() {
        None => uri.path().starts_with('/'),
        Some(authority) => {
            let default = if task.https { 443 } else { 80 };
            let same_scheme = uri.scheme_str() == Some(if task.https { "https" } else { "http" });
            same_scheme
                && authority.host().trim_matches(['[', ']']) == task.host
                && authority.port_u16().unwrap_or(default) == task.port
        }
    };
    here.then(|| uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string))
}

async fn get_once(task: &HttpTask, agent: &str) -> Result<(StatusCode, Option<String>), String> {
    let request = request(task, agent)?;
    let stream = connect(&task.host, task.port).await?;
    if task.https { secure(task, request, stream).await } else { exchange(request, stream).await }
}

fn request(task: &HttpTask, agent: &str) -> Result<Request<Empty<Bytes>>, String> {
    let mut request = Request::get(task.path.as_str());
    let has = |name: &str| task.headers.iter().any(|(given, _)| given.eq_ignore_ascii_case(name));
    if !has("host") {
        request = request.header(header::HOST, address(&task.host, task.port));
    }
    if !has("user-agent") {
        request = request.header(header::USER_AGENT, agent);
    }
    if !has("accept") {
        request = request.header(header::ACCEPT, "*/*");
    }
    request = request.header(header::CONNECTION, "close");
    for (name, value) in &task.headers {
        request = request.header(name, value);
    }
    request.body(Empty::new()).map_err(|error| error.to_string())
}

async fn exchange<S>(
    request: Request<Empty<Bytes>>,
    stream: S,
) -> Result<(StatusCode, Option<String>), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let answer = sender.send_request(request);
    tokio::pin!(answer, connection);
    // The connection is driven only as long as the answer is waited for: its body says nothing to a probe.
    let response = tokio::select! {
        response = &mut answer => response,
        // It may end with the last byte of the answer, which is there then.
        ended = &mut connection => match ended {
            Ok(()) => answer.await,
            Err(error) => return Err(error.to_string()),
        },
    };
    let response = response.map_err(|error| error.to_string())?;
    let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
    Ok((response.status(), location.map(str::to_owned)))
}

#[cfg(feature = "edged-https")]
async fn secure(
    task: &HttpTask,
    request: Request<Empty<Bytes>>,
    stream: tokio::net::TcpStream,
) -> Result<(StatusCode, Option<String>), String> {
    let given = task.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("host"));
    let name = given.map_or(task.host.as_str(), |(_, host)| host.split(':').next().unwrap_or(host));
    exchange(request, super::tls::connect(name, stream).await?).await
}

#[cfg(not(feature = "edged-https"))]
#[expect(clippy::unused_async, reason = "as the one that does something")]
async fn secure(
    _: &HttpTask,
    _: Request<Empty<Bytes>>,
    _: tokio::net::TcpStream,
) -> Result<(StatusCode, Option<String>), String> {
    Err("this node was built without HTTPS probes (feature edged-https)".to_owned())
}
