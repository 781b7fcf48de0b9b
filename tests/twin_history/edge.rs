//! DeviceTwin, its store, its applications and its mapper.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use bytes::Bytes;
use kubeedge_core::{
    device::{Reading, ReadingContent},
    id::DeviceId,
    message::{DeviceReport, ObjectEvent, ObjectRef, Publish},
    store::{Change, Key},
};
use kubeedge_edge::devicetwin::{
    Config,
    simulation::{Told, Twins},
};
use serde_json::{Value, json};

use crate::{
    checker::{Checker, Side, Slot},
    cloud::{PROPERTIES, devices},
    random::Random,
};

/// What DeviceTwin is given in a turn.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    Object(ObjectEvent),
    Message(Publish),
    Reading(Reading),
}

/// How a turn's commit ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Commit {
    Works,
    Fails,
    /// The power goes, before the commit or after it; nobody hears of it either way.
    Cut {
        after: bool,
    },
}

/// The edge.
pub(crate) struct Edge {
    twins: Twins,
    stored: BTreeMap<Key, Bytes>,
    /// The objects that MetaManager has, which are durable, and are told again at start.
    pub(crate) objects: BTreeMap<ObjectRef, ObjectEvent>,
    /// What waits to be handled.
    pub(crate) inputs: Vec<Input>,
    /// Whether the next commit fails.
    pub(crate) commit: Commit,
    /// What each device's driver was told that it should have.
    pub(crate) wishes: BTreeMap<(DeviceId, String), String>,
    /// What the cloud was seen to desire: it is a write only when it is something else.
    cloud: BTreeMap<(DeviceId, String), (u64, Option<String>)>,
    uids: BTreeMap<DeviceId, String>,
    pub(crate) power_was_cut: bool,
    seed: u64,
}

impl Edge {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            twins: Twins::restore(config(), seed, std::iter::empty()),
            stored: BTreeMap::new(),
            objects: BTreeMap::new(),
            inputs: Vec::new(),
            commit: Commit::Works,
            wishes: BTreeMap::new(),
            cloud: BTreeMap::new(),
            uids: BTreeMap::new(),
            power_was_cut: false,
            seed,
        }
    }

    pub(crate) fn handle_online(&mut self, at: Instant) {
        self.twins.handle_online(at);
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.twins.poll_timeout()
    }

    /// One turn. Gives what the cloud is told.
    pub(crate) fn act(&mut self, checker: &mut Checker, at: Instant, wall_ms: u64) -> Vec<DeviceReport> {
        let inputs = std::mem::take(&mut self.inputs);
        let commit = std::mem::replace(&mut self.commit, Commit::Works);
        for input in &inputs {
            match input {
                Input::Object(event) => self.twins.handle_object(event, at, wall_ms),
                Input::Message(message) => self.twins.handle_message(message, at, wall_ms),
                Input::Reading(reading) => self.twins.handle_reading(reading.clone(), at, wall_ms),
            }
        }
        self.twins.handle_timeout(at, wall_ms);
        let batch = self.twins.batch();
        match commit {
            Commit::Fails => {
                self.twins.rollback(at, wall_ms);
                // The loop says so to applications, and does the rest again.
                self.inputs = inputs;
                return Vec::new();
            }
            Commit::Cut { after: false } => {
                self.lose_power(checker, at, wall_ms);
                return Vec::new();
            }
            Commit::Works | Commit::Cut { after: true } => {}
        }
        for change in batch.into_changes() {
            match change {
                Change::Put(key, value) => self.stored.insert(key, value),
                Change::Delete(key) => self.stored.remove(&key),
            };
        }
        let told = self.twins.confirm(at);
        self.account(checker, inputs, &told);
        if commit != Commit::Works {
            // What was durable counts, though nobody has heard of it.
            self.lose_power(checker, at, wall_ms);
            return Vec::new();
        }
        self.check_shown(checker, at, wall_ms);
        for report in &told.reports {
            checker.check_report(report);
        }
        for assignment in told.assignments {
            self.wishes.retain(|(device, _), _| *device != assignment.device);
            for property in assignment.spec.iter().flat_map(|spec| &spec.properties) {
                if let Some(desired) = &property.desired {
                    self.wishes.insert((assignment.device.clone(), property.name.clone()), desired.clone());
                }
            }
        }
        told.reports
    }

    /// Says to the model what was accepted, in the order in which it was handled.
    fn account(&mut self, checker: &mut Checker, inputs: Vec<Input>, told: &Told) {
        let mut accepted = BTreeSet::new();
        for publish in told.publishes.iter().filter(|publish| publish.topic.ends_with("twin/update/result")) {
            let answer: Value = serde_json::from_slice(&publish.payload).expect("an answer is JSON");
            let event = answer["event_id"].as_str().expect("an answer has an id");
            if !event.is_empty() {
                checker.answer(event);
                if answer.get("code").is_none() {
                    accepted.insert(event.to_owned());
                }
            }
        }
        for input in inputs {
            match input {
                Input::Object(event) => self.account_object(checker, &event),
                Input::Message(message) => account_message(checker, &message, &accepted),
                Input::Reading(reading) => {
                    if self.uids.contains_key(&reading.device) {
                        account_reading(checker, reading);
                    }
                }
            }
        }
    }

    fn account_object(&mut self, checker: &mut Checker, event: &ObjectEvent) {
        let Ok(device) = event.key().device_id() else { return };
        let ObjectEvent::Applied(object) = event else {
            return self.forget(checker, &device);
        };
        let body: Value = serde_json::from_slice(&object.json).expect("an object is JSON");
        let uid = object.uid.to_string();
        if self.uids.get(&device).is_some_and(|known| *known != uid) {
            self.forget(checker, &device);
        }
        self.uids.insert(device.clone(), uid);
        let version = body["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse::<u64>().ok());
        let version = version.expect("the model counts its changes");
        for property in body["spec"]["properties"].as_array().into_iter().flatten() {
            let name = property["name"].as_str().expect("it has a name");
            let desired = property["desired"]["value"].as_str().map(str::to_owned);
            let key = (device.clone(), name.to_owned());
            let before = self.cloud.get(&key).cloned().unwrap_or_default();
            if version < before.0 {
                continue;
            }
            self.cloud.insert(key, (version, desired.clone()));
            if before.1 != desired {
                let slot = (device.clone(), name.to_owned(), Side::Expected);
                checker.desire(slot, desired);
            }
        }
    }

    fn forget(&mut self, checker: &mut Checker, device: &DeviceId) {
        checker.forget(device);
        self.uids.remove(device);
        self.cloud.retain(|(of, _), _| of != device);
    }

    /// Starts again with what is stored.
    pub(crate) fn lose_power(&mut self, checker: &mut Checker, at: Instant, wall_ms: u64) {
        self.power_was_cut = true;
        self.seed += 1;
        self.twins = Twins::restore(config(), self.seed, self.stored.iter());
        self.wishes.clear();
        self.inputs = self.objects.values().cloned().map(Input::Object).collect();
        let shown = self.shown(at, wall_ms);
        for slot in slots() {
            checker.check_restored(&slot, shown.get(&slot).map(String::as_str));
        }
    }

    fn check_shown(&mut self, checker: &Checker, at: Instant, wall_ms: u64) {
        let shown = self.shown(at, wall_ms);
        for slot in slots() {
            checker.check_shown(&slot, shown.get(&slot).map(String::as_str));
        }
    }

    /// All values, as an application sees them.
    pub(crate) fn shown(&mut self, at: Instant, wall_ms: u64) -> BTreeMap<Slot, String> {
        let mut shown = BTreeMap::new();
        for device in devices() {
            let topic = format!("$hw/events/device/{device}/twin/get");
            self.twins.handle_message(&Publish { topic, payload: "{}".into() }, at, wall_ms);
            assert!(self.twins.batch().is_empty(), "who only asks changes nothing");
            let told = self.twins.confirm(at);
            assert!(told.reports.is_empty(), "the turn before has reported what was due");
            let answer: Value =
                serde_json::from_slice(&told.publishes[0].payload).expect("an answer is JSON");
            for (name, twin) in answer["twin"].as_object().into_iter().flatten() {
                for (part, side) in [("expected", Side::Expected), ("actual", Side::Actual)] {
                    if let Some(value) = twin[part]["value"].as_str() {
                        shown.insert((device.clone(), name.clone(), side), value.to_owned());
                    }
                }
            }
        }
        shown
    }

    /// Whether everything that the cloud has of devices was handled.
    pub(crate) fn sees(&self, device: &DeviceId, property: &str) -> Option<String> {
        self.cloud.get(&(device.clone(), property.to_owned()))?.1.clone()
    }
}

