//! What DeviceController decides: what goes down, which status is written next, what is acknowledged. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    time::Instant,
};

use kubeedge_core::{
    id::{DeviceId, NodeName, Uid},
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
    delivery: Delivery,
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
    /// What the API was told last of each device, as a hash.
    written: BTreeMap<DeviceId, (Uid, u64)>,
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
            outputs: VecDeque::new(),
        }
    }

    /// Takes what the API tells of devices and models.
    pub(super) fn handle_change(&mut self, change: Change) {
        let gone = match &change {
            Change::Deleted(object) => object.reference.device_id().ok(),
            Change::Began(_) | Change::Applied(_) | Change::Listed(_) => None,
        };
        let listed = matches!(change, Change::Listed(_));
        self.placement.handle_change(change);
        if let Some(device) = gone {
            self.written.remove(&device);
        }
        if listed {
            let placement = &self.placement;
            self.written.retain(|device, _| placement.root(&ObjectRef::device(device)).is_some());
        }
    }

    /// Takes what a node reports.
    pub(super) fn handle_report(&mut self, from: FromNode<Delivered<Report>>, now: Instant) {
        let FromNode { node, message: Delivered { delivery, message } } = from;
        match message {
            Report::Device(report) => {
                self.statuses.put((node, report.device.clone()), Wanted { delivery, report }, now);
            }
            Report::Node(_) | Report::Pod(_) => {
                tracing::warn!(%node, what = ?message.key(), "a report that is not of a device came to DeviceController");
            }
        }
    }

    /// Takes what became of a [`Job`].
    pub(super) fn handle_written(&mut self, job: Job, outcome: Outcome, now: Instant) {
        let Job { key, wanted, patch } = job;
        match outcome {
            Outcome::Done => {
                self.written.insert(key.1.clone(), (wanted.report.uid.clone(), hash(&patch)));
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
            let (key, wanted) = self.statuses.poll_write(now)?;
            match self.decide(&key.0, &wanted.report) {
                Ok(patch) => return Some(Job { key, wanted, patch }),
                Err(why) => {
                    tracing::debug!(node = %key.0, device = %key.1, why, "a device's status is not written");
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
            Some((uid, told)) if *uid == report.uid && *told == hash(&patch) => Err("it says so already"),
            _ => Ok(patch),
        }
    }

    fn settle(&mut self, key: WriteKey, wanted: &Wanted) {
        self.statuses.succeeded(&key);
        let (node, device) = key;
        let message = Acked { key: ReportKey::Device(device), delivery: wanted.delivery };
        self.outputs.push_back(Output::Acked(ToNode { node, message }));
    }
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

fn hash(patch: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    patch.to_string().hash(&mut hasher);
    hasher.finish()
}
