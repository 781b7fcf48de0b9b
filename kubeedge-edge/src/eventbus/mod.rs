//! EventBus: MQTT for the applications and mappers of the node.
//!
//! What applications publish for DeviceTwin (`$hw/events/device/…`, `$hw/events/node/…`) and for the cloud
//! ([`Uploads::topics`]) comes in; what DeviceTwin and the cloud say goes out.
//! As in KubeEdge it does so with a broker of its own inside the process ([`broker`]), as a client of a broker
//! that runs beside it, or both.
//!
//! A message of QoS 1 or 2 is acknowledged once a power cut cannot lose it: one for DeviceTwin when DeviceTwin has
//! committed what came of it, one for the cloud when it is in the node's store, where it stays until the cloud says
//! that it has it. While there is no room, its sender waits: that is where back-pressure meets the world.
//!
//! Nobody may say `…/twin/cloud_updated` over MQTT: only the link to the cloud knows what the cloud desires.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use kubeedge_core::store::memory::MemoryStore;
//! use kubeedge_edge::eventbus::{self, Config, EventBus, Mode};
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let (inbox, outbox, mut outside) = eventbus::pipes();
//! let config = Config { mode: Mode::Internal, ..Config::default() };
//! let stop = CancellationToken::new();
//! let store = Arc::new(MemoryStore::new());
//! tokio::spawn(EventBus::new(config, store, inbox, outbox).run(stop));
//! while let Some(publish) = outside.device_messages.recv().await {
//!     println!("{}: {} bytes", publish.topic, publish.payload.len());
//!     // Only with this does the application learn that its message has arrived.
//!     outside.device_messages.settle();
//! }
//! # Ok(()) }
//! ```

pub mod broker;
mod config;
mod driver;
mod external;
mod pending;
mod route;
mod rules;
#[cfg(test)]
mod tests;
mod tls;
pub(crate) mod topic;
mod uploads;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use kubeedge_core::{
    message::{ObjectEvent, ObjectRef, Publish, Response, Upload, UploadId},
    pipe::{self, Callee, Caller, EventReceiver, EventSender, LatestReceiver, LatestSender},
    store::{MetaStore, StoreError},
    tls::Error as TlsError,
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

pub use broker::QoS;
pub use config::{Config, External, Internal, Mode, Secret, TlsFiles, Uploads};
pub use uploads::Backlog;

/// Carries messages between the node's applications and the parts of the edge.
#[derive(Debug)]
pub struct EventBus {
    config: Config,
    store: Arc<dyn MetaStore>,
    inbox: Inbox,
    outbox: Outbox,
    listener: Option<TcpListener>,
    backlog: watch::Sender<Backlog>,
}

/// What EventBus receives.
#[derive(Debug)]
pub struct Inbox {
    /// Messages of DeviceTwin for applications and mappers.
    pub publishes: EventReceiver<Publish>,
    /// Messages of the cloud for applications; the answer says that the broker has it.
    pub cloud_messages: Callee<Publish, Response>,
    /// Which of `uploads` the cloud has.
    pub uploaded: LatestReceiver<UploadId, UploadId>,
    /// Rules of users that begin on this node: what is published on their topics goes to the cloud.
    pub rules: LatestReceiver<ObjectRef, ObjectEvent>,
}

/// What EventBus sends.
#[derive(Debug)]
pub struct Outbox {
    /// Messages on topics of devices and of the node, for DeviceTwin. Those of QoS 1 want a receipt.
    pub device_messages: EventSender<Publish>,
    /// Messages for the cloud.
    pub uploads: EventSender<Upload>,
}

/// The other ends of the pipes.
#[derive(Debug)]
pub struct Outside {
    /// See [`Inbox::publishes`].
    pub publishes: EventSender<Publish>,
    /// See [`Inbox::cloud_messages`].
    pub cloud_messages: Caller<Publish, Response>,
    /// See [`Inbox::uploaded`].
    pub uploaded: LatestSender<UploadId, UploadId>,
    /// See [`Inbox::rules`].
    pub rules: LatestSender<ObjectRef, ObjectEvent>,
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
    /// The files for TLS with the broker beside the process are not what they should be.
    #[error("TLS with the external MQTT broker: {0}")]
    Tls(#[from] TlsError),
    /// What waits for the cloud cannot be read or written, and trying again does not help.
    #[error("messages for the cloud: {0}")]
    Store(#[source] StoreError),
    /// The store did not return from a call, so that nobody knows what it holds.
    #[error("messages for the cloud: the store did not answer within {0:?}")]
    Stuck(Duration),
}

/// Whether the text is a topic filter that MQTT clients may subscribe to (MQTT 3.1.1 §4.7).
pub fn is_filter(text: &str) -> bool {
    topic::is_filter(text)
}

/// Creates both sides of EventBus's pipes.
pub fn pipes() -> (Inbox, Outbox, Outside) {
    // 256 each: a burst of a few messages from every device of a node, and little memory.
    let (publishes_tx, publishes) = pipe::events("publishes", 256);
    let (device_messages, device_messages_rx) = pipe::events("device_messages", 256);
    let (uploads, uploads_rx) = pipe::events("uploads", 256);
    let (cloud_messages_tx, cloud_messages) = pipe::calls("cloud_messages", 16);
    let (uploaded_tx, uploaded) = pipe::latest("uploaded", |id: &UploadId| *id);
    let (rules_tx, rules) = pipe::latest("rules", |event: &ObjectEvent| event.key().clone());
    (
        Inbox { publishes, cloud_messages, uploaded, rules },
        Outbox { device_messages, uploads },
        Outside {
            publishes: publishes_tx,
            cloud_messages: cloud_messages_tx,
            uploaded: uploaded_tx,
            rules: rules_tx,
            device_messages: device_messages_rx,
            uploads: uploads_rx,
        },
    )
}

impl EventBus {
    /// Creates the part. `store` keeps what waits for the cloud.
    pub fn new(config: Config, store: Arc<dyn MetaStore>, inbox: Inbox, outbox: Outbox) -> Self {
        let (backlog, _) = watch::channel(Backlog::default());
        Self { config, store, inbox, outbox, listener: None, backlog }
    }

    /// What waits for the cloud, at any time.
    pub fn backlog(&self) -> watch::Receiver<Backlog> {
        self.backlog.subscribe()
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
    /// If the embedded broker cannot listen on its address, the files for TLS are wrong, or the store fails for good.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        driver::run(self, stop).await
    }
}
