//! The schedule, pure: which device does what, and when.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use kubeedge_core::{
    device::{
        AccessMode, DeviceAssignment, DeviceError, DeviceSource, DeviceSpec, PropertySpec, PropertyType,
        Reading, ReadingContent,
    },
    id::DeviceId,
};

use super::Config;

/// The time of an input: for waiting, and for people.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) at: Instant,
    /// Milliseconds since the Unix epoch.
    pub(super) wall_ms: u64,
}

/// All devices of a mapper. A device does at most one thing at a time.
#[derive(Debug)]
pub(super) struct State {
    config: Config,
    protocol: String,
    devices: BTreeMap<DeviceId, Device>,
    readings: Vec<Reading>,
}

/// What the driver is to do with a device.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    /// Open it.
    Open(Arc<DeviceSpec>),
    /// Read a property by its handle.
    Read(PropertySpec),
    /// Write a property by its handle.
    Write(PropertySpec, String),
    /// Let its handle go; nothing is to be said about that.
    Close,
}

/// What became of an action.
#[derive(Debug)]
pub(super) enum Outcome {
    Opened(Result<(), DeviceError>),
    Read(String, Result<String, DeviceError>),
    Wrote(String, String, Result<(), DeviceError>),
}

#[derive(Debug)]
struct Device {
    /// How it should run; `None` once it should not, and only its last call is waited for.
    spec: Option<Arc<DeviceSpec>>,
    phase: Phase,
    /// How long to wait after the next failure.
    pause: Duration,
    properties: BTreeMap<String, Property>,
    /// The connection as it was last told.
    told: Option<&'static str>,
}

/// What a device is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// There is no handle; it ends when the time to open comes.
    Closed { open_at: Instant },
    /// The driver has a handle; it ends when a call is due.
    Idle,
    /// A call is under way; it ends with its outcome. Whether the handle may be used after it.
    Busy { keep: bool },
}

#[derive(Debug)]
struct Property {
    read_at: Instant,
    /// The desired value that was written, or refused, since the device was opened: there is nothing to do for it.
    settled: Option<String>,
    /// The desired value that the device has taken last.
    observed: Option<String>,
    /// It cannot be read, or what is read does not fit the model.
    bad: bool,
}

const ONLINE: &str = "online";
const OFFLINE: &str = "offline";
const UNHEALTHY: &str = "unhealthy";

/// A cycle beyond this is cut: an hour's precision is not missed in a property that is read once a year.
const CYCLE_MAX: Duration = Duration::from_secs(365 * 24 * 3_600);

impl State {
    pub(super) fn new(config: Config, protocol: &str) -> Self {
        Self { config, protocol: protocol.to_owned(), devices: BTreeMap::new(), readings: Vec::new() }
    }

    /// Takes what should become of a device.
    pub(super) fn handle_assignment(&mut self, assignment: DeviceAssignment, now: Now) {
        let id = assignment.device;
        match assignment.spec.filter(|spec| spec.protocol == self.protocol) {
            Some(spec) => self.run_device(id, spec, now),
            None => {
                if let Some(device) = self.devices.get_mut(&id) {
                    device.spec = None;
                }
            }
        }
    }

    fn run_device(&mut self, id: DeviceId, spec: DeviceSpec, now: Now) {
        let pause = self.config.retry_min;
        let device = self.devices.entry(id.clone()).or_insert_with(|| Device {
            spec: None,
            phase: Phase::Closed { open_at: now.at },
            pause,
            properties: BTreeMap::new(),
            told: None,
        });
        let same = device.spec.as_ref().is_some_and(|before| is_same_connection(before, &spec));
        device.phase = match device.phase {
            Phase::Idle if !same => Phase::Closed { open_at: now.at },
            Phase::Closed { .. } if !same => Phase::Closed { open_at: now.at },
            Phase::Busy { keep } => Phase::Busy { keep: keep && same },
            phase @ (Phase::Closed { .. } | Phase::Idle) => phase,
        };
        device.follow(&spec, &self.config, now);
        device.spec = Some(Arc::new(spec));
        // Who assigns may have forgotten what was told of a former device of this name.
        if let Some(told) = device.told {
            self.readings.push(Reading { device: id, content: ReadingContent::State(told.to_owned()) });
        }
    }

