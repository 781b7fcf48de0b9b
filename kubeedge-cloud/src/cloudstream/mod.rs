//! CloudStream: `kubectl logs`, `exec`, `attach` and `port-forward` for the pods of edge nodes, which no API server can
//! dial.
//!
//! An API server looks for a pod's log, and for streams into it, at its node's kubelet: at the Node's address, and at the port in its
//! `status.daemonEndpoints`. For edge nodes that address leads to this part instead, which serves the kubelet's path and
//! asks the node over its link:
//!
//! | Path | What is done |
//! |---|---|
//! | `/containerLogs/{namespace}/{pod}/{container}` | the log, also followed; all of the kubelet's parameters |
//! | `/exec/{namespace}/{pod}/{container}`, `/attach/...` | the upgraded connection is joined with one to the node's own interface, byte for byte |
//! | `/portForward/{namespace}/{pod}` | the same |
//!
//! A pod's UID may stand after its name. What is spoken over a stream is between client and container runtime: SPDY or
//! WebSockets. It ends when either end ends it, and after [`Config::connection_lasts`]; a link that is lost for some seconds
//! holds it up.
//!
//! Whoever is answered can read and run everything, so a caller must show a certificate of an authority
//! of its [`Listener`], in one of the names of [`Config::callers`]: the kubelet client of the API server.
//!
//! ```no_run
//! use kubeedge_cloud::cloudstream::{CloudStream, Config, Listener, Outbox};
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn example(listener: Listener, client: kube::Client, outbox: Outbox) {
//! let stream = CloudStream::new(Config::default(), listener, client, outbox);
//! tokio::spawn(stream.run(CancellationToken::new()));
//! # }
//! ```

mod route;
mod serve;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc, time::Duration};

use kube::Client;
use kubeedge_core::{
    message::{Request, Response, ToNode},
    pipe::Caller,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How callers are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The common names of certificates whose holders are answered. `kube-apiserver-kubelet-client`, as kubeadm names it.
    pub callers: Vec<String>,
    /// Connections at once; further ones wait to be accepted. 64: as many people who look at logs
    /// or into pods.
    pub connections_max: usize,
    /// How long a caller may take for a handshake, and for the head of a request.
    pub request_timeout: Duration,
    /// How long a node may take for each answer.
    pub node_timeout: Duration,
    /// How long a connection lasts at most, and how long a stream. 4 h: the kubelet's streamingConnectionIdleTimeout.
    pub connection_lasts: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            callers: vec!["kube-apiserver-kubelet-client".to_owned()],
            connections_max: 64,
            request_timeout: Duration::from_secs(10),
            node_timeout: Duration::from_secs(15),
            connection_lasts: Duration::from_secs(4 * 3600),
        }
    }
}

/// Where it listens.
#[derive(Debug)]
pub struct Listener {
    /// The socket.
    pub socket: TcpListener,
    /// The serving certificate, and the authorities of callers: it must demand a certificate.
    pub tls: Arc<rustls::ServerConfig>,
}

/// Whom it asks.
#[derive(Debug, Clone)]
pub struct Outbox {
    /// CloudHub, for what only a node can answer.
    pub requests: Caller<ToNode<Request>, Response>,
}

/// Says why the part cannot run. What callers, nodes and the API do wrong never ends it, so that there is no reason.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {}

/// The part; see the [module](self).
pub struct CloudStream {
    config: Config,
    listener: Listener,
    client: Client,
    outbox: Outbox,
}

impl CloudStream {
    /// Creates the part. `client` reads on which node a pod is.
    pub fn new(config: Config, listener: Listener, client: Client, outbox: Outbox) -> Self {
        Self { config, listener, client, outbox }
    }

    /// Runs until `stop`.
    ///
    /// # Errors
    /// None; see [`Error`].
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        let Self { config, listener, client, outbox } = self;
        tokio::select! {
            () = stop.cancelled() => {}
            () = serve::run(config, listener, client, outbox) => {}
        }
        Ok(())
    }
}

impl fmt::Debug for CloudStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloudStream").field("config", &self.config).finish_non_exhaustive()
    }
}
