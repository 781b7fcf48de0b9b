//! DeviceTwin: desired and reported values of the node's devices, kept across restarts, with and without a link.
//!
//! The cloud's desired values come in Device objects, applications read and write twins by MQTT on KubeEdge's
//! topics, and a mapper says what the devices have. DeviceTwin brings them together: it tells the mapper what to
//! run, the applications what changed, and the cloud what the devices report.
//!
//! ```
//! use std::sync::Arc;
//!
//! use kubeedge_core::{message::Publish, store::memory::MemoryStore};
//! use kubeedge_edge::devicetwin::{self, Config, DeviceTwin};
//! use tokio_util::sync::CancellationToken;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let stop = CancellationToken::new();
//! let (inbox, outbox, mut outside) = devicetwin::pipes();
//! let store = Arc::new(MemoryStore::new());
//! let twin = DeviceTwin::new(Config::new("edge-1".parse()?), store, inbox, outbox);
//! let running = tokio::spawn(twin.run(stop.clone()));
//!
//! let topic = "$hw/events/device/default/sensor-1/twin/get".to_owned();
//! outside.device_messages.send(Publish { topic, payload: r#"{"event_id":"1"}"#.into() })?;
//! let answer = outside.publishes.recv().await.expect("DeviceTwin runs");
//! assert_eq!(answer.topic, "$hw/events/device/default/sensor-1/twin/get/result");
//!
//! stop.cancel();
//! running.await??;
//! # Ok(())
//! # }
//! ```
//!
//! # What survives a power cut
//!
//! What the cloud desires, what an application wrote, and a device's connection state are durable before anyone
//! hears of them. A value that a mapper read is not worth a write to flash: it can be read again. Such values
//! are written together, at most every [`Limits::readings_persisted_every`], and are told to the applications and
//! the cloud at once. Their versions still only grow: each stored twin reserves the next
//! [`VERSIONS_RESERVED`] versions, a twin that comes to the end of what is reserved is written first, and after a
//! restart counting goes on behind the reserve. So a value from the store is never taken for newer than what was
//! reported before the cut. A reading that repeats the value only moves the timestamp in memory.
//!
//! # Who wins
//!
//! All writes of a property meet here, and each that is accepted gets the next version; the newest version is the value.
//! What the cloud desires is ordered by the resource version of the Device object, and is a write only when it differs
//! from what the cloud desired before, so that a replay never takes back what an application wrote meanwhile. A
//! device that was kept by another node, or by this one before its store was lost, counts on behind the versions in
//! the object's `status`.
//!
//! # What the cloud hears
//!
//! A report is the whole of a device, so that any number of changes while there was no link become one report. Reports
//! keep a pace, see [`Limits::report_interval`]. Each value carries its version, when it was written, and who wrote it
//! (`source`: `cloud`, `application` or `mapper`); as versions count the accepted writes, the difference between two
//! reports says how many were passed over.
//!
//! # Where this is stricter than KubeEdge
//!
//! A message is taken whole or not at all; an `expected` or `actual` without a `value` is answered with code
//! 400, and so is a value that the property's type or range in the DeviceModel does not allow; `twin/cloud_updated` is
//! ignored, because over MQTT anyone could speak in the cloud's name; the number of twins is bounded. The reason of
//! an answer with code 400 begins as KubeEdge's and goes on with the device, the property and what is wrong.

mod driver;
mod payload;
mod record;
#[cfg(feature = "simulation")]
pub mod simulation;
mod state;
#[cfg(test)]
mod tests;

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use kubeedge_core::{
    device::{DeviceAssignment, Reading},
    id::{DeviceId, NodeName},
    message::{Connectivity, ObjectEvent, ObjectRef, Publish, Report, ReportKey},
    pipe::{self, EventReceiver, EventSender, LatestReceiver, LatestSender},
    store::{MetaStore, StoreError},
};
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How many versions of a twin a write to the store reserves. At one changed value a second it is
/// a quarter of an hour, more than [`Limits::readings_persisted_every`] is by default.
pub const VERSIONS_RESERVED: u64 = 1_000;

/// How DeviceTwin runs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The node, as it stands in MQTT topics.
    pub node: NodeName,
    /// What bounds it.
    #[serde(default)]
    pub limits: Limits,
}

impl Config {
    /// The defaults for this node.
    pub fn new(node: NodeName) -> Self {
        Self { node, limits: Limits::default() }
    }
}

