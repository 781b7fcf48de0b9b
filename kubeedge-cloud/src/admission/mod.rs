//! Admission: what KubeEdge checks of its own kinds before the API takes them, as a webhook of the API server.
//!
//! | Path | What comes | What is done |
//! |---|---|---|
//! | `/devices`, `/devicemodels` | Devices, DeviceModels | properties have names, each its own; a Device is of a model |
//! | `/rules`, `/ruleendpoints` | Rules, RuleEndpoints | both ends exist and fit, with all that they need; no two with one source |
//! | `/nodeupgradejobs` | NodeUpgradeJobs | a version, an image, and which nodes, one way; the spec stays |
//! | `/mutating/nodeupgradejobs` | the same | one node at a time and 300 s, unless the job says otherwise |
//! | `/offlinemigration` | Pods labelled `app-offline.kubeedge.io=autonomy` | stay on a node that is unreachable |
//!
//! The paths and the names of the configurations are those of KubeEdge's own admission; see [`configurations`]. The standalone
//! API makes the same checks without a webhook. A request is read only up to [`Config::body_bytes_max`], and only so many at
//! once, whoever sends it.
//!
//! ```no_run
//! use kubeedge_cloud::admission::{Admission, Config, Listener};
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn example(listener: Listener, client: kube::Client) {
//! let admission = Admission::new(Config::default(), listener, client);
//! tokio::spawn(admission.run(CancellationToken::new()));
//! # }
//! ```

mod register;
mod review;
mod serve;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc, time::Duration};

use kube::Client;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

pub use register::{Address, configurations};

/// What the webhook goes by.
#[derive(Debug, Clone)]
pub struct Config {
    /// The longest body of a request in bytes. 3 MiB: an object of the API server's greatest size, twice for an update.
    pub body_bytes_max: usize,
    /// Connections at once; further ones wait to be accepted.
    pub connections_max: usize,
    /// How long a client may take for a handshake, for the head of a request, and for its body.
    pub request_timeout: Duration,
    /// How long the API may take to say what there is besides; the API server itself waits for 10 s by default.
    pub lookup_timeout: Duration,
    /// Where the API server is told to ask, if the part is to tell it.
    pub register: Option<Address>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            body_bytes_max: 3 << 20,
            connections_max: 64,
            request_timeout: Duration::from_secs(10),
            lookup_timeout: Duration::from_secs(5),
            register: None,
        }
    }
}

/// Where the webhook listens.
#[derive(Debug)]
pub struct Listener {
    /// The socket.
    pub socket: TcpListener,
    /// The serving certificate, which the API server believes by [`Address::ca_pem`].
    pub tls: Arc<rustls::ServerConfig>,
}

/// Says why the part cannot run. What clients and the API do wrong never ends it, so that there is no reason yet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {}

/// The part; see the [module](self).
pub struct Admission {
    config: Config,
    listener: Listener,
    client: Client,
    authorities: Option<watch::Receiver<String>>,
}

impl Admission {
    /// Creates the part. `client` reads RuleEndpoints and Rules, and writes the webhooks' configurations if it is to.
    pub fn new(config: Config, listener: Listener, client: Client) -> Self {
        Self { config, listener, client, authorities: None }
    }

    /// Tells the API server again when other authorities have to be believed: they take the place of [`Address::ca_pem`].
    #[must_use]
    pub fn following(self, authorities: watch::Receiver<String>) -> Self {
        Self { authorities: Some(authorities), ..self }
    }

    /// Runs until `stop`.
    ///
    /// # Errors
    /// None for now; see [`Error`].
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        let Self { config, listener, client, authorities } = self;
        let config = Arc::new(config);
        let registering = register::run(client.clone(), config.register.clone(), authorities);
        tokio::select! {
            () = stop.cancelled() => {}
            () = serve::run(config, listener, client) => {}
            () = registering => {}
        }
        Ok(())
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission").field("config", &self.config).finish_non_exhaustive()
    }
}
