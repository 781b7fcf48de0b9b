//! Asks another cloud: one request over one connection.

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use http::{Request as HttpRequest, StatusCode, header, uri::Authority};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use kubeedge_core::{
    hub::Frame,
    id::NodeName,
    message::{Lane, Request, Response, ToNode},
    tls,
    wire::{Codec, Native},
};
use rustls::pki_types::ServerName;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    Config,
    failure::{Failure, Reason},
    owners::Owner,
};

/// How much of a refusal's text is told.
const TOLD: usize = 256;

/// The path under which a cloud answers for a node of its own.
pub(super) fn path(node: &NodeName) -> String {
    format!("/v1/nodes/{node}/request")
}

/// Asks the node's cloud, which gets `deadline` for the answer.
pub(super) async fn ask(
    owner: &Owner,
    tls: TlsConnector,
    question: ToNode<Request>,
    deadline: Duration,
    config: &Config,
) -> Result<Response, Failure> {
    let connected = connect(owner, tls);
    let stream = timeout(config.connect_timeout, connected).await.map_err(|_| {
        Failure::new(Reason::Unreachable, format!("{}: not within {:?}", at(owner), config.connect_timeout))
    })??;
    let broken =
        |error: &dyn std::fmt::Display| Failure::new(Reason::Broken, format!("{}: {error}", at(owner)));
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| broken(&error))?;
    let answered = async {
        let body = Native.encode(&Frame::Request { id: 0, deadline, request: question.message });
        let request = HttpRequest::post(path(&question.node))
            .header(header::HOST, &owner.address)
            .body(Full::<Bytes>::new(body))
            .map_err(|error| broken(&error))?;
        let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::MISDIRECTED_REQUEST => return Err(Failure::new(Reason::Stale, &owner.name)),
            StatusCode::GATEWAY_TIMEOUT => return Err(Failure::new(Reason::Late, format!("{deadline:?}"))),
            status => {
                let text = Limited::new(answer.into_body(), TOLD).collect().await;
                let text = text.map_or(Bytes::new(), |text| text.to_bytes());
                return Err(broken(&format!("{status} {}", String::from_utf8_lossy(&text))));
            }
        }
        let body = Limited::new(answer.into_body(), config.bytes_max).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                return Failure::new(Reason::TooLong, format!("more than {} bytes", config.bytes_max));
            }
            broken(&error)
        })?;
        match Native.decode(Lane::Bulk, &body.to_bytes()) {
            Ok(Frame::Response { response, .. }) => Ok(response),
            Ok(other) => Err(broken(&format!("it answers with a {}", other.name()))),
            Err(error) => Err(broken(&error)),
        }
    };
    let mut answered = pin!(answered);
    tokio::select! {
        answered = &mut answered => answered,
        // The connection has to be driven. It may end with the answer, before that has been looked at.
        _ = connection => answered.await,
    }
}

/// Connects, and looks whether the one who is reached is the one who is meant: addresses are given to others in time.
async fn connect(owner: &Owner, tls: TlsConnector) -> Result<TlsStream<TcpStream>, Failure> {
    let unreachable =
        |error: &dyn std::fmt::Display| Failure::new(Reason::Unreachable, format!("{}: {error}", at(owner)));
    let address: Authority = owner.address.parse().map_err(|error| unreachable(&error))?;
    let port = address.port_u16().ok_or_else(|| unreachable(&"there is no port"))?;
    let host = address.host().trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned()).map_err(|error| unreachable(&error))?;
    let socket = TcpStream::connect((host, port)).await.map_err(|error| unreachable(&error))?;
    // It only makes answers faster.
    let _ = socket.set_nodelay(true);
    let stranger =
        |why: &dyn std::fmt::Display| Failure::new(Reason::Stranger, format!("{}: {why}", at(owner)));
    let stream = tls.connect(name, socket).await.map_err(|error| {
        // A certificate that is not good comes as invalid data; all else is a connection that was lost.
        if error.kind() == std::io::ErrorKind::InvalidData { stranger(&error) } else { unreachable(&error) }
    })?;
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    match shown.map(tls::cloud_of) {
        Some(Ok(cloud)) if cloud == owner.name => Ok(stream),
        Some(Ok(cloud)) => Err(stranger(&format!("this is cloud {cloud}"))),
        Some(Err(_)) | None => Err(stranger(&"this is no cloud")),
    }
}

fn at(owner: &Owner) -> String {
    format!("cloud {} at {}", owner.name, owner.address)
}
