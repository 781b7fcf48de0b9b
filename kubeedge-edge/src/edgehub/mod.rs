//! EdgeHub: the node's session with the cloud.
//!
//! It dials until it has a session, gives what the cloud sends to the parts of the node, and carries their reports
//! up. What it has not brought to the cloud's API it keeps, one state per key, and sends in the next session.
//! It decides nothing by itself: that is [`kubeedge_core::hub::EdgeLink`], and this is its driver.
//!
//! ```no_run
//! # async fn example(transport: std::sync::Arc<dyn kubeedge_core::transport::Transport>) -> Result<(), Box<dyn std::error::Error>> {
//! use kubeedge_core::message::{Acked, NodeReport, Report};
//! use kubeedge_edge::edgehub::{self, EdgeHub};
//! use tokio_util::sync::CancellationToken;
//!
//! let (inbox, outbox, mut outside) = edgehub::pipes();
//! let hub = EdgeHub::new(edgehub::Config::new("edge-1".parse()?), transport, inbox, outbox);
//! tokio::spawn(hub.run(CancellationToken::new()));
//!
//! outside.reports.send(Report::Node(NodeReport { json: "{}".into() }))?;
//! while let Some(delivered) = outside.objects.recv().await {
//!     // Store it, then say so: only then does the cloud take it as done.
//!     let key = delivered.message.key().clone();
//!     outside.acked.send(Acked { key, delivery: delivered.delivery })?;
//! }
//! # Ok(())
//! # }
//! ```

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use kubeedge_core::{
    hub::EdgeConfig,
    id::NodeName,
    message::{
        Acked, Answer, Connectivity, Delivered, Inventory, LogRequest, ObjectEvent, ObjectRef, Publish,
        Query, Report, ReportKey, Response, ServiceRequest, TunnelRequest, Upload, UploadId, UploadedEvent,
    },
    pipe::{self, Callee, Caller, EventReceiver, EventSender, LatestReceiver, LatestSender},
    transport::{Transport, TransportError},
    wire::{Codec, Native},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

mod dialling;
mod driver;
#[cfg(test)]
mod tests;

/// The node's end of the session with the cloud; see the [module](self).
#[derive(Debug)]
pub struct EdgeHub {
    config: Config,
    transport: Arc<dyn Transport>,
    codec: Arc<dyn Codec>,
    inbox: Inbox,
    outbox: Outbox,
    renewals: Option<watch::Receiver<u64>>,
}

/// What EdgeHub goes by.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node's name: the one in its certificate.
    pub node: NodeName,
    /// How the link behaves: windows, back-off, limits. The heartbeat is the cloud's to say.
    pub link: EdgeConfig,
    /// How long one attempt to connect may take. It is long, because the first of several addresses may be dead.
    pub dial_timeout: Duration,
    /// When another attempt begins beside those that are still running; the first to connect wins. It is short,
    /// because a fresh attempt may find the network back before an older one repeats itself.
    pub dial_interval: Duration,
    /// How long the part that keeps objects may take to say what it holds.
    pub inventory_timeout: Duration,
    /// Spreads the attempts of many nodes; made from the node's name by [`Config::new`].
    pub seed: u64,
}

impl Config {
    /// The defaults for a node of this name.
    pub fn new(node: NodeName) -> Self {
        let mut hash = DefaultHasher::new();
        node.hash(&mut hash);
        Self {
            node,
            link: EdgeConfig::default(),
            dial_timeout: Duration::from_secs(10),
            dial_interval: Duration::from_secs(2),
            inventory_timeout: Duration::from_secs(10),
            seed: hash.finish(),
        }
    }
}

/// What comes to EdgeHub.
#[derive(Debug)]
pub struct Inbox {
    /// The newest state of the node, its pods and its devices.
    pub reports: LatestReceiver<ReportKey, Report>,
    /// What applications send up.
    pub uploads: EventReceiver<Upload>,
    /// What the node records about its objects. While the cloud cannot write it to the API, it is left where it is.
    pub events: EventReceiver<UploadedEvent>,
    /// What has become durable of `objects`.
    pub acked: LatestReceiver<ObjectRef, Acked<ObjectRef>>,
    /// Questions for the cloud.
    pub queries: Callee<Query, Answer>,
}

/// What goes out from EdgeHub.
#[derive(Debug)]
pub struct Outbox {
    /// What the cloud has for the node.
    pub objects: LatestSender<ObjectRef, Delivered<ObjectEvent>>,
    /// Asks what the node holds, at each connect.
    pub inventory: Caller<(), Inventory>,
    /// Asks for pieces of logs, when the cloud does.
    pub logs: Caller<LogRequest, Response>,
    /// Asks HTTP servers of the node, when the cloud does.
    pub services: Caller<ServiceRequest, Response>,
    /// Asks for messages to be published on the node, when the cloud does.
    pub cloud_messages: Caller<Publish, Response>,
    /// Asks for steps of connections to the kubelet's interface, when the cloud does.
    pub tunnels: Caller<TunnelRequest, Response>,
    /// Which of the `uploads` that have an id the cloud has: they need not be kept any longer.
    pub uploaded: LatestSender<UploadId, UploadId>,
    /// Whether there is a session.
    pub connectivity: watch::Sender<Connectivity>,
}

