//! What a story asks of its world.

use serde_json::Value;

use super::world::World;

impl World {
    pub(super) fn status(&self, uid: &str) -> &Value {
        self.told.get(uid).and_then(|all| all.last()).unwrap_or(&Value::Null)
    }

    pub(super) fn condition(&self, uid: &str, kind: &str) -> Value {
        let conditions = self.status(uid)["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|condition| condition["type"] == kind).unwrap_or_default()
    }

    pub(super) fn is_ready(&self, uid: &str) -> bool {
        self.condition(uid, "Ready")["status"] == "True"
    }

    /// The status of a container, also of an init container.
    pub(super) fn container(&self, uid: &str, name: &str) -> Value {
        let status = self.status(uid);
        let lists = [&status["containerStatuses"], &status["initContainerStatuses"]];
        let mut all = lists.into_iter().filter_map(Value::as_array).flatten();
        all.find(|container| container["name"] == name).cloned().unwrap_or_default()
    }

    pub(super) fn waiting(&self, uid: &str, name: &str) -> String {
        self.container(uid, name)["state"]["waiting"]["reason"].as_str().unwrap_or_default().to_owned()
    }

    pub(super) fn starts(&self, container: &str) -> u32 {
        self.runtime.starts.get(container).copied().unwrap_or(0)
    }

    /// What was begun of this kind, such as `start `, in order.
    pub(super) fn begun(&self, start: &str) -> Vec<&str> {
        self.trace.iter().map(|(_, text)| text.as_str()).filter(|text| text.starts_with(start)).collect()
    }

    /// Messages of events with this reason, in order.
    pub(super) fn messages(&self, reason: &str) -> Vec<&str> {
        let of_reason = self.events.iter().filter(|event| event["reason"] == reason);
        of_reason.filter_map(|event| event["message"].as_str()).collect()
    }

    pub(super) fn story(&self) -> String {
        let lines: Vec<String> = self.trace.iter().map(|(at, text)| format!("{at:>8} {text}")).collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}
