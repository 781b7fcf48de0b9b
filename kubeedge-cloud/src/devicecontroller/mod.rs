//! DeviceController: between the Devices in the Kubernetes API and the nodes that run them.
//!
//! Downwards it watches Devices and DeviceModels (`devices.kubeedge.io/v1beta1`) and tells each node of its devices
//! and of their models. Upwards it writes what nodes report of their devices into `status` of the Device: reported
//! and desired values of each property, the connection state, and when the device was last online.
//!
//! A status in the API is a sample, not a measurement series: a device is written at most once per
//! [`Config::status_interval`] in the long run, all devices together at most [`Config::writes_per_second`] times, and
//! always with the newest that was reported. So fast sensors cannot load the API server, nor can many. A device that
//! was quiet is written at once, up to [`Config::status_burst`] times. What people wait for goes before everything
//! else and needs no such credit, at most once a second for each device: a connection that came or went, and a
//! property that has come to be as desired, or has ceased to. The DeviceStatus of the device's name says the same.
//!
//! Each value in the status has in its `metadata` the `timestamp` of its writing in milliseconds and, as a date,
//! `observedAt`; its `type`, its `source` (`cloud`, `application`, `mapper`) and its `version`. Versions count the writes
//! that were accepted at the edge, and only grow: a report with an older one never takes the place of a newer, in whatever
//! order they come. A reported value has beside them, if there are any, how many were `passedOver` so far: accepted at the
//! edge, and replaced by newer ones before the Device's turn came.
//!
//! ```no_run
//! use kubeedge_cloud::devicecontroller::{self, Config, DeviceController};
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn example(client: kube::Client) {
//! let (inbox, outbox, mut outside) = devicecontroller::pipes();
//! let controller = DeviceController::new(Config::default(), client, inbox, outbox);
//! tokio::spawn(controller.run(CancellationToken::new()));
//! while let Some(event) = outside.downstream.recv().await {
//!     println!("for {}: {}", event.node, event.message.key());
//! }
//! # }
//! ```

mod driver;
#[cfg(feature = "simulation")]
pub mod simulation;
mod state;
mod status;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

use kube::Client;
use kubeedge_core::{
    id::NodeName,
    message::{Acked, Delivered, FromNode, ObjectEvent, ObjectRef, Report, ReportKey, Snapshot, ToNode},
    pipe::{self, Callee, Caller, LatestReceiver, LatestSender},
};
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{authorization::Denials, controller::Sight};

/// How DeviceController behaves.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A device's status is written at most once per interval in the long run. 10 s, as nodes write their own.
    ///
    /// DeviceTwin at the edge has the same limit of its own, so that what would only wait here does not load the link.
    pub status_interval: Duration,
    /// How often a device that was quiet is written at once. 3: a person who tries something sees each step.
    pub status_burst: u32,
    /// All statuses together are written at most so many times per second. 50: a tenth of what makes a small API
    /// server busy.
    pub writes_per_second: NonZeroU32,
    /// Whether each status is also written to the DeviceStatus of the device's name, before the Device: KubeEdge has it only
    /// there since 1.23, and only in the Device before. It doubles the requests. Where the API has no such kind, or does not
    /// let this be written, that is logged once.
    pub device_statuses: bool,
    /// How many writes are in flight at once.
    pub writes_at_once: NonZeroUsize,
    /// The wait after a first failure of the API; it doubles with each.
    pub retry_first: Duration,
    /// The longest wait after failures of the API.
    pub retry_max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            status_interval: Duration::from_secs(10),
            status_burst: 3,
            writes_per_second: const { NonZeroU32::new(50).expect("50 is not zero") },
            device_statuses: true,
            writes_at_once: const { NonZeroUsize::new(16).expect("16 is not zero") },
            retry_first: Duration::from_secs(1),
            retry_max: Duration::from_secs(30),
        }
    }
}

/// Says why DeviceController cannot run. What the API or a node does wrong never ends it, so that there is no
/// reason yet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {}

/// What comes in.
#[derive(Debug)]
pub struct Inbox {
    /// The states of devices, from CloudHub.
    pub reports: LatestReceiver<(NodeName, ReportKey), FromNode<Delivered<Report>>>,
    /// CloudHub asks for all devices and models of a node. Answered when the API was listed once, never before.
    pub snapshots: Callee<NodeName, Snapshot>,
}

