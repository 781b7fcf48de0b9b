//! Dmi: mappers outside the process, over KubeEdge's Device Mapper Interface.
//!
//! It stands where a mapper inside the process stands: it receives what should be run, and sends what was found.
//! A mapper registers for a protocol on edgecore's socket, and is told its devices; from then on it is called on its own
//! socket with every change, and reports what its devices have. Mappers built on KubeEdge's mapper framework work
//! unchanged, and so do mappers written with the gRPC library of any language.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use kubeedge_core::store::memory::MemoryStore;
//! use kubeedge_edge::dmi::{self, Config, Dmi};
//! use tokio_util::sync::CancellationToken;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let stop = CancellationToken::new();
//! let (inbox, outbox, mut outside) = dmi::pipes();
//! let dmi = Dmi::new(Config::new("/etc/kubeedge/dmi.sock"), Arc::new(MemoryStore::new()), inbox, outbox);
//! let running = tokio::spawn(dmi.run(stop.clone()));
//! // Assignments go in by `outside.assignments`; what mappers report comes out:
//! while let Some(reading) = outside.readings.recv().await {
//!     println!("{reading:?}");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What a mapper can rely on
//!
//! * A registration is durable when it is answered, and is kept until another mapper registers for the protocol. After a
//!   restart of edgecore the mapper is called as before, without registering again.
//! * What a mapper has been told is kept too. After a restart of either side only the difference is told:
//!   a device is registered once, updated when something about it has changed, and removed when it goes.
//!   When a power cut leaves it open whether a mapper knows a device, the device is updated, and registered only if the
//!   mapper answers that it is not there.
//! * A report that was answered with OK is with DeviceTwin. It is taken whole or not at all; what is wrong with it
//!   is said with device and property.
//! * A mapper that does not answer within [`Limits::call_deadline`] is called again after pauses that double up to
//!   [`Limits::retry_max`]. Other mappers are not affected, and neither are its reports.
//!
//! A protocol that is run inside the process is not given to a mapper outside: its registration is refused, so that no
//! device is ever driven twice.

mod driver;
mod record;
mod service;
mod state;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use kubeedge_core::{
    device::{DeviceAssignment, Reading},
    dmi::SocketError,
    id::DeviceId,
    pipe::{self, LatestReceiver, LatestSender},
    store::{MetaStore, StoreError},
};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

/// How Dmi runs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The socket on which mappers call.
    pub socket: PathBuf,
    /// The protocols that mappers inside the process run, so that nobody outside may register for them.
    #[serde(default)]
    pub reserved: BTreeSet<String>,
    /// What bounds it.
    #[serde(default)]
    pub limits: Limits,
}

impl Config {
    /// The defaults for this socket.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), reserved: BTreeSet::new(), limits: Limits::default() }
    }
}

/// What bounds Dmi's memory, and what mappers may ask of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// How many mappers may be registered.
    pub mappers: usize,
    /// How many devices a mapper is told; those beyond are left out, with a warning.
    pub devices_per_mapper: usize,
    /// How many reports a second a mapper may make in the long run.
    pub calls_per_second: u32,
    /// How many reports a mapper may make at once after a pause.
    pub calls_at_once: u32,
    /// The largest message in bytes, in both directions. 4 MiB: what gRPC takes unless told otherwise.
    pub message_bytes: usize,
    /// The longest value in bytes that a mapper may report.
    pub value_bytes: usize,
    /// How many connections may be open at once; more wait.
    pub connections: usize,
    /// How long a mapper may take to answer a call. 10 s, as KubeEdge has it.
    pub call_deadline: Duration,
    /// How long after a call that failed the next one is made; it doubles with each failure in a row.
    pub retry_min: Duration,
    /// The longest pause between two calls to a mapper that does not answer.
    pub retry_max: Duration,
    /// How long after the start a device that nobody mentions is still taken for one that the mapper should have.
    pub orphans_kept: Duration,
    /// How long it may take until what a mapper was told is written. Who crashes before tells an unchanged device again,
    /// which costs a call and nothing else.
    pub told_persisted_every: Duration,
    /// How long the store may take for one call, before Dmi ends with an error.
    pub store_deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            mappers: 64,
            devices_per_mapper: 10_000,
            // KubeEdge takes one a second from all mappers together, which no mapper with reports keeps to.
            calls_per_second: 2_000,
            calls_at_once: 10_000,
            message_bytes: 4 << 20,
            value_bytes: 4 << 10,
            connections: 256,
            call_deadline: Duration::from_secs(10),
            retry_min: Duration::from_millis(500),
            retry_max: Duration::from_secs(30),
            // All devices are told again at start, within seconds.
            orphans_kept: Duration::from_secs(60),
            told_persisted_every: Duration::from_secs(60),
            store_deadline: Duration::from_secs(60),
        }
    }
}

/// What Dmi receives.
#[derive(Debug)]
pub struct Inbox {
    /// What should be run, of all protocols.
    pub assignments: LatestReceiver<DeviceId, DeviceAssignment>,
}

/// Where Dmi sends.
#[derive(Debug)]
pub struct Outbox {
    /// What mappers have reported.
    pub readings: LatestSender<(DeviceId, Option<String>), Reading>,
}

/// The other ends of [`Inbox`] and [`Outbox`].
#[derive(Debug)]
pub struct Outside {
    /// Sends what should be run.
    pub assignments: LatestSender<DeviceId, DeviceAssignment>,
    /// Receives what mappers have reported.
    pub readings: LatestReceiver<(DeviceId, Option<String>), Reading>,
}

/// Why Dmi ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The socket cannot be served on, and trying again does not help.
    #[error("serve DMI: {0}")]
    Socket(#[source] SocketError),
    /// The server ended.
    #[error("serve DMI: {0}")]
    Serve(#[source] tonic::transport::Error),
    /// The registrations could not be read from the store, and trying again does not help.
    #[error("read the registrations of mappers: {0}")]
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

/// Gives devices to mappers outside the process.
#[derive(Debug)]
pub struct Dmi {
    config: Config,
    store: Arc<dyn MetaStore>,
    inbox: Inbox,
    outbox: Outbox,
}

impl Dmi {
    /// Creates the part; it does nothing until [`Dmi::run`].
    pub fn new(config: Config, store: Arc<dyn MetaStore>, inbox: Inbox, outbox: Outbox) -> Self {
        Self { config, store, inbox, outbox }
    }

    /// Runs until `stop` is cancelled. A socket that cannot be made is tried again for as long as it takes.
    ///
    /// # Errors
    /// If the path can be no socket's, or the store cannot be read, or hangs.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        driver::run(self, stop).await
    }
}

/// Creates all pipes of the part: its own ends, and those of everyone else.
pub fn pipes() -> (Inbox, Outbox, Outside) {
    let (assignments_tx, assignments) = pipe::latest("assignments", DeviceAssignment::key);
    let (readings, readings_rx) = pipe::latest("readings", Reading::key);
    (
        Inbox { assignments },
        Outbox { readings },
        Outside { assignments: assignments_tx, readings: readings_rx },
    )
}