/// The other ends of [`Inbox`] and [`Outbox`].
#[derive(Debug)]
pub struct Outside {
    /// Feeds [`Inbox::reports`].
    pub reports: LatestSender<ReportKey, Report>,
    /// Feeds [`Inbox::uploads`].
    pub uploads: EventSender<Upload>,
    /// Feeds [`Inbox::events`].
    pub events: EventSender<UploadedEvent>,
    /// Feeds [`Inbox::acked`].
    pub acked: LatestSender<ObjectRef, Acked<ObjectRef>>,
    /// Feeds [`Inbox::queries`].
    pub queries: Caller<Query, Answer>,
    /// Receives from [`Outbox::objects`].
    pub objects: LatestReceiver<ObjectRef, Delivered<ObjectEvent>>,
    /// Receives from [`Outbox::inventory`].
    pub inventory: Callee<(), Inventory>,
    /// Receives from [`Outbox::logs`].
    pub logs: Callee<LogRequest, Response>,
    /// Receives from [`Outbox::services`].
    pub services: Callee<ServiceRequest, Response>,
    /// Receives from [`Outbox::cloud_messages`].
    pub cloud_messages: Callee<Publish, Response>,
    /// Receives from [`Outbox::tunnels`].
    pub tunnels: Callee<TunnelRequest, Response>,
    /// Receives from [`Outbox::uploaded`].
    pub uploaded: LatestReceiver<UploadId, UploadId>,
    /// Receives from [`Outbox::connectivity`].
    pub connectivity: watch::Receiver<Connectivity>,
}

/// Creates all of EdgeHub's pipes, for whoever embeds this part alone.
pub fn pipes() -> (Inbox, Outbox, Outside) {
    let (reports_tx, reports_rx) = pipe::latest("reports", Report::key);
    let (uploads_tx, uploads_rx) = pipe::events("uploads", 256);
    let (events_tx, events_rx) = pipe::events("events", 32);
    let (acked_tx, acked_rx) = pipe::latest("acked", |acked: &Acked<ObjectRef>| acked.key.clone());
    let (queries_tx, queries_rx) = pipe::calls("queries", 64);
    let (objects_tx, objects_rx) =
        pipe::latest("objects", |delivered: &Delivered<ObjectEvent>| delivered.message.key().clone());
    let (inventory_tx, inventory_rx) = pipe::calls("inventory", 1);
    let (logs_tx, logs_rx) = pipe::calls("logs", 32);
    let (services_tx, services_rx) = pipe::calls("services", 32);
    let (cloud_messages_tx, cloud_messages_rx) = pipe::calls("cloud_messages", 32);
    let (tunnels_tx, tunnels_rx) = pipe::calls("tunnels", 32);
    let (uploaded_tx, uploaded_rx) = pipe::latest("uploaded", |id: &UploadId| *id);
    let (connectivity_tx, connectivity_rx) = watch::channel(Connectivity::Offline);
    (
        Inbox {
            reports: reports_rx,
            uploads: uploads_rx,
            events: events_rx,
            acked: acked_rx,
            queries: queries_rx,
        },
        Outbox {
            objects: objects_tx,
            inventory: inventory_tx,
            logs: logs_tx,
            services: services_tx,
            cloud_messages: cloud_messages_tx,
            tunnels: tunnels_tx,
            uploaded: uploaded_tx,
            connectivity: connectivity_tx,
        },
        Outside {
            reports: reports_tx,
            uploads: uploads_tx,
            events: events_tx,
            acked: acked_tx,
            queries: queries_tx,
            objects: objects_rx,
            inventory: inventory_rx,
            logs: logs_rx,
            services: services_rx,
            cloud_messages: cloud_messages_rx,
            tunnels: tunnels_rx,
            uploaded: uploaded_rx,
            connectivity: connectivity_rx,
        },
    )
}

/// Says why EdgeHub cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The transport can never connect as it is configured.
    #[error("the node cannot dial the cloud: {0}")]
    Transport(#[source] TransportError),
}

impl EdgeHub {
    /// Creates the part.
    pub fn new(config: Config, transport: Arc<dyn Transport>, inbox: Inbox, outbox: Outbox) -> Self {
        Self { config, transport, codec: Arc::new(Native), inbox, outbox, renewals: None }
    }

    /// Speaks another wire format than [`Native`].
    #[must_use]
    pub fn with_codec(mut self, codec: Arc<dyn Codec>) -> Self {
        self.codec = codec;
        self
    }

    /// Connects anew whenever this changes, as `kubeedge_core::tls::Live::renewals` does with each certificate: a session does
    /// not outlive the one that it began with. The session before goes on until there is a connection.
    #[must_use]
    pub fn with_renewals(mut self, renewals: watch::Receiver<u64>) -> Self {
        self.renewals = Some(renewals);
        self
    }

    /// Runs until `stop`, connecting again and again; then says goodbye to the cloud.
    ///
    /// # Errors
    /// If the transport says that no attempt can succeed.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        driver::Driver::new(self).run(stop).await
    }
}
