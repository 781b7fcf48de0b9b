//! A small MQTT 3.1.1 broker in the process, for applications and mappers of one node.
//!
//! It speaks QoS 0 and 1, takes messages of QoS 2, and has retained messages, wills, keep-alive, and sessions that are
//! clean or kept in memory. It keeps nothing on disk. Who may what is in [`Access`].
//!
//! | The standard leaves open, or we bend | Here |
//! |---|---|
//! | a subscription of QoS 2 | is granted QoS 1 (§3.8.4 allows it) |
//! | a publish of QoS 2 | is taken exactly once, and delivered with QoS 1 |
//! | a client that reads slowly, or never acknowledges | at most [`Config::queue_max`] messages wait for it; then those who write to it with QoS 1 wait for a second, and then the oldest of QoS 0, or if there is none the oldest of all, is dropped and counted |
//! | a publish that its client has no right to | is acknowledged, not delivered, and logged, since there is no way to refuse it (§3.3.5) |
//! | a subscription that its client has no right to | fails in SUBACK |
//! | a kept session of another user | is not given to whoever has its client id; a new one begins |
//! | an absent client with a kept session | messages of QoS 1 wait for it, those of QoS 0 do not |
//! | more absent clients than [`Config::sessions_max`] | the session unused for longest is forgotten |
//!
//! ```no_run
//! use kubeedge_edge::eventbus::broker::{Broker, Config};
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn example() -> std::io::Result<()> {
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:1883").await?;
//! let broker = Broker::new(Config::default());
//! broker.run(listener, CancellationToken::new()).await;
//! # Ok(()) }
//! ```

mod access;
mod codec;
mod connection;
mod driver;
mod session;
mod state;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use kubeedge_core::{message::Publish, pipe::Receipt};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use access::{Access, Rights, User};

/// The broker; clones are the same broker.
#[derive(Debug, Clone)]
pub struct Broker {
    shared: Arc<driver::Shared>,
}

/// How sure a message's arrival is. The third of MQTT, exactly once, is taken from clients and not given to them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum QoS {
    /// 0: it arrives or is lost.
    #[default]
    AtMostOnce,
    /// 1: it is sent until it is acknowledged, so it may arrive twice.
    AtLeastOnce,
}

impl QoS {
    /// The number on the wire.
    pub const fn level(self) -> u8 {
        self as u8
    }
}

impl TryFrom<u8> for QoS {
    type Error = UnknownQoS;

    fn try_from(level: u8) -> Result<Self, UnknownQoS> {
        match level {
            0 => Ok(Self::AtMostOnce),
            1 => Ok(Self::AtLeastOnce),
            other => Err(UnknownQoS(other)),
        }
    }
}

impl From<QoS> for u8 {
    fn from(qos: QoS) -> Self {
        qos.level()
    }
}

/// Says that a QoS is neither 0 nor 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("QoS {0} is not offered, only 0 and 1")]
pub struct UnknownQoS(u8);

/// What the broker keeps at most, and for how long it waits.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The longest packet in bytes; a longer one ends its connection before it is read.
    pub packet_bytes_max: usize,
    /// Clients connected at once.
    pub clients_max: usize,
    /// Kept sessions of clients that are not connected.
    pub sessions_max: usize,
    /// Messages waiting for one client.
    pub queue_max: usize,
    /// Bytes waiting for one client; one message may always wait.
    pub queue_bytes_max: usize,
    /// Messages of QoS 1 that were sent to one client and not acknowledged.
    pub inflight_max: usize,
    /// Subscriptions of one client; a further one fails.
    pub filters_max: usize,
    /// Retained messages; a further one is delivered and not kept.
    pub retained_max: usize,
    /// Bytes of all retained messages.
    pub retained_bytes_max: usize,
    /// How long a connection may take for its CONNECT.
    pub connect_deadline: Duration,
    /// How long a write may take; a client that does not read for so long is disconnected.
    pub write_deadline: Duration,
    /// Who may connect, publish and subscribe.
    pub access: Access,
    /// Topic filters on which no client may publish, whatever its rights.
    pub denied: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            packet_bytes_max: 1 << 20,
            clients_max: 256,
            sessions_max: 256,
            // 100: KubeEdge's mqttSessionQueueSize.
            queue_max: 100,
            queue_bytes_max: 4 << 20,
            // 20: as mosquitto has it.
            inflight_max: 20,
            filters_max: 256,
            retained_max: 1000,
            retained_bytes_max: 8 << 20,
            connect_deadline: Duration::from_secs(10),
            write_deadline: Duration::from_secs(30),
            access: Access::default(),
            denied: Vec::new(),
        }
    }
}

/// What the broker holds at the moment, and what it dropped so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Clients connected.
    pub clients: usize,
    /// Sessions, of connected and of absent clients.
    pub sessions: usize,
    /// Retained messages.
    pub retained: usize,
    /// Messages dropped because a client was slow or a limit was reached.
    pub dropped: u64,
}

/// Takes messages of clients before anybody else gets them: how the process itself listens.
pub trait Intake: fmt::Debug + Send + Sync + 'static {
    /// Offers a message. Must not wait, since the broker offers it again after [`Offer::Full`].
    ///
    /// A message of QoS 1 is acknowledged to its client once the offer is not `Full`, and what was promised has come
    /// true, so that a slow process slows its clients and loses nothing. One of QoS 0 is dropped and counted when the
    /// offer is `Full`.
    fn offer(&self, topic: &str, payload: &Bytes, qos: QoS) -> Offer;
}

/// What became of an offer to an [`Intake`].
#[derive(Debug)]
pub enum Offer {
    /// It is for others.
    NotMine,
    /// It was taken.
    Taken,
    /// It is taken once the receipt says so.
    Promised(Receipt),
    /// There is no room for it at the moment.
    Full,
}

impl Broker {
    /// Creates a broker without connections.
    pub fn new(config: Config) -> Self {
        Self { shared: Arc::new(driver::Shared::new(config, None)) }
    }

    /// Creates a broker whose clients' messages are offered to `intake`.
    pub fn with_intake(config: Config, intake: Arc<dyn Intake>) -> Self {
        Self { shared: Arc::new(driver::Shared::new(config, Some(intake))) }
    }

    /// Publishes a message of the process itself. It is not offered to the intake.
    ///
    /// # Errors
    /// If the topic is empty, longer than 65535 bytes, or has wildcards.
    pub fn publish(&self, publish: &Publish, qos: QoS, retain: bool) -> Result<(), BadTopic> {
        self.shared.publish(publish, qos, retain)
    }

    /// Waits while a client reads more slowly than it is written to, for a second at most, so that a burst of messages
    /// costs none of them. For those who [publish](Self::publish) and can wait.
    pub async fn wait_for_readers(&self) {
        self.shared.wait_for_readers().await;
    }

    /// What the broker holds at the moment.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Serves clients of `listener` until `stop`; then all connections end.
    ///
    /// Sessions and retained messages stay in the broker, so it can be run again.
    pub async fn run(&self, listener: TcpListener, stop: CancellationToken) {
        self.shared.run(listener, stop).await;
    }
}

/// Says that a topic is not one to publish on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a topic to publish on: it is empty, too long, or has wildcards")]
pub struct BadTopic(pub String);
