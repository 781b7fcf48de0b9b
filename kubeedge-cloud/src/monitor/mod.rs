//! Monitor: what a cloud says of itself to those who operate it, over HTTP.
//!
//! `/metrics` has the figures in Prometheus' text format, `/healthz` and `/livez` answer while the process lives, and
//! `/readyz` says whether the cloud can serve nodes, or what is missing. There is no access control, as in KubeEdge: it
//! belongs on the loopback address or a network of operators. Nothing that is asked here waits for another part.
//!
//! ```no_run
//! use kubeedge_cloud::monitor::{Check, Config, Inbox, Metric, Monitor};
//! use tokio::net::TcpListener;
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let sessions = || vec![Metric::gauge("my_sessions", "Nodes that have a session.").with(&[], 3.0)];
//! let inbox = Inbox {
//!     metrics: vec![Box::new(sessions)],
//!     checks: vec![Check { name: "listed", holds: Box::new(|| true) }],
//! };
//! let listener = TcpListener::bind("127.0.0.1:9091").await?;
//! Monitor::new(Config::default(), listener, inbox).run(CancellationToken::new()).await?;
//! # Ok(())
//! # }
//! ```

use std::{fmt, time::Duration};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

mod metric;
mod serve;
#[cfg(test)]
mod tests;

pub use metric::Metric;

/// How Monitor behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How many connections may be open at once; others wait.
    pub connections_max: usize,
    /// How long a client may take to send a request, and to take the answer.
    pub timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { connections_max: 16, timeout: Duration::from_secs(10) }
    }
}

/// What a part has come to: asked whenever somebody reads the metrics.
pub type Figures = Box<dyn Fn() -> Vec<Metric> + Send + Sync>;

/// Something without which the cloud cannot serve nodes.
pub struct Check {
    /// What it is called.
    pub name: &'static str,
    /// Whether it is there.
    pub holds: Box<dyn Fn() -> bool + Send + Sync>,
}

/// What comes in.
#[derive(Default)]
pub struct Inbox {
    /// The figures, in the order in which they are printed.
    pub metrics: Vec<Figures>,
    /// What readiness needs.
    pub checks: Vec<Check>,
}

/// Says why Monitor cannot go on. A connection that cannot be accepted never ends it, so that there is no reason.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {}

/// The part; see the [module](self).
#[derive(Debug)]
pub struct Monitor {
    config: Config,
    listener: TcpListener,
    inbox: Inbox,
}

impl Monitor {
    /// Creates the part, which serves on `listener`.
    pub fn new(config: Config, listener: TcpListener, inbox: Inbox) -> Self {
        Self { config, listener, inbox }
    }

    /// Serves until `stop`.
    ///
    /// # Errors
    /// None; see [`Error`].
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        serve::run(self, stop).await;
        Ok(())
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Check").field(&self.name).finish()
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("checks", &self.checks).finish_non_exhaustive()
    }
}