    /// Takes what became of an action. Returns whether the handle stays with the driver.
    pub(super) fn handle_outcome(&mut self, id: &DeviceId, outcome: Outcome, now: Now) -> bool {
        let Some(device) = self.devices.get_mut(id) else { return false };
        let keep = matches!(device.phase, Phase::Busy { keep: true });
        device.phase = if keep { Phase::Idle } else { Phase::Closed { open_at: now.at } };
        let Some(spec) = device.spec.clone() else { return false };
        let told = device.told;
        match device.take(&spec, outcome, &self.config, now) {
            Ok(found) => self.readings.extend(found.map(|content| Reading { device: id.clone(), content })),
            Err(error) => {
                tracing::warn!(device = %id, %error, retry_in = ?device.pause, "the device failed");
                device.fail(&error, &self.config, now);
            }
        }
        if let Some(state) = device.told.filter(|_| device.told != told) {
            self.readings
                .push(Reading { device: id.clone(), content: ReadingContent::State(state.to_owned()) });
        }
        device.phase == Phase::Idle
    }

    /// What is to be done now, one action for each device that is free.
    pub(super) fn poll_actions(&mut self, now: Instant) -> Vec<(DeviceId, Action)> {
        let mut actions = Vec::new();
        self.devices.retain(|id, device| {
            if let Some(action) = device.next(now) {
                actions.push((id.clone(), action));
            }
            device.spec.is_some() || matches!(device.phase, Phase::Busy { .. })
        });
        actions
    }

    /// What was found.
    pub(super) fn poll_readings(&mut self) -> Vec<Reading> {
        std::mem::take(&mut self.readings)
    }

    /// When there will be something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.devices.values().filter_map(Device::due).min()
    }
}

impl Device {
    /// Takes over the properties of a specification.
    fn follow(&mut self, spec: &DeviceSpec, config: &Config, now: Now) {
        self.properties.retain(|name, _| spec.property(name).is_some());
        for property in readable(spec) {
            let next = now.at + cycle(property, config);
            self.properties
                .entry(property.name.clone())
                .and_modify(|known| known.read_at = known.read_at.min(next))
                .or_insert_with(|| Property { read_at: now.at, settled: None, observed: None, bad: false });
        }
    }

    fn next(&mut self, now: Instant) -> Option<Action> {
        let Some(spec) = self.spec.clone() else {
            return (self.phase == Phase::Idle).then_some(Action::Close);
        };
        let action = match self.phase {
            Phase::Busy { .. } => return None,
            Phase::Closed { open_at } if open_at > now => return None,
            Phase::Closed { .. } => Action::Open(spec),
            Phase::Idle => self.write(&spec).or_else(|| self.read(&spec, now))?,
        };
        self.phase = Phase::Busy { keep: true };
        Some(action)
    }

    /// The next desired value to write.
    fn write(&mut self, spec: &DeviceSpec) -> Option<Action> {
        for property in readable(spec).filter(|property| property.access == AccessMode::ReadWrite) {
            let (Some(known), Some(desired)) = (self.properties.get_mut(&property.name), &property.desired)
            else {
                continue;
            };
            if known.settled.as_ref() == Some(desired) {
                continue;
            }
            match property.check(desired) {
                Ok(()) => return Some(Action::Write(property.clone(), desired.clone())),
                Err(why) => {
                    tracing::warn!(device = %spec.device, property = property.name, why, "the desired value does not fit the model");
                    known.settled = Some(desired.clone());
                }
            }
        }
        None
    }

    /// The property that has waited longest to be read.
    fn read(&self, spec: &DeviceSpec, now: Instant) -> Option<Action> {
        let due = self.properties.iter().filter(|(_, property)| property.read_at <= now);
        let (name, _) = due.min_by_key(|(_, property)| property.read_at)?;
        spec.property(name).cloned().map(Action::Read)
    }

    fn due(&self) -> Option<Instant> {
        match self.phase {
            Phase::Busy { .. } => None,
            Phase::Closed { open_at } => Some(open_at),
            Phase::Idle => self.properties.values().map(|property| property.read_at).min(),
        }
    }