/// What goes out.
#[derive(Debug)]
pub struct Outbox {
    /// What becomes of the devices and models of each node.
    pub downstream: LatestSender<(NodeName, ObjectRef), ToNode<ObjectEvent>>,
    /// The API has what a node reported, or will never take it.
    pub acked: LatestSender<(NodeName, ReportKey), ToNode<Acked<ReportKey>>>,
}

/// The other ends of [`Inbox`] and [`Outbox`].
#[derive(Debug)]
#[expect(missing_docs, reason = "each field is the other end of the field of the same name")]
pub struct Outside {
    pub reports: LatestSender<(NodeName, ReportKey), FromNode<Delivered<Report>>>,
    pub snapshots: Caller<NodeName, Snapshot>,
    pub downstream: LatestReceiver<(NodeName, ObjectRef), ToNode<ObjectEvent>>,
    pub acked: LatestReceiver<(NodeName, ReportKey), ToNode<Acked<ReportKey>>>,
}

/// Creates both ends of all pipes.
pub fn pipes() -> (Inbox, Outbox, Outside) {
    let (reports_tx, reports) = pipe::latest("device_reports", |from: &FromNode<Delivered<Report>>| {
        (from.node.clone(), from.message.message.key())
    });
    let (snapshots_tx, snapshots) = pipe::calls("device_snapshots", 1024);
    let (downstream, downstream_rx) =
        pipe::latest("downstream", |to: &ToNode<ObjectEvent>| (to.node.clone(), to.message.key().clone()));
    let (acked, acked_rx) =
        pipe::latest("acked", |to: &ToNode<Acked<ReportKey>>| (to.node.clone(), to.message.key.clone()));
    let outside =
        Outside { reports: reports_tx, snapshots: snapshots_tx, downstream: downstream_rx, acked: acked_rx };
    (Inbox { reports, snapshots }, Outbox { downstream, acked }, outside)
}

/// What DeviceController has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Statuses that the API has taken.
    pub written: u64,
    /// Reports that were passed over, because a newer one of the same device came before their turn.
    pub passed_over: u64,
    /// Reports that the API says already, or that are of no device of their node.
    pub unwritten: u64,
    /// Devices that wait for their turn.
    pub waiting: u64,
}

/// The part; see the [module](self).
pub struct DeviceController {
    config: Config,
    client: Client,
    inbox: Inbox,
    outbox: Outbox,
    counts: watch::Sender<Counts>,
    denials: Denials,
    sight: Sight,
}

impl DeviceController {
    /// Creates the part. `client` may lead to any API server that has KubeEdge's device kinds; while it lacks them,
    /// the part says so once and waits for them.
    pub fn new(config: Config, client: Client, inbox: Inbox, outbox: Outbox) -> Self {
        Self {
            config,
            client,
            inbox,
            outbox,
            counts: watch::Sender::default(),
            denials: Denials::default(),
            sight: Sight::default(),
        }
    }

    /// The kinds that it cannot watch at present, each with the reason; to be taken before [`DeviceController::run`].
    ///
    /// Empty means that the API is seen. A failure that the next attempt mends is not noted. Meanwhile nodes keep
    /// their sessions and what they have.
    pub fn unwatched(&self) -> watch::Receiver<BTreeMap<&'static str, String>> {
        self.sight.subscribe()
    }

    /// What it has done so far, for metrics; to be taken before [`DeviceController::run`].
    pub fn counts(&self) -> watch::Receiver<Counts> {
        self.counts.subscribe()
    }

    /// What nodes were refused so far, for metrics; to be taken before [`DeviceController::run`].
    pub fn denials(&self) -> Denials {
        self.denials.clone()
    }

    /// Runs until `stop` is cancelled. Writes in flight are given up then; edges report again what was not
    /// acknowledged.
    ///
    /// # Errors
    /// None for now; see [`Error`].
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        driver::Driver::new(self).run(stop).await;
        Ok(())
    }
}

impl fmt::Debug for DeviceController {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceController").field("config", &self.config).finish_non_exhaustive()
    }
}
