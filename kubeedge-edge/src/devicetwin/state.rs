//! The pure machine: inputs come in by `handle_*`, and what follows leaves in turns.
//!
//! A turn is any number of inputs, then [`State::batch`] (what has to be durable), then either
//! [`State::confirm`], which gives what may now be told, or [`State::rollback`], after which it is as if the
//! inputs had never been.

mod cloud;
mod device;
mod readings;
mod twin;
mod update;

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    time::{Duration, Instant},
};

use kubeedge_core::{
    device::DeviceAssignment,
    id::DeviceId,
    message::{DeviceReport, Object, ObjectRef, Publish},
    pace::{Credit, Pace, Rates, Urgency},
    store::{Batch, StoreError},
    wire::topic::Topic,
};
use serde::Serialize;

use self::{device::Device, twin::Twin};
use super::{
    Config,
    payload::{Base, Refusal},
    record::{self, DeviceRecord, RecordError},
};

/// The time of an input: for waiting, and for people.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) at: Instant,
    /// Milliseconds since the Unix epoch.
    pub(super) wall_ms: u64,
}

/// All twins of the node.
#[derive(Debug)]
pub(super) struct State {
    config: Config,
    devices: BTreeMap<DeviceId, Device>,
    models: BTreeMap<ObjectRef, Object>,
    /// How many twins there are, deleted ones included.
    twins: usize,
    ids: EventIds,
    /// What the devices were before this turn.
    undo: Undo,
    /// No reading comes after the next batch.
    ends: bool,
    /// What this turn has to make durable.
    dirty: Dirty,
    /// Values from mappers that wait to be written, and until when.
    unwritten: BTreeSet<(DeviceId, String)>,
    write_at: Option<Instant>,
    /// When devices that the cloud did not mention in this run are forgotten.
    forget_at: Option<Instant>,
    publishes: Vec<Publish>,
    /// Devices that are to be reported, each in its turn.
    reports: Pace<DeviceId>,
    to_assign: BTreeSet<DeviceId>,
    /// Devices that a mapper was told to run.
    assigned: BTreeSet<DeviceId>,
}

#[derive(Debug, Default)]
struct Undo {
    devices: BTreeMap<DeviceId, Option<Device>>,
    twins: Option<usize>,
}

#[derive(Debug, Default)]
struct Dirty {
    devices: BTreeSet<DeviceId>,
    twins: BTreeSet<(DeviceId, String)>,
}

/// What a turn has to tell.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) publishes: Vec<Publish>,
    pub(super) reports: Vec<DeviceReport>,
    pub(super) assignments: Vec<DeviceAssignment>,
}

impl State {
    /// Creates a state without devices. `seed` makes the ids of events that nobody asked for.
    pub(super) fn new(config: Config, seed: u64) -> Self {
        let reports = Pace::new(rates(&config));
        Self {
            config,
            devices: BTreeMap::new(),
            models: BTreeMap::new(),
            twins: 0,
            ids: EventIds(seed),
            undo: Undo::default(),
            ends: false,
            dirty: Dirty::default(),
            unwritten: BTreeSet::new(),
            write_at: None,
            forget_at: None,
            publishes: Vec::new(),
            reports,
            to_assign: BTreeSet::new(),
            assigned: BTreeSet::new(),
        }
    }

    /// Takes a stored device; all of them come before the first twin.
    pub(super) fn restore_device(&mut self, id: DeviceId, value: &[u8]) -> Result<(), RecordError> {
        let record: DeviceRecord = record::decode(value)?;
        self.devices.insert(id, Device::restored(record));
        Ok(())
    }

    /// Takes a stored twin. One whose device is not there is of no use, and is left alone.
    pub(super) fn restore_twin(
        &mut self,
        id: &DeviceId,
        property: String,
        value: &[u8],
    ) -> Result<(), RecordError> {
        let twin: Twin = record::decode(value)?;
        if let Some(device) = self.devices.get_mut(id) {
            device.twins.insert(property, twin.restored());
            self.twins += 1;
        }
        Ok(())
    }

    /// A link has begun: everything is reported again, since the cloud may have lost what it had.
    pub(super) fn handle_online(&mut self, now: Instant) {
        for id in self.devices.keys() {
            self.reports.put(id.clone(), Urgency::Ordinary, now);
        }
    }

    /// The edge has, or no longer has, all that the cloud has.
    pub(super) fn handle_synchronized(&mut self, synchronized: bool, now: Instant) {
        let is_orphan = |device: &Device| device.seen.is_none();
        if !synchronized || !self.devices.values().any(is_orphan) {
            self.forget_at = None;
        } else if self.forget_at.is_none() {
            self.forget_at = Some(now + self.config.limits.orphans_kept);
        }
    }

