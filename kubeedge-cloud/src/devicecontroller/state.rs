//! What DeviceController decides: what goes down, which status is written next, what is acknowledged. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Instant,
};

use kubeedge_core::{
    id::{DeviceId, NodeName},
    message::{
        Acked, Delivered, Delivery, DeviceReport, FromNode, Object, ObjectEvent, ObjectRef, Report,
        ReportKey, ToNode, TwinReport, TwinValue,
    },
};
use serde_json::{Map, Value, json};

use super::Config;
use crate::controller::{Backoff, Change, Kind, Limits, Outcome, Placed, Placement, WORTH_A_WARNING, Writes};

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

/// The kinds that are watched.
pub(super) const WATCHED: [Kind; 2] = [MODELS, DEVICES];

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
    statuses: Writes<WriteKey, Wanted>,
    /// What the API was told last of each device, and by whom.
    written: BTreeMap<DeviceId, (NodeName, DeviceReport)>,
    /// The devices that changed in the API since what it was told was looked for in them.
    changed: BTreeSet<DeviceId>,
    /// Those that changed during a write: only its end shows what they should say.
    changed_meanwhile: BTreeSet<DeviceId>,
    outputs: VecDeque<Output>,
}

impl State {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            placement: Placement::new(DEVICES.kind, &WATCHED, place),
            statuses: Writes::new(Limits {
                at_once: config.writes_at_once.get(),
                interval: config.status_interval,
                per_second: Some(config.writes_per_second),
                backoff: Backoff { first: config.retry_first, max: config.retry_max },
            }),
            written: BTreeMap::new(),
            changed: BTreeSet::new(),
            changed_meanwhile: BTreeSet::new(),
            outputs: VecDeque::new(),
        }
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
                self.written.remove(&device);
            }
        }
        if listed {
            let placement = &self.placement;
            self.written.retain(|_, (node, report)| is_current(placement, node, report));
        }
    }

    /// Takes what a node reports.
    pub(super) fn handle_report(&mut self, from: FromNode<Delivered<Report>>, now: Instant) {
        let FromNode { node, message: Delivered { delivery, message } } = from;
        match message {
            Report::Device(report) => {
                let wanted = Wanted { delivery: Some(delivery), report };
                self.statuses.put((node, wanted.report.device.clone()), wanted, now);
            }
            Report::Node(_) | Report::Pod(_) => {
                tracing::warn!(%node, what = ?message.key(), "a report that is not of a device came to DeviceController");
            }
        }
    }

    /// Takes what became of a [`Job`].
    pub(super) fn handle_written(&mut self, job: Job, outcome: Outcome, now: Instant) {
        let Job { key, wanted, .. } = job;
        self.end_write(&key.1);
        match outcome {
            Outcome::Done => {
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
            let (key, wanted) = self.statuses.poll_write(now)?;
            match self.decide(&key.0, &wanted.report) {
                Ok(patch) => return Some(Job { key, wanted, patch }),
                Err(why) => {
                    tracing::debug!(node = %key.0, device = %key.1, why, "a device's status is not written");
                    self.end_write(&key.1);
                    self.settle(key, &wanted);
                }
            }
        }
        None
    }

    /// When to ask [`poll_write`](Self::poll_write) again.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        if self.placement.is_complete() { self.statuses.poll_timeout() } else { None }
    }

    /// Whether it is known what exists.
    pub(super) fn is_complete(&self) -> bool {
        self.placement.is_complete()
    }

    /// All devices and models of a node, as far as known.
    pub(super) fn snapshot(&self, node: &NodeName) -> Vec<Object> {
        self.placement.snapshot(node)
    }

    /// Decides what to merge into the Device; `Err` says why nothing is.
    fn decide(&self, node: &NodeName, report: &DeviceReport) -> Result<Value, &'static str> {
        let reference = ObjectRef::device(&report.device);
        let (device, placed) = self.placement.root(&reference).ok_or("the device does not exist")?;
        if device.uid != report.uid {
            return Err("the device was replaced by another of its name");
        }
        if placed != node {
            tracing::warn!(%node, device = %report.device, of = %placed, "a node reports a device of another node");
            return Err("the device is on another node");
        }
        let patch = patch(report);
        match self.written.get(&report.device) {
            Some((_, told)) if self::patch(told) == patch => Err("it says so already"),
            Some(_) | None => Ok(patch),
        }
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
            if known.is_none_or(|device| says(device, report)) {
                continue;
            }
            // So that what waits is written even if it repeats what is lost.
            let Some((_, report)) = self.written.remove(&key.1) else { continue };
            if !self.statuses.is_waiting(&key) {
                self.statuses.put(key, Wanted { delivery: None, report }, now);
            }
        }
    }

    fn end_write(&mut self, device: &DeviceId) {
        self.changed.extend(self.changed_meanwhile.take(device));
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

/// Whether all that is reported is in the Device. Others may have added to it.
fn says(device: &Object, report: &DeviceReport) -> bool {
    fn has(all: &Value, told: &Value) -> bool {
        match (all, told) {
            (Value::Object(all), Value::Object(told)) => {
                told.iter().all(|(name, told)| all.get(name).is_some_and(|all| has(all, told)))
            }
            (Value::Array(all), Value::Array(told)) => {
                all.len() == told.len() && all.iter().zip(told).all(|(all, told)| has(all, told))
            }
            (all, told) => all == told,
        }
    }
    let device: Value = serde_json::from_slice(&device.json).unwrap_or_default();
    has(&device["status"], &patch(report)["status"])
}

/// Reads which node a Device is on, and its model. A device that cannot be read is on no node.
fn place(device: &Object) -> Placed {
    let Ok(json) = serde_json::from_slice::<Value>(&device.json) else { return Placed::default() };
    let spec = &json["spec"];
    let node = spec["nodeName"].as_str().and_then(|name| name.parse().ok());
    let model = spec["deviceModelRef"]["name"].as_str().filter(|name| !name.is_empty());
    let references: BTreeSet<_> =
        model.map(|name| ObjectRef::device_model(device.reference.namespace(), name)).into_iter().collect();
    Placed { node, references }
}

/// What a report makes of the Device: the whole list of twins, because a merge patch replaces lists.
///
/// The status is merged into the object itself: KubeEdge's CRDs have no status subresource.
fn patch(report: &DeviceReport) -> Value {
    let mut status = Map::new();
    status.insert("twins".to_owned(), report.twins.iter().map(twin).collect());
    if let Some(state) = &report.state {
        status.insert("state".to_owned(), state.as_str().into());
    }
    if let Some(last_online) = &report.last_online {
        status.insert("lastOnlineTime".to_owned(), last_online.as_str().into());
    }
    json!({ "metadata": { "uid": report.uid.as_str() }, "status": status })
}

fn twin(twin: &TwinReport) -> Value {
    let mut json = Map::new();
    json.insert("propertyName".to_owned(), twin.property.as_str().into());
    if let Some(reported) = &twin.reported {
        json.insert("reported".to_owned(), value(reported));
    }
    if let Some(desired) = &twin.observed_desired {
        json.insert("observedDesired".to_owned(), value(desired));
    }
    json.into()
}

/// Times are milliseconds since the Unix epoch, as text: metadata are texts.
fn value(twin: &TwinValue) -> Value {
    let mut metadata: Map<String, Value> =
        twin.metadata.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect();
    metadata.insert("timestamp".to_owned(), twin.timestamp_ms.to_string().into());
    json!({ "value": twin.value, "metadata": metadata })
}
