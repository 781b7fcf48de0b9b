//! One device of the schedule, pure: its connection, its cycles, and what is desired of it.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use kubeedge_core::device::{
    AccessMode, DeviceError, DeviceSource, DeviceSpec, PropertySpec, PropertyType, PushMethod,
};

use super::{
    Config,
    state::{Action, Now, Outcome},
};

#[derive(Debug)]
pub(super) struct Device {
    /// How it should run; `None` once it should not, and only its last call is waited for.
    spec: Option<Arc<DeviceSpec>>,
    phase: Phase,
    /// How long to wait after the next failure.
    pause: Duration,
    properties: BTreeMap<String, Property>,
    /// The connection as it was last told.
    told: Option<&'static str>,
    /// When the schedule looks at it next.
    pub(super) scheduled: Option<Instant>,
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
    /// Its place in the specification.
    place: usize,
    read_at: Instant,
    /// From when on a value is reported again, even if nothing else has changed.
    report_at: Instant,
    /// The desired value for which there is nothing more to do: the device has it, or it can never have it.
    settled: Option<String>,
    /// The desired value on its way to the device.
    attempt: Option<Attempt>,
    /// The desired value that the device has taken last.
    observed: Option<String>,
    /// What was last reported as observed.
    observed_told: Option<String>,
    /// Why it cannot be read, or why what is read does not fit the model.
    unread: Option<String>,
    /// Why the device does not have what is desired.
    unwritten: Option<String>,
    push: Arc<[PushMethod]>,
}

/// A desired value on its way to the device.
#[derive(Debug)]
struct Attempt {
    value: String,
    /// When it is written; what is read after that ends the attempt, or begins it again.
    at: Instant,
    written: bool,
    /// How long to wait after the next failure.
    pause: Duration,
}

/// A value that was read and fits the model.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) property: String,
    pub(super) value: String,
    pub(super) observed_desired: Option<String>,
    pub(super) timestamp_ms: u64,
    pub(super) push: Arc<[PushMethod]>,
    /// Whether the twin is to be told.
    pub(super) report: bool,
}

const ONLINE: &str = "online";
const OFFLINE: &str = "offline";
const UNHEALTHY: &str = "unhealthy";

/// A cycle beyond this is cut: an hour's precision is not missed in a property that is read once a year.
const CYCLE_MAX: Duration = Duration::from_secs(365 * 24 * 3_600);

impl Device {
    pub(super) fn new(pause: Duration, now: Instant) -> Self {
        Self {
            spec: None,
            phase: Phase::Closed { open_at: now },
            pause,
            properties: BTreeMap::new(),
            told: None,
            scheduled: None,
        }
    }

    /// Runs as this specification says from now on.
    pub(super) fn follow(&mut self, spec: DeviceSpec, config: &Config, now: Now) {
        let same = self.spec.as_ref().is_some_and(|before| is_same_connection(before, &spec));
        self.phase = match self.phase {
            Phase::Idle | Phase::Closed { .. } if !same => Phase::Closed { open_at: now.at },
            Phase::Busy { keep } => Phase::Busy { keep: keep && same },
            phase @ (Phase::Closed { .. } | Phase::Idle) => phase,
        };
        if self.spec.as_ref().is_none_or(|before| before.unsupported != spec.unsupported) {
            for what in &spec.unsupported {
                tracing::warn!(device = %spec.device, field = what.path, why = what.why, "a field of the Device is not followed");
            }
        }
        self.properties.retain(|name, _| spec.property(name).is_some());
        for (place, described) in spec.properties.iter().enumerate().filter(|(_, it)| has_value(it)) {
            let next = now.at + cycle(described.collect_cycle_ms, config);
            let known = self
                .properties
                .entry(described.name.clone())
                .or_insert_with(|| Property::new(now.at, described.push.clone().into()));
            known.place = place;
            if !known.is_about(described.desired.as_ref()) {
                known.unwritten = None;
            }
            known.read_at = known.read_at.min(next);
            known.report_at = known.report_at.min(now.at + cycle(described.report_cycle_ms, config));
            if *known.push != *described.push {
                known.push = described.push.clone().into();
            }
        }
        self.spec = Some(Arc::new(spec));
    }

