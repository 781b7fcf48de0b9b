//! `modules.edgeHub`: the link to the cloud.

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr, time::Duration};

use anyhow::{Result, ensure};

use super::tree::{Node, Secret};

/// The link to the cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hub {
    /// Whether there is a link at all; without one the node serves what it has.
    pub(crate) enable: bool,
    /// The time between two signs of life.
    pub(crate) heartbeat: Duration,
    /// The WebSocket transport, if it is enabled.
    pub(crate) websocket: Option<Link>,
    /// The QUIC transport, if it is enabled.
    pub(crate) quic: Option<Link>,
    /// Where certificates are asked for, by HTTPS.
    pub(crate) http_server: Server,
    /// What a node without a certificate shows to get one.
    pub(crate) token: Option<Secret>,
    /// Whether a certificate is renewed before it ends.
    pub(crate) rotate_certificates: bool,
    /// The files of the node's identity.
    pub(crate) tls: TlsFiles,
}

/// One way to the cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    /// CloudHub's address.
    pub(crate) server: Server,
}

/// The files of the node's identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// The cloud's certificate authority.
    pub(crate) ca: PathBuf,
    /// The node's certificate.
    pub(crate) certificate: PathBuf,
    /// The node's private key.
    pub(crate) key: PathBuf,
}

/// A host name or an IP address, with a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    /// The name, or the address without brackets.
    pub(crate) host: String,
    /// The port.
    pub(crate) port: u16,
}

impl FromStr for Server {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "it must be host:port, or [address]:port for IPv6";
        let (host, port) = text.rsplit_once(':').ok_or(wrong)?;
        let port = port.parse().ok().filter(|port| *port > 0).ok_or("the port is not between 1 and 65535")?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let valid = match bare {
            Some(address) => address.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6()),
            None => is_host(host),
        };
        if !valid {
            return Err(wrong);
        }
        Ok(Self { host: bare.unwrap_or(host).to_owned(), port })
    }
}

fn is_host(host: &str) -> bool {
    let inside = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'.' || c == b'_';
    !host.is_empty() && host.len() <= 253 && host.bytes().all(inside)
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

pub(super) fn read(node: &Node<'_>) -> Result<Hub> {
    let hub = Hub {
        enable: node.at("enable").bool()?,
        heartbeat: node.at("heartbeat").seconds()?,
        websocket: link(&node.at("websocket"))?,
        quic: link(&node.at("quic"))?,
        http_server: http_server(&node.at("httpServer"))?,
        token: node.at("token").filled()?.map(Secret::new),
        rotate_certificates: node.at("rotateCertificates").bool()?,
        tls: TlsFiles {
            ca: node.at("tlsCaFile").file()?,
            certificate: node.at("tlsCertFile").file()?,
            key: node.at("tlsPrivateKeyFile").file()?,
        },
    };
    for key in ["messageQPS", "messageBurst"] {
        node.at(key).number(0, i32::MAX)?;
    }
    if hub.enable {
        let linked = hub.websocket.is_some() || hub.quic.is_some();
        ensure!(linked, node.wrong("one of websocket.enable and quic.enable must be true"));
    }
    Ok(hub)
}

fn link(node: &Node<'_>) -> Result<Option<Link>> {
    for key in ["handshakeTimeout", "readDeadline", "writeDeadline"] {
        node.at(key).seconds()?;
    }
    let link = Link { server: node.at("server").parsed()? };
    Ok(node.at("enable").bool()?.then_some(link))
}

fn http_server(node: &Node<'_>) -> Result<Server> {
    let text = node.text()?;
    let server = text.strip_prefix("https://").map(|rest| rest.trim_end_matches('/').parse::<Server>());
    match server {
        Some(Ok(server)) => Ok(server),
        Some(Err(error)) => Err(node.wrong(format!("{text:?}: {error}"))),
        None => Err(node.wrong(format!("{text:?} must be https://host:port"))),
    }
}
