//! CloudHub: the cloud's sessions with its nodes.
//!
//! It accepts connections, takes one session per node, compares what the node holds with what the controllers have
//! for it, sends the difference and then every change, and brings the node's reports to the controllers. A node
//! learns that a report has arrived when a controller says that the API has it.
//! It decides nothing by itself: that is [`kubeedge_core::hub::NodeLink`], and this is its driver.
//!
//! ```no_run
//! # async fn example(listener: Box<dyn kubeedge_core::transport::Listener>) -> Result<(), Box<dyn std::error::Error>> {
//! use kubeedge_cloud::cloudhub::{self, CloudHub};
//! use kubeedge_core::message::{Acked, ToNode};
//! use tokio_util::sync::CancellationToken;
//!
//! let (inbox, outbox, mut outside) = cloudhub::pipes();
//! let hub = CloudHub::new(cloudhub::Config::default(), vec![listener], inbox, outbox);
//! tokio::spawn(hub.run(CancellationToken::new()));
//!
//! while let Some(from) = outside.statuses.recv().await {
//!     // Write it to the API, then say so.
//!     let message = Acked { key: from.message.message.key(), delivery: from.message.delivery };
//!     outside.acked.send(ToNode { node: from.node, message })?;
//! }
//! # Ok(())
//! # }
//! ```

use std::{sync::Arc, time::Duration};

use kubeedge_core::{
    hub::NodeConfig,
    id::NodeName,
    message::{
        Acked, Answer, ClockOffset, Delivered, Delivery, FromNode, ObjectEvent, ObjectRef, Query, Report,
        ReportKey, Request, Response, Ruling, SessionState, Snapshot, ToNode, UploadedEvent, UploadedPublish,
    },
    pipe::{self, Callee, Caller, EventReceiver, EventSender, LatestReceiver, LatestSender},
    transport::{Listener, TransportError},
    wire::{Codec, Native},
};
use tokio_util::sync::CancellationToken;

mod clock;
mod driver;
mod gauges;
mod session;
#[cfg(test)]
mod tests;

pub use gauges::{Counts, Gauges, LaneCounts};

/// The cloud's sessions with its nodes; see the [module](self).
#[derive(Debug)]
pub struct CloudHub {
    config: Config,
    listeners: Vec<Box<dyn Listener>>,
    codec: Arc<dyn Codec>,
    inbox: Inbox,
    outbox: Outbox,
    gauges: Gauges,
}

/// What CloudHub goes by.
#[derive(Debug, Clone)]
pub struct Config {
    /// How each session behaves: heartbeat, windows, limits.
    pub link: NodeConfig,
    /// At most so many nodes have a session; further ones are refused. One that has a session can always renew it.
    pub max_sessions: usize,
    /// About how many bytes all sessions may take together; a node for which there is no memory is refused.
    pub memory_max: usize,
    /// How long a node that was refused because there are too many stays away, and up to half as long again.
    pub retry_after: Duration,
    /// Over which time the nodes are sent elsewhere when the part stops, so that they do not all come to another cloud at
    /// once.
    pub drain: Duration,
    /// How long a controller may take to say what it has for a node.
    pub snapshot_timeout: Duration,
    /// The pause before it is asked again. A controller that has just started needs seconds to list.
    pub snapshot_retry: Duration,
    /// How long a controller may take to answer a node's query.
    pub query_timeout: Duration,
    /// How long a node may take to answer a request.
    pub request_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            link: NodeConfig::default(),
            max_sessions: 10_000,
            memory_max: 1 << 30,
            retry_after: Duration::from_secs(30),
            drain: Duration::from_secs(1),
            snapshot_timeout: Duration::from_secs(10),
            snapshot_retry: Duration::from_secs(1),
            query_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
        }
    }
}

