//! The kubelet's HTTP interface on the loopback address: pods, logs, exec, attach, port-forward and figures.
//!
//! | Path | What it answers |
//! |---|---|
//! | `/healthz` | `ok` while Edged answers |
//! | `/pods` | the node's pods with their status, a `v1` PodList |
//! | `/runningpods/` | what the runtime runs, as pods with a name, a UID and containers |
//! | `/containerLogs/{namespace}/{pod}/{container}` | the log; `follow`, `tailLines`, `sinceTime`, `sinceSeconds`, `timestamps`, `previous`, `limitBytes` |
//! | `/exec/{namespace}/{pod}/{container}`, `/attach/...` | an upgraded connection; `command`, `input`, `output`, `error`, `tty` |
//! | `/portForward/{namespace}/{pod}` | an upgraded connection; `port` for WebSockets |
//! | `/stats/summary` | figures of the node and its pods in the kubelet's JSON |
//! | `/metrics/resource`, `/metrics` | the same, and Edged's own, for Prometheus |
//!
//! A pod's UID may stand after its name, as the API server puts it. Connections for exec, attach and port-forward
//! are joined byte for byte with the runtime's own streaming server, so they speak what that speaks: SPDY/3.1, and
//! WebSockets with `v4.channel.k8s.io`.
//!
//! The same is served to the cloud, which has proven by the link who it is and needs no token: it opens connections by
//! the calls in [`Inbox::tunnels`], and a connection that it no longer asks about ends.
//!
//! Whoever may run commands in containers is as good as root, so the interface serves only the loopback address,
//! and only those who send `Authorization: Bearer <token>`. The token is in a file that only the program's user can
//! read, `api-token` in Edged's directory, and is another one after each start:
//!
//! ```sh
//! curl -H "Authorization: Bearer $(cat /var/lib/kubelet/api-token)" http://127.0.0.1:10350/pods
//! ```
//!
//! ```
//! use std::sync::Arc;
//! use kubeedge_core::runtime::memory::MemoryRuntime;
//! use kubeedge_edge::edged::{self, api::{self, Api}};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let directory = tempfile::tempdir().unwrap();
//! let (_inbox, _outbox, outside) = edged::pipes();
//! let mut config = api::Config::new("edge-1".parse().unwrap(), directory.path());
//! config.address.set_port(0);
//! // What EdgeHub brings from the cloud would come here.
//! let (_, tunnels) = kubeedge_core::pipe::calls("tunnels", 32);
//! let (inbox, outbox) = (api::Inbox { tunnels }, api::Outbox { pods: outside.pods, logs: outside.logs });
//! let api = Api::bind(config, Arc::new(MemoryRuntime::new()), None, inbox, outbox).await.unwrap();
//! println!("http://{} with the token in {}", api.address(), directory.path().join("api-token").display());
//! # });
//! ```

mod figures;
mod logs;
mod metrics;
mod pods;
mod route;
mod serve;
mod splice;
mod stats;
#[cfg(test)]
mod tests;
mod token;
mod tunnel;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use kubeedge_core::{
    id::NodeName,
    message::{LogRequest, Response, TunnelRequest},
    pipe::{Callee, Caller},
    runtime::{ContainerRuntime, Streaming},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::{figures::Figures, serve::Server, token::Token, tunnel::Tunnels};
use super::KnownPod;

/// The name of the file with the token, in Edged's directory.
const TOKEN_FILE: &str = "api-token";

/// Where the interface is.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node's name, for figures.
    pub node: NodeName,
    /// Where it listens, on the loopback address. Default: 127.0.0.1:10350, as KubeEdge. Port 0: a free one.
    pub address: SocketAddr,
    /// Edged's directory: the token is put there, and figures of its file system are the node's.
    pub root: PathBuf,
    /// How many connections there may be at once. 64: a few people with terminals, and whoever collects figures.
    pub connections_max: usize,
    /// How many connections of the cloud there may be at once, besides. 10: for each of them two requests may be on their
    /// way, and EdgeHub works on 32.
    pub tunnels_max: usize,
    /// A connection of the cloud ends if the cloud has not asked about it for so long. 60 s: twice what it may take a node
    /// to answer the cloud.
    pub tunnel_idle: Duration,
}

