//! A Kubernetes API inside the process: for sites without a cluster, for trying out, and for tests.
//!
//! It holds what an edge needs (nodes, pods, ConfigMaps, Secrets, leases, events, devices and a few more) and
//! speaks to stock `kubectl` and to `kube::Client`. It is no cluster: there are no Deployments and no user accounts,
//! Services have the addresses that they are created with, and everyone who has the token may do everything.
//!
//! There are three ways in, one for each need:
//! * [`ApiServer::client`] for code in the same process, such as controllers and tests;
//! * [`ApiServer::serve`] adds TLS and a bearer token, for `kubectl`;
//! * [`Standalone`] is the part that also does what a cluster's own controllers do: it gives pods a node,
//!   asks nodes for logs and streams into pods, evicts pods from nodes that are not heard of unless they tolerate it, and removes expired
//!   events and pods of vanished nodes.
//!
//! ```
//! use k8s_openapi::api::core::v1::Namespace;
//! use kube::Api;
//! use kubeedge_cloud::standalone::{ApiServer, Config};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let api = ApiServer::open(None, Config::default()).await?;
//! let namespaces: Api<Namespace> = Api::all(api.client());
//! assert!(namespaces.get("kubeedge").await.is_ok());
//! # Ok(())
//! # }
//! ```

use std::{path::Path, sync::Arc, time::Duration};

use serde::Deserialize;
use tokio::sync::Semaphore;

use crate::node::Nodes;

mod defaults;
mod delete;
mod discovery;
mod driver;
mod eviction;
mod failure;
mod history;
mod json;
mod list;
mod nodes;
mod patch;
mod protobuf;
mod query;
mod resize;
mod resource;
mod respond;
mod route;
mod scheduler;
mod selector;
mod serve;
mod service;
mod store;
mod streams;
mod sweep;
mod table;
mod tokens;
mod validate;
mod watch;
mod write;

#[cfg(test)]
mod tests;

pub use driver::{Outbox, Outside, Standalone, pipes};
pub use respond::Body;
pub use serve::{Listener, Token, kubeconfig};
pub use service::ApiService;

/// How the API keeps and serves its objects.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The store's cache in bytes. 4 MiB holds a few hundred pods, and the operating system caches the rest.
    pub cache_bytes: usize,
    /// How many changes are remembered for watches. A watch that is farther behind must list again.
    pub history_changes: usize,
    /// How many bytes of changes are remembered at most.
    pub history_bytes: usize,
    /// The largest body in bytes that is read. Kubernetes has 3 MiB.
    pub body_bytes_max: usize,
    /// How many connections may be open at once.
    pub connections_max: usize,
    /// How long a client may take to send the head of a request, or to finish the TLS handshake.
    pub header_timeout: Duration,
    /// How long a client may take to send the body of a request.
    pub body_timeout: Duration,
    /// How often a watch is told how far the versions have come. Kubernetes has about a minute.
    pub bookmark_interval: Duration,
    /// How long a watch lasts when the client does not say; Kubernetes has 30 to 60 minutes.
    pub watch_timeout: Duration,
    /// How long a node has to answer.
    pub node_timeout: Duration,
    /// How many streams into pods there may be at once: exec, attach and port-forward.
    pub streams_max: usize,
    /// How long such a stream lasts at most. 4 h: the kubelet's streamingConnectionIdleTimeout.
    pub stream_timeout: Duration,
    /// How long an Event is kept. Kubernetes has one hour.
    pub event_ttl: Duration,
    /// How often expired events and pods of vanished nodes are looked for.
    pub sweep_interval: Duration,
    /// How often it is looked for nodes that are not heard of, and for pods that have tolerated that long enough.
    pub node_interval: Duration,
    /// How long a pod that says nothing of it stays on a node that is not heard of: 300 s, as the admission plugin
    /// DefaultTolerationSeconds has it.
    pub default_toleration: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cache_bytes: 4 << 20,
            history_changes: 4096,
            history_bytes: 4 << 20,
            body_bytes_max: 3 << 20,
            connections_max: 1024,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            bookmark_interval: Duration::from_secs(60),
            watch_timeout: Duration::from_secs(45 * 60),
            node_timeout: Duration::from_secs(30),
            streams_max: 64,
            stream_timeout: Duration::from_secs(4 * 3600),
            event_ttl: Duration::from_secs(3600),
            sweep_interval: Duration::from_secs(60),
            node_interval: Duration::from_secs(5),
            default_toleration: Duration::from_secs(300),
        }
    }
}

/// Says why the API cannot start, or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store's file cannot be opened: it is in use, damaged, or not ours to write.
    #[error("the store of the standalone API cannot be opened")]
    Open(#[from] redb::DatabaseError),
    /// The store's file cannot be created.
    #[error("the file of the standalone API's store cannot be created")]
    Create(#[source] std::io::Error),
    /// The store cannot be read or written.
    #[error("the store of the standalone API failed")]
    Store(#[source] redb::Error),
    /// The operating system gave no thread for the store.
    #[error("the thread of the standalone API's store cannot be started")]
    Thread(#[source] std::io::Error),
    /// The store failed while it ran, and takes no more writes.
    #[error("the store of the standalone API failed and must be opened anew")]
    Failed,
    /// The socket can no longer accept connections.
    #[error("the standalone API cannot listen")]
    Listen(#[source] std::io::Error),
    /// The first objects cannot be written.
    #[error("the first namespaces cannot be created: {0}")]
    Namespaces(String),
}

/// The API and its objects; cloneable, all clones are one.
#[derive(Debug, Clone)]
pub struct ApiServer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: store::Store,
    streams: Arc<Semaphore>,
    config: Config,
}

impl ApiServer {
    /// Opens the API's objects in a file, or, without a path, in memory; and creates the namespaces that
    /// exist from the start.
    ///
    /// Every write that has been answered survives power loss.
    ///
    /// # Errors
    /// If the file cannot be opened, read or written.
    pub async fn open(path: Option<&Path>, config: Config) -> Result<Self, Error> {
        let (path, at) = (path.map(Path::to_owned), config.clone());
        let open = move || store::Store::open(path.as_deref(), &at);
        // Opening waits for the disk, and for a repair if the power was lost.
        let opened = tokio::task::spawn_blocking(open).await;
        let store = opened.map_err(|error| Error::Thread(std::io::Error::other(error)))??;
        let ensured = store.write(false, write::ensure_namespaces).await;
        ensured.map_err(|failure| Error::Namespaces(failure.message))?;
        let streams = Arc::new(Semaphore::new(config.streams_max.min(Semaphore::MAX_PERMITS)));
        Ok(Self { inner: Arc::new(Inner { store, streams, config }) })
    }

    /// The API as a `tower::Service`, which may be called from inside the process without a socket. It does
    /// not ask for a token, and cannot reach nodes.
    pub fn service(&self) -> ApiService {
        ApiService { inner: self.inner.clone(), nodes: None }
    }

    /// A client of the API. Must be called in a tokio runtime.
    pub fn client(&self) -> kube::Client {
        kube::Client::new(self.service(), "default")
    }
}
