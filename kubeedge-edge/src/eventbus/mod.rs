//! EventBus: MQTT for the applications and mappers of the node.
//!
//! What applications publish for DeviceTwin (`$hw/events/device/…`, `$hw/events/node/…`) and for the cloud
//! (`$hw/events/upload/…`, `SYS/dis/upload_records`, `<any>/user/…`) comes in; what DeviceTwin says goes out.
//! As in KubeEdge it does so with a broker of its own inside the process ([`broker`]), as a client of a broker
//! that runs beside it, or both.
//!
//! A message of QoS 1 is acknowledged once the pipe to its part has taken it. While the pipe is full, its
//! sender waits: that is where back-pressure meets the world.
//!
//! Nobody may say `…/twin/cloud_updated` over MQTT: only the link to the cloud knows what the cloud desires.
//!
//! ```no_run
//! use kubeedge_edge::eventbus::{self, Config, EventBus, Mode};
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let (inbox, outbox, mut outside) = eventbus::pipes();
//! let config = Config { mode: Mode::Internal, ..Config::default() };
//! let stop = CancellationToken::new();
//! tokio::spawn(EventBus::new(config, inbox, outbox).run(stop));
//! while let Some(publish) = outside.device_messages.recv().await {
//!     println!("{}: {} bytes", publish.topic, publish.payload.len());
//! }
//! # Ok(()) }
//! ```

pub mod broker;
mod config;
mod driver;
mod external;
mod outbox;
mod route;
#[cfg(test)]
mod tests;
pub(crate) mod topic;

use std::net::SocketAddr;

use kubeedge_core::{
    message::{Publish, Upload},
    pipe::{self, EventReceiver, EventSender},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use broker::QoS;
pub use config::{Config, External, Internal, Mode, Secret};

/// Carries messages between the node's applications and the parts of the edge.
#[derive(Debug)]
pub struct EventBus {
    config: Config,
    inbox: Inbox,
    outbox: Outbox,
    listener: Option<TcpListener>,
}

/// What EventBus receives.
#[derive(Debug)]
pub struct Inbox {
    /// Messages of DeviceTwin for applications and mappers.
    pub publishes: EventReceiver<Publish>,
}

/// What EventBus sends.
#[derive(Debug)]
pub struct Outbox {
    /// Messages on topics of devices and of the node, for DeviceTwin.
    pub device_messages: EventSender<Publish>,
    /// Messages for the cloud.
    pub uploads: EventSender<Upload>,
}

/// The other ends of the pipes.
#[derive(Debug)]
pub struct Outside {
    /// See [`Inbox::publishes`].
    pub publishes: EventSender<Publish>,
    /// See [`Outbox::device_messages`].
    pub device_messages: EventReceiver<Publish>,
    /// See [`Outbox::uploads`].
    pub uploads: EventReceiver<Upload>,
}

/// Says why EventBus cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The embedded broker's address is taken, or not one of this machine.
    #[error("the embedded MQTT broker cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
}

/// Creates both sides of EventBus's pipes.
pub fn pipes() -> (Inbox, Outbox, Outside) {
    // 256 each: a burst of a few messages from every device of a node, and little memory.
    let (publishes_tx, publishes) = pipe::events("publishes", 256);
    let (device_messages, device_messages_rx) = pipe::events("device_messages", 256);
    let (uploads, uploads_rx) = pipe::events("uploads", 256);
    (
        Inbox { publishes },
        Outbox { device_messages, uploads },
        Outside { publishes: publishes_tx, device_messages: device_messages_rx, uploads: uploads_rx },
    )
}

impl EventBus {
    /// Creates the part.
    pub fn new(config: Config, inbox: Inbox, outbox: Outbox) -> Self {
        Self { config, inbox, outbox, listener: None }
    }

    /// Lets the embedded broker accept from `listener` instead of listening on the configured address.
    #[must_use]
    pub fn with_listener(self, listener: TcpListener) -> Self {
        Self { listener: Some(listener), ..self }
    }

    /// Runs until `stop`.
    ///
    /// An external broker that cannot be reached is no error: it is tried again and again, and the rest goes on.
    ///
    /// # Errors
    /// If the embedded broker cannot listen on its address.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        driver::run(self, stop).await
    }
}