impl Config {
    /// The defaults, for Edged with this directory.
    pub fn new(node: NodeName, root: &Path) -> Self {
        Self {
            node,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 10350)),
            root: root.to_owned(),
            connections_max: 64,
            tunnels_max: 10,
            tunnel_idle: Duration::from_secs(60),
        }
    }
}

/// What comes to it.
#[derive(Debug)]
pub struct Inbox {
    /// Connections of the cloud.
    pub tunnels: Callee<TunnelRequest, Response>,
}

/// Whom it asks.
#[derive(Debug, Clone)]
pub struct Outbox {
    /// Edged, for the node's pods.
    pub pods: Caller<(), Vec<KnownPod>>,
    /// Edged, for pieces of logs.
    pub logs: Caller<LogRequest, Response>,
}

/// Says why the interface cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address is one that others can reach.
    #[error("the kubelet's interface would be open to others at {0}: only a loopback address is allowed")]
    NotLoopback(SocketAddr),
    /// The address cannot be used.
    #[error("the kubelet's interface cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// The token cannot be written.
    #[error("the token of the kubelet's interface cannot be written to {}: {source}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

/// Serves the kubelet's HTTP interface: to the cloud, and on a socket if it listens.
#[derive(Debug)]
pub struct Api {
    address: SocketAddr,
    root: PathBuf,
    listener: Option<TcpListener>,
    server: Server,
    tunnels: Tunnels,
}

impl Api {
    /// Creates the interface, which is the cloud's alone until [`Api::listen`] is called. Without `streaming` there is no exec,
    /// attach and port-forward.
    pub fn new(
        config: Config,
        runtime: Arc<dyn ContainerRuntime>,
        streaming: Option<Arc<dyn Streaming>>,
        inbox: Inbox,
        outbox: Outbox,
    ) -> Self {
        let Config { node, address, root, connections_max, tunnels_max, tunnel_idle } = config;
        let limits = tunnel::Limits { at_once: tunnels_max, idle: tunnel_idle };
        let figures = Figures::new(node, root.clone(), Arc::clone(&runtime));
        let server = Server::new(connections_max, runtime, streaming, outbox, figures);
        let tunnels = Tunnels::new(limits, server.clone(), inbox.tunnels);
        Self { address, root, listener: None, server, tunnels }
    }

    /// Makes a token and listens. Gives the address, whose port the system may have chosen.
    ///
    /// # Errors
    /// If the address is not a loopback one or cannot be used, or the token cannot be written.
    pub async fn listen(&mut self) -> Result<SocketAddr, Error> {
        if !self.address.ip().is_loopback() {
            return Err(Error::NotLoopback(self.address));
        }
        let listen = |source| Error::Listen { address: self.address, source };
        let listener = TcpListener::bind(self.address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let path = self.root.join(TOKEN_FILE);
        let token = Token::make(&path).map_err(|source| Error::Token { path, source })?;
        self.server.admit(token);
        (self.listener, self.address) = (Some(listener), address);
        Ok(address)
    }

    /// [`Api::new`] and [`Api::listen`] in one.
    ///
    /// # Errors
    /// As [`Api::listen`].
    pub async fn bind(
        config: Config,
        runtime: Arc<dyn ContainerRuntime>,
        streaming: Option<Arc<dyn Streaming>>,
        inbox: Inbox,
        outbox: Outbox,
    ) -> Result<Self, Error> {
        let mut api = Self::new(config, runtime, streaming, inbox, outbox);
        api.listen().await?;
        Ok(api)
    }

    /// Where it listens, or would.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`.
    ///
    /// # Errors
    /// None so far: a connection that fails is that client's matter.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        let Self { listener, server, tunnels, .. } = self;
        let on_socket = async {
            match listener {
                Some(listener) => server.serve(listener).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = on_socket => {}
            () = tunnels.serve() => {}
            () = stop.cancelled() => {}
        }
        Ok(())
    }
}
