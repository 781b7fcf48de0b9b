//! What is written to the API of a node and of a pod: pure JSON in, JSON out.
//!
//! Everything is a merge patch (RFC 7396) that carries the resulting lists whole, computed from the object as the
//! API has it. So it means the same to every API server, and conditions of other writers stay.

use jiff::Timestamp;
use kubeedge_core::id::{NodeName, Uid};
use serde_json::{Map, Value, json};

use super::seen;
use crate::authorization::{Denial, Denials, allowed_members, may_annotate, may_label};

/// The label that makes a Node an edge node, with an empty value (KubeEdge's convention).
pub(super) const EDGE_LABEL: &str = "node-role.kubernetes.io/edge";

/// The condition by which the cloud says whether it has the node's link, and since when it has not.
pub(super) const LINK_CONDITION: &str = "EdgeLinkReady";

/// The reason that Kubernetes' own node lifecycle controller gives when it no longer hears of a node.
const UNKNOWN_REASON: &str = "NodeStatusUnknown";

/// The conditions of which nothing is known while the node is away.
const NODE_CONDITIONS: [&str; 5] =
    ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure", seen::CLOCK_CONDITION];

/// Members of a pod's status that vanish from the API when the node no longer reports them.
const POD_MESSAGES: [&str; 2] = ["message", "reason"];

/// Conditions of a pod that only its node sets, and that vanish when it no longer reports them.
const POD_CONDITIONS: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

/// Takes of a node's report what a node may say of itself.
pub(super) fn read_node(json: &[u8], node: &NodeName, denials: &Denials) -> Result<Value, String> {
    let mut report: Value =
        serde_json::from_slice(json).map_err(|error| format!("it is not JSON: {error}"))?;
    // Members are written into both below, which only objects can take.
    if !report["metadata"].is_object() || !(report["status"].is_object() || report["status"].is_null()) {
        return Err("its metadata or its status is no JSON object".to_owned());
    }
    for (member, may, denial) in [
        ("labels", may_label as fn(&str) -> bool, Denial::Label),
        ("annotations", may_annotate, Denial::Annotation),
    ] {
        let given = report["metadata"][member].take();
        report["metadata"][member] = allowed_members(node, &given, may, denial, denials).into();
    }
    if let Some(conditions) = report["status"]["conditions"].as_array_mut() {
        conditions.retain(|condition| !is_link(condition) && !seen::is_seen(condition));
    }
    Ok(report)
}

/// The name that a node's report is made under.
pub(super) fn name_of(json: &[u8]) -> Option<String> {
    let report: Value = serde_json::from_slice(json).ok()?;
    report["metadata"]["name"].as_str().map(str::to_owned)
}

/// The Node to create for a report. The API takes a status only afterwards.
pub(super) fn node_to_create(report: &Value, node: &NodeName) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": node.as_str(),
            "labels": object_or_empty(&report["metadata"]["labels"]),
            "annotations": object_or_empty(&report["metadata"]["annotations"]),
        },
        "spec": { "taints": report["spec"]["taints"].as_array().cloned().unwrap_or_default() },
    })
}

/// What to merge into the Node's metadata; `None` if it has all that is reported.
pub(super) fn node_metadata(existing: &Value, report: &Value) -> Option<Value> {
    let mut metadata = Map::new();
    for member in ["labels", "annotations"] {
        let reported = object_or_empty(&report["metadata"][member]);
        let has = &existing["metadata"][member];
        let missing: Map<_, _> = reported.into_iter().filter(|(key, value)| has[key] != *value).collect();
        if !missing.is_empty() {
            metadata.insert(member.to_owned(), missing.into());
        }
    }
    (!metadata.is_empty()).then(|| json!({ "metadata": metadata }))
}

/// What to merge into the Node's status; `None` if it has all that is reported, and the conditions `seen` by the cloud.
pub(super) fn node_status(existing: &Value, report: &Value, seen: &[Value], now: Timestamp) -> Option<Value> {
    let mut status = object_or_empty(&report["status"]);
    if let Some(Value::Array(reported)) = status.remove("conditions") {
        let mut merged = merge_conditions(&existing["status"]["conditions"], reported, now);
        if merged.iter().all(|condition| !is_link(condition) || condition["status"] != "True") {
            merged.retain(|condition| !is_link(condition));
            merged.push(link(true, now, "The edge has a session with the cloud."));
        }
        seen.iter().for_each(|condition| set(&mut merged, condition, now));
        status.insert("conditions".to_owned(), merged.into());
    }
    let has = &existing["status"];
    status.retain(|member, value| has[member.as_str()] != *value);
    (!status.is_empty()).then(|| at_version(existing, &status.into()))
}

/// What to merge into the status of a Node that was not heard of since `since`; `None` if it says so already.
pub(super) fn node_away(existing: &Value, since: Timestamp, now: Timestamp) -> Option<Value> {
    let mut conditions = existing["status"]["conditions"].as_array().cloned().unwrap_or_default();
    if !conditions.iter().any(|condition| condition["type"] == "Ready") {
        conditions.push(json!({ "type": "Ready", "status": "" }));
    }
    let mut changed = false;
    // Who was away before stays away since then, even if the cloud was restarted meanwhile.
    if conditions.iter().all(|condition| !is_link(condition) || condition["status"] != "False") {
        conditions.retain(|condition| !is_link(condition));
        let message = format!("The edge has been away since {}.", seconds(since));
        conditions.push(link(false, since, &message));
        changed = true;
    }
    for condition in &mut conditions {
        let of_node = condition["type"].as_str().is_some_and(|kind| NODE_CONDITIONS.contains(&kind));
        if of_node && condition["status"] != "Unknown" {
            condition["status"] = "Unknown".into();
            condition["reason"] = UNKNOWN_REASON.into();
            condition["message"] = format!("The edge has been away since {}.", seconds(since)).into();
            condition["lastTransitionTime"] = seconds(now).into();
            changed = true;
        }
    }
    changed.then(|| at_version(existing, &json!({ "conditions": conditions })))
}

