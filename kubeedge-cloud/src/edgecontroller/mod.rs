//! EdgeController: between the Kubernetes API and the nodes at the edge, for everything but devices.
//!
//! Downwards it watches Pods, ConfigMaps and Secrets, and tells each node of its pods and of what they refer to.
//! Upwards it writes what nodes report: their own registration and status, the status of their pods, events. While
//! a node has a session it renews the node's Lease in its place; when the session ends it sets the node's
//! conditions to Unknown, and says in the condition `EdgeLinkReady` since when. The conditions `EdgeClockSynced` and
//! `EdgeVersionSupported` say what it sees of a node besides. It never deletes a pod because a node is
//! away, and sees to it that nobody else does: the pods of a node tolerate its absence without end, unless the Node is
//! annotated with `node.kubeedge.io/autonomy: evict`.
//!
//! Objects keep their bytes: what the API has is what the edge gets, unknown fields included.
//!
//! ```no_run
//! use kubeedge_cloud::edgecontroller::{self, Config, EdgeController};
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn example(client: kube::Client) {
//! let (inbox, outbox, mut outside) = edgecontroller::pipes();
//! let controller = EdgeController::new(Config::default(), client, inbox, outbox);
//! tokio::spawn(controller.run(CancellationToken::new()));
//! while let Some(event) = outside.downstream.recv().await {
//!     println!("for {}: {}", event.node, event.message.key());
//! }
//! # }
//! ```

mod autonomy;
mod certificates;
mod counts;
mod driver;
mod events;
mod mirror;
mod ownership;
mod questions;
mod requests;
mod seen;
mod state;
mod status;
#[cfg(test)]
mod tests;
mod turns;

use std::{collections::BTreeMap, fmt, num::NonZeroUsize, sync::Arc, time::Duration};

use kube::Client;
use kubeedge_core::{
    id::NodeName,
    message::{
        Acked, Answer, ClockOffset, Delivered, Delivery, FromNode, ObjectEvent, ObjectRef, Query, Report,
        ReportKey, Ruling, SessionState, Snapshot, ToNode, UploadedEvent,
    },
    pipe::{self, Callee, Caller, EventReceiver, EventSender, LatestReceiver, LatestSender},
};
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use counts::{Counts, Dropped, Writing};

use crate::{authorization::Denials, controller::Sight};

/// How EdgeController behaves.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What this cloud is called among those that serve the same API; each has to have another name. A node's Lease bears
    /// the name of the cloud that has its session.
    pub identity: String,
    /// Where other clouds reach this one, `host:port`, as `relay::Peers` listens; a node's Lease says it beside the name.
    /// Empty if they cannot.
    pub address: String,
    /// How often a connected node's Lease is renewed. 10 s, as the kubelet does.
    pub lease_interval: Duration,
    /// How long a Lease holds. 40 s, as the kubelet has it, so that Kubernetes' own controllers agree.
    pub lease_duration: Duration,
    /// How long after the start an edge node may be without a session before it counts as away. 40 s: as long as
    /// its Lease would hold.
    pub absent_grace: Duration,
    /// How long after the end of its session a node counts as away. 3 s: links break and come back at once, and each time
    /// that a Node is Unknown its pods are marked as not ready. A link that falls silent has been waited for already.
    pub away_grace: Duration,
    /// How many writes of reports, and how many of Leases, are in flight at once. 16 each: enough to hide the time
    /// that the API takes, and few beside the 400 requests that an API server handles at once by default.
    pub writes_at_once: NonZeroUsize,
    /// How many events are written at once. 16, as reports; of one node they are written one after the other, so that an event
    /// and what it has come to stay in order.
    pub events_at_once: NonZeroUsize,
    /// How many events of one node wait at most; links let an edge have 32 on their way.
    pub events_waiting_max: NonZeroUsize,
    /// For how long an event is tried. An hour: as long as an API server keeps one by default.
    pub events_tried_for: Duration,
    /// How many questions of nodes the API is asked at once. 32: a node that waits for a token starts no pod meanwhile.
    pub questions_at_once: NonZeroUsize,
    /// And how many of one node. 4: enough for the tokens of a pod.
    pub questions_per_node: NonZeroUsize,
    /// How many questions of one node wait at most; links let an edge have 64 open.
    pub questions_waiting_max: NonZeroUsize,
    /// The wait after a first failure of the API; it doubles with each.
    pub retry_first: Duration,
    /// The longest wait after failures of the API.
    pub retry_max: Duration,
    /// The port at which API servers are told to look for a node's kubelet, in place of the one that the node reports: that
    /// of CloudStream, as KubeEdge's tunnel port.
    pub kubelet_port: Option<u16>,
    /// How far a node's clock may be from the cloud's before its condition `EdgeClockSynced` is False. 10 s: more than any
    /// clock that is kept by NTP is off, and less than what certificates and tokens would notice.
    pub clock_offset_max: Duration,
    /// The version that those of the nodes are compared with, such as `0.1.0`.
    pub version: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            identity: "cloudcore".to_owned(),
            address: String::new(),
            lease_interval: Duration::from_secs(10),
            lease_duration: Duration::from_secs(40),
            absent_grace: Duration::from_secs(40),
            away_grace: Duration::from_secs(3),
            writes_at_once: const { NonZeroUsize::new(16).expect("16 is not zero") },
            events_at_once: const { NonZeroUsize::new(16).expect("16 is not zero") },
            events_waiting_max: const { NonZeroUsize::new(1024).expect("1024 is not zero") },
            events_tried_for: Duration::from_secs(3600),
            questions_at_once: const { NonZeroUsize::new(32).expect("32 is not zero") },
            questions_per_node: const { NonZeroUsize::new(4).expect("4 is not zero") },
            questions_waiting_max: const { NonZeroUsize::new(256).expect("256 is not zero") },
            retry_first: Duration::from_secs(1),
            retry_max: Duration::from_secs(30),
            kubelet_port: None,
            clock_offset_max: Duration::from_secs(10),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

impl Config {
    fn bounds(&self) -> seen::Bounds {
        seen::Bounds { clock_offset_max: self.clock_offset_max, version: self.version.clone() }
    }
}

/// Says why EdgeController cannot run. What the API or a node does wrong never ends it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A Lease would run out before it is renewed.
    #[error(
        "lease_interval ({interval:?}) must be shorter than lease_duration ({duration:?}), which is at least 1 s"
    )]
    Lease {
        /// The configured interval.
        interval: Duration,
        /// The configured duration.
        duration: Duration,
    },
}

