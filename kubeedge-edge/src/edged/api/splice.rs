//! Joins a client's upgraded connection with the runtime's streaming server, byte for byte: what is spoken over it
//! is between those two.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, future::FusedFuture};
use http_body_util::{BodyExt, Empty, Full, Limited, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response, StatusCode, Uri,
    body::Incoming,
    client::conn::http1,
    header::{self, HeaderMap},
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tracing::debug;

use super::{
    route::Refused,
    serve::{Afterwards, Body},
};

/// How long the runtime's server may take to answer.
const ANSWER: Duration = Duration::from_secs(30);

/// How much of the words of a server that does not upgrade is handed on.
const WORDS_MAX: usize = 64 << 10;

/// The answer to the client, and what goes on afterwards if it is an upgrade.
pub(super) struct Spliced {
    pub(super) response: Response<Body>,
    pub(super) afterwards: Option<Afterwards>,
}

/// Refuses a request that does not ask for another protocol.
pub(super) fn wants_upgrade(request: &Request<Incoming>) -> Result<(), Refused> {
    let headers = request.headers();
    let connection = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let asked =
        connection.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    if asked && headers.contains_key(header::UPGRADE) {
        return Ok(());
    }
    Err(Refused(400, "unable to upgrade: the request has no upgrade headers".to_owned()))
}

/// Asks the runtime's server for what the client asks for, and hands on its answer.
pub(super) async fn splice(mut request: Request<Incoming>, url: &str) -> Result<Spliced, Refused> {
    let away = |what: &str| Refused(502, format!("the container runtime's streaming server: {what}"));
    let late = |_| Refused(504, "the container runtime's streaming server does not answer".to_owned());
    let asked = tokio::time::timeout(ANSWER, ask(&request, url)).await.map_err(late)?;
    let (mut response, upstream) = asked.map_err(|error| away(&error))?;
    let Some(upstream) = upstream else { return Ok(Spliced { response, afterwards: None }) };
    let client = hyper::upgrade::on(&mut request);
    *response.body_mut() = UnsyncBoxBody::new(Empty::new().map_err(|never| match never {}));
    let afterwards = Box::pin(async move {
        let Ok(client) = client.await else { return };
        let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
        match tokio::io::copy_bidirectional(&mut client, &mut upstream).await {
            Ok((up, down)) => debug!(up, down, "a stream has ended"),
            Err(error) => debug!(%error, "a stream has broken off"),
        }
    });
    Ok(Spliced { response, afterwards: Some(afterwards) })
}

/// The server's answer, and the connection if it speaks another protocol from then on.
async fn ask(request: &Request<Incoming>, url: &str) -> Result<(Response<Body>, Option<Upgraded>), String> {
    let (address, uri) = target(url)?;
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let mut outgoing = Request::new(Empty::<Bytes>::new());
    *outgoing.method_mut() = request.method().clone();
    *outgoing.uri_mut() = uri;
    *outgoing.headers_mut() = handed_on(request.headers());
    let host = address.to_string().parse().map_err(|_| "its address is no host".to_owned())?;
    outgoing.headers_mut().insert(header::HOST, host);

    // The connection does the work, and may have done all of it before its results are taken.
    let mut working = Box::pin(connection.with_upgrades()).fuse();
    let mut response =
        drive(&mut working, sender.send_request(outgoing)).await.map_err(|error| error.to_string())?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let upgraded = drive(&mut working, hyper::upgrade::on(&mut response)).await;
        let upgraded = upgraded.map_err(|error| error.to_string())?;
        return Ok((response.map(|_| UnsyncBoxBody::default()), Some(upgraded)));
    }
    let (mut head, body) = response.into_parts();
    let words = drive(&mut working, Limited::new(body, WORDS_MAX).collect()).await;
    let words = words.map_err(|error| error.to_string())?.to_bytes();
    head.headers.remove(header::TRANSFER_ENCODING);
    head.headers.remove(header::CONNECTION);
    let body = UnsyncBoxBody::new(Full::new(words).map_err(|never| match never {}));
    Ok((Response::from_parts(head, body), None))
}

/// Waits for `wanted` while the connection works.
async fn drive<T>(
    mut working: impl FusedFuture<Output = hyper::Result<()>> + Unpin,
    wanted: impl Future<Output = T>,
) -> T {
    let mut wanted = std::pin::pin!(wanted);
    loop {
        tokio::select! {
            biased;
            result = &mut wanted => return result,
            ended = &mut working, if !working.is_terminated() => {
                if let Err(error) = ended {
                    debug!(%error, "the connection to the container runtime's streaming server");
                }
            }
        }
    }
}

/// The runtime's server is on this node: a URL that leads elsewhere is not followed.
fn target(url: &str) -> Result<(SocketAddr, Uri), String> {
    let odd = || format!("{url:?} is not on the loopback address");
    let uri: Uri = url.parse().map_err(|_| odd())?;
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(odd)?;
    let host = authority.host().trim_matches(['[', ']']);
    let ip = if host == "localhost" { "127.0.0.1" } else { host };
    let ip: std::net::IpAddr = ip.parse().map_err(|_| odd())?;
    if !ip.is_loopback() {
        return Err(odd());
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).parse().map_err(|_| odd())?;
    Ok((SocketAddr::new(ip, authority.port_u16().unwrap_or(80)), path))
}

/// What the client asked for, without what proves who it is.
fn handed_on(from: &HeaderMap) -> HeaderMap {
    let mut headers = from.clone();
    for name in [header::AUTHORIZATION, header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING] {
        headers.remove(name);
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_nodes_loopback_address_is_gone_to() {
        let (address, path) = target("http://127.0.0.1:4321/exec/a?b=c").unwrap();
        assert_eq!(
            (address.to_string().as_str(), path.to_string().as_str()),
            ("127.0.0.1:4321", "/exec/a?b=c")
        );
        assert!(target("http://[::1]:80/x").is_ok() && target("http://localhost:80/x").is_ok());
        for elsewhere in
            ["http://192.0.2.1:80/x", "https://127.0.0.1/x", "http://example.org/x", "nonsense", ""]
        {
            assert!(target(elsewhere).is_err(), "{elsewhere}");
        }
    }
}
