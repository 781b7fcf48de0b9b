//! A peer of the cloud that has the right certificate, or another, and says what it likes.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use kubeedge_cloud::pki::{Authority, Issued};
use kubeedge_core::{
    hub::{Frame, Hello, PROTOCOL},
    message::Lane,
    tls::{self, Identity},
    transport::{
        Connection, Transport, TransportError,
        quic::{QuicConfig, QuicTransport},
        websocket::{WebSocketConfig, WebSocketTransport},
    },
    wire::{Codec, Native},
};
use kubeedge_tests::site::Cloud;
use tokio::time::timeout;

/// How the cloud is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Quic,
    WebSocket,
}

pub(crate) const WAYS: [Way; 2] = [Way::Quic, Way::WebSocket];

/// A test that waits for longer has failed.
const PATIENCE: Duration = Duration::from_secs(10);

const LASTS: Duration = Duration::from_secs(3600);

/// The cloud's own authority.
pub(crate) fn authority(cloud: &Cloud) -> Result<Authority> {
    let kubeconfig = cloud.kubeconfig();
    Ok(Authority::open_or_create(kubeconfig.parent().context("the kubeconfig is in a folder")?)?)
}

pub(crate) fn issue(authority: &Authority, node: &str) -> Result<Issued> {
    Ok(authority.issue_node(&node.parse()?, LASTS)?)
}

/// What a client with this certificate dials the cloud with; without any if `None`.
pub(crate) fn client_tls(cloud: &Cloud, issued: Option<&Issued>) -> Result<Arc<rustls::ClientConfig>> {
    let roots = tls::roots_from_pem(authority(cloud)?.certificate_pem().as_bytes())?;
    Ok(Arc::new(match issued {
        Some(issued) => {
            let identity = Identity::from_pem(issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes())?;
            tls::client_config(&identity, roots)?
        }
        None => {
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()?
                .with_root_certificates(roots)
                .with_no_client_auth()
        }
    }))
}

pub(crate) async fn dial(
    way: Way,
    cloud: &Cloud,
    tls: Arc<rustls::ClientConfig>,
) -> Result<Box<dyn Connection>, TransportError> {
    match way {
        Way::Quic => {
            let config = QuicConfig::new(format!("127.0.0.1:{}", cloud.ports.quic), tls);
            QuicTransport::new(config)?.connect().await
        }
        Way::WebSocket => {
            let config = WebSocketConfig::new(format!("127.0.0.1:{}", cloud.ports.websocket), tls);
            WebSocketTransport::new(config)?.connect().await
        }
    }
}

pub(crate) fn hello(node: &str) -> Hello {
    Hello {
        protocol: PROTOCOL,
        node: node.into(),
        nonce: 7,
        digest: [7; 32],
        objects: 0,
        software: "test".into(),
        tunnels: false,
    }
}

/// A connection of a node that has the right to one.
pub(crate) struct Peer {
    connection: Box<dyn Connection>,
}

impl Peer {
    /// Dials as `node`.
    pub(crate) async fn dial(way: Way, cloud: &Cloud, node: &str) -> Result<Self> {
        let tls = client_tls(cloud, Some(&issue(&authority(cloud)?, node)?))?;
        Ok(Self { connection: dial(way, cloud, tls).await? })
    }

    /// Dials as `node`, and has a session.
    pub(crate) async fn begin(way: Way, cloud: &Cloud, node: &str) -> Result<Self> {
        let peer = Self::dial(way, cloud, node).await?;
        peer.send(&Frame::Hello(hello(node))).await?;
        loop {
            match peer.next().await? {
                Some(Frame::Welcome(_)) => return Ok(peer),
                Some(_) => {}
                None => bail!("the cloud takes no session of {node}"),
            }
        }
    }

    pub(crate) async fn send(&self, frame: &Frame) -> Result<()> {
        self.send_bytes(frame.lane(), Native.encode(frame)).await
    }

    pub(crate) async fn send_bytes(&self, lane: Lane, bytes: Bytes) -> Result<()> {
        Ok(timeout(PATIENCE, self.connection.send(lane, bytes)).await??)
    }

    /// The cloud's next frame; `None` if it has closed the connection.
    pub(crate) async fn next(&self) -> Result<Option<Frame>> {
        let received =
            timeout(PATIENCE, self.connection.recv()).await.context("the cloud says nothing")??;
        Ok(received.map(|(lane, bytes)| Native.decode(lane, &bytes)).transpose()?)
    }

    /// Why the cloud ends the session or does not begin one: its last words.
    pub(crate) async fn last_words(&self) -> Result<String> {
        loop {
            match self.next().await? {
                Some(Frame::Refusal { reason, .. } | Frame::Goodbye { reason }) => return Ok(reason),
                Some(_) => {}
                None => bail!("the cloud has closed the connection without a word"),
            }
        }
    }
}
