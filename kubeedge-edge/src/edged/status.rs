//! A pod's status, as the kubelet writes it. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use kubeedge_core::{
    message::{PodReport, PodState},
    runtime::{ContainerState, ObservedContainer, ObservedSandbox},
};
use serde_json::{Value, json};

use super::{
    Config,
    make::qos_class,
    pod::{Container, Pod, RestartPolicy},
    state::{Entry, Moment, Stage, exit_code, is_final, newest_of},
};

/// What of a pod's status is kept between two of them.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    /// The last one.
    pub(crate) status: Option<Bytes>,
    phase: &'static str,
    start_time: Option<String>,
    /// Each condition's status, and since when it has it.
    since: BTreeMap<String, (bool, String)>,
}

impl Shown {
    /// Takes over the times that the API already knows, so that a restart does not move them.
    pub(crate) fn seed(&mut self, pod: Option<&Pod>) {
        let Some(old) = pod.map(|pod| &pod.status) else { return };
        if self.start_time.is_none() {
            self.start_time.clone_from(&old.start_time);
        }
        for condition in &old.conditions {
            if let Some(time) = &condition.last_transition_time {
                let known = (condition.status == "True", time.clone());
                self.since.entry(condition.kind.clone()).or_insert(known);
            }
        }
    }

    /// Whether the last one said that the pod has ended.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.phase, "Succeeded" | "Failed")
    }
}

/// The pod's report, if its status is another one than the last.
pub(crate) fn changed(
    entry: &mut Entry,
    sandboxes: &[ObservedSandbox],
    config: &Config,
    runtime: &str,
    now: Moment,
) -> Option<PodReport> {
    if entry.stage != Stage::Wanted {
        return None;
    }
    let status = match entry.pod.clone()? {
        // What its containers were when they stopped is the last word on a pod that goes.
        Ok(_) if entry.is_ending() && sandboxes.iter().all(|sandbox| sandbox.containers.is_empty()) => {
            return None;
        }
        // What the API has is more than an empty node can say of a pod that ended earlier.
        Ok(pod) if sandboxes.is_empty() && pod.had_ended() => return None,
        Ok(pod) => whole(&pod, entry, sandboxes, config, runtime, now),
        Err(invalid) => {
            entry.shown.phase = "Failed";
            json!({ "phase": "Failed", "reason": "InvalidPod", "message": invalid.to_string() })
        }
    };
    let bytes = Bytes::from(status.to_string());
    if entry.shown.status.as_ref() == Some(&bytes) {
        return None;
    }
    entry.shown.status = Some(bytes.clone());
    let (reference, uid) = (entry.reference.clone(), entry.uid.clone());
    Some(PodReport { reference, uid, state: PodState::Status(bytes) })
}

