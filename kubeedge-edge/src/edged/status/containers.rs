//! The status of each container.

use std::collections::BTreeMap;

use kubeedge_core::runtime::{ContainerState, ObservedSandbox};
use serde_json::{Value, json};

use super::Past;
use crate::edged::{
    pod::{Container, Pod, Requirements},
    quantity::{Quantity, binary},
    state::{Entry, Moment, exit_code, is_running, may_not_restart, newest},
    text::{duration, rfc3339},
};

/// What statuses are made from.
#[derive(Clone, Copy)]
pub(super) struct Scene<'a> {
    pub(super) pod: &'a Pod,
    pub(super) entry: &'a Entry,
    pub(super) sandboxes: &'a [ObservedSandbox],
    pub(super) runtime: &'a str,
    pub(super) now: Moment,
}

impl Scene<'_> {
    pub(super) fn statuses(&self, containers: &[Container]) -> Vec<Value> {
        containers.iter().map(|container| self.status(container)).collect()
    }

    fn status(&self, container: &Container) -> Value {
        let name = &container.name;
        let newest = newest(self.sandboxes, name);
        let pasts = self.entry.shown.pasts.get(name).map_or(&[][..], Vec::as_slice);
        let last = pasts.last();
        let (state, previous) = match newest.map(|one| &one.state) {
            Some(ContainerState::Running { started_at_ms }) => {
                (json!({ "running": { "startedAt": rfc3339(*started_at_ms) } }), last)
            }
            Some(ContainerState::Exited { .. }) => self.ended(container, pasts),
            Some(ContainerState::Created | ContainerState::Unknown) => {
                (json!({ "waiting": self.waiting_or_default(container) }), last)
            }
            // The runtime has forgotten it, or it never was.
            None if last.is_some() && self.is_over() => self.ended(container, pasts),
            None => (json!({ "waiting": self.waiting_or_default(container) }), last),
        };
        let running = newest.is_some_and(is_running);
        let task = self.pod.is_init(name) && !container.is_sidecar();
        let done = task && newest.and_then(exit_code) == Some(0);
        let attempt = newest.map(|one| one.attempt).or(last.map(|past| past.attempt)).unwrap_or(0);
        let mut status = json!({
            "name": name,
            "state": state,
            "lastState": previous.map_or_else(|| json!({}), |past| json!({ "terminated": past.terminated })),
            "ready": (running && !task && self.entry.probes.is_ready(name)) || done,
            "started": running && self.entry.probes.is_started(name),
            "restartCount": attempt,
            "image": newest.map_or(&container.image, |one| &one.image),
            "imageID": newest.map_or("", |one| &one.image_id),
        });
        let allotted = &container.resources;
        if !allotted.requests.is_empty() {
            status["allocatedResources"] = amounts(&allotted.requests);
        }
        let given = self.entry.given.get(name).filter(|_| running).map_or(allotted, |given| &given.resources);
        if *given != Requirements::default() {
            let both = [("limits", &given.limits), ("requests", &given.requests)];
            let both = both.into_iter().filter(|(_, amounts)| !amounts.is_empty());
            status["resources"] = both.map(|(name, of)| (name.to_owned(), amounts(of))).collect();
        }
        let id = newest.map(|one| &one.id).or(last.map(|past| &past.id)).filter(|id| !id.0.is_empty());
        if let Some(id) = id {
            status["containerID"] = json!(format!("{}://{id}", self.runtime));
        }
        status
    }

    /// The state of a container that has ended, and the end before it.
    fn ended<'p>(&self, container: &Container, pasts: &'p [Past]) -> (Value, Option<&'p Past>) {
        let last = pasts.last();
        let before = pasts.len().checked_sub(2).and_then(|at| pasts.get(at));
        let policy = self.pod.restart_policy_of(container);
        let stays = self.is_over() || last.is_some_and(|past| may_not_restart(past.code, policy));
        let waiting = if stays { None } else { self.waiting(container) };
        match (waiting, last) {
            (Some(waiting), last) => (json!({ "waiting": waiting }), last),
            (None, Some(last)) => (json!({ "terminated": last.terminated }), before),
            (None, None) => (json!({ "waiting": self.default_waiting(None) }), None),
        }
    }

    /// Whether nothing of the pod will be started any more.
    fn is_over(&self) -> bool {
        self.entry.is_ending() || self.entry.verdict.is_some() || self.entry.shown.has_ended()
    }

    fn waiting_or_default(&self, container: &Container) -> Value {
        self.waiting(container).unwrap_or_else(|| {
            let trouble = self.entry.troubles.get("").map(|trouble| trouble.failure.message.clone());
            self.default_waiting(trouble.or_else(|| self.entry.unresolved.get("").cloned()))
        })
    }

    fn default_waiting(&self, message: Option<String>) -> Value {
        let init = !self.pod.spec.init_containers.is_empty();
        let reason = if init { "PodInitializing" } else { "ContainerCreating" };
        match message {
            Some(message) => json!({ "reason": reason, "message": message }),
            None => json!({ "reason": reason }),
        }
    }

    /// Why a container that should run does not, in the kubelet's words; `None` if there is nothing to say.
    fn waiting(&self, container: &Container) -> Option<Value> {
        let (entry, name) = (self.entry, &container.name);
        if let Some(missing) = entry.unresolved.get(name) {
            return Some(json!({ "reason": "CreateContainerConfigError", "message": missing }));
        }
        let trouble = entry.troubles.get(name);
        let crash = entry.crashes.get(name).filter(|it| !it.delay.is_zero() && it.until > self.now.at);
        let by_image = trouble.is_some_and(|trouble| trouble.is_about_image());
        if let Some(crash) = crash.filter(|_| !by_image) {
            let (namespace, pod_name) = (self.pod.reference.namespace(), self.pod.reference.name());
            let (delay, uid) = (duration(crash.delay), &self.pod.uid);
            let message = format!(
                "back-off {delay} restarting failed container={name} pod={pod_name}_{namespace}({uid})"
            );
            return Some(json!({ "reason": "CrashLoopBackOff", "message": message }));
        }
        let trouble = trouble?;
        let failure = &trouble.failure;
        if failure.reason == "ErrImagePull" && trouble.said {
            let message =
                format!("Back-off pulling image \"{}\": ErrImagePull: {}", container.image, failure.message);
            return Some(json!({ "reason": "ImagePullBackOff", "message": message }));
        }
        Some(json!({ "reason": failure.reason, "message": failure.message }))
    }
}

/// Amounts as the API has them: memory and disk with the binary suffixes, as the kubelet writes what it read.
fn amounts(of: &BTreeMap<String, Quantity>) -> Value {
    let text = |name: &str, amount: &Quantity| match name {
        "cpu" => amount.to_string(),
        _ => binary(amount.units()),
    };
    of.iter().map(|(name, amount)| (name.clone(), Value::String(text(name, amount)))).collect()
}