fn config() -> Config {
    Config::new("edge-1".parse().expect("it is a name"))
}

pub(crate) fn slots() -> impl Iterator<Item = Slot> {
    devices().into_iter().flat_map(|device| {
        PROPERTIES.into_iter().flat_map(move |name| {
            [Side::Expected, Side::Actual].map(|side| (device.clone(), name.to_owned(), side))
        })
    })
}

fn event_of(message: &Publish) -> String {
    let request: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
    request["event_id"].as_str().unwrap_or_default().to_owned()
}

fn account_message(checker: &mut Checker, message: &Publish, accepted: &BTreeSet<String>) {
    let request: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
    if !accepted.contains(&event_of(message)) {
        return;
    }
    let mut levels = message.topic.split('/').skip(3);
    let (Some(namespace), Some(name)) = (levels.next(), levels.next()) else { return };
    let device = DeviceId::new(namespace, name).expect("the model knows its devices");
    for (property, twin) in request["twin"].as_object().into_iter().flatten() {
        for (part, side) in [("expected", Side::Expected), ("actual", Side::Actual)] {
            let slot = (device.clone(), property.clone(), side);
            if twin.is_null() {
                checker.write(slot, None);
            } else if let Some(value) = twin[part]["value"].as_str() {
                checker.write(slot, Some(value.to_owned()));
            }
        }
    }
}

fn account_reading(checker: &mut Checker, reading: Reading) {
    if let ReadingContent::Property { property, value, .. } = reading.content {
        checker.read((reading.device, property, Side::Actual), &value);
    }
}

/// An application's message about one or two properties.
pub(crate) fn update(random: &mut Random, number: u64) -> Publish {
    let [one, two] = devices();
    let device = if random.below(2) == 0 { one } else { two };
    let mut twin = serde_json::Map::new();
    for _ in 0..=random.below(2) {
        let property = PROPERTIES[usize::try_from(random.below(3)).expect("it is small")];
        let value = format!("app-{number}");
        let change = match random.below(8) {
            0 => Value::Null,
            1..=4 => json!({"expected": {"value": value}}),
            5 => json!({"expected": {"value": value}, "actual": {"value": value}}),
            _ => json!({"actual": {"value": value}}),
        };
        twin.insert(property.to_owned(), change);
    }
    // Some are no good, and change nothing.
    if random.below(8) == 0 {
        twin.insert("bad".to_owned(), json!({"actual": {}}));
    }
    let payload = json!({"event_id": format!("e-{number}"), "twin": twin}).to_string();
    Publish { topic: format!("$hw/events/device/{device}/twin/update"), payload: payload.into() }
}
