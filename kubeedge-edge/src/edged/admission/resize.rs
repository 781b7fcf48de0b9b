//! Whether a pod that runs can have other resources, by the rules of Kubernetes 1.33 and in the kubelet's words.

use super::{Refusal, Room, resources};
use crate::edged::{
    make::qos_class,
    pod::{Container, Pod, Requirements},
};

/// It can never be so on this node.
const INFEASIBLE: &str = "Infeasible";
/// It can be so when other pods have gone.
const DEFERRED: &str = "Deferred";

/// Decides whether `pod` may become `wanted` beside the `others`.
///
/// # Errors
/// The reason and the message of the condition `PodResizePending`.
pub(crate) fn resize<'a>(
    pod: &Pod,
    wanted: &Pod,
    others: impl Iterator<Item = &'a Pod> + Clone,
    room: &Room,
) -> Result<(), (&'static str, String)> {
    if let Some(why) = forbidden(pod, wanted) {
        return Err((INFEASIBLE, why));
    }
    let asked = resources::requests(wanted);
    for name in ["memory", "cpu"] {
        let (asked, capacity) = (asked.get(name).copied().unwrap_or(0), room.allocatable.get(name).copied());
        if let Some(capacity) = capacity.filter(|capacity| asked > *capacity) {
            let why =
                format!("Node didn't have enough capacity: {name}, requested: {asked}, capacity: {capacity}");
            return Err((INFEASIBLE, why));
        }
    }
    match resources::missing(wanted, others, room) {
        Some(Refusal { message, .. }) => Err((DEFERRED, message)),
        None => Ok(()),
    }
}

/// What a pod that runs cannot change, by the member that it is about.
fn forbidden(pod: &Pod, wanted: &Pod) -> Option<String> {
    if pod.is_static() {
        return Some("In-place resize of static-pods is not supported".to_owned());
    }
    if pod.spec.resources != Requirements::default() {
        return Some(
            "spec.resources: In-place resize of pods with pod-level resources is not supported".to_owned(),
        );
    }
    let lists = [("initContainers", &wanted.spec.init_containers), ("containers", &wanted.spec.containers)];
    for (list, containers) in lists {
        for (index, container) in containers.iter().enumerate() {
            let Some(known) = pod.container(&container.name) else { continue };
            let path = format!("spec.{list}[{index}].resources");
            if let Some(why) = forbidden_of(known, container, list == "initContainers", &path) {
                return Some(why);
            }
        }
    }
    let (is, would_be) = (qos_class(pod), qos_class(wanted));
    (is != would_be).then(|| {
        format!("spec.containers: Pod QOS Class may not change as a result of resizing: it is {is} and would be {would_be}")
    })
}

fn forbidden_of(known: &Container, wanted: &Container, init: bool, path: &str) -> Option<String> {
    let (old, new): (&Requirements, &Requirements) = (&known.resources, &wanted.resources);
    if old == new {
        return None;
    }
    if init && !wanted.is_sidecar() {
        return Some(format!("{path}: only those of containers that stay can be changed"));
    }
    let both = [("requests", &old.requests, &new.requests), ("limits", &old.limits, &new.limits)];
    both.into_iter().find_map(|(kind, old, new)| {
        let names = old.keys().chain(new.keys());
        let mut changed = names.filter(|name| old.get(*name) != new.get(*name));
        changed.find_map(|name| match (name.as_str(), new.get(name)) {
            ("cpu" | "memory", Some(_)) => None,
            ("cpu" | "memory", None) => {
                Some(format!("{path}.{kind}.{name}: resource {kind} cannot be removed"))
            }
            (name, _) => {
                Some(format!("{path}.{kind}[{name}]: only cpu and memory of a pod that runs can be changed"))
            }
        })
    })
}
