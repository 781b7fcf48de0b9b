//! Mapper: runs all devices of one protocol, reads their properties, and writes what is desired of them.
//!
//! Each device is its own future: one that hangs or fails holds up no other. A device that does not answer is
//! opened again, first after [`Config::retry_min`], then after pauses that double up to [`Config::retry_max`].
//!
//! * **Cycles.** A property is read every `collectCycle`, in step with the clock; cycles that were missed are not made
//!   up for. Each value goes to [`Outbox::samples`], and one every `reportCycle` to [`Outbox::readings`].
//! * **Desired values** are written, read back and compared. Until the device has what is desired, it is written
//!   again after pauses that double. Only a value that was confirmed is reported as observed.
//! * **States.** `online`; `offline` if the device does not answer; `unhealthy` if it does, but one of its properties
//!   cannot be read, or does not fit the model, or does not take what is desired. The log says which, and why.
//! * **Back-pressure.** If `samples` is full, devices are read more slowly until there is room: what was read is
//!   never dropped.
//!
//! ```
//! use std::sync::Arc;
//!
//! use kubeedge_core::device::{DeviceAssignment, DeviceSpec, ReadingContent, memory::MemoryProtocol};
//! use kubeedge_device::mapper::{self, Config, Mapper};
//! use tokio_util::sync::CancellationToken;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let protocol = MemoryProtocol::new("memory");
//! let (inbox, outbox, mut outside) = mapper::pipes();
//! let stop = CancellationToken::new();
//! let mapper = Mapper::new(Config::default(), Arc::new(protocol.clone()), inbox, outbox);
//! let running = tokio::spawn(mapper.run(stop.clone()));
//!
//! let device = r#"{"metadata":{"namespace":"default","name":"d-1"},"spec":{
//!     "protocol":{"protocolName":"memory"},"properties":[{"name":"limit","desired":{"value":"7"}}]}}"#;
//! let model = r#"{"spec":{"properties":[{"name":"limit","type":"INT"}]}}"#;
//! let spec = DeviceSpec::from_json(device.as_bytes(), model.as_bytes())?;
//! let id = spec.device.clone();
//! outside.assignments.send(DeviceAssignment { device: id.clone(), spec: Some(spec) })?;
//!
//! while let Some(reading) = outside.readings.recv().await {
//!     if let ReadingContent::Property { value, .. } = reading.content {
//!         assert_eq!(value, "7");
//!         break;
//!     }
//! }
//! assert_eq!(protocol.value(&id, "limit").as_deref(), Some("7"));
//! stop.cancel();
//! running.await??;
//! # Ok(())
//! # }
//! ```

mod device;
mod driver;
mod state;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use kubeedge_core::{
    device::{DeviceAssignment, DeviceProtocol, Reading, Sample},
    id::DeviceId,
    pipe::{self, EventSender, LatestReceiver, LatestSender},
};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

/// How a mapper runs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How long a device may take to open, to read or to write; then it counts as unreachable.
    pub call_deadline: Duration,
    /// How long after a failure a device is opened again; it doubles with each failure in a row.
    pub retry_min: Duration,
    /// The longest pause between two tries to open a device.
    pub retry_max: Duration,
    /// The shortest cycle in which a property is read, whatever its device says.
    pub collect_cycle_min: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            call_deadline: Duration::from_secs(5),
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(30),
            // A hundred values a second from one property is more than any twin is for.
            collect_cycle_min: Duration::from_millis(10),
        }
    }
}

/// What a mapper receives.
#[derive(Debug)]
pub struct Inbox {
    /// What to run. Devices of another protocol are ignored, so that all mappers may be told of all devices.
    pub assignments: LatestReceiver<DeviceId, DeviceAssignment>,
}

/// Where a mapper sends.
#[derive(Debug)]
pub struct Outbox {
    /// What it found, for the twins: values that fit the device model, by their report cycles, and each device's
    /// connection.
    pub readings: LatestSender<(DeviceId, Option<String>), Reading>,
    /// Every value that it read and that fits the device model, for whoever keeps or pushes them, if somebody does.
    pub samples: Option<EventSender<Sample>>,
}

/// The other ends of [`Inbox`] and [`Outbox`].
#[derive(Debug)]
pub struct Outside {
    /// Sends what to run.
    pub assignments: LatestSender<DeviceId, DeviceAssignment>,
    /// Receives what was found.
    pub readings: LatestReceiver<(DeviceId, Option<String>), Reading>,
}

/// Why a mapper ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The protocol has an empty name, so that no device can ask for it.
    #[error("the device protocol has no name")]
    Nameless,
}

/// Runs all devices of one protocol.
#[derive(Debug)]
pub struct Mapper {
    config: Config,
    protocol: Arc<dyn DeviceProtocol>,
    inbox: Inbox,
    outbox: Outbox,
}

impl Mapper {
    /// Creates a mapper for the devices whose protocol has this one's name.
    pub fn new(config: Config, protocol: Arc<dyn DeviceProtocol>, inbox: Inbox, outbox: Outbox) -> Self {
        Self { config, protocol, inbox, outbox }
    }

    /// Runs until `stop` is cancelled. Calls that are under way are dropped then.
    ///
    /// # Errors
    /// If the protocol cannot be asked for. A device that fails is no error: it is reported and tried again.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        driver::run(self, stop).await
    }
}

/// Creates all pipes of the part: its own ends, and those of everyone else. Nobody receives samples until
/// [`Outbox::samples`] is set.
pub fn pipes() -> (Inbox, Outbox, Outside) {
    let (assignments_tx, assignments) = pipe::latest("assignments", DeviceAssignment::key);
    let (readings, readings_rx) = pipe::latest("readings", Reading::key);
    (
        Inbox { assignments },
        Outbox { readings, samples: None },
        Outside { assignments: assignments_tx, readings: readings_rx },
    )
}
