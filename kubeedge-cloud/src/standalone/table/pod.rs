use jiff::Timestamp;
use serde_json::Value;

use super::{
    age,
    cells::{created, name, or_none},
};
use crate::standalone::json::{at, items, text};

pub(super) fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let containers = items(pod, &["spec", "containers"]).len();
    let statuses = items(pod, &["status", "containerStatuses"]);
    let ready =
        statuses.iter().filter(|status| is_ready(status) && state(status, "running").is_some()).count();
    let gates = items(pod, &["spec", "readinessGates"]);
    vec![
        name(pod),
        format!("{ready}/{containers}").into(),
        status(pod).into(),
        restarts(statuses, now).into(),
        created(pod, now),
        or_none(text(pod, &["status", "podIP"])),
        or_none(text(pod, &["spec", "nodeName"])),
        or_none(text(pod, &["status", "nominatedNodeName"])),
        readiness_gates(pod, gates),
    ]
}

fn readiness_gates(pod: &Value, gates: &[Value]) -> Value {
    if gates.is_empty() {
        return or_none("");
    }
    let is_true = |gate: &&Value| {
        let kind = text(gate, &["conditionType"]);
        items(pod, &["status", "conditions"])
            .iter()
            .any(|c| text(c, &["type"]) == kind && text(c, &["status"]) == "True")
    };
    format!("{}/{}", gates.iter().filter(is_true).count(), gates.len()).into()
}

fn is_ready(status: &Value) -> bool {
    at(status, &["ready"]).and_then(Value::as_bool).unwrap_or_default()
}

fn state<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    at(status, &["state", name]).filter(|state| state.is_object())
}

fn restarts(statuses: &[Value], now: Timestamp) -> String {
    let count: i64 = statuses.iter().filter_map(|s| at(s, &["restartCount"])?.as_i64()).sum();
    let last = statuses
        .iter()
        .map(|s| text(s, &["lastState", "terminated", "finishedAt"]))
        .max()
        .unwrap_or_default();
    if count > 0 && !last.is_empty() {
        format!("{count} ({} ago)", age(last, now))
    } else {
        count.to_string()
    }
}

/// One word for the state of a pod, chosen in the order in which kubectl's printer does.
fn status(pod: &Value) -> String {
    let reason = match initializing(pod) {
        Some(reason) => reason,
        None => running(pod),
    };
    if !text(pod, &["metadata", "deletionTimestamp"]).is_empty() {
        return if text(pod, &["status", "reason"]) == "NodeLost" { "Unknown" } else { "Terminating" }.into();
    }
    reason
}

fn phase(pod: &Value) -> String {
    let gated = items(pod, &["status", "conditions"])
        .iter()
        .any(|c| text(c, &["type"]) == "PodScheduled" && text(c, &["reason"]) == "SchedulingGated");
    match (gated, text(pod, &["status", "reason"])) {
        (true, _) => "SchedulingGated".into(),
        (false, "") => text(pod, &["status", "phase"]).into(),
        (false, reason) => reason.into(),
    }
}

/// What the first unfinished init container does; `None` once all have done their work.
fn initializing(pod: &Value) -> Option<String> {
    let specs = items(pod, &["spec", "initContainers"]);
    for (index, status) in items(pod, &["status", "initContainerStatuses"]).iter().enumerate() {
        if let Some(ended) = state(status, "terminated") {
            if at(ended, &["exitCode"]).and_then(Value::as_i64) == Some(0) {
                continue;
            }
            return Some(format!("Init:{}", end_reason(ended)));
        }
        let sidecar = specs.iter().any(|s| {
            text(s, &["name"]) == text(status, &["name"]) && text(s, &["restartPolicy"]) == "Always"
        });
        if sidecar && at(status, &["started"]).and_then(Value::as_bool) == Some(true) {
            continue;
        }
        return Some(match text(status, &["state", "waiting", "reason"]) {
            "" | "PodInitializing" => format!("Init:{index}/{}", specs.len()),
            reason => format!("Init:{reason}"),
        });
    }
    None
}

fn end_reason(ended: &Value) -> String {
    let number = |member| at(ended, &[member]).and_then(Value::as_i64).unwrap_or_default();
    match (text(ended, &["reason"]), number("signal")) {
        ("", 0) => format!("ExitCode:{}", number("exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn running(pod: &Value) -> String {
    let mut reason = phase(pod);
    let mut has_running = false;
    for status in items(pod, &["status", "containerStatuses"]).iter().rev() {
        let waiting = text(status, &["state", "waiting", "reason"]);
        if !waiting.is_empty() {
            reason = waiting.to_owned();
        } else if let Some(ended) = state(status, "terminated") {
            reason = end_reason(ended);
        } else if is_ready(status) && state(status, "running").is_some() {
            has_running = true;
        }
    }
    if reason != "Completed" || !has_running {
        return reason;
    }
    let ready = items(pod, &["status", "conditions"])
        .iter()
        .any(|c| text(c, &["type"]) == "Ready" && text(c, &["status"]) == "True");
    if ready { "Running".into() } else { "NotReady".into() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status_of(status: Value) -> String {
        super::status(
            &json!({ "metadata": {}, "spec": { "initContainers": [{ "name": "i" }] }, "status": status }),
        )
    }

    #[test]
    fn the_status_is_the_most_telling_reason_there_is() {
        let waiting = json!({ "state": { "waiting": { "reason": "ImagePullBackOff" } } });
        let crashed = json!({ "state": { "terminated": { "exitCode": 3 } } });
        let done = json!({ "state": { "terminated": { "exitCode": 0, "reason": "Completed" } } });
        let up = json!({ "ready": true, "state": { "running": {} } });
        let ready = json!([{ "type": "Ready", "status": "True" }]);
        assert_eq!(status_of(json!({ "phase": "Pending" })), "Pending");
        assert_eq!(status_of(json!({ "phase": "Failed", "reason": "Evicted" })), "Evicted");
        assert_eq!(
            status_of(json!({ "phase": "Pending", "containerStatuses": [waiting] })),
            "ImagePullBackOff"
        );
        assert_eq!(status_of(json!({ "phase": "Running", "containerStatuses": [crashed] })), "ExitCode:3");
        assert_eq!(
            status_of(json!({ "phase": "Running", "conditions": ready, "containerStatuses": [done, up] })),
            "Running"
        );
        assert_eq!(status_of(json!({ "phase": "Pending", "initContainerStatuses": [{}] })), "Init:0/1");
        assert_eq!(
            status_of(json!({ "phase": "Pending", "initContainerStatuses": [crashed] })),
            "Init:ExitCode:3"
        );
    }

    #[test]
    fn a_pod_that_is_being_deleted_is_terminating() {
        let pod = json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" }, "status": { "phase": "Running" } });
        assert_eq!(super::status(&pod), "Terminating");
    }
}