/// What comes to CloudHub.
#[derive(Debug)]
pub struct Inbox {
    /// What changed for a node. A change for a node without a session is dropped: its next session compares.
    pub downstream: LatestReceiver<(NodeName, ObjectRef), ToNode<ObjectEvent>>,
    /// Which reports the API has.
    pub acked: LatestReceiver<(NodeName, ReportKey), ToNode<Acked<ReportKey>>>,
    /// Which of the `messages` and `events` have been delivered, or given up with a word to their owner.
    pub taken: LatestReceiver<(NodeName, Delivery), ToNode<Delivery>>,
    /// Nodes that another cloud has taken, and those that are shut out: sessions that are here all the same end.
    pub lost: LatestReceiver<NodeName, ToNode<Ruling>>,
    /// Questions for nodes.
    pub requests: Callee<ToNode<Request>, Response>,
    /// Questions for nodes that came to another cloud. `None` is the answer for a node without a session: they go no further.
    pub relayed: Callee<ToNode<Request>, Option<Response>>,
}

/// What goes out from CloudHub.
#[derive(Debug)]
pub struct Outbox {
    /// Asks each controller what it has for a node, at each session's begin.
    pub snapshots: Vec<Caller<NodeName, Snapshot>>,
    /// What nodes and pods have come to.
    pub statuses: LatestSender<(NodeName, ReportKey), FromNode<Delivered<Report>>>,
    /// What devices have come to.
    pub device_reports: LatestSender<(NodeName, ReportKey), FromNode<Delivered<Report>>>,
    /// Which nodes have a session.
    pub sessions: LatestSender<NodeName, FromNode<SessionState>>,
    /// How far the clocks of the nodes are from the cloud's: once a session and then now and then.
    pub clocks: LatestSender<NodeName, FromNode<ClockOffset>>,
    /// Questions of nodes.
    pub queries: Caller<FromNode<Query>, Answer>,
    /// What nodes record about the objects that they have. A node keeps each until `taken` names it. Without a receiver
    /// events end here.
    pub events: EventSender<FromNode<Delivered<UploadedEvent>>>,
    /// What applications on nodes send up. A node keeps each message until `taken` names it. Without a receiver
    /// messages end here.
    pub messages: EventSender<FromNode<Delivered<UploadedPublish>>>,
    /// Takes the questions for nodes without a session, where other clouds may have one; `None` if this is the only cloud.
    pub elsewhere: Option<Caller<ToNode<Request>, Response>>,
}

/// The other ends of [`Inbox`] and [`Outbox`].
#[derive(Debug)]
pub struct Outside {
    /// Feeds [`Inbox::downstream`].
    pub downstream: LatestSender<(NodeName, ObjectRef), ToNode<ObjectEvent>>,
    /// Feeds [`Inbox::acked`].
    pub acked: LatestSender<(NodeName, ReportKey), ToNode<Acked<ReportKey>>>,
    /// Feeds [`Inbox::taken`].
    pub taken: LatestSender<(NodeName, Delivery), ToNode<Delivery>>,
    /// Feeds [`Inbox::lost`].
    pub lost: LatestSender<NodeName, ToNode<Ruling>>,
    /// Feeds [`Inbox::requests`].
    pub requests: Caller<ToNode<Request>, Response>,
    /// Feeds [`Inbox::relayed`].
    pub relayed: Caller<ToNode<Request>, Option<Response>>,
    /// Receives from the one pipe in [`Outbox::snapshots`].
    pub snapshots: Callee<NodeName, Snapshot>,
    /// Receives from [`Outbox::statuses`].
    pub statuses: LatestReceiver<(NodeName, ReportKey), FromNode<Delivered<Report>>>,
    /// Receives from [`Outbox::device_reports`].
    pub device_reports: LatestReceiver<(NodeName, ReportKey), FromNode<Delivered<Report>>>,
    /// Receives from [`Outbox::sessions`].
    pub sessions: LatestReceiver<NodeName, FromNode<SessionState>>,
    /// Receives from [`Outbox::clocks`].
    pub clocks: LatestReceiver<NodeName, FromNode<ClockOffset>>,
    /// Receives from [`Outbox::queries`].
    pub queries: Callee<FromNode<Query>, Answer>,
    /// Receives from [`Outbox::events`].
    pub events: EventReceiver<FromNode<Delivered<UploadedEvent>>>,
    /// Receives from [`Outbox::messages`].
    pub messages: EventReceiver<FromNode<Delivered<UploadedPublish>>>,
}

