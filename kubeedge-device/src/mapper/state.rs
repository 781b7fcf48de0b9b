//! The schedule, pure: which device does what, and when.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use kubeedge_core::{
    device::{DeviceAssignment, DeviceError, DeviceSpec, Reading, ReadingContent, Sample},
    id::DeviceId,
};

use super::{
    Config,
    device::{Device, Found},
};

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
    /// When which device has something to do; each has one entry at most.
    due: BTreeSet<(Instant, DeviceId)>,
    readings: Vec<Reading>,
    samples: Vec<Sample>,
    /// Samples wait for whoever keeps them: nothing is read until they are taken.
    held: bool,
}

/// What the driver is to do with a device.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    /// Open it.
    Open(Arc<DeviceSpec>),
    /// Read the property of this place in the specification by its handle.
    Read(Arc<DeviceSpec>, usize),
    /// Write the property of this place in the specification by its handle.
    Write(Arc<DeviceSpec>, usize, String),
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

/// How long a device whose values nobody can take waits before it is looked at again.
const HOLD: Duration = Duration::from_millis(50);

impl State {
    pub(super) fn new(config: Config, protocol: &str) -> Self {
        Self {
            config,
            protocol: protocol.to_owned(),
            devices: BTreeMap::new(),
            due: BTreeSet::new(),
            readings: Vec::new(),
            samples: Vec::new(),
            held: false,
        }
    }

    /// Takes what should become of a device.
    pub(super) fn handle_assignment(&mut self, assignment: DeviceAssignment, now: Now) {
        let id = assignment.device;
        match assignment.spec.filter(|spec| spec.protocol == self.protocol) {
            Some(spec) => {
                let pause = self.config.retry_min;
                let device = self.devices.entry(id.clone()).or_insert_with(|| Device::new(pause, now.at));
                device.follow(spec, &self.config, now);
                // Who assigns may have forgotten what was told of a former device of this name.
                if let Some(told) = device.told() {
                    self.readings.push(connection(&id, told));
                }
            }
            None => match self.devices.get_mut(&id) {
                Some(device) => device.forsake(),
                None => return,
            },
        }
        self.schedule(&id, now.at);
    }

    /// Takes what became of an action. Returns whether the handle stays with the driver.
    pub(super) fn handle_outcome(&mut self, id: &DeviceId, outcome: Outcome, now: Now) -> bool {
        let Some(device) = self.devices.get_mut(id) else { return false };
        let told = device.told();
        let found = device.handle_outcome(outcome, &self.config, now);
        if let Some(state) = device.told().filter(|_| device.told() != told) {
            self.readings.push(connection(id, state));
        }
        let keeps = device.has_handle();
        if let Some(found) = found {
            self.take(id, found);
        }
        self.schedule(id, now.at);
        keeps
    }

    fn take(&mut self, id: &DeviceId, found: Found) {
        let Found { property, value, observed_desired, timestamp_ms, push, report } = found;
        if report {
            let content = ReadingContent::Property {
                property: property.clone(),
                value: value.clone(),
                observed_desired,
                timestamp_ms,
            };
            self.readings.push(Reading { device: id.clone(), content });
        }
        self.samples.push(Sample { device: id.clone(), property, value, timestamp_ms, push });
    }

    /// Samples wait to be taken, or no more. Until they are taken nothing is read; what is desired is written.
    pub(super) fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// What is to be done now, one action for each device that is free.
    pub(super) fn poll_actions(&mut self, now: Instant) -> Vec<(DeviceId, Action)> {
        let mut actions = Vec::new();
        let mut wait = Vec::new();
        while self.due.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, id)) = self.due.pop_first() else { break };
            let Some(device) = self.devices.get_mut(&id) else { continue };
            device.scheduled = None;
            match device.next(now, !self.held) {
                Some(action) => actions.push((id.clone(), action)),
                None => wait.push(id.clone()),
            }
            if device.is_over() {
                self.devices.remove(&id);
            }
        }
        for id in wait {
            self.schedule(&id, now);
        }
        actions
    }

    /// What was found, for the twins.
    pub(super) fn poll_readings(&mut self) -> Vec<Reading> {
        std::mem::take(&mut self.readings)
    }

    /// Every value that was found, for whoever keeps them.
    pub(super) fn poll_samples(&mut self) -> Vec<Sample> {
        std::mem::take(&mut self.samples)
    }

    /// When there will be something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    fn schedule(&mut self, id: &DeviceId, now: Instant) {
        let Some(device) = self.devices.get_mut(id) else { return };
        let next = device.due(now);
        // A device that is held would otherwise be looked at in each turn.
        let next = if self.held { next.map(|at| at.max(now + HOLD)) } else { next };
        if device.scheduled == next {
            return;
        }
        if let Some(before) = device.scheduled.take() {
            self.due.remove(&(before, id.clone()));
        }
        if let Some(next) = next {
            self.due.insert((next, id.clone()));
        }
        device.scheduled = next;
    }
}

fn connection(id: &DeviceId, state: &str) -> Reading {
    Reading { device: id.clone(), content: ReadingContent::State(state.to_owned()) }
}
