//! Whether a pod fits on the node, by the kubelet's rules and in its words. Pure.
//!
//! What the cloud's scheduler has decided is checked once more, because it may have decided on older news, and
//! because pods of files never pass it.

mod affinity;
mod ports;
mod preempt;
mod resize;
mod resources;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use kubeedge_core::id::Uid;

pub(crate) use self::{
    preempt::victims,
    resize::resize,
    resources::{Amounts, is_extended, limits, missing, requests},
};
use super::{Config, Taint, pod::Pod};

/// What the node offers to its pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Room {
    /// What may be asked for.
    pub(crate) allocatable: Amounts,
    /// How many pods it takes.
    pub(crate) pods: i64,
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) taints: Vec<Taint>,
    /// Whether labels and taints are those of the API. Otherwise they are only what this node registers with,
    /// and a label that is not among them may exist all the same.
    pub(crate) confirmed: bool,
}

/// Why a pod cannot be here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Such as `OutOfcpu`.
    pub(crate) reason: String,
    /// What is missing.
    pub(crate) message: String,
}

/// What is to be done about a pod that has not run here yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Judgement {
    Admitted,
    Refused(Refusal),
    /// It is critical, and these pods have to go before it can be let in.
    Preempts(Vec<Uid>),
    /// It is critical, and there will be room when those have gone that are going.
    Waits,
    /// The labels that this node knows of itself do not suffice; the API may know others.
    AskForNode,
}

impl Refusal {
    fn predicate(name: &str, why: &str) -> Self {
        Self { reason: name.to_owned(), message: format!("Predicate {name} failed: {why}") }
    }

    /// Whether it would be none if there were fewer pods.
    pub(crate) fn is_about_room(&self) -> bool {
        self.reason.starts_with("OutOf")
    }

    fn insufficient(resource: &str, requested: i64, used: i64, capacity: i64) -> Self {
        let message = format!(
            "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
        );
        Self { reason: format!("OutOf{resource}"), message }
    }
}

/// Decides whether `pod` may run beside the `others`, which are all that were admitted and have not ended.
pub(crate) fn admit<'a>(
    pod: &Pod,
    others: impl Iterator<Item = &'a Pod> + Clone,
    room: &Room,
    is_static: bool,
) -> Judgement {
    if let Some(refusal) = other_system(pod) {
        return Judgement::Refused(refusal);
    }
    if let Some(refusal) = resources::missing(pod, others.clone(), room) {
        return Judgement::Refused(refusal);
    }
    if let Some(refusal) = affinity::mismatch(pod, room) {
        return if room.confirmed { Judgement::Refused(refusal) } else { Judgement::AskForNode };
    }
    if ports::conflict(pod, others) {
        let why = "node(s) didn't have free ports for the requested pod ports";
        return Judgement::Refused(Refusal::predicate("NodePorts", why));
    }
    if !is_static && !tolerates_all(pod, &room.taints) {
        let why = "node(s) had taints that the pod didn't tolerate";
        let refusal = Refusal::predicate("TaintToleration", why);
        return if room.confirmed { Judgement::Refused(refusal) } else { Judgement::AskForNode };
    }
    Judgement::Admitted
}

fn other_system(pod: &Pod) -> Option<Refusal> {
    // The kubelet looks at the pod's label here, and at its selector together with the others.
    let label = pod.metadata.labels.get("kubernetes.io/os");
    if label.is_some_and(|os| os != "linux") {
        return Some(Refusal {
            reason: "PodOSSelectorNodeLabelDoesNotMatch".to_owned(),
            message: "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label"
                .to_owned(),
        });
    }
    let os = pod.spec.os.as_ref().filter(|os| os.name != "linux");
    os.map(|_| Refusal {
        reason: "PodOSNotSupported".to_owned(),
        message: "Failed to admit pod as the OS field doesn't match node OS".to_owned(),
    })
}

/// Of taints only `NoExecute` matters to a node: the others are the scheduler's.
fn tolerates_all(pod: &Pod, taints: &[Taint]) -> bool {
    let tolerated = |taint: &Taint| {
        pod.spec.tolerations.iter().any(|toleration| {
            let exists = toleration.operator == "Exists";
            let same_key = toleration.key == taint.key || (toleration.key.is_empty() && exists);
            let same_effect = toleration.effect.is_empty() || toleration.effect == taint.effect;
            same_key && same_effect && (exists || toleration.value == taint.value)
        })
    };
    taints.iter().filter(|taint| taint.effect == "NoExecute").all(tolerated)
}

/// Whether the node must keep it whatever happens: pods of files, and those of the system's highest priorities.
pub(crate) fn is_critical(pod: &Pod) -> bool {
    /// 2000000000: the lowest of the priorities that only `system-` classes may have.
    const SYSTEM_CRITICAL: i32 = 2_000_000_000;
    let annotations = &pod.metadata.annotations;
    let source = annotations.get("kubernetes.io/config.source");
    source.is_some_and(|source| source != "api")
        || annotations.contains_key("kubernetes.io/config.mirror")
        || pod.spec.priority.is_some_and(|priority| priority >= SYSTEM_CRITICAL)
}

/// The labels that the node registers with.
pub(crate) fn own_labels(config: &Config) -> BTreeMap<String, String> {
    let architecture = super::host::architecture();
    let mut labels: BTreeMap<String, String> = [
        ("kubernetes.io/hostname", config.node.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture),
        // KubeEdge's own two, by which its users select edge nodes.
        ("node-role.kubernetes.io/edge", ""),
        ("node-role.kubernetes.io/agent", ""),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    labels.extend(config.labels.clone());
    labels
}