    /// It should run no more.
    pub(super) fn forsake(&mut self) {
        self.spec = None;
    }

    /// Whether nothing is left to do or to wait for.
    pub(super) fn is_over(&self) -> bool {
        self.spec.is_none() && !matches!(self.phase, Phase::Busy { .. })
    }

    /// The connection as it was last told.
    pub(super) fn told(&self) -> Option<&'static str> {
        self.told
    }

    /// Whether the driver is to have a handle of it.
    pub(super) fn has_handle(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// What to do now, if anything.
    pub(super) fn next(&mut self, now: Instant, reads: bool) -> Option<Action> {
        let Some(spec) = self.spec.clone() else {
            let idle = self.phase == Phase::Idle;
            self.phase = if idle { Phase::Closed { open_at: now } } else { self.phase };
            return idle.then_some(Action::Close);
        };
        let action = match self.phase {
            Phase::Busy { .. } => return None,
            Phase::Closed { open_at } if open_at > now => return None,
            Phase::Closed { .. } => Action::Open(spec),
            Phase::Idle => self.write(&spec, now).or_else(|| self.read(&spec, now).filter(|_| reads))?,
        };
        self.phase = Phase::Busy { keep: true };
        Some(action)
    }

    /// When it will have something to do.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        match (self.phase, &self.spec) {
            (Phase::Busy { .. }, _) => None,
            (Phase::Closed { .. } | Phase::Idle, None) => Some(now),
            (Phase::Closed { open_at }, Some(_)) => Some(open_at),
            (Phase::Idle, Some(spec)) => {
                let due = |property: &Property| match property.write_at(spec.properties.get(property.place)) {
                    Some(write) => property.read_at.min(write.unwrap_or(now)),
                    None => property.read_at,
                };
                self.properties.values().map(due).min()
            }
        }
    }

    /// The next desired value to write.
    fn write(&mut self, spec: &Arc<DeviceSpec>, now: Instant) -> Option<Action> {
        for known in self.properties.values_mut() {
            let Some(described) = spec.properties.get(known.place) else { continue };
            let Some(desired) =
                described.desired.as_ref().filter(|_| known.write_at(Some(described)).is_some())
            else {
                continue;
            };
            if let Err(why) = described.check(desired) {
                known.cannot_write(
                    spec,
                    described,
                    format!("the desired value does not fit the model: {why}"),
                );
                known.settled = Some(desired.clone());
                known.attempt = None;
                continue;
            }
            let attempt = known.attempt.take().filter(|attempt| attempt.value == *desired);
            let attempt = known.attempt.insert(attempt.unwrap_or_else(|| Attempt::new(desired, now)));
            if attempt.at <= now {
                return Some(Action::Write(spec.clone(), known.place, desired.clone()));
            }
        }
        None
    }

    /// The property that has waited longest to be read.
    fn read(&self, spec: &Arc<DeviceSpec>, now: Instant) -> Option<Action> {
        let due = self.properties.values().filter(|property| property.read_at <= now);
        let property = due.min_by_key(|property| property.read_at)?;
        Some(Action::Read(spec.clone(), property.place))
    }

    /// Takes what became of an action. Returns what was found.
    pub(super) fn handle_outcome(&mut self, outcome: Outcome, config: &Config, now: Now) -> Option<Found> {
        let keep = matches!(self.phase, Phase::Busy { keep: true });
        self.phase = if keep { Phase::Idle } else { Phase::Closed { open_at: now.at } };
        let spec = self.spec.clone()?;
        match self.take(&spec, outcome, config, now) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(device = %spec.device, %error, retry_in = ?self.pause, "the device failed");
                self.phase = Phase::Closed { open_at: now.at + self.pause };
                self.pause = (self.pause * 2).min(config.retry_max);
                self.told = Some(if matches!(error, DeviceError::Invalid(_)) { UNHEALTHY } else { OFFLINE });
                None
            }
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
    ) -> Result<Option<Found>, DeviceError> {
        let found = match outcome {
            Outcome::Opened(opened) => {
                opened?;
                for property in self.properties.values_mut() {
                    property.begin(now.at);
                }
                // Only an answer shows that the device is there; with nothing to read, opening has to do.
                if !self.properties.is_empty() {
                    return Ok(None);
                }
                None
            }
            Outcome::Read(name, read) => {
                let read = still_there(&name, read)?;
                match (spec.property(&name), self.properties.get_mut(&name)) {
                    (Some(described), Some(known)) => known.take_value(spec, described, read, config, now),
                    _ => None,
                }
            }
            Outcome::Wrote(name, value, written) => {
                let written = still_there(&name, written)?;
                if let (Some(described), Some(known)) = (spec.property(&name), self.properties.get_mut(&name))
                {
                    known.take_written(spec, described, value, written, config, now.at);
                }
                None
            }
        };
        self.pause = config.retry_min;
        let bad = self
            .properties
            .values()
            .any(|property| property.unread.is_some() || property.unwritten.is_some());
        self.told = Some(if bad { UNHEALTHY } else { ONLINE });
        Ok(found)
    }
}