    /// Takes an outcome. Returns what was found.
    ///
    /// # Errors
    /// If the device has to be opened again.
    fn take(
        &mut self,
        spec: &DeviceSpec,
        outcome: Outcome,
        config: &Config,
        now: Now,
    ) -> Result<Option<ReadingContent>, DeviceError> {
        let found = match outcome {
            Outcome::Opened(opened) => {
                opened?;
                self.begin(now);
                // Only an answer shows that the device is there; with nothing to read, opening has to do.
                if !self.properties.is_empty() {
                    return Ok(None);
                }
                None
            }
            Outcome::Read(name, read) => self.take_value(spec, &name, still_there(read)?, config, now),
            Outcome::Wrote(name, value, written) => {
                self.take_written(&name, value, still_there(written)?, now);
                None
            }
        };
        self.pause = config.retry_min;
        let bad = self.properties.values().any(|property| property.bad);
        self.told = Some(if bad { UNHEALTHY } else { ONLINE });
        Ok(found)
    }

    /// It was opened: everything is read, and everything desired is written again.
    fn begin(&mut self, now: Now) {
        for property in self.properties.values_mut() {
            property.read_at = now.at;
            property.settled = None;
        }
    }

    fn take_value(
        &mut self,
        spec: &DeviceSpec,
        name: &str,
        read: Result<String, DeviceError>,
        config: &Config,
        now: Now,
    ) -> Option<ReadingContent> {
        let (described, known) = (spec.property(name)?, self.properties.get_mut(name)?);
        known.read_at = now.at + cycle(described, config);
        let checked = read.map_err(|error| error.to_string()).and_then(|value| {
            described.check(&value)?;
            Ok(value)
        });
        match checked {
            Ok(value) => {
                known.bad = false;
                Some(ReadingContent::Property {
                    property: name.to_owned(),
                    value,
                    observed_desired: known.observed.clone(),
                    timestamp_ms: now.wall_ms,
                })
            }
            Err(why) => {
                if !known.bad {
                    tracing::warn!(device = %spec.device, property = name, why, "the property cannot be read");
                }
                known.bad = true;
                None
            }
        }
    }

    fn take_written(&mut self, name: &str, value: String, written: Result<(), DeviceError>, now: Now) {
        let Some(known) = self.properties.get_mut(name) else { return };
        known.settled = Some(value.clone());
        match written {
            Ok(()) => {
                known.observed = Some(value);
                // What the device made of it is read at once.
                known.read_at = now.at;
            }
            Err(error) => tracing::warn!(property = name, %error, "the desired value was not written"),
        }
    }

    fn fail(&mut self, error: &DeviceError, config: &Config, now: Now) {
        self.phase = Phase::Closed { open_at: now.at + self.pause };
        self.pause = (self.pause * 2).min(config.retry_max);
        self.told = Some(if matches!(error, DeviceError::Invalid(_)) { UNHEALTHY } else { OFFLINE });
    }
}

/// Tells what a device that is there says from a device that is not there.
fn still_there<T>(result: Result<T, DeviceError>) -> Result<Result<T, DeviceError>, DeviceError> {
    match result {
        Err(error @ (DeviceError::Invalid(_) | DeviceError::Rejected(_))) => Ok(Err(error)),
        Err(error) => Err(error),
        Ok(value) => Ok(Ok(value)),
    }
}

/// The properties that have a value.
fn readable(spec: &DeviceSpec) -> impl Iterator<Item = &PropertySpec> {
    spec.properties.iter().filter(|property| property.value_type != PropertyType::Stream)
}

fn cycle(property: &PropertySpec, config: &Config) -> Duration {
    Duration::from_millis(property.collect_cycle_ms).clamp(config.collect_cycle_min, CYCLE_MAX)
}

/// Whether a handle that was opened for `a` serves `b` too: they differ at most in what is desired, and when.
fn is_same_connection(a: &DeviceSpec, b: &DeviceSpec) -> bool {
    let stripped = |spec: &DeviceSpec| {
        let mut spec = spec.clone();
        spec.state_report_cycle_ms = None;
        spec.source = DeviceSource::default();
        spec.methods.clear();
        spec.unsupported.clear();
        for property in &mut spec.properties {
            property.desired = None;
            property.collect_cycle_ms = 0;
            property.report_cycle_ms = 0;
            property.report_to_cloud = false;
            property.push.clear();
        }
        spec
    };
    stripped(a) == stripped(b)
}