/// What comes in.
#[derive(Debug)]
pub struct Inbox {
    /// The states of nodes and pods, from CloudHub.
    pub statuses: LatestReceiver<(NodeName, ReportKey), FromNode<Delivered<Report>>>,
    /// CloudHub asks for all objects of a node. Answered when the API was listed once, never before.
    pub snapshots: Callee<NodeName, Snapshot>,
    /// What became of the nodes' sessions. A session is told of here before its first report is sent.
    pub sessions: LatestReceiver<NodeName, FromNode<SessionState>>,
    /// How far the clocks of the nodes are from the cloud's.
    pub clocks: LatestReceiver<NodeName, FromNode<ClockOffset>>,
    /// Nodes ask for objects.
    pub queries: Callee<FromNode<Query>, Answer>,
    /// What the nodes record about their objects. Each is kept by its node until `taken` names it.
    pub events: EventReceiver<FromNode<Delivered<UploadedEvent>>>,
}

/// What goes out.
#[derive(Debug)]
pub struct Outbox {
    /// What becomes of the objects of each node.
    pub downstream: LatestSender<(NodeName, ObjectRef), ToNode<ObjectEvent>>,
    /// The API has what a node reported, or will never take it.
    pub acked: LatestSender<(NodeName, ReportKey), ToNode<Acked<ReportKey>>>,
    /// Nodes that another cloud has taken, so that their sessions here are to end: a node that has one all the same comes
    /// again, to whichever cloud, and is taken anew. And those that their Nodes' annotation shuts out.
    pub lost: LatestSender<NodeName, ToNode<Ruling>>,
    /// The API has an event, or will never take it.
    pub taken: LatestSender<(NodeName, Delivery), ToNode<Delivery>>,
}

/// The other ends of [`Inbox`] and [`Outbox`].
#[derive(Debug)]
#[expect(missing_docs, reason = "each field is the other end of the field of the same name")]
pub struct Outside {
    pub statuses: LatestSender<(NodeName, ReportKey), FromNode<Delivered<Report>>>,
    pub snapshots: Caller<NodeName, Snapshot>,
    pub sessions: LatestSender<NodeName, FromNode<SessionState>>,
    pub clocks: LatestSender<NodeName, FromNode<ClockOffset>>,
    pub queries: Caller<FromNode<Query>, Answer>,
    pub events: EventSender<FromNode<Delivered<UploadedEvent>>>,
    pub downstream: LatestReceiver<(NodeName, ObjectRef), ToNode<ObjectEvent>>,
    pub acked: LatestReceiver<(NodeName, ReportKey), ToNode<Acked<ReportKey>>>,
    pub lost: LatestReceiver<NodeName, ToNode<Ruling>>,
    pub taken: LatestReceiver<(NodeName, Delivery), ToNode<Delivery>>,
}

