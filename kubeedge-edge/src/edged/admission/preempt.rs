//! Which pods go so that a critical one fits, as the kubelet chooses them: as few as will do, and rather those that were
//! promised less.

use kubeedge_core::id::Uid;

use super::{Room, is_critical, resources};
use crate::edged::{make::qos_class, pod::Pod};

/// The pods that have to go so that `pod` has room beside the rest of the `others`; `None` if there is no such choice.
pub(crate) fn victims(pod: &Pod, others: &[&Pod], room: &Room) -> Option<Vec<Uid>> {
    let mut candidates: Vec<&Pod> = others.iter().filter(|other| may_preempt(pod, other)).copied().collect();
    candidates.sort_by_key(|other| (promise(other), other.spec.priority.unwrap_or(0), other.uid.clone()));
    let fits_without = |gone: &[&Pod]| {
        let staying = others.iter().filter(|other| gone.iter().all(|one| one.uid != other.uid));
        resources::missing(pod, staying.copied(), room).is_none()
    };
    let mut chosen: Vec<&Pod> = Vec::new();
    for candidate in candidates {
        if fits_without(&chosen) {
            break;
        }
        chosen.push(candidate);
    }
    if !fits_without(&chosen) {
        return None;
    }
    // Those that were promised most are spared first.
    for index in (0..chosen.len()).rev() {
        let spared = chosen.remove(index);
        if !fits_without(&chosen) {
            chosen.insert(index, spared);
        }
    }
    Some(chosen.into_iter().map(|one| one.uid.clone()).collect())
}

/// Whether the one may take the other's place.
fn may_preempt(pod: &Pod, other: &Pod) -> bool {
    let higher = matches!((pod.spec.priority, other.spec.priority), (Some(own), Some(its)) if own > its);
    (is_critical(pod) && !is_critical(other)) || higher
}

fn promise(pod: &Pod) -> u8 {
    match qos_class(pod) {
        "BestEffort" => 0,
        "Burstable" => 1,
        _ => 2,
    }
}
