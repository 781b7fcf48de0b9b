//! Behaviour, told through the state first and through the pipes second.

mod golden;
mod pipes;
mod random;
mod stories;

use std::time::{Duration, Instant};

use kubeedge_core::{
    device::{Reading, ReadingContent},
    id::{DeviceId, Uid},
    message::{DeviceReport, Object, ObjectEvent, ObjectRef, Publish},
    store::{Change, Key},
};
use serde_json::{Value, json};

use super::{
    Config, record,
    state::{Now, State, Told},
};

/// 2026-11-23T00:50:48.343Z
const MIDNIGHT_MS: u64 = 1_795_395_048_343;

fn thermometer_id() -> DeviceId {
    DeviceId::new("default", "t-1").unwrap()
}

/// The topic of the thermometer's `event`, such as `twin/get`.
fn topic(event: &str) -> String {
    format!("$hw/events/device/default/t-1/{event}")
}

fn message(event: &str, payload: &Value) -> Publish {
    Publish { topic: topic(event), payload: payload.to_string().into() }
}

/// A message of the cloud: the thermometer, which should be at `target`.
fn thermometer(uid: &str, version: u64, target: Option<&str>) -> ObjectEvent {
    let desired = target.map_or(Value::Null, |target| json!({"value": target}));
    ObjectEvent::Applied(
        Object::from_json(
            json!({
                "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device",
                "metadata": {"namespace": "default", "name": "t-1", "uid": uid, "resourceVersion": version.to_string()},
                "spec": {
                    "deviceModelRef": {"name": "thermometer"}, "nodeName": "edge-1",
                    "protocol": {"protocolName": "thermometer"},
                    "properties": [
                        {"name": "target", "desired": desired, "reportToCloud": true},
                        {"name": "temperature", "reportToCloud": true},
                        {"name": "private", "reportToCloud": false},
                    ]
                }
            })
            .to_string(),
        )
        .unwrap(),
    )
}

fn model(version: u64) -> ObjectEvent {
    ObjectEvent::Applied(
        Object::from_json(
            json!({
                "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "DeviceModel",
                "metadata": {"namespace": "default", "name": "thermometer", "uid": "m", "resourceVersion": version.to_string()},
                "spec": {"protocol": "thermometer", "properties": [
                    {"name": "target", "type": "INT", "accessMode": "ReadWrite"},
                    {"name": "temperature", "type": "DOUBLE", "accessMode": "ReadOnly"},
                    {"name": "private", "type": "STRING", "accessMode": "ReadOnly"},
                ]}
            })
            .to_string(),
        )
        .unwrap(),
    )
}

fn deleted(uid: &str) -> ObjectEvent {
    ObjectEvent::Deleted { reference: ObjectRef::device(&thermometer_id()), uid: Uid::new(uid) }
}

fn reading(property: &str, value: &str, observed: Option<&str>) -> Reading {
    Reading {
        device: thermometer_id(),
        content: ReadingContent::Property {
            property: property.to_owned(),
            value: value.to_owned(),
            observed_desired: observed.map(str::to_owned),
            timestamp_ms: MIDNIGHT_MS,
        },
    }
}

fn connection(state: &str) -> Reading {
    Reading { device: thermometer_id(), content: ReadingContent::State(state.to_owned()) }
}

/// A state whose store always works, and whose clock stands until it is moved.
struct Twin {
    state: State,
    start: Instant,
    passed: Duration,
    stored: std::collections::BTreeMap<String, Vec<u8>>,
    writes: usize,
}

impl Twin {
    fn new() -> Self {
        Self::with(Config::new("edge-1".parse().unwrap()))
    }

    /// One that reports everything at once, so that a story is told by reports.
    fn with(mut config: Config) -> Self {
        config.limits.report_interval = Duration::ZERO;
        config.limits.reports_per_second = std::num::NonZeroU32::MAX;
        Self::at_a_pace(config)
    }

    fn at_a_pace(config: Config) -> Self {
        let state = State::new(config, 7);
        Self { state, start: Instant::now(), passed: Duration::ZERO, stored: Default::default(), writes: 0 }
    }

    /// One that has heard of the thermometer, without a desired value.
    fn thermometer() -> Self {
        let mut twin = Self::new();
        twin.hear(&model(1));
        twin.hear(&thermometer("u", 1, None));
        twin
    }

    fn now(&self) -> Now {
        let wall_ms = MIDNIGHT_MS + u64::try_from(self.passed.as_millis()).unwrap();
        Now { at: self.start + self.passed, wall_ms }
    }

    fn hear(&mut self, event: &ObjectEvent) -> Told {
        self.state.handle_object(event, self.now());
        self.end_turn()
    }

    fn send(&mut self, event: &str, payload: Value) -> Vec<(String, Value)> {
        shown(self.publish(&message(event, &payload)))
    }

    fn publish(&mut self, publish: &Publish) -> Told {
        self.state.handle_message(publish, self.now());
        self.end_turn()
    }

    fn read(&mut self, reading: Reading) -> Told {
        self.state.handle_reading(reading, self.now());
        self.end_turn()
    }

    fn end_turn(&mut self) -> Told {
        let batch = self.state.batch().unwrap();
        self.writes += usize::from(!batch.is_empty());
        for change in batch.into_changes() {
            match change {
                Change::Put(key, value) => {
                    self.stored.insert(key.as_str().to_owned(), value.to_vec());
                }
                Change::Delete(key) => {
                    self.stored.remove(key.as_str());
                }
            }
        }
        self.state.confirm(self.now().at)
    }

    /// What a process finds that starts after the power was cut here.
    fn after_power_cut(&self) -> Self {
        let mut next = Self::new();
        let key = |text: &String| Key::from_text(text.as_str()).unwrap();
        for (text, value) in self.stored.iter().filter(|(text, _)| record::devices().matches(&key(text))) {
            next.state.restore_device(record::device_of(&key(text)).unwrap(), value).unwrap();
        }
        for (text, value) in self.stored.iter().filter(|(text, _)| record::twins().matches(&key(text))) {
            let (id, property) = record::twin_of(&key(text)).unwrap();
            next.state.restore_twin(&id, property, value).unwrap();
        }
        next.stored = self.stored.clone();
        next
    }
}

/// Messages by the last levels of their topic.
fn shown(told: Told) -> Vec<(String, Value)> {
    told.publishes.iter().map(show).collect()
}

fn show(publish: &Publish) -> (String, Value) {
    let event = publish.topic.strip_prefix("$hw/events/device/default/t-1/").unwrap_or(&publish.topic);
    (event.to_owned(), serde_json::from_slice(&publish.payload).unwrap())
}

/// What a report says that a property has, with its version.
fn reported(report: &DeviceReport, property: &str) -> Option<(String, u64)> {
    let twin = report.twins.iter().find(|twin| twin.property == property)?;
    twin.reported.as_ref().map(|value| (value.value.clone(), value.version))
}