impl Property {
    fn new(now: Instant, push: Arc<[PushMethod]>) -> Self {
        Self {
            place: 0,
            read_at: now,
            report_at: now,
            settled: None,
            attempt: None,
            observed: None,
            observed_told: None,
            unread: None,
            unwritten: None,
            push,
        }
    }

    /// The device was opened: everything is read, and everything desired is written again.
    fn begin(&mut self, now: Instant) {
        (self.read_at, self.report_at) = (now, now);
        (self.settled, self.attempt) = (None, None);
    }

    /// Whether what is known of writing is about this desired value.
    fn is_about(&self, desired: Option<&String>) -> bool {
        let attempted = self.attempt.as_ref().map(|attempt| &attempt.value);
        desired.is_some() && (desired == attempted || desired == self.settled.as_ref())
    }

    /// Whether and when something desired is to be written; `Some(None)` is at once.
    fn write_at(&self, described: Option<&PropertySpec>) -> Option<Option<Instant>> {
        let described = described.filter(|described| described.access == AccessMode::ReadWrite)?;
        let desired = described.desired.as_ref().filter(|desired| self.settled.as_ref() != Some(desired))?;
        match &self.attempt {
            // What the device made of it is read first.
            Some(attempt) if attempt.value == *desired && attempt.written => None,
            Some(attempt) if attempt.value == *desired => Some(Some(attempt.at)),
            Some(_) | None => Some(None),
        }
    }

    fn take_value(
        &mut self,
        spec: &DeviceSpec,
        described: &PropertySpec,
        read: Result<String, DeviceError>,
        config: &Config,
        now: Now,
    ) -> Option<Found> {
        self.read_at = following(self.read_at, cycle(described.collect_cycle_ms, config), now.at);
        let read = read.map_err(|error| error.to_string()).and_then(|value| {
            described.check(&value)?;
            Ok(value)
        });
        self.confirm(spec, described, &read, config, now.at);
        match read {
            Ok(value) => {
                self.unread = None;
                Some(self.found(described, value, config, now))
            }
            Err(why) => {
                if self.unread.as_ref() != Some(&why) {
                    tracing::warn!(device = %spec.device, property = described.name, why, "the property cannot be read");
                }
                self.unread = Some(why);
                None
            }
        }
    }

