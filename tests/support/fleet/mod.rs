//! Clouds in processes of their own, on an API and with any number of nodes in this one.
//!
//! A node is EdgeHub itself, over QUIC and with a certificate of its own; its objects are in memory, and each of its pods is
//! reported as running.

mod api;
mod cloudcore;
mod node;
#[path = "../ports.rs"]
mod ports;

pub use api::ApiSite;
pub use cloudcore::Cloudcore;
pub use node::{Node, Traffic};

/// How long certificates are valid here.
const DAY: std::time::Duration = std::time::Duration::from_secs(24 * 3600);
