//! What DeviceController decides: what goes down, which status is written next, what is acknowledged. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use kubeedge_core::{
    id::{DeviceId, NodeName},
    message::{
        Acked, Delivered, Delivery, DeviceReport, FromNode, Object, ObjectEvent, ObjectRef, Report,
        ReportKey, ToNode,
    },
    pace::{Credit, Pace, Rates, Urgency},
};
use serde_json::Value;

use super::{
    Config, Counts,
    status::{self, merge, mirror, patch, says},
};
use crate::{
    authorization::{Action, Denials, Graph as _, allows},
    controller::{Backoff, Change, Kind, Limits, Outcome, Placed, Placement, WORTH_A_WARNING, Writes},
};

/// Devices.
pub(super) const DEVICES: Kind =
    Kind { api_version: "devices.kubeedge.io/v1beta1", kind: "Device", plural: "devices", optional: true };
/// DeviceModels.
pub(super) const MODELS: Kind = Kind {
    api_version: "devices.kubeedge.io/v1beta1",
    kind: "DeviceModel",
    plural: "devicemodels",
    optional: true,
};

/// What was reported of devices, once more: where KubeEdge has it since 1.23.
pub(super) const DEVICE_STATUSES: Kind = Kind {
    api_version: "devices.kubeedge.io/v1beta1",
    kind: "DeviceStatus",
    plural: "devicestatuses",
    optional: true,
};

/// The kinds that are watched.
pub(super) const WATCHED: [Kind; 2] = [MODELS, DEVICES];

/// What is urgent is bounded too, since a device may come and go many times a second.
const URGENT: Credit = Credit { interval: Duration::from_secs(1), burst: 3 };

/// Whose report of which device it is.
pub(super) type WriteKey = (NodeName, DeviceId);

/// What is written: a node's newest report of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// `None` if it was acknowledged before and is told again.
    delivery: Option<Delivery>,
    report: DeviceReport,
}

/// A write that is to be done at once.
#[derive(Debug)]
pub(super) struct Job {
    /// What it is about.
    pub(super) key: WriteKey,
    /// What it is to tell, for [`State::handle_written`].
    pub(super) wanted: Wanted,
    /// What to merge into the Device.
    pub(super) patch: Value,
    /// Its DeviceStatus, which is brought to this before.
    pub(super) mirror: Option<Value>,
}

/// What the driver is to send.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// An object for a node.
    Downstream(ToNode<ObjectEvent>),
    /// The API has what the node reported.
    Acked(ToNode<Acked<ReportKey>>),
}

/// The state.
#[derive(Debug)]
pub(super) struct State {
    placement: Placement,
    /// Whose turn it is to be written.
    pace: Pace<WriteKey>,
    /// What waits for its turn.
    wanted: BTreeMap<WriteKey, Wanted>,
    /// What has its turn.
    statuses: Writes<WriteKey, Wanted>,
    /// The newest delivery of each device that its node has: what an earlier session left behind comes late.
    newest: BTreeMap<WriteKey, Delivery>,
    /// What the API was told last of each device, and by whom.
    written: BTreeMap<DeviceId, (NodeName, DeviceReport)>,
    /// The devices that changed in the API since what it was told was looked for in them.
    changed: BTreeSet<DeviceId>,
    /// Those that changed during a write: only its end shows what they should say.
    changed_meanwhile: BTreeSet<DeviceId>,
    /// Whether DeviceStatuses are written as well.
    mirrors: bool,
    outputs: VecDeque<Output>,
    counts: Counts,
    denials: Denials,
}