/// Sets a condition that the cloud sees; its time changes with its status.
fn set(conditions: &mut Vec<Value>, seen: &Value, now: Timestamp) {
    let mut condition = seen.clone();
    condition["lastTransitionTime"] = seconds(now).into();
    match conditions.iter_mut().find(|old| old["type"] == seen["type"]) {
        Some(old) => {
            if old["status"] == seen["status"] {
                condition["lastTransitionTime"] = old["lastTransitionTime"].clone();
            }
            *old = condition;
        }
        None => conditions.push(condition),
    }
}

fn is_link(condition: &Value) -> bool {
    condition["type"] == LINK_CONDITION
}

fn link(ready: bool, since: Timestamp, message: &str) -> Value {
    json!({
        "type": LINK_CONDITION,
        "status": if ready { "True" } else { "False" },
        "reason": if ready { "SessionEstablished" } else { "SessionLost" },
        "message": message,
        "lastTransitionTime": seconds(since),
    })
}

/// What to merge into the status of the pod of this UID.
pub(super) fn pod_status(
    existing: &Value,
    uid: &Uid,
    reported: &[u8],
    now: Timestamp,
) -> Result<Value, String> {
    let mut status: Map<String, Value> =
        serde_json::from_slice(reported).map_err(|error| format!("its status is no JSON object: {error}"))?;
    // NodeRestriction: which claims a pod has been given is for the cloud to say.
    status.remove("resourceClaimStatuses");
    if let Some(Value::Array(reported)) = status.remove("conditions") {
        let has = |kind: &str| reported.iter().any(|condition| condition["type"] == kind);
        let gone: Vec<&str> = POD_CONDITIONS.into_iter().filter(|kind| !has(kind)).collect();
        let mut merged = merge_conditions(&existing["status"]["conditions"], reported, now);
        merged.retain(|condition| !gone.iter().any(|kind| condition["type"] == *kind));
        status.insert("conditions".to_owned(), merged.into());
    }
    for message in POD_MESSAGES {
        if !existing["status"][message].is_null() {
            status.entry(message).or_insert(Value::Null);
        }
    }
    Ok(json!({ "metadata": { "uid": uid.as_str() }, "status": status }))
}

/// Whether a pod's `status`, as it was reported, is no longer in the API's `pod`: another phase, another status of
/// a condition, or a member that is missing. The rest only the node writes; it may differ in how it is written.
pub(super) fn lacks(pod: &[u8], status: &[u8]) -> bool {
    let pod: Value = serde_json::from_slice(pod).unwrap_or_default();
    let Ok(reported) = serde_json::from_slice::<Map<String, Value>>(status) else { return false };
    let has = &pod["status"];
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    };
    let has_condition = |condition: &Value| {
        let mut all = has["conditions"].as_array().into_iter().flatten();
        all.any(|old| old["type"] == condition["type"] && old["status"] == condition["status"])
    };
    reported.iter().any(|(member, value)| match (member.as_str(), value) {
        ("phase", phase) => has["phase"] != *phase,
        ("conditions", Value::Array(conditions)) => !conditions.iter().all(has_condition),
        (member, value) => !is_empty(value) && has[member].is_null(),
    })
}

/// A time as Kubernetes writes it: RFC 3339 to the second, in UTC.
pub(super) fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A time as a Lease has it: RFC 3339 to the microsecond.
pub(super) fn micros(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// The reported conditions, and behind them those of types that were not reported.
///
/// A condition that changes its status must not say that it did so before the status it replaces came to be: the
/// edge does not know of the time it was away. Nor does that time change when the same is told again.
fn merge_conditions(existing: &Value, reported: Vec<Value>, now: Timestamp) -> Vec<Value> {
    let existing = existing.as_array().map(Vec::as_slice).unwrap_or_default();
    let of = |list: &[Value], kind: &Value| list.iter().position(|condition| condition["type"] == *kind);
    let kept: Vec<Value> =
        existing.iter().filter(|old| of(&reported, &old["type"]).is_none()).cloned().collect();
    let mut merged = reported;
    for condition in &mut merged {
        let Some(old) = of(existing, &condition["type"]).and_then(|at| existing.get(at)) else { continue };
        let (was, is) = (old["lastTransitionTime"].as_str(), condition["lastTransitionTime"].as_str());
        if was < is || !condition.is_object() {
            continue;
        }
        if old["status"] != condition["status"] {
            condition["lastTransitionTime"] = seconds(now).into();
        } else if let Some(was) = was {
            condition["lastTransitionTime"] = was.into();
        }
    }
    merged.extend(kept);
    merged
}

/// The patch only holds for the object as it was read: a change in between is a conflict, and it is read again.
fn at_version(existing: &Value, status: &Value) -> Value {
    json!({
        "metadata": { "resourceVersion": existing["metadata"]["resourceVersion"] },
        "status": status,
    })
}

fn object_or_empty(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}