    /// When [`State::handle_timeout`] wants to be called.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        [self.write_at, self.forget_at, self.reports.poll_timeout()].into_iter().flatten().min()
    }

    /// Writes what waits to be written, and forgets devices that are gone, if it is time.
    pub(super) fn handle_timeout(&mut self, now: Now) {
        if self.write_at.is_some_and(|at| at <= now.at) {
            self.write_all();
        }
        if self.forget_at.is_some_and(|at| at <= now.at) {
            // Should the turn be rolled back, the next link brings the next time.
            self.forget_at = None;
            let unseen = self.devices.iter().filter(|(_, device)| device.seen.is_none());
            let orphans: Vec<_> = unseen.map(|(id, _)| id.clone()).collect();
            for id in orphans {
                tracing::info!(device = %id, "a device that the cloud no longer has was forgotten");
                self.remove(&id, now);
            }
        }
    }

    /// Writes what waits to be written.
    pub(super) fn write_all(&mut self) {
        self.write_at = None;
        self.dirty.twins.append(&mut self.unwritten);
    }

    /// Says that nothing comes after the next batch, so that it need reserve no versions.
    pub(super) fn end_run(&mut self) {
        self.ends = true;
    }

    /// What has to be durable before the turn may be confirmed.
    ///
    /// # Errors
    /// If a key cannot be formed: names and properties were checked when they came, so it is a broken invariant.
    pub(super) fn batch(&mut self) -> Result<Batch, StoreError> {
        let mut batch = Batch::new();
        for id in &self.dirty.devices {
            let key = record::device_key(id)?;
            match self.devices.get(id) {
                Some(device) => batch.put(key, record::encode(&device.record)),
                None => batch.delete(key),
            };
        }
        for (id, property) in &self.dirty.twins {
            let key = record::twin_key(id, property)?;
            match self.devices.get_mut(id).and_then(|device| device.twins.get_mut(property)) {
                Some(twin) => {
                    twin.reserve(self.ends);
                    batch.put(key, record::encode(twin))
                }
                None => batch.delete(key),
            };
        }
        Ok(batch)
    }

    /// Ends the turn: its batch is durable. Returns what is to be told, in order.
    pub(super) fn confirm(&mut self, now: Instant) -> Told {
        for written in mem::take(&mut self.dirty).twins {
            self.unwritten.remove(&written);
        }
        if self.unwritten.is_empty() {
            self.write_at = None;
        }
        self.undo = Undo::default();
        let assignments = mem::take(&mut self.to_assign);
        Told {
            publishes: mem::take(&mut self.publishes),
            reports: self.due_reports(now),
            assignments: assignments.into_iter().filter_map(|id| self.assignment(id)).collect(),
        }
    }

    /// Ends the turn: its batch was not written. Who is to be reported and assigned is remembered, since a
    /// report and an assignment say how things are.
    pub(super) fn rollback(&mut self, now: Now) {
        for (id, before) in mem::take(&mut self.undo.devices) {
            match before {
                Some(device) => self.devices.insert(id, device),
                None => self.devices.remove(&id),
            };
        }
        self.twins = self.undo.twins.take().unwrap_or(self.twins);
        self.publishes.clear();
        // Readings among them wait for their next time.
        self.unwritten.append(&mut mem::take(&mut self.dirty).twins);
        if !self.unwritten.is_empty() {
            self.wait_to_write(now.at);
        }
    }

    pub(super) fn report(&mut self, id: &DeviceId, urgency: Urgency, now: Now) {
        self.reports.put(id.clone(), urgency, now.at);
    }

    fn wait_to_write(&mut self, now: Instant) {
        self.write_at.get_or_insert(now + self.config.limits.readings_persisted_every);
    }

    fn due_reports(&mut self, now: Instant) -> Vec<DeviceReport> {
        let mut reports = Vec::new();
        while let Some(id) = self.reports.poll(now) {
            reports.extend(self.devices.get(&id).and_then(|device| device.report(&id)));
        }
        reports
    }

    fn assignment(&mut self, id: DeviceId) -> Option<DeviceAssignment> {
        let spec = self.devices.get(&id).and_then(Device::assignment);
        let was_assigned =
            if spec.is_some() { !self.assigned.insert(id.clone()) } else { self.assigned.remove(&id) };
        (spec.is_some() || was_assigned).then_some(DeviceAssignment { device: id, spec })
    }

    /// The device, to be changed in this turn.
    fn change(&mut self, id: &DeviceId) -> Option<&mut Device> {
        self.remember(id);
        self.devices.get_mut(id)
    }

    fn remember(&mut self, id: &DeviceId) {
        if !self.undo.devices.contains_key(id) {
            self.undo.devices.insert(id.clone(), self.devices.get(id).cloned());
        }
        self.undo.twins.get_or_insert(self.twins);
    }

    fn mark_twin(&mut self, id: &DeviceId, property: &str) {
        self.dirty.twins.insert((id.clone(), property.to_owned()));
    }

    fn base(&self, event_id: &str, now: Now) -> Base {
        Base { event_id: event_id.to_owned(), timestamp: now.wall_ms }
    }

    fn refuse(&mut self, topic: &Topic, event_id: &str, now: Now, code: u16, reason: impl Into<String>) {
        let base = self.base(event_id, now);
        self.publish(topic, &Refusal { base, code, reason: reason.into() });
    }

    fn publish(&mut self, topic: &Topic, payload: &impl Serialize) {
        let payload = serde_json::to_vec(payload)
            .expect("a payload has only strings, numbers and maps with string keys");
        self.publishes.push(Publish { topic: topic.to_string(), payload: payload.into() });
    }
}

/// What is urgent is bounded too, since a device may come and go many times a second.
const URGENT: Credit = Credit { interval: Duration::from_secs(1), burst: 3 };

fn rates(config: &Config) -> Rates {
    let limits = &config.limits;
    Rates {
        ordinary: Credit { interval: limits.report_interval, burst: limits.report_burst },
        urgent: URGENT,
        per_second: Some(limits.reports_per_second),
    }
}

/// Makes ids for events that nobody asked for, in the form of a random UUID (RFC 9562 §5.4).
///
/// The generator is SplitMix64: ids need to differ, not to be secret.
#[derive(Debug)]
struct EventIds(u64);

impl EventIds {
    fn next(&mut self) -> String {
        let (high, low) = (self.number(), self.number());
        let high = (high & !0xf000) | 0x4000;
        let low = (low & !(0b11 << 62)) | (0b10 << 62);
        format!(
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            high >> 32,
            (high >> 16) & 0xffff,
            high & 0xffff,
            low >> 48,
            low & 0xffff_ffff_ffff
        )
    }

    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
