//! The table of exchanges.

mod cloud;
mod errors;
mod membership;
mod state;
mod types;
mod update;

use kubeedge_core::{
    device::{Reading, ReadingContent},
    id::{DeviceId, Uid},
    message::{Object, ObjectEvent, ObjectRef},
};
use serde_json::{Value, json};

use crate::site::Act;

/// One exchange.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) act: Act,
    /// Topics and payloads, in order.
    pub(crate) answers: Vec<(String, Value)>,
}

/// All rows, in the order in which they happen.
pub(crate) fn rows() -> Vec<Row> {
    [membership::rows(), update::rows(), types::rows(), errors::rows(), state::rows(), cloud::rows()]
        .into_iter()
        .flatten()
        .collect()
}

/// Where KubeEdge answers an update that it cannot read.
const NOWHERE: &str = "$hw/events/device//twin/update/result";

fn row(name: &'static str, act: Act, answers: Vec<(String, Value)>) -> Row {
    Row { name, act, answers }
}

fn topic(device: &str, event: &str) -> String {
    format!("$hw/events/device/default/{device}/{event}")
}

/// An application publishes on a topic of a device of the namespace `default`.
fn publish(device: &str, event: &str, payload: impl ToString) -> Act {
    Act::Publish(topic(device, event), payload.to_string().into_bytes())
}

/// An application updates twins, under an id by which the answers are known.
fn update(device: &str, event_id: &str, twin: Value) -> Act {
    publish(device, "twin/update", json!({"event_id": event_id, "timestamp": 1, "twin": twin}))
}

fn result(device: &str, event_id: &str, twin: Value) -> (String, Value) {
    let answer = json!({"event_id": event_id, "timestamp": "<now>", "twin": twin});
    (topic(device, "twin/update/result"), answer)
}

fn document(device: &str, event_id: &str, twin: Value) -> (String, Value) {
    let answer = json!({"event_id": event_id, "timestamp": "<now>", "twin": twin});
    (topic(device, "twin/update/document"), answer)
}

fn delta(device: &str, twin: Value, delta: Value) -> (String, Value) {
    let answer = json!({"event_id": "<id>", "timestamp": "<now>", "twin": twin, "delta": delta});
    (topic(device, "twin/update/delta"), answer)
}

fn refused(topic: &str, event_id: &str, code: u16, reason: &str) -> (String, Value) {
    (topic.to_owned(), json!({"event_id": event_id, "timestamp": "<now>", "code": code, "reason": reason}))
}

/// A twin of the default type as applications see it.
fn shown(expected: Option<&str>, actual: Option<&str>) -> Value {
    typed(expected, actual, "string")
}

fn typed(expected: Option<&str>, actual: Option<&str>, value_type: &str) -> Value {
    let mut twin = json!({"optional": true, "metadata": {"type": value_type}});
    for (name, value) in [("expected", expected), ("actual", actual)] {
        if let Some(value) = value {
            twin[name] = json!({"value": value, "metadata": {"timestamp": "<now>"}});
        }
    }
    twin
}

/// The cloud has a device, with what it desires of the property `level`.
fn device(name: &str, version: u64, level: Option<&str>) -> ObjectEvent {
    device_in("default", name, version, level)
}

fn device_in(namespace: &str, name: &str, version: u64, level: Option<&str>) -> ObjectEvent {
    let desired = level.map_or(Value::Null, |level| json!({"value": level}));
    applied(&json!({
        "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device",
        "metadata": {
            "namespace": namespace, "name": name, "uid": format!("u-{name}"), "resourceVersion": version.to_string(),
        },
        "spec": {
            "deviceModelRef": {"name": "tank"}, "nodeName": "edge-1", "protocol": {"protocolName": "none"},
            "properties": [{"name": "level", "desired": desired, "reportToCloud": true}],
        },
    }))
}

fn applied(json: &Value) -> ObjectEvent {
    ObjectEvent::Applied(Object::from_json(json.to_string()).expect("the table has objects"))
}

fn deleted(name: &str) -> ObjectEvent {
    let device = DeviceId::new("default", name).expect("a name");
    ObjectEvent::Deleted { reference: ObjectRef::device(&device), uid: Uid::new(format!("u-{name}")) }
}

fn read(name: &str, property: &str, value: &str) -> Act {
    Act::Read(Reading {
        device: DeviceId::new("default", name).expect("a name"),
        content: ReadingContent::Property {
            property: property.to_owned(),
            value: value.to_owned(),
            observed_desired: None,
            timestamp_ms: std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .ok()
                .and_then(|now| u64::try_from(now.as_millis()).ok())
                .expect("it is after 1970"),
        },
    })
}

/// The message that tells of a device that the node has got.
fn added(device: &str) -> (String, Value) {
    changed(json!([{"id": format!("default/{device}"), "name": device}]), Value::Null)
}

fn changed(added: Value, removed: Value) -> (String, Value) {
    let answer = json!({
        "event_id": "<id>", "timestamp": "<now>", "added_devices": added, "removed_devices": removed,
    });
    ("$hw/events/node/edge-1/membership/updated".to_owned(), answer)
}