/// Creates both ends of all pipes.
pub fn pipes() -> (Inbox, Outbox, Outside) {
    let (statuses_tx, statuses) = pipe::latest("statuses", |from: &FromNode<Delivered<Report>>| {
        (from.node.clone(), from.message.message.key())
    });
    let (snapshots_tx, snapshots) = pipe::calls("snapshots", 1024);
    let (sessions_tx, sessions) = pipe::latest("sessions", |from: &FromNode<SessionState>| from.node.clone());
    let (clocks_tx, clocks) = pipe::latest("clocks", |from: &FromNode<ClockOffset>| from.node.clone());
    let (queries_tx, queries) = pipe::calls("queries", 256);
    let (events_tx, events) = pipe::events("events", 1024);
    let (downstream, downstream_rx) =
        pipe::latest("downstream", |to: &ToNode<ObjectEvent>| (to.node.clone(), to.message.key().clone()));
    let (acked, acked_rx) =
        pipe::latest("acked", |to: &ToNode<Acked<ReportKey>>| (to.node.clone(), to.message.key.clone()));
    let (lost, lost_rx) = pipe::latest("lost", |to: &ToNode<Ruling>| to.node.clone());
    let (taken, taken_rx) = pipe::latest("taken", |to: &ToNode<Delivery>| (to.node.clone(), to.message));
    let inbox = Inbox { statuses, snapshots, sessions, clocks, queries, events };
    let outside = Outside {
        statuses: statuses_tx,
        snapshots: snapshots_tx,
        sessions: sessions_tx,
        clocks: clocks_tx,
        queries: queries_tx,
        events: events_tx,
        downstream: downstream_rx,
        acked: acked_rx,
        lost: lost_rx,
        taken: taken_rx,
    };
    (inbox, Outbox { downstream, acked, lost, taken }, outside)
}

/// The part; see the [module](self).
pub struct EdgeController {
    config: Config,
    client: Client,
    inbox: Inbox,
    outbox: Outbox,
    denials: Denials,
    counts: Arc<Counts>,
    sight: Sight,
    listed: watch::Sender<bool>,
    unread: watch::Sender<usize>,
    leads: Option<watch::Receiver<bool>>,
}

impl EdgeController {
    /// Creates the part. `client` may lead to any API server: it needs to read, watch and write what the
    /// [module](self) names.
    pub fn new(config: Config, client: Client, inbox: Inbox, outbox: Outbox) -> Self {
        Self {
            config,
            client,
            inbox,
            outbox,
            denials: Denials::default(),
            counts: Arc::default(),
            sight: Sight::default(),
            listed: watch::Sender::default(),
            unread: watch::Sender::default(),
            leads: None,
        }
    }

    /// What nodes were refused so far, for metrics; to be taken before [`EdgeController::run`].
    pub fn denials(&self) -> Denials {
        self.denials.clone()
    }

    /// What it has done for its nodes, for metrics; to be taken before [`EdgeController::run`].
    pub fn counts(&self) -> Arc<Counts> {
        self.counts.clone()
    }

    /// The kinds that it cannot watch at present, each with the reason; to be taken before [`EdgeController::run`].
    ///
    /// Empty means that the API is seen. A failure that the next attempt mends is not noted. Meanwhile nodes keep
    /// their sessions and what they have.
    pub fn unwatched(&self) -> watch::Receiver<BTreeMap<&'static str, String>> {
        self.sight.subscribe()
    }

    /// How many objects pods need that the API has not given for long; to be taken before [`EdgeController::run`]. Nodes keep
    /// what they have of them, and the log says which they are and why.
    pub fn unread(&self) -> watch::Receiver<usize> {
        self.unread.subscribe()
    }

    /// Serves one API together with other clouds. Each writes what its own nodes report; while `leads` says so, this one
    /// also looks for nodes whose cloud has ended and that have not come to another.
    #[must_use]
    pub fn with_leadership(mut self, leads: watch::Receiver<bool>) -> Self {
        self.leads = Some(leads);
        self
    }

    /// Whether it knows what exists, so that nodes can be served; to be taken before [`EdgeController::run`].
    pub fn listed(&self) -> watch::Receiver<bool> {
        self.listed.subscribe()
    }

    /// Runs until `stop` is cancelled. Writes in flight are given up then; edges report again what was not
    /// acknowledged.
    ///
    /// # Errors
    /// If the configuration contradicts itself.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        let Config { lease_interval: interval, lease_duration: duration, .. } = self.config;
        if interval >= duration || duration < Duration::from_secs(1) {
            return Err(Error::Lease { interval, duration });
        }
        driver::Driver::new(self).run(stop).await;
        Ok(())
    }
}

impl fmt::Debug for EdgeController {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EdgeController").field("config", &self.config).finish_non_exhaustive()
    }
}
