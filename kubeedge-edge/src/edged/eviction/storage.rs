//! Pods that write more than they may.

use std::collections::BTreeMap;

use crate::edged::{
    pod::Pod,
    quantity::{self, Quantity},
    state::Verdict,
};

/// What a pod has written, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Measured {
    /// Into volumes that begin empty and are on the disk.
    pub(crate) volumes: BTreeMap<String, i64>,
    /// Into the container's own files and its log, by container.
    pub(crate) containers: BTreeMap<String, i64>,
}

/// Says what the pod has written too much of.
pub(crate) fn exceeded(
    pod: &Pod,
    limits: &BTreeMap<String, Quantity>,
    measured: &Measured,
) -> Option<Verdict> {
    let message =
        volume(limits, measured).or_else(|| whole(pod, measured)).or_else(|| container(pod, measured))?;
    Some(Verdict {
        reason: "Evicted".to_owned(),
        message,
        grace: Some(super::rank::AT_ONCE),
        // It is the pod's own doing.
        disruption: None,
    })
}

fn volume(limits: &BTreeMap<String, Quantity>, measured: &Measured) -> Option<String> {
    let over = |(name, limit): (&String, &Quantity)| {
        let used = measured.volumes.get(name)?;
        let limit = limit.units();
        (limit > 0 && *used > limit).then(|| {
            format!("Usage of EmptyDir volume {name:?} exceeds the limit {:?}. ", quantity::binary(limit))
        })
    };
    limits.iter().find_map(over)
}

/// A pod whose containers all have a limit has their sum as its own, which counts its volumes too.
fn whole(pod: &Pod, measured: &Measured) -> Option<String> {
    let limits: Vec<i64> = pod.spec.containers.iter().filter_map(limit).collect();
    if limits.is_empty() || limits.len() < pod.spec.containers.len() {
        return None;
    }
    let limit = limits.into_iter().fold(0, i64::saturating_add);
    let used =
        measured.volumes.values().chain(measured.containers.values()).copied().fold(0, i64::saturating_add);
    let shown = quantity::binary(limit);
    (used > limit)
        .then(|| format!("Pod ephemeral local storage usage exceeds the total limit of containers {shown}. "))
}

fn container(pod: &Pod, measured: &Measured) -> Option<String> {
    let over = |container: &crate::edged::pod::Container| {
        let (limit, used) = (limit(container)?, measured.containers.get(&container.name)?);
        let (name, shown) = (&container.name, quantity::binary(limit));
        (*used > limit)
            .then(|| format!("Container {name} exceeded its local ephemeral storage limit {shown:?}. "))
    };
    pod.spec.init_containers.iter().chain(&pod.spec.containers).find_map(over)
}

fn limit(container: &crate::edged::pod::Container) -> Option<i64> {
    container.resources.limits.get("ephemeral-storage").map(|limit| limit.units())
}