fn whole(
    pod: &Pod,
    entry: &mut Entry,
    sandboxes: &[ObservedSandbox],
    config: &Config,
    runtime: &str,
    now: Moment,
) -> Value {
    let init_done = init_is_done(pod, sandboxes);
    let statuses = |containers: &[Container], initialized: bool| -> Vec<Value> {
        containers
            .iter()
            .map(|one| container_status(one, &Scene { pod, entry, sandboxes, runtime, now }, initialized))
            .collect()
    };
    let containers = statuses(&pod.spec.containers, init_done);
    let init = statuses(&pod.spec.init_containers, true);
    let phase = phase(pod, sandboxes, init_done, entry);
    let unready: Vec<&str> =
        containers.iter().filter(|one| one["ready"] != true).filter_map(|one| one["name"].as_str()).collect();
    let over = matches!(phase, "Succeeded" | "Failed");
    let ready = if unready.is_empty() {
        Ok(())
    } else if phase == "Succeeded" {
        Err(("PodCompleted", String::new()))
    } else if phase == "Failed" {
        Err(("PodFailed", String::new()))
    } else {
        Err(("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" "))))
    };
    let initialized = if init_done || over {
        Ok(())
    } else {
        Err(("ContainersNotInitialized", "an init container has not ended well yet".to_owned()))
    };
    let network = sandboxes.last().is_some_and(|sandbox| sandbox.ready);
    let network = if network { Ok(()) } else { Err(("", String::new())) };
    let shown = &mut entry.shown;
    shown.phase = phase;
    let start = shown.start_time.get_or_insert_with(|| {
        rfc3339(sandboxes.iter().map(|sandbox| sandbox.created_at_ms).min().unwrap_or(now.unix_ms))
    });
    let start = start.clone();
    let conditions = [
        ("PodReadyToStartContainers", network),
        ("Initialized", initialized),
        ("Ready", ready.clone()),
        ("ContainersReady", ready),
        ("PodScheduled", Ok(())),
    ]
    .map(|(kind, status)| condition(shown, kind, status, now));
    let mut status = json!({
        "phase": phase,
        "conditions": conditions,
        "startTime": start,
        "qosClass": qos_class(pod),
        "containerStatuses": containers,
    });
    if !init.is_empty() {
        status["initContainerStatuses"] = Value::Array(init);
    }
    if !config.node_ip.is_empty() {
        status["hostIP"] = json!(config.node_ip);
        status["hostIPs"] = json!([{ "ip": config.node_ip }]);
    }
    if let Some(ip) = entry.ips.first() {
        status["podIP"] = json!(ip);
        status["podIPs"] = entry.ips.iter().map(|ip| json!({ "ip": ip })).collect();
    }
    status
}

fn condition(shown: &mut Shown, kind: &str, status: Result<(), (&str, String)>, now: Moment) -> Value {
    let known = shown.since.get(kind).filter(|(was, _)| *was == status.is_ok());
    let since = known.map_or_else(|| rfc3339(now.unix_ms), |(_, since)| since.clone());
    shown.since.insert(kind.to_owned(), (status.is_ok(), since.clone()));
    let word = if status.is_ok() { "True" } else { "False" };
    let mut value =
        json!({ "type": kind, "status": word, "lastProbeTime": null, "lastTransitionTime": since });
    if let Err((reason, message)) = status {
        if !reason.is_empty() {
            value["reason"] = json!(reason);
        }
        if !message.is_empty() {
            value["message"] = json!(message);
        }
    }
    value
}

fn init_is_done(pod: &Pod, sandboxes: &[ObservedSandbox]) -> bool {
    let Some(sandbox) = sandboxes.last() else { return pod.spec.init_containers.is_empty() };
    let started = pod.spec.containers.iter().any(|container| newest_of(sandbox, &container.name).is_some());
    started
        || pod.spec.init_containers.iter().all(|container| {
            newest_of(sandbox, &container.name).is_some_and(|one| match &one.state {
                ContainerState::Running { .. } => container.restart_policy == "Always",
                ContainerState::Exited { exit_code, .. } => *exit_code == Some(0),
                ContainerState::Created | ContainerState::Unknown => false,
            })
        })
}

fn newest<'a>(sandboxes: &'a [ObservedSandbox], name: &str) -> Option<&'a ObservedContainer> {
    sandboxes.iter().rev().find_map(|sandbox| newest_of(sandbox, name))
}

/// The phase by the kubelet's rules.
fn phase(pod: &Pod, sandboxes: &[ObservedSandbox], init_done: bool, entry: &Entry) -> &'static str {
    let policy = pod.spec.restart_policy;
    let all: Vec<_> =
        pod.spec.containers.iter().map(|container| newest(sandboxes, &container.name)).collect();
    let init_failed = policy == RestartPolicy::Never
        && pod.spec.init_containers.iter().any(|container| {
            container.restart_policy != "Always"
                && newest(sandboxes, &container.name).and_then(exit_code).is_some_and(|code| code != 0)
        });
    let lost = policy == RestartPolicy::Never
        && sandboxes.last().is_some_and(|sandbox| !sandbox.ready && !sandbox.containers.is_empty());
    let running = |one: &Option<&ObservedContainer>| {
        one.is_some_and(|one| matches!(one.state, ContainerState::Running { .. }))
    };
    if init_failed {
        "Failed"
    } else if all.iter().any(running) {
        "Running"
    } else if all.iter().all(|one| one.is_some_and(|one| is_final(one, policy))) {
        if all.iter().flatten().all(|one| exit_code(one) == Some(0)) { "Succeeded" } else { "Failed" }
    } else if lost {
        "Failed"
    } else if !init_done || all.iter().any(|one| one.is_none_or(|one| exit_code(one).is_none())) {
        if entry.shown.phase == "Running" { "Running" } else { "Pending" }
    } else {
        "Running"
    }
}

/// What a container's status is read from.
struct Scene<'a> {
    pod: &'a Pod,
    entry: &'a Entry,
    sandboxes: &'a [ObservedSandbox],
    runtime: &'a str,
    now: Moment,
}

