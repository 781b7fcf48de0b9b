use jiff::Timestamp;
use serde_json::{Value, json};

use super::age;
use crate::standalone::json::{at, items, text};

pub(super) fn name(object: &Value) -> Value {
    text(object, &["metadata", "name"]).into()
}

pub(super) fn created(object: &Value, now: Timestamp) -> Value {
    age(text(object, &["metadata", "creationTimestamp"]), now).into()
}

/// The text, or kubectl's word for none.
pub(super) fn or_none(text: &str) -> Value {
    if text.is_empty() { "<none>".into() } else { text.into() }
}

fn size(object: &Value, path: &[&str]) -> usize {
    at(object, path).map_or(0, |value| match value {
        Value::Object(members) => members.len(),
        Value::Array(items) => items.len(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    })
}

pub(super) fn plain(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), created(object, now)]
}

pub(super) fn config_map(object: &Value, now: Timestamp) -> Vec<Value> {
    let data = size(object, &["data"]) + size(object, &["binaryData"]);
    vec![name(object), data.to_string().into(), created(object, now)]
}

pub(super) fn secret(object: &Value, now: Timestamp) -> Vec<Value> {
    let data = size(object, &["data"]).to_string();
    vec![name(object), text(object, &["type"]).into(), data.into(), created(object, now)]
}

pub(super) fn service(object: &Value, now: Timestamp) -> Vec<Value> {
    let external = match text(object, &["spec", "type"]) {
        "ExternalName" => text(object, &["spec", "externalName"]).to_owned(),
        _ => {
            let given = items(object, &["spec", "externalIPs"]).iter().filter_map(Value::as_str);
            given.collect::<Vec<_>>().join(",")
        }
    };
    let ports = items(object, &["spec", "ports"]).iter().map(|port| {
        let number = at(port, &["port"]).and_then(Value::as_u64).unwrap_or_default();
        format!("{number}/{}", text(port, &["protocol"]))
    });
    let ports: Vec<String> = ports.collect();
    vec![
        name(object),
        text(object, &["spec", "type"]).into(),
        or_none(text(object, &["spec", "clusterIP"])),
        or_none(&external),
        or_none(&ports.join(",")),
        created(object, now),
    ]
}

pub(super) fn service_account(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), size(object, &["secrets"]).to_string().into(), created(object, now)]
}

pub(super) fn namespace(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), text(object, &["status", "phase"]).into(), created(object, now)]
}

pub(super) fn lease(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), text(object, &["spec", "holderIdentity"]).into(), created(object, now)]
}

pub(super) fn node(object: &Value, now: Timestamp) -> Vec<Value> {
    let info = |member| {
        let text = text(object, &["status", "nodeInfo", member]);
        if text.is_empty() { "<unknown>" } else { text }
    };
    let address = |kind| {
        let address = items(object, &["status", "addresses"]).iter().find(|a| text(a, &["type"]) == kind);
        or_none(address.map_or("", |a| text(a, &["address"])))
    };
    vec![
        name(object),
        node_status(object).into(),
        node_roles(object),
        created(object, now),
        info("kubeletVersion").into(),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage").into(),
        info("kernelVersion").into(),
        info("containerRuntimeVersion").into(),
    ]
}

fn node_status(object: &Value) -> String {
    let ready = items(object, &["status", "conditions"]).iter().find(|c| text(c, &["type"]) == "Ready");
    let mut status = match ready.map(|condition| text(condition, &["status"])) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if at(object, &["spec", "unschedulable"]).and_then(Value::as_bool) == Some(true) {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn node_roles(object: &Value) -> Value {
    let Some(labels) = at(object, &["metadata", "labels"]).and_then(Value::as_object) else {
        return or_none("");
    };
    let roles: Vec<&str> = labels
        .iter()
        .filter_map(|(label, value)| match label.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role).filter(|role| !role.is_empty()),
            None if label == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .collect();
    or_none(&roles.join(","))
}

pub(super) fn event(object: &Value, now: Timestamp) -> Vec<Value> {
    let first_of = |paths: &[&[&str]]| {
        paths.iter().map(|path| text(object, path)).find(|text| !text.is_empty()).unwrap_or_default()
    };
    let created = ["metadata", "creationTimestamp"];
    let last: [&[&str]; 4] = [&["series", "lastObservedTime"], &["lastTimestamp"], &["eventTime"], &created];
    let first: [&[&str]; 3] = [&["firstTimestamp"], &["eventTime"], &created];
    let about = |member| text(object, &["involvedObject", member]);
    let count = [at(object, &["series", "count"]), at(object, &["count"])];
    let count = count.into_iter().flatten().find_map(Value::as_i64).unwrap_or(1);
    vec![
        age(first_of(&last), now).into(),
        text(object, &["type"]).into(),
        text(object, &["reason"]).into(),
        format!("{}/{}", about("kind").to_lowercase(), about("name")).into(),
        about("fieldPath").into(),
        source(object).into(),
        text(object, &["message"]).trim().into(),
        age(first_of(&first), now).into(),
        count.into(),
        name(object),
    ]
}

fn source(object: &Value) -> String {
    let component = match text(object, &["source", "component"]) {
        "" => text(object, &["reportingComponent"]),
        component => component,
    };
    match text(object, &["source", "host"]) {
        "" => component.to_owned(),
        host => format!("{component}, {host}"),
    }
}

pub(super) fn device(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        or_none(text(object, &["spec", "nodeName"])),
        or_none(text(object, &["spec", "deviceModelRef", "name"])),
        or_none(text(object, &["status", "state"])),
        created(object, now),
    ]
}

pub(super) fn device_model(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        or_none(text(object, &["spec", "protocol"])),
        json!(size(object, &["spec", "properties"]).to_string()),
        created(object, now),
    ]
}