/// Creates all of CloudHub's pipes, for whoever embeds this part alone; it is the only cloud.
pub fn pipes() -> (Inbox, Outbox, Outside) {
    let report_key = |from: &FromNode<Delivered<Report>>| (from.node.clone(), from.message.message.key());
    let (downstream_tx, downstream_rx) =
        pipe::latest("downstream", |to: &ToNode<ObjectEvent>| (to.node.clone(), to.message.key().clone()));
    let (acked_tx, acked_rx) =
        pipe::latest("acked", |to: &ToNode<Acked<ReportKey>>| (to.node.clone(), to.message.key.clone()));
    let (taken_tx, taken_rx) = pipe::latest("taken", |to: &ToNode<Delivery>| (to.node.clone(), to.message));
    let (lost_tx, lost_rx) = pipe::latest("lost", |to: &ToNode<Ruling>| to.node.clone());
    let (requests_tx, requests_rx) = pipe::calls("requests", 256);
    let (relayed_tx, relayed_rx) = pipe::calls("relayed", 64);
    // Nodes come back in crowds; a controller that cannot keep up is asked again.
    let (snapshots_tx, snapshots_rx) = pipe::calls("snapshots", 1024);
    let (statuses_tx, statuses_rx) = pipe::latest("statuses", report_key);
    let (device_reports_tx, device_reports_rx) = pipe::latest("device_reports", report_key);
    let (sessions_tx, sessions_rx) =
        pipe::latest("sessions", |from: &FromNode<SessionState>| from.node.clone());
    let (clocks_tx, clocks_rx) = pipe::latest("clocks", |from: &FromNode<ClockOffset>| from.node.clone());
    let (queries_tx, queries_rx) = pipe::calls("queries", 256);
    let (events_tx, events_rx) = pipe::events("events", 1024);
    let (messages_tx, messages_rx) = pipe::events("messages", 1024);
    (
        Inbox {
            downstream: downstream_rx,
            acked: acked_rx,
            taken: taken_rx,
            lost: lost_rx,
            requests: requests_rx,
            relayed: relayed_rx,
        },
        Outbox {
            snapshots: vec![snapshots_tx],
            statuses: statuses_tx,
            device_reports: device_reports_tx,
            sessions: sessions_tx,
            clocks: clocks_tx,
            queries: queries_tx,
            events: events_tx,
            messages: messages_tx,
            elsewhere: None,
        },
        Outside {
            downstream: downstream_tx,
            acked: acked_tx,
            taken: taken_tx,
            lost: lost_tx,
            requests: requests_tx,
            relayed: relayed_tx,
            snapshots: snapshots_rx,
            statuses: statuses_rx,
            device_reports: device_reports_rx,
            sessions: sessions_rx,
            clocks: clocks_rx,
            queries: queries_rx,
            events: events_rx,
            messages: messages_rx,
        },
    )
}

/// Says why CloudHub cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A listener accepts no connections any more.
    #[error("no connections are accepted on {address} any more: {source}")]
    Listener {
        /// Where it listened.
        address: String,
        /// What the listener says.
        source: TransportError,
    },
}

impl CloudHub {
    /// Creates the part.
    pub fn new(config: Config, listeners: Vec<Box<dyn Listener>>, inbox: Inbox, outbox: Outbox) -> Self {
        let gauges = Gauges::new(config.memory_max);
        Self { config, listeners, codec: Arc::new(Native), inbox, outbox, gauges }
    }

    /// What it says of itself, also while it runs.
    pub fn gauges(&self) -> Gauges {
        self.gauges.clone()
    }

    /// Speaks another wire format than [`Native`].
    #[must_use]
    pub fn with_codec(mut self, codec: Arc<dyn Codec>) -> Self {
        self.codec = codec;
        self
    }

    /// Runs until `stop`; then takes no more nodes, and sends those that it has elsewhere, each with a goodbye.
    ///
    /// # Errors
    /// If a listener ends.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        driver::Driver::new(self).run(stop).await
    }
}
