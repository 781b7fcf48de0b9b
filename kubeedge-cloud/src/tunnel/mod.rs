//! Streams into the pods of nodes: an upgraded connection of a client is joined with one to the kubelet's interface of the
//! node, byte for byte. No part itself: it is shared by the parts that are asked for such streams.
//!
//! The connection to the node is carried by the questions that the cloud asks nodes, see
//! [`TunnelRequest`](kubeedge_core::message::TunnelRequest). So it is bounded as they are, and reaches nodes whose session
//! is with another cloud too.

mod pump;
mod state;
#[cfg(test)]
mod tests;

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{
    FutureExt as _,
    future::{BoxFuture, Fuse, FusedFuture as _},
};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{client::conn::http1, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use kubeedge_core::message::TunnelId;
use tokio::{
    io::{copy_bidirectional, duplex},
    time::timeout,
};

use self::pump::Pump;
use crate::node::{Failed, Node};

/// The node's answer, and what goes on over the client's connection afterwards if that is an upgrade.
pub(crate) struct Spliced {
    pub(crate) response: Response<Bytes>,
    pub(crate) afterwards: Option<BoxFuture<'static, ()>>,
}

/// Bytes on their way between the client's connection and the tunnel, in each direction.
const BUFFER: usize = 64 << 10;

/// How much of the words of a node that does not upgrade is handed on.
const WORDS_MAX: usize = 64 << 10;

/// How long a client may take for the last bytes after the node has said all.
const LINGER: Duration = Duration::from_secs(10);

/// Asks the kubelet's interface of a node for what is at `path`, with the client's method, query and headers.
///
/// What goes on afterwards lasts for `lasts` at most, and is to be run when the response has been given.
pub(crate) async fn splice<B>(
    mut request: Request<B>,
    path: &str,
    node: Node,
    lasts: Duration,
) -> Result<Spliced, Failed> {
    wants_upgrade(request.headers())?;
    let outgoing = outgoing(&request, path, &node)?;
    let mut tunnel = Tunnel::open(node).await?;
    let answered = tunnel.ask(outgoing).await;
    let (response, upstream) = match answered {
        Ok((response, Some(upstream))) => (response, upstream),
        Ok((response, None)) => {
            tunnel.pump.close().await;
            return Ok(Spliced { response, afterwards: None });
        }
        Err(failed) => {
            tunnel.pump.close().await;
            return Err(failed);
        }
    };
    let client = hyper::upgrade::on(&mut request);
    let afterwards = async move {
        let Tunnel { working, pump, .. } = tunnel;
        let joined = async {
            let Ok(client) = client.await else { return };
            let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
            match copy_bidirectional(&mut client, &mut upstream).await {
                Ok((up, down)) => tracing::debug!(up, down, "a stream into a pod has ended"),
                Err(error) => tracing::debug!(%error, "a stream into a pod has broken off"),
            }
        };
        let carried = async {
            if !working.is_terminated() {
                working.await;
            }
            tokio::time::sleep(LINGER).await;
        };
        tokio::select! {
            () = joined => {}
            () = carried => {}
            () = tokio::time::sleep(lasts) => tracing::info!(?lasts, "a stream into a pod was ended: it lasted too long"),
        }
        pump.close().await;
    };
    Ok(Spliced { response, afterwards: Some(afterwards.boxed()) })
}

fn failed(code: u16, message: impl Into<String>) -> Failed {
    Failed { code, message: message.into() }
}

/// Refuses a request that does not ask for another protocol.
fn wants_upgrade(headers: &HeaderMap) -> Result<(), Failed> {
    let connection = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let asked =
        connection.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    if asked && headers.contains_key(header::UPGRADE) {
        return Ok(());
    }
    Err(failed(400, "unable to upgrade: the request has no upgrade headers"))
}

/// What the node is asked: what the client asked for, without what proves who it is.
fn outgoing<B>(request: &Request<B>, path: &str, node: &Node) -> Result<Request<Empty<Bytes>>, Failed> {
    let target = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let uri: Uri = target.parse().map_err(|_| failed(400, "the path cannot be handed on"))?;
    let mut headers = request.headers().clone();
    for name in [header::AUTHORIZATION, header::COOKIE, header::CONTENT_LENGTH, header::TRANSFER_ENCODING] {
        headers.remove(name);
    }
    let host = HeaderValue::from_str(node.name().as_str());
    headers.insert(header::HOST, host.map_err(|_| failed(400, "the node's name is no host"))?);
    let mut outgoing = Request::new(Empty::new());
    (*outgoing.method_mut(), *outgoing.uri_mut()) = (request.method().clone(), uri);
    *outgoing.headers_mut() = headers;
    Ok(outgoing)
}

/// A connection to the kubelet's interface of a node.
struct Tunnel {
    pump: Arc<Pump>,
    sender: http1::SendRequest<Empty<Bytes>>,
    /// Carries the bytes, and ends when the node has said all or cannot be reached.
    working: Fuse<BoxFuture<'static, ()>>,
    /// Why nothing is carried any more.
    broken: Arc<Mutex<Option<Failed>>>,
}

impl Tunnel {
    async fn open(node: Node) -> Result<Self, Failed> {
        // Keys of the standard library's hashers are drawn at random by the system, and no two are the same.
        let id = TunnelId(RandomState::new().build_hasher().finish());
        let pump = Arc::new(Pump::open(node, id).await?);
        let (near, far) = duplex(BUFFER);
        let broken = Arc::new(Mutex::new(None));
        let (carrying, why) = (pump.clone(), broken.clone());
        let carried = async move {
            if let Err(failed) = carrying.run(far).await {
                tracing::debug!(%id, code = failed.code, failed.message, "a stream into a pod has broken off");
                *why.lock().unwrap_or_else(PoisonError::into_inner) = Some(failed);
            }
        };
        let handshake = http1::handshake(TokioIo::new(near)).await;
        let (sender, connection) = handshake.map_err(|error| failed(502, error.to_string()))?;
        let working = async move {
            tokio::join!(carried, async {
                if let Err(error) = connection.with_upgrades().await {
                    tracing::debug!(%id, %error, "the kubelet's interface of a node");
                }
            });
        };
        Ok(Self { pump, sender, working: working.boxed().fuse(), broken })
    }

    /// The node's answer, and the connection if it speaks another protocol from then on.
    async fn ask(
        &mut self,
        outgoing: Request<Empty<Bytes>>,
    ) -> Result<(Response<Bytes>, Option<Upgraded>), Failed> {
        let patience = self.pump.patience();
        let Self { sender, working, broken, .. } = self;
        let answered = timeout(patience, drive(working, answer(sender, outgoing))).await;
        match answered {
            Ok(Ok(answered)) => Ok(answered),
            Ok(Err(error)) => {
                let why = broken.lock().unwrap_or_else(PoisonError::into_inner).take();
                Err(why
                    .unwrap_or_else(|| failed(502, format!("the kubelet's interface of the node: {error}"))))
            }
            Err(_) => Err(failed(504, "the kubelet's interface of the node does not answer")),
        }
    }
}

async fn answer(
    sender: &mut http1::SendRequest<Empty<Bytes>>,
    outgoing: Request<Empty<Bytes>>,
) -> Result<(Response<Bytes>, Option<Upgraded>), String> {
    let mut response = sender.send_request(outgoing).await.map_err(|error| error.to_string())?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let upgraded = hyper::upgrade::on(&mut response).await.map_err(|error| error.to_string())?;
        return Ok((response.map(|_| Bytes::new()), Some(upgraded)));
    }
    let (mut head, body) = response.into_parts();
    let words = Limited::new(body, WORDS_MAX).collect().await.map_err(|error| error.to_string())?.to_bytes();
    for name in [header::TRANSFER_ENCODING, header::CONNECTION, header::CONTENT_LENGTH] {
        head.headers.remove(name);
    }
    Ok((Response::from_parts(head, words), None))
}

/// Waits for `wanted` while the connection works.
async fn drive<T>(working: &mut Fuse<BoxFuture<'static, ()>>, wanted: impl Future<Output = T>) -> T {
    let mut wanted = std::pin::pin!(wanted);
    loop {
        tokio::select! {
            biased;
            result = &mut wanted => return result,
            () = &mut *working, if !working.is_terminated() => {}
        }
    }
}