    fn found(&mut self, described: &PropertySpec, value: String, config: &Config, now: Now) -> Found {
        let report = self.report_at <= now.at || self.observed != self.observed_told;
        if report {
            let every = cycle(described.report_cycle_ms, config);
            self.report_at = following(self.report_at.min(now.at), every, now.at);
            self.observed_told.clone_from(&self.observed);
        }
        Found {
            property: described.name.clone(),
            value,
            observed_desired: self.observed.clone(),
            timestamp_ms: now.wall_ms,
            push: self.push.clone(),
            report,
        }
    }

    /// Compares what was read after a write with what was written.
    fn confirm(
        &mut self,
        spec: &DeviceSpec,
        described: &PropertySpec,
        read: &Result<String, String>,
        config: &Config,
        now: Instant,
    ) {
        let Some(attempt) = self.attempt.as_mut().filter(|attempt| attempt.written) else { return };
        match read {
            Ok(value) if !described.is_same(value, &attempt.value) => {
                let why = format!("the device has {value:?} after {:?} was written", attempt.value);
                attempt.again(config, now);
                self.cannot_write(spec, described, why);
            }
            // What can be written and not read cannot be compared; the device has taken it.
            Ok(_) | Err(_) => self.settle(),
        }
    }

    fn settle(&mut self) {
        if let Some(attempt) = self.attempt.take() {
            self.settled = Some(attempt.value.clone());
            self.observed = Some(attempt.value);
            self.unwritten = None;
        }
    }

    fn take_written(
        &mut self,
        spec: &DeviceSpec,
        described: &PropertySpec,
        value: String,
        written: Result<(), DeviceError>,
        config: &Config,
        now: Instant,
    ) {
        // It may have been opened, or something else desired, meanwhile.
        let Some(attempt) = self.attempt.as_mut().filter(|attempt| attempt.value == value) else { return };
        match written {
            Ok(()) => {
                attempt.written = true;
                // What the device made of it is read at once.
                self.read_at = now;
            }
            Err(error) => {
                attempt.again(config, now);
                self.cannot_write(spec, described, format!("{value:?} was not written: {error}"));
            }
        }
    }

    fn cannot_write(&mut self, spec: &DeviceSpec, described: &PropertySpec, why: String) {
        if self.unwritten.as_ref() != Some(&why) {
            tracing::warn!(device = %spec.device, property = described.name, why, "the device does not have what is desired");
        }
        self.unwritten = Some(why);
    }
}

impl Attempt {
    fn new(value: &str, now: Instant) -> Self {
        Self { value: value.to_owned(), at: now, written: false, pause: Duration::ZERO }
    }

    /// It failed: it is written again after a pause that doubles.
    fn again(&mut self, config: &Config, now: Instant) {
        self.written = false;
        self.pause = (self.pause * 2).clamp(config.retry_min, config.retry_max);
        self.at = now + self.pause;
    }
}

/// The next time of a cycle: in step with the last, or at once if that has passed; missed ones are not made up for.
fn following(last: Instant, cycle: Duration, now: Instant) -> Instant {
    let next = last + cycle;
    if next + cycle < now { now + cycle } else { next }
}

/// Tells what a device that is there says from a device that is not there.
fn still_there<T>(
    property: &str,
    result: Result<T, DeviceError>,
) -> Result<Result<T, DeviceError>, DeviceError> {
    match result {
        Err(error @ (DeviceError::Invalid(_) | DeviceError::Rejected(_))) => Ok(Err(error)),
        Err(DeviceError::Unreachable(why)) => Err(DeviceError::Unreachable(format!("{property:?}: {why}"))),
        Err(error) => Err(error),
        Ok(value) => Ok(Ok(value)),
    }
}

fn has_value(property: &PropertySpec) -> bool {
    property.value_type != PropertyType::Stream
}

fn cycle(milliseconds: u64, config: &Config) -> Duration {
    Duration::from_millis(milliseconds).clamp(config.collect_cycle_min, CYCLE_MAX)
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