/// What bounds DeviceTwin's memory, and its writes to the store.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// How many twins a device may have; an MQTT message that would make more is answered with code 400.
    pub twins_per_device: usize,
    /// How many twins all devices may have together.
    pub twins: usize,
    /// The longest MQTT payload in bytes.
    pub payload_bytes: usize,
    /// The longest value in bytes that a mapper may read.
    pub value_bytes: usize,
    /// How many inputs become one commit.
    pub inputs_per_turn: usize,
    /// How long values that a mapper read may wait to be written; see the [module](self) for what that risks.
    pub readings_persisted_every: Duration,
    /// How often each device is reported to the cloud at most in the long run, always with its newest.
    pub report_interval: Duration,
    /// How many reports of a device that was quiet go up at once. What people wait for goes up besides, at most
    /// once a second: a connection that came or went, and a property that has come to be as desired.
    pub report_burst: u32,
    /// How many reports all devices together may make in a second.
    pub reports_per_second: NonZeroU32,
    /// How long a device from the store may go unmentioned while the edge is synchronized with the cloud, before it
    /// is taken for one that was deleted while nobody listened.
    pub orphans_kept: Duration,
    /// How long after a failed commit the next one is tried; it doubles up to [`Limits::retry_max`].
    pub retry_min: Duration,
    /// The longest pause between two tries to commit.
    pub retry_max: Duration,
    /// How long the store may take for one call, before DeviceTwin ends with an error.
    pub store_deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            twins_per_device: 1_000,
            twins: 100_000,
            payload_bytes: 256 << 10,
            value_bytes: 4 << 10,
            inputs_per_turn: 256,
            // One commit of a store on flash writes about 20 KB: this is 4 KB a minute, if values change at all.
            readings_persisted_every: Duration::from_secs(300),
            // The cloud writes a device's status no more often than this by default, and all together as often: what
            // it does not write at once would only hold up what it would, since reports on their way are counted.
            report_interval: Duration::from_secs(10),
            report_burst: 3,
            reports_per_second: const { NonZeroU32::new(50).expect("50 is not zero") },
            // All devices are told again at start, within seconds.
            orphans_kept: Duration::from_secs(600),
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(30),
            store_deadline: Duration::from_secs(60),
        }
    }
}

/// What DeviceTwin receives.
#[derive(Debug)]
pub struct Inbox {
    /// Devices and device models, in any order; all of them again at start.
    pub devices: LatestReceiver<ObjectRef, ObjectEvent>,
    /// MQTT messages below `$hw/events/device/` and `$hw/events/node/`.
    pub device_messages: EventReceiver<Publish>,
    /// What mappers found.
    pub readings: LatestReceiver<(DeviceId, Option<String>), Reading>,
    /// Whether there is a link: all devices are reported when one begins, at the pace of [`Limits`].
    pub connectivity: watch::Receiver<Connectivity>,
}

/// Where DeviceTwin sends.
#[derive(Debug)]
pub struct Outbox {
    /// Devices, for the cloud.
    pub reports: LatestSender<ReportKey, Report>,
    /// Results, documents and deltas, for applications.
    pub publishes: EventSender<Publish>,
    /// What mappers should run.
    pub assignments: LatestSender<DeviceId, DeviceAssignment>,
}

/// The other ends of [`Inbox`] and [`Outbox`].
#[derive(Debug)]
pub struct Outside {
    /// Sends devices and device models.
    pub devices: LatestSender<ObjectRef, ObjectEvent>,
    /// Sends MQTT messages of applications.
    pub device_messages: EventSender<Publish>,
    /// Sends what mappers found.
    pub readings: LatestSender<(DeviceId, Option<String>), Reading>,
    /// Says whether there is a link.
    pub connectivity: watch::Sender<Connectivity>,
    /// Receives reports.
    pub reports: LatestReceiver<ReportKey, Report>,
    /// Receives MQTT messages for applications.
    pub publishes: EventReceiver<Publish>,
    /// Receives what mappers should run.
    pub assignments: LatestReceiver<DeviceId, DeviceAssignment>,
}

/// Why DeviceTwin ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The twins could not be read from the store, and trying again does not help.
    #[error("read the twins: {0}")]
    Restore(#[source] StoreError),
    /// The store did not return from a call, so that nobody knows what it holds.
    #[error("{what}: the store did not answer within {deadline:?}")]
    Stuck {
        /// What was being done.
        what: &'static str,
        /// How long was waited.
        deadline: Duration,
    },
}

/// Keeps the twins of the node's devices.
#[derive(Debug)]
pub struct DeviceTwin {
    config: Config,
    store: Arc<dyn MetaStore>,
    inbox: Inbox,
    outbox: Outbox,
}

impl DeviceTwin {
    /// Creates the part; it does nothing until [`DeviceTwin::run`].
    pub fn new(config: Config, store: Arc<dyn MetaStore>, inbox: Inbox, outbox: Outbox) -> Self {
        Self { config, store, inbox, outbox }
    }

    /// Runs until `stop` is cancelled. Everything kept by an earlier run is there before the first answer.
    ///
    /// # Errors
    /// If the store cannot be read, or hangs. A commit that fails is tried again for as long as it takes.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        driver::Driver::new(self).run(stop).await
    }
}

/// How many occurrences the pipes of [`pipes`] hold.
const PIPE_CAPACITY: usize = 1_024;

/// Creates all pipes of the part: its own ends, and those of everyone else.
pub fn pipes() -> (Inbox, Outbox, Outside) {
    let (devices_tx, devices) = pipe::latest("devices", |event: &ObjectEvent| event.key().clone());
    let (messages_tx, device_messages) = pipe::events("device_messages", PIPE_CAPACITY);
    let (readings_tx, readings) = pipe::latest("readings", Reading::key);
    let (connectivity_tx, connectivity) = watch::channel(Connectivity::Offline);
    let (reports, reports_rx) = pipe::latest("reports", Report::key);
    let (publishes, publishes_rx) = pipe::events("publishes", PIPE_CAPACITY);
    let (assignments, assignments_rx) = pipe::latest("assignments", DeviceAssignment::key);
    (
        Inbox { devices, device_messages, readings, connectivity },
        Outbox { reports, publishes, assignments },
        Outside {
            devices: devices_tx,
            device_messages: messages_tx,
            readings: readings_tx,
            connectivity: connectivity_tx,
            reports: reports_rx,
            publishes: publishes_rx,
            assignments: assignments_rx,
        },
    )
}
