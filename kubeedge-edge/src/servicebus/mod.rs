//! ServiceBus: lets the cloud call HTTP servers on the node's loopback address.
//!
//! A question names port, method, path, headers and body; the answer is the server's. What cannot be done is
//! an answer too, with the HTTP status that says best why.
//!
//! Whoever may write rules in the cloud could reach every server on the node that trusts its loopback address.
//! So nothing is called but what [`Config::allow`] names; [`Config::allow_all_ports`] is for those who rely on calling
//! everything.
//!
//! ```
//! use kubeedge_core::message::{Response, ServiceRequest};
//! use kubeedge_edge::servicebus::{self, Config, ServiceBus};
//! use std::time::Duration;
//! use tokio_util::sync::CancellationToken;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let (inbox, outside) = servicebus::pipes();
//! tokio::spawn(ServiceBus::new(Config::default(), inbox).run(CancellationToken::new()));
//! let request = ServiceRequest {
//!     port: 8080,
//!     method: "GET".into(),
//!     path: "/health".into(),
//!     headers: Vec::new(),
//!     body: Default::default(),
//! };
//! let answer = outside.services.call(request, Duration::from_secs(15)).await;
//! assert!(matches!(answer, Ok(Response::Failed { code: 403, .. })));
//! # }
//! ```

mod driver;
mod request;
#[cfg(test)]
mod tests;

use std::time::Duration;

use kubeedge_core::{
    message::{Response, ServiceRequest},
    pipe::{self, Callee, Caller},
};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

/// Calls HTTP servers on the node.
#[derive(Debug)]
pub struct ServiceBus {
    config: Config,
    inbox: Inbox,
}

/// What may be called, and what a call may cost.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The servers that may be called. None by default.
    pub allow: Vec<Allowed>,
    /// Whether every port may be called, as KubeEdge has it.
    pub allow_all_ports: bool,
    /// How long a call may take, from connecting to the last byte.
    pub deadline: Duration,
    /// The longest body of an answer in bytes.
    pub response_bytes_max: usize,
    /// Calls at once; further ones wait in the pipe.
    pub concurrency_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            allow_all_ports: false,
            // 10 s: the timeout of KubeEdge's ServiceBus.
            deadline: Duration::from_secs(10),
            // 3 MiB: an answer has to fit in one frame of 4 MiB.
            response_bytes_max: 3 << 20,
            concurrency_max: 16,
        }
    }
}

/// A server that may be called.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allowed {
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// The path that may be called, with everything below it: `/api` allows `/api/x` and not `/apix`.
    #[serde(default = "root")]
    pub path: String,
}

fn root() -> String {
    "/".to_owned()
}

/// What ServiceBus receives.
#[derive(Debug)]
pub struct Inbox {
    /// Calls, with their answers.
    pub services: Callee<ServiceRequest, Response>,
}

/// The other end of the pipe.
#[derive(Debug)]
pub struct Outside {
    /// See [`Inbox::services`].
    pub services: Caller<ServiceRequest, Response>,
}

/// ServiceBus does not fail: what goes wrong with a call is the answer to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {}

/// Creates both sides of ServiceBus's pipe.
pub fn pipes() -> (Inbox, Outside) {
    let (caller, callee) = pipe::calls("services", 64);
    (Inbox { services: callee }, Outside { services: caller })
}

impl ServiceBus {
    /// Creates the part.
    pub fn new(config: Config, inbox: Inbox) -> Self {
        Self { config, inbox }
    }

    /// Runs until `stop`. Calls that are not answered then are given up.
    ///
    /// # Errors
    /// None at present.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        driver::run(self, stop).await;
        Ok(())
    }
}
