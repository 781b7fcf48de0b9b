//! Relay: requests for nodes whose sessions are with another cloud that serves the same API.
//!
//! CloudHub hands it what is asked of nodes without a session here. The node's Lease names the cloud that has the session
//! and says where that cloud is reached; there the request goes, and the node's answer comes back the same way. What came
//! from another cloud is answered from the sessions of this one alone and goes to no third: so clouds that are wrong about
//! each other do not send a request to and fro.
//!
//! Clouds know each other by certificates of the authority that they share, issued to clouds alone: that of a node opens
//! nothing here, and who answers must be the cloud that the Lease names.
//!
//! ```no_run
//! # async fn example(client: kube::Client, peers: kubeedge_cloud::relay::Peers) {
//! use kubeedge_cloud::relay::{self, Relay};
//! use tokio_util::sync::CancellationToken;
//!
//! let (inbox, outbox, mut outside) = relay::pipes();
//! let relay = Relay::new(relay::Config::new("cloud-1"), client, peers, inbox, outbox);
//! tokio::spawn(relay.run(CancellationToken::new()));
//! while let Some(call) = outside.hub.recv().await {
//!     // No node has a session here.
//!     call.answer(None);
//! }
//! # }
//! ```

mod ask;
mod counts;
mod driver;
mod failure;
mod owners;
mod serve;
#[cfg(test)]
#[cfg(all(feature = "enrollment", feature = "standalone"))]
mod tests;

use std::{fmt, sync::Arc, time::Duration};

use kube::Client;
use kubeedge_core::{
    message::{Request, Response, ToNode},
    pipe::{self, Callee, Caller},
    tls::{self, Live},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use self::{counts::Counts, failure::Reason};

/// What the relay goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What this cloud is called, as in `edgecontroller::Config`.
    pub identity: String,
    /// How long a request may take in all. 30 s: as long as CloudHub waits for a node.
    pub deadline: Duration,
    /// How long it may take to reach another cloud, handshake and all, and how long a handshake may take here. 5 s: they are
    /// in one cluster.
    pub connect_timeout: Duration,
    /// Requests that are on their way to other clouds at once; further ones wait in their pipe, which is bounded.
    pub at_once: usize,
    /// Connections of other clouds at once, each of which carries one request; further ones wait to be accepted.
    pub connections_max: usize,
    /// The bytes of a request and of an answer. 4 MiB: what the link to a node carries.
    pub bytes_max: usize,
    /// For how long it is remembered which cloud has a node, so that the API is not asked with each request. A cloud that
    /// says that it has the node no more is forgotten at once.
    pub owner_lasts: Duration,
    /// For how many nodes that is remembered.
    pub owners_max: usize,
}

impl Config {
    /// The defaults, for the cloud of this name.
    pub fn new(identity: impl Into<String>) -> Self {
        Self {
            identity: identity.into(),
            deadline: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            at_once: 64,
            connections_max: 64,
            bytes_max: 4 << 20,
            owner_lasts: Duration::from_secs(5),
            owners_max: 1024,
        }
    }
}

/// How clouds reach each other.
#[derive(Debug)]
pub struct Peers {
    /// Where this cloud is reached; without it the others are asked and cannot ask.
    pub listener: Option<TcpListener>,
    /// This cloud's certificate and the authorities of the others', as `Enrollment::with_replica` keeps them.
    pub tls: Live,
}

/// What comes in.
#[derive(Debug)]
pub struct Inbox {
    /// Requests for nodes that have no session here.
    pub requests: Callee<ToNode<Request>, Response>,
}

/// What goes out.
#[derive(Debug)]
pub struct Outbox {
    /// What other clouds ask of nodes here: CloudHub. `None` is the answer for a node that has no session here.
    pub hub: Caller<ToNode<Request>, Option<Response>>,
}

/// The other ends of [`Inbox`] and [`Outbox`].
#[derive(Debug)]
pub struct Outside {
    /// Feeds [`Inbox::requests`].
    pub requests: Caller<ToNode<Request>, Response>,
    /// Receives from [`Outbox::hub`].
    pub hub: Callee<ToNode<Request>, Option<Response>>,
}

/// Creates both ends of all pipes.
pub fn pipes() -> (Inbox, Outbox, Outside) {
    let (requests_tx, requests) = pipe::calls("elsewhere", 64);
    let (hub, hub_rx) = pipe::calls("relayed", 64);
    (Inbox { requests }, Outbox { hub }, Outside { requests: requests_tx, hub: hub_rx })
}

/// Says why the relay cannot run. What clouds, nodes and the API do wrong never ends it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The certificates do not make a configuration.
    #[error("clouds cannot reach each other")]
    Tls(#[from] tls::Error),
}

/// The part; see the [module](self).
pub struct Relay {
    config: Config,
    client: Client,
    peers: Peers,
    inbox: Inbox,
    outbox: Outbox,
    counts: Arc<Counts>,
}

impl Relay {
    /// Creates the part. `client` needs to read the Leases of nodes.
    pub fn new(config: Config, client: Client, peers: Peers, inbox: Inbox, outbox: Outbox) -> Self {
        Self { config, client, peers, inbox, outbox, counts: Arc::default() }
    }

    /// What has been passed on, answered and refused so far, also while the part runs.
    pub fn counts(&self) -> Arc<Counts> {
        self.counts.clone()
    }

    /// Runs until `stop` is cancelled. Requests on their way are given up then.
    ///
    /// # Errors
    /// If the certificates cannot be used for TLS.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        driver::run(self, stop).await
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("config", &self.config).finish_non_exhaustive()
    }
}