impl State {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            placement: Placement::new(DEVICES.kind, &WATCHED, place),
            pace: Pace::new(Rates {
                ordinary: Credit { interval: config.status_interval, burst: config.status_burst },
                urgent: URGENT,
                // The writes keep the limit, repetitions among them; whose turn it is is asked when there is room.
                per_second: None,
            }),
            wanted: BTreeMap::new(),
            newest: BTreeMap::new(),
            statuses: Writes::new(Limits {
                at_once: config.writes_at_once.get(),
                interval: Duration::ZERO,
                per_second: Some(config.writes_per_second),
                backoff: Backoff { first: config.retry_first, max: config.retry_max },
            }),
            written: BTreeMap::new(),
            changed: BTreeSet::new(),
            changed_meanwhile: BTreeSet::new(),
            mirrors: config.device_statuses,
            outputs: VecDeque::new(),
            counts: Counts::default(),
            denials: Denials::default(),
        }
    }

    /// Counts there what nodes are refused.
    pub(super) fn counting(mut self, denials: Denials) -> Self {
        self.denials = denials;
        self
    }

    /// Takes what the API tells of devices and models.
    pub(super) fn handle_change(&mut self, change: Change) {
        let about = match &change {
            Change::Applied(object) | Change::Deleted(object) => object.reference.device_id().ok(),
            Change::Began(_) | Change::Listed(_) => None,
        };
        let listed = matches!(change, Change::Listed(_));
        self.placement.handle_change(change);
        if let Some(device) = about
            && let Some((node, report)) = self.written.get(&device)
        {
            if is_current(&self.placement, node, report) {
                self.changed.insert(device);
            } else {
                let (node, _) = self.written.remove(&device).expect("it was found two lines above");
                self.newest.remove(&(node, device));
            }
        }
        if listed {
            let placement = &self.placement;
            self.written.retain(|_, (node, report)| is_current(placement, node, report));
            self.newest.retain(|(node, device), _| is_placed(placement, node, device));
        }
    }

    /// Takes what a node reports.
    pub(super) fn handle_report(&mut self, from: FromNode<Delivered<Report>>, now: Instant) {
        let FromNode { node, message: Delivered { delivery, message } } = from;
        match message {
            Report::Device(report) => {
                let wanted = Wanted { delivery: Some(delivery), report };
                self.take(((node, wanted.report.device.clone()), wanted), delivery, now);
            }
            Report::Node(_) | Report::Pod(_) | Report::Mirror(_) => {
                tracing::warn!(%node, what = ?message.key(), "a report that is not of a device came to DeviceController");
            }
        }
    }

    fn take(&mut self, (key, wanted): (WriteKey, Wanted), delivery: Delivery, now: Instant) {
        if is_placed(&self.placement, &key.0, &key.1) {
            let newest = self.newest.entry(key.clone()).or_insert(delivery);
            if *newest > delivery {
                return tracing::debug!(node = %key.0, device = %key.1, "a report came behind a newer one");
            }
            *newest = delivery;
        }
        self.remind(&key.0, &wanted.report);
        // What the API says already needs no turn; a node says everything again whenever it connects.
        if self.placement.is_complete()
            && !self.statuses.is_busy(&key)
            && let Err(why) = self.decide(&key.0, &wanted.report)
        {
            self.drop_waiting(&key);
            return self.settle_unwritten(key, wanted, why);
        }
        let urgency = self.urgency(&wanted.report);
        self.want(key, wanted, urgency, now);
    }

    /// Tells a node that is behind what it has reported before: the object again, with the status. So a node that went
    /// back to an older copy of its store goes on behind it, and is heard again.
    fn remind(&mut self, node: &NodeName, report: &DeviceReport) {
        let Some((device, placed)) = self.placement.root(&ObjectRef::device(&report.device)) else { return };
        if placed != node || device.uid != report.uid {
            return;
        }
        let device = device.object();
        if status::told(&device).is_some_and(|known| status::is_behind(report, &known)) {
            tracing::info!(%node, device = %report.device, "a node is behind what it has reported");
            let message = ObjectEvent::Applied(device);
            self.outputs.push_back(Output::Downstream(ToNode { node: node.clone(), message }));
        }
    }

    fn want(&mut self, key: WriteKey, wanted: Wanted, urgency: Urgency, now: Instant) {
        self.pace.put(key.clone(), urgency, now);
        self.counts.passed_over += u64::from(self.wanted.insert(key, wanted).is_some());
    }

    fn drop_waiting(&mut self, key: &WriteKey) {
        self.pace.withdraw(key);
        let waiting = [self.wanted.remove(key), self.statuses.withdraw(key)];
        self.counts.passed_over += waiting.iter().flatten().count() as u64;
    }

    fn urgency(&self, report: &DeviceReport) -> Urgency {
        let Some(device) = self.placement.get(&ObjectRef::device(&report.device)) else {
            return Urgency::Ordinary;
        };
        let written = self.written.get(&report.device).map(|(_, report)| report);
        match written {
            Some(_) => status::urgency(report, written, &device),
            None => status::urgency(report, status::told(&device).as_ref(), &device),
        }
    }

    /// Takes what became of a [`Job`].
    pub(super) fn handle_written(&mut self, job: Job, outcome: Outcome, now: Instant) {
        let Job { key, wanted, .. } = job;
        self.end_write(&key.1);
        match outcome {
            Outcome::Done => {
                self.counts.written += 1;
                if is_current(&self.placement, &key.0, &wanted.report) {
                    self.written.insert(key.1.clone(), (key.0.clone(), wanted.report.clone()));
                }
                self.settle(key, &wanted);
            }
            Outcome::Refused(why) => {
                tracing::warn!(node = %key.0, device = %key.1, %why, "the API refuses the device's status");
                self.settle(key, &wanted);
            }
            Outcome::Retry(why) => {
                if self.statuses.failed(&key, wanted, now) == WORTH_A_WARNING {
                    tracing::warn!(node = %key.0, device = %key.1, %why, "the device's status cannot be written");
                } else {
                    tracing::debug!(node = %key.0, device = %key.1, %why, "the device's status will be written again");
                }
            }
        }
    }

    /// What to send next.
    pub(super) fn poll_output(&mut self) -> Option<Output> {
        self.placement.poll_output().map(Output::Downstream).or_else(|| self.outputs.pop_front())
    }

    /// What to write next, if it may be written at once.
    pub(super) fn poll_write(&mut self, now: Instant) -> Option<Job> {
        // Before everything is listed, a device that is not known may exist all the same.
        while self.placement.is_complete() {
            self.tell_again(now);
            let (key, wanted) = self.next(now)?;
            match self.decide(&key.0, &wanted.report) {
                Ok(report) => {
                    let patch = patch(&report);
                    let mirror = self.mirrors.then(|| mirror(&report, DEVICES.api_version));
                    return Some(Job { key, wanted: Wanted { report, ..wanted }, patch, mirror });
                }
                Err(why) => {
                    self.end_write(&key.1);
                    self.settle_unwritten(key, wanted, why);
                }
            }
        }
        None
    }

    fn next(&mut self, now: Instant) -> Option<(WriteKey, Wanted)> {
        loop {
            let next = self.statuses.poll_write(now);
            if next.is_some() || self.statuses.room_at(now)? > now {
                return next;
            }
            let key = self.pace.poll(now)?;
            if let Some(wanted) = self.wanted.remove(&key) {
                let replaced = self.statuses.put(key, wanted, now);
                self.counts.passed_over += u64::from(replaced.is_some());
            }
        }
    }

    /// When to ask [`poll_write`](Self::poll_write) again.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        if !self.placement.is_complete() {
            return None;
        }
        let turn = self.pace.poll_timeout();
        let turn = turn.and_then(|at| self.statuses.room_at(at));
        [self.statuses.poll_timeout(), turn].into_iter().flatten().min()
    }

    /// What was done so far, and how much waits.
    pub(super) fn counts(&self) -> Counts {
        Counts { waiting: self.wanted.len() as u64, ..self.counts }
    }

    /// Whether it is known what exists.
    pub(super) fn is_complete(&self) -> bool {
        self.placement.is_complete()
    }

    /// All devices and models of a node, as far as known.
    pub(super) fn snapshot(&self, node: &NodeName) -> Vec<Object> {
        self.placement.snapshot(node)
    }

    /// Decides what the Device should say; `Err` says why nothing is written.
    fn decide(&self, node: &NodeName, report: &DeviceReport) -> Result<DeviceReport, &'static str> {
        let reference = ObjectRef::device(&report.device);
        let action = Action::WriteDevice { device: &reference, uid: &report.uid };
        if let Err(denial) = allows(node, action, &self.placement) {
            self.denials.note(node, &reference, denial);
            return Err(denial.reason());
        }
        let (device, _) = self.placement.root(&reference).ok_or("the device does not exist")?;
        // What was written is newer than what was watched.
        let known = match self.written.get(&report.device) {
            Some((_, told)) => Some(told.clone()),
            None => status::told(&device.object()),
        };
        let Some(known) = known else { return Ok(report.clone()) };
        let merged = merge(report.clone(), &known);
        if merged == known { Err("it says so already") } else { Ok(merged) }
    }

    /// Wants the statuses told again that are no longer in their devices: an edge does not repeat what was
    /// acknowledged, and whoever replaces a Device without its status deletes it, as there is no subresource.
    fn tell_again(&mut self, now: Instant) {
        while let Some(device) = self.changed.pop_first() {
            let Some((node, report)) = self.written.get(&device) else { continue };
            let key = (node.clone(), device);
            if self.statuses.is_busy(&key) {
                self.changed_meanwhile.insert(key.1);
                continue;
            }
            let known = self.placement.get(&ObjectRef::device(&key.1));
            if known.is_none_or(|device| says(&device, report)) {
                continue;
            }
            // So that what waits is written even if it repeats what is lost.
            let Some((_, report)) = self.written.remove(&key.1) else { continue };
            if !self.statuses.is_waiting(&key) && !self.wanted.contains_key(&key) {
                self.want(key, Wanted { delivery: None, report }, Urgency::Ordinary, now);
            }
        }
    }

    fn end_write(&mut self, device: &DeviceId) {
        self.changed.extend(self.changed_meanwhile.take(device));
    }

    fn settle_unwritten(&mut self, key: WriteKey, wanted: Wanted, why: &'static str) {
        tracing::debug!(node = %key.0, device = %key.1, why, "a device's status is not written");
        self.counts.unwritten += 1;
        self.settle(key, &wanted);
    }

    fn settle(&mut self, key: WriteKey, wanted: &Wanted) {
        self.statuses.succeeded(&key);
        let (node, device) = key;
        if let Some(delivery) = wanted.delivery {
            let message = Acked { key: ReportKey::Device(device), delivery };
            self.outputs.push_back(Output::Acked(ToNode { node, message }));
        }
    }
}

/// Whether the device that is reported is still the one of its name, and on that node.
fn is_current(placement: &Placement, node: &NodeName, report: &DeviceReport) -> bool {
    let root = placement.root(&ObjectRef::device(&report.device));
    root.is_some_and(|(device, placed)| device.uid == report.uid && placed == node)
}

fn is_placed(placement: &Placement, node: &NodeName, device: &DeviceId) -> bool {
    placement.root(&ObjectRef::device(device)).is_some_and(|(_, placed)| placed == node)
}

/// Reads which node a Device is on, and its model. A device that cannot be read is on no node.
fn place(device: &Object) -> Placed {
    if device.reference.kind() != DEVICES.kind {
        return Placed::default();
    }
    let Ok(json) = serde_json::from_slice::<Value>(&device.json) else { return Placed::default() };
    let spec = &json["spec"];
    let node = spec["nodeName"].as_str().and_then(|name| name.parse().ok());
    let model = spec["deviceModelRef"]["name"].as_str().filter(|name| !name.is_empty());
    let references: BTreeSet<_> =
        model.map(|name| ObjectRef::device_model(device.reference.namespace(), name)).into_iter().collect();
    Placed { node, references, ..Placed::default() }
}
