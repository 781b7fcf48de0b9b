//! Election: of several processes that serve one API, which does what only one may do.
//!
//! It is the algorithm of Kubernetes' own components: who renews a Lease leads, and another may take the Lease when the
//! record in it has not changed for as long as it lasts, by the observer's own clock. Times that stand in the record are
//! for people; clocks of different hosts are never compared. Two that try at once are told apart by the resource version.
//!
//! ```no_run
//! use kubeedge_cloud::election::{Config, Election};
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn example(client: kube::Client) {
//! let election = Election::new(Config::new("cloudcore", "host-1"), client);
//! let mut leads = election.leads();
//! tokio::spawn(election.run(CancellationToken::new()));
//! while leads.changed().await.is_ok() {
//!     println!("this process leads: {}", *leads.borrow());
//! }
//! # }
//! ```

use std::{fmt, time::Duration};

use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

mod driver;
mod state;
#[cfg(test)]
mod tests;

/// How an election goes. The durations are those of Kubernetes' components.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The namespace of the Lease.
    pub namespace: String,
    /// The name of the Lease: what is led.
    pub lease: String,
    /// What this process is called; no other may be called the same.
    pub identity: String,
    /// After how long without a change of the record another may take it.
    pub lease_duration: Duration,
    /// A leader that could not renew for so long leads no more. Shorter than `lease_duration`.
    pub renew_deadline: Duration,
    /// How often it is tried to take or to renew the Lease.
    pub retry_period: Duration,
}

impl Config {
    /// The defaults for a Lease in the namespace `kubeedge`.
    pub fn new(lease: impl Into<String>, identity: impl Into<String>) -> Self {
        Self {
            namespace: "kubeedge".to_owned(),
            lease: lease.into(),
            identity: identity.into(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// Says why an election cannot be held. What the API does never ends it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two might lead at once, or none for long.
    #[error(
        "retry_period ({retry:?}) < renew_deadline ({deadline:?}) < lease_duration ({duration:?}) must hold"
    )]
    Durations {
        /// The configured retry period.
        retry: Duration,
        /// The configured deadline.
        deadline: Duration,
        /// The configured duration.
        duration: Duration,
    },
}

/// The part; see the [module](self).
pub struct Election {
    config: Config,
    client: Client,
    leads: watch::Sender<bool>,
}

impl Election {
    /// Creates the part. `client` needs to get, create and patch Leases in the namespace.
    pub fn new(config: Config, client: Client) -> Self {
        Self { config, client, leads: watch::Sender::default() }
    }

    /// Whether this process leads; to be taken before [`Election::run`].
    pub fn leads(&self) -> watch::Receiver<bool> {
        self.leads.subscribe()
    }

    /// Stands for election until `stop`; then gives the Lease back, so that another need not wait.
    ///
    /// # Errors
    /// If the durations contradict each other.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        let Config { retry_period: retry, renew_deadline: deadline, lease_duration: duration, .. } =
            self.config;
        if retry >= deadline || deadline >= duration {
            return Err(Error::Durations { retry, deadline, duration });
        }
        driver::run(self.config, self.client, self.leads, stop).await;
        Ok(())
    }
}

impl fmt::Debug for Election {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Election").field("config", &self.config).finish_non_exhaustive()
    }
}
