use super::*;

const D: &str = "s-1";

fn told(state: &str, is_connected: bool) -> Vec<(String, Value)> {
    let mut device = json!({"name": D, "state": state});
    if is_connected {
        device["lastOnlineTime"] = json!("<date>");
    }
    let answer = json!({"event_id": "<id>", "timestamp": "<now>", "device": device});
    vec![(topic(D, "state/update/result"), answer)]
}

fn set(name: &'static str, state: &str, answers: Vec<(String, Value)>) -> Row {
    row(name, publish(D, "state/update", json!({"event_id": "s", "timestamp": 1, "state": state})), answers)
}

/// Whether a device is connected.
pub(super) fn rows() -> Vec<Row> {
    vec![
        row("a device comes", Act::Hear(device(D, 1, None)), vec![added(D)]),
        set("a device is online", "online", told("online", true)),
        set("in any case, which is kept", "OffLine", told("OffLine", false)),
        set("all is well", "ok", told("ok", true)),
        set("it is not well", "unhealthy", told("unhealthy", false)),
        set("nobody knows", "unknown", told("unknown", false)),
        set("what KubeEdge has no word for", "disconnected", vec![]),
        row("a state that is no text", publish(D, "state/update", r#"{"state":1}"#), vec![]),
        row("a state that is no JSON", publish(D, "state/update", "online"), vec![]),
        row("a state that is not there", publish(D, "state/update", "{}"), vec![]),
        row("a state of no device", publish("nobody", "state/update", r#"{"state":"online"}"#), vec![]),
        set("it is online again", "online", told("online", true)),
    ]
}
