//! How containers have ended: kept when the runtime has forgotten it, and across restarts.

use kubeedge_core::runtime::{ContainerId, ContainerState, ObservedContainer, ObservedSandbox};
use serde_json::{Value, json};

use crate::edged::{
    pod::Pod,
    state::{Entry, LastWords},
    text::{rfc3339, unix_ms},
};

/// An instance that ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Past {
    pub(crate) id: ContainerId,
    pub(crate) attempt: u32,
    pub(crate) code: i32,
    /// As the API has it under `terminated`.
    pub(crate) terminated: Value,
}

/// An instance that was seen running.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Live {
    pub(super) id: ContainerId,
    attempt: u32,
    started_at_ms: u64,
}

impl Live {
    /// From a container's status.
    pub(super) fn read(status: &Value, attempt: u32) -> Option<Self> {
        let started = status["state"]["running"]["startedAt"].as_str()?;
        let id = ContainerId(bare(status["containerID"].as_str()?).to_owned());
        Some(Self { id, attempt, started_at_ms: unix_ms(started).unwrap_or(0) })
    }

    /// What is said of it when the runtime does not know it any more.
    fn lost(&self, runtime: &str) -> Past {
        let message = "The container could not be located. It used to be Running.";
        let terminated = json!({
            "containerID": format!("{runtime}://{}", self.id),
            "exitCode": 137,
            "reason": "ContainerStatusUnknown",
            "message": message,
            "startedAt": null,
            "finishedAt": null,
        });
        Past { id: self.id.clone(), attempt: self.attempt, code: 137, terminated }
    }
}

/// The runtime's own part of a container id.
pub(super) fn bare(id: &str) -> &str {
    id.split_once("://").map_or(id, |(_, bare)| bare)
}

/// The ends of which a container's status tells, the newest last.
pub(super) fn read(status: &Value, attempt: u32) -> Vec<Past> {
    let past = |terminated: &Value, attempt: u32| {
        let code = terminated["exitCode"].as_i64()?;
        let id = ContainerId(bare(terminated["containerID"].as_str().unwrap_or_default()).to_owned());
        let code = i32::try_from(code).unwrap_or(137);
        Some(Past { id, attempt, code, terminated: terminated.clone() })
    };
    let ended = past(&status["state"]["terminated"], attempt);
    // While it waits to be started again, the last end is of the instance that is counted.
    let waits = status["state"]["waiting"].is_object();
    let last =
        past(&status["lastState"]["terminated"], if waits { attempt } else { attempt.saturating_sub(1) });
    last.into_iter().chain(ended).collect()
}

/// Takes note of the containers that run and of those that have ended.
pub(super) fn remember(entry: &mut Entry, pod: &Pod, sandboxes: &[ObservedSandbox], runtime: &str) {
    for name in pod.containers().map(|container| &container.name) {
        let mut instances: Vec<&ObservedContainer> = sandboxes
            .iter()
            .flat_map(|sandbox| &sandbox.containers)
            .filter(|one| one.name == *name)
            .collect();
        instances.sort_by_key(|one| one.attempt);
        let shown = &mut entry.shown;
        let pasts = shown.pasts.entry(name.clone()).or_default();
        if let Some(live) = shown.live.get(name)
            && instances.iter().all(|one| one.id != live.id)
        {
            if pasts.iter().all(|past| past.id != live.id) {
                pasts.push(live.lost(runtime));
            }
            shown.live.remove(name);
        }
        for one in instances {
            if let ContainerState::Running { started_at_ms } = one.state {
                let live = Live { id: one.id.clone(), attempt: one.attempt, started_at_ms };
                shown.live.insert(name.clone(), live);
            }
            let said = match entry.last_words.get(&one.id) {
                Some(LastWords::Read(said)) => said.as_str(),
                Some(LastWords::Reading) | None => "",
            };
            let Some((code, terminated)) = terminated(one, said, runtime) else { continue };
            pasts.retain(|past| past.id != one.id);
            pasts.push(Past { id: one.id.clone(), attempt: one.attempt, code, terminated });
        }
        pasts.sort_by_key(|past| past.attempt);
        let surplus = pasts.len().saturating_sub(2);
        pasts.drain(..surplus);
    }
}

fn terminated(container: &ObservedContainer, said: &str, runtime: &str) -> Option<(i32, Value)> {
    let ContainerState::Exited { exit_code, reason, message, started_at_ms, finished_at_ms } =
        &container.state
    else {
        return None;
    };
    let unseen = exit_code.is_none();
    let reason = match (reason.as_str(), exit_code) {
        ("", None) => "ContainerStatusUnknown",
        ("", Some(0)) => "Completed",
        ("", Some(_)) => "Error",
        (reason, _) => reason,
    };
    let code = exit_code.unwrap_or(137);
    let mut value = json!({
        "containerID": format!("{runtime}://{}", container.id),
        "exitCode": code,
        "reason": reason,
        "startedAt": rfc3339(*started_at_ms),
        "finishedAt": rfc3339(*finished_at_ms),
    });
    let message = match (message.as_str(), said) {
        ("", "") if unseen => "nobody saw how the container ended".to_owned(),
        (message, "") => message.to_owned(),
        ("", said) => said.to_owned(),
        (message, said) => format!("{message}: {said}"),
    };
    if !message.is_empty() {
        value["message"] = json!(message);
    }
    Some((code, value))
}
