//! `modules.cloudHub`: the links to the nodes.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Result, ensure};

use super::tree::Node;

/// The links to the nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hub {
    /// Whether nodes are served at all.
    pub(crate) enable: bool,
    /// Where WebSocket is listened for, if it is enabled.
    pub(crate) websocket: Option<SocketAddr>,
    /// Where QUIC is listened for, if it is enabled.
    pub(crate) quic: Option<SocketAddr>,
    /// Where nodes ask for their certificates, if that is enabled.
    pub(crate) https: Option<SocketAddr>,
    /// The files of the cloud's identity.
    pub(crate) tls: TlsFiles,
    /// The addresses that the server's certificate is made out to.
    pub(crate) advertise_addresses: Vec<IpAddr>,
    /// The names that the server's certificate is made out to.
    pub(crate) dns_names: Vec<String>,
    /// How many nodes may be connected at once.
    pub(crate) node_limit: usize,
    /// How long a node may be silent.
    pub(crate) keepalive_interval: Duration,
    /// How long a node's certificate is valid.
    pub(crate) certificate_validity: Duration,
    /// How often the token for joining changes.
    pub(crate) token_refresh: Duration,
}

/// The files of the cloud's identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// The certificate authority that signs nodes' certificates.
    pub(crate) ca: PathBuf,
    /// Its private key.
    pub(crate) ca_key: PathBuf,
    /// The server's certificate.
    pub(crate) certificate: PathBuf,
    /// The server's private key.
    pub(crate) key: PathBuf,
}

pub(super) fn read(node: &Node<'_>) -> Result<Hub> {
    let socket = node.at("unixsocket.address");
    ensure!(socket.text()?.starts_with("unix://"), socket.wrong("it must begin with unix://"));
    node.at("quic.maxIncomingStreams").number(1, i32::MAX)?;
    node.at("writeTimeout").seconds()?;
    let hub = Hub {
        enable: node.at("enable").bool()?,
        websocket: node.at("websocket").listener()?,
        quic: node.at("quic").listener()?,
        https: node.at("https").listener()?,
        tls: TlsFiles {
            ca: node.at("tlsCAFile").file()?,
            ca_key: node.at("tlsCAKeyFile").file()?,
            certificate: node.at("tlsCertFile").file()?,
            key: node.at("tlsPrivateKeyFile").file()?,
        },
        advertise_addresses: node
            .at("advertiseAddress")
            .list()?
            .iter()
            .map(Node::parsed)
            .collect::<Result<_>>()?,
        dns_names: names(&node.at("dnsNames"))?,
        node_limit: usize::try_from(node.at("nodeLimit").number(1u32, 1_000_000)?)?,
        keepalive_interval: node.at("keepaliveInterval").seconds()?,
        certificate_validity: node.at("edgeCertSigningDuration").units(Duration::from_secs(24 * 3600))?,
        token_refresh: node.at("tokenRefreshDuration").units(Duration::from_secs(3600))?,
    };
    let linked = hub.websocket.is_some() || hub.quic.is_some();
    ensure!(linked || !hub.enable, node.wrong("one of websocket.enable and quic.enable must be true"));
    Ok(hub)
}

/// KubeEdge's own default is a list with one empty name.
fn names(node: &Node<'_>) -> Result<Vec<String>> {
    let names: Vec<_> = node.list()?.iter().map(Node::filled).collect::<Result<_>>()?;
    Ok(names.into_iter().flatten().map(str::to_owned).collect())
}