fn container_status(container: &Container, scene: &Scene<'_>, initialized: bool) -> Value {
    let Scene { pod, entry, sandboxes, runtime, now } = *scene;
    let name = &container.name;
    let newest = newest(sandboxes, name);
    let attempt = entry.attempts.get(name).copied().or(newest.map(|one| one.attempt)).unwrap_or(0);
    let running = newest.is_some_and(|one| matches!(one.state, ContainerState::Running { .. }));
    let ended = newest.and_then(terminated);
    let previous = newest.and_then(|newest| {
        let all = sandboxes.iter().flat_map(|sandbox| &sandbox.containers);
        let older = all.filter(|one| one.name == *name && one.attempt < newest.attempt);
        older.max_by_key(|one| one.attempt).and_then(terminated)
    });
    let finally = newest.is_some_and(|one| is_final(one, pod.spec.restart_policy));
    let waiting = if running || finally { None } else { waiting(pod, container, entry, initialized, now) };
    let (state, last) = match (newest.map(|one| &one.state), waiting) {
        (Some(ContainerState::Running { started_at_ms }), _) => {
            (json!({ "running": { "startedAt": rfc3339(*started_at_ms) } }), previous)
        }
        (Some(ContainerState::Exited { .. }), None) => (json!({ "terminated": ended }), previous),
        (Some(ContainerState::Exited { .. }), Some(waiting)) => (json!({ "waiting": waiting }), ended),
        (Some(ContainerState::Created | ContainerState::Unknown) | None, waiting) => {
            let reason = if initialized { "ContainerCreating" } else { "PodInitializing" };
            (json!({ "waiting": waiting.unwrap_or_else(|| json!({ "reason": reason })) }), previous)
        }
    };
    let init = pod.spec.init_containers.iter().any(|init| init.name == *name);
    let ready = running || (init && newest.and_then(exit_code) == Some(0));
    let mut status = json!({
        "name": name,
        "state": state,
        "lastState": last.map_or_else(|| json!({}), |last| json!({ "terminated": last })),
        "ready": ready,
        "started": running,
        "restartCount": attempt,
        "image": newest.map_or(&container.image, |one| &one.image),
        "imageID": newest.map_or("", |one| &one.image_id),
    });
    if let Some(newest) = newest {
        status["containerID"] = json!(format!("{}://{}", runtime, newest.id));
    }
    status
}

/// Why a container that should run does not, in the kubelet's words; `None` if there is nothing to say.
fn waiting(pod: &Pod, container: &Container, entry: &Entry, initialized: bool, now: Moment) -> Option<Value> {
    let name = &container.name;
    if let Some(missing) = &entry.unresolved {
        return Some(json!({ "reason": "CreateContainerConfigError", "message": missing }));
    }
    if let Some(trouble) = entry.troubles.get(name) {
        let failure = &trouble.failure;
        let (reason, message) = match (failure.reason, trouble.count) {
            ("ErrImagePull", 2..) => {
                let message = format!("Back-off pulling image {:?}: {}", container.image, failure.message);
                ("ImagePullBackOff", message)
            }
            (reason, _) => (reason, failure.message.clone()),
        };
        return Some(json!({ "reason": reason, "message": message }));
    }
    if let Some(trouble) = entry.troubles.get("") {
        let reason = if initialized { "ContainerCreating" } else { "PodInitializing" };
        return Some(json!({ "reason": reason, "message": trouble.failure.message }));
    }
    let crash = entry.crashes.get(name).filter(|crash| !crash.delay.is_zero() && crash.until > now.at)?;
    let (namespace, pod_name, uid) = (pod.reference.namespace(), pod.reference.name(), &pod.uid);
    let message = format!(
        "back-off {}s restarting failed container={name} pod={pod_name}_{namespace}({uid})",
        crash.delay.as_secs()
    );
    Some(json!({ "reason": "CrashLoopBackOff", "message": message }))
}

fn terminated(container: &ObservedContainer) -> Option<Value> {
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
    let mut value = json!({
        "exitCode": exit_code.unwrap_or(137),
        "reason": reason,
        "startedAt": rfc3339(*started_at_ms),
        "finishedAt": rfc3339(*finished_at_ms),
    });
    if !message.is_empty() {
        value["message"] = json!(message);
    } else if unseen {
        value["message"] = json!("nobody saw how the container ended");
    }
    Some(value)
}

/// A time as the API writes it: whole seconds in UTC.
pub(crate) fn rfc3339(unix_ms: u64) -> String {
    let seconds = i64::try_from(unix_ms / 1000).unwrap_or(0);
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| "1970-01-01T00:00:00Z".to_owned(), |t| t.to_string())
}
