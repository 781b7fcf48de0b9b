//! Dmi: runs a mapper as a process of its own, beside edgecore, over KubeEdge's Device Mapper Interface.
//!
//! It stands where DeviceTwin stands inside edgecore: it gives a mapper its assignments, and takes its readings. So the same
//! driver runs inside edgecore or outside, and which of the two is one line: whether the mapper's pipes lead to
//! DeviceTwin, or to this part.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use kubeedge_core::device::memory::MemoryProtocol;
//! use kubeedge_device::{dmi::{self, Dmi}, mapper::{self, Mapper}};
//! use tokio_util::sync::CancellationToken;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let stop = CancellationToken::new();
//! let (inbox, outbox, outside) = mapper::pipes();
//! let protocol = Arc::new(MemoryProtocol::new("my-protocol"));
//! let mapper = Mapper::new(mapper::Config::default(), protocol, inbox, outbox);
//! let dmi = Dmi::new(
//!     dmi::Config::new("my-mapper", "my-protocol", "/etc/kubeedge/my-mapper.sock"),
//!     dmi::Inbox { readings: outside.readings },
//!     dmi::Outbox { assignments: outside.assignments },
//! );
//! tokio::try_join!(
//!     async { Ok::<_, Box<dyn std::error::Error>>(mapper.run(stop.clone()).await?) },
//!     async { Ok(dmi.run(stop.clone()).await?) },
//! )?;
//! # Ok(())
//! # }
//! ```
//!
//! # When one side restarts
//!
//! While edgecore is away, devices run on as they were, and what they report is kept: the newest value of each
//! property. When edgecore is back, which shows by another socket at its path, the mapper registers again, takes over what
//! has changed, and reports what was kept. A device that edgecore does not mention is let go after
//! [`Limits::orphans_kept`], since edgecore may be about to mention it.

mod driver;
mod service;
mod state;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, time::Duration};

use kubeedge_core::{
    device::{DeviceAssignment, Reading},
    dmi::SocketError,
    id::DeviceId,
    pipe::{LatestReceiver, LatestSender},
};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

/// Who the mapper is, and where edgecore is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The mapper's name.
    pub name: String,
    /// The mapper's version.
    #[serde(default = "default_version")]
    pub version: String,
    /// The protocol whose devices it runs.
    pub protocol: String,
    /// The socket on which edgecore calls it. The folder must be one that edgecore sees under the same path.
    pub socket: PathBuf,
    /// The socket of edgecore.
    #[serde(default = "default_edgecore")]
    pub edgecore: PathBuf,
    /// What bounds it.
    #[serde(default)]
    pub limits: Limits,
}

fn default_version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

/// Where KubeEdge's edgecore has its socket.
fn default_edgecore() -> PathBuf {
    "/etc/kubeedge/dmi.sock".into()
}

impl Config {
    /// The defaults for a mapper of this name and protocol, which is called on `socket`.
    pub fn new(name: impl Into<String>, protocol: impl Into<String>, socket: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            version: default_version(),
            protocol: protocol.into(),
            socket: socket.into(),
            edgecore: default_edgecore(),
            limits: Limits::default(),
        }
    }
}

/// What bounds the memory of a mapper, and its calls.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// How many devices, and how many models, it takes; more are refused.
    pub devices: usize,
    /// The largest message in bytes, in both directions. 4 MiB: what gRPC takes unless told otherwise.
    pub message_bytes: usize,
    /// How many values go in one report.
    pub values_per_report: usize,
    /// How many reports are under way at once, each of another device.
    pub reports_at_once: usize,
    /// How many connections may be open at once; more wait.
    pub connections: usize,
    /// How long edgecore may take to answer a call.
    pub call_deadline: Duration,
    /// How long after a call that failed the next one is made; it doubles with each failure in a row.
    pub retry_min: Duration,
    /// The longest pause between two calls.
    pub retry_max: Duration,
    /// How often it is looked whether edgecore's socket is still the same.
    pub look_every: Duration,
    /// How long a device runs on that edgecore did not mention when the mapper registered again.
    pub orphans_kept: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            devices: 10_000,
            message_bytes: 4 << 20,
            values_per_report: 256,
            reports_at_once: 8,
            connections: 64,
            call_deadline: Duration::from_secs(10),
            retry_min: Duration::from_millis(200),
            retry_max: Duration::from_secs(10),
            look_every: Duration::from_secs(1),
            orphans_kept: Duration::from_secs(30),
        }
    }
}

/// What Dmi receives.
#[derive(Debug)]
pub struct Inbox {
    /// What the mapper has found.
    pub readings: LatestReceiver<(DeviceId, Option<String>), Reading>,
}

/// Where Dmi sends.
#[derive(Debug)]
pub struct Outbox {
    /// What the mapper should run.
    pub assignments: LatestSender<DeviceId, DeviceAssignment>,
}

/// Why Dmi ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The mapper's own socket cannot be served on.
    #[error("serve the mapper: {0}")]
    Socket(#[from] SocketError),
    /// The server ended.
    #[error("serve the mapper: {0}")]
    Serve(#[source] tonic::transport::Error),
}

/// Connects a mapper to edgecore.
#[derive(Debug)]
pub struct Dmi {
    config: Config,
    inbox: Inbox,
    outbox: Outbox,
}

impl Dmi {
    /// Creates the part; it does nothing until [`Dmi::run`].
    pub fn new(config: Config, inbox: Inbox, outbox: Outbox) -> Self {
        Self { config, inbox, outbox }
    }

    /// Runs until `stop` is cancelled. That edgecore is away is no error.
    ///
    /// # Errors
    /// If the mapper's own socket cannot be served on.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        driver::run(self, stop).await
    }
}
