//! What pods ask for, against what the node can give.

use std::collections::BTreeMap;

use super::{Refusal, Room};
use crate::edged::{
    pod::{Container, Pod},
    quantity::Quantity,
};

/// Amounts by the name of the resource: `cpu` in thousandths of a processor, everything else in whole units.
pub(crate) type Amounts = BTreeMap<String, i64>;

/// The order in which the scheduler's rules, and with them the kubelet, look.
const FIRST: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// Says of what the node has too little for the pod.
pub(crate) fn missing<'a>(
    pod: &Pod,
    others: impl Iterator<Item = &'a Pod> + Clone,
    room: &Room,
) -> Option<Refusal> {
    let count = i64::try_from(others.clone().count()).unwrap_or(i64::MAX);
    if count >= room.pods {
        return Some(Refusal::insufficient("pods", 1, count, room.pods));
    }
    let wanted = requests(pod);
    let lacks = |name: &str, requested: i64| {
        // Resources that this node does not know are kept by somebody else.
        let capacity = match room.allocatable.get(name) {
            Some(capacity) => *capacity,
            None if is_extended(name) => return None,
            None => 0,
        };
        let used = others.clone().map(|other| requests(other).get(name).copied().unwrap_or(0)).sum();
        (requested > 0 && requested > capacity.saturating_sub(used))
            .then(|| Refusal::insufficient(name, requested, used, capacity))
    };
    let first = FIRST.iter().filter_map(|name| Some((*name, *wanted.get(*name)?)));
    let rest = wanted.iter().filter(|(name, _)| !FIRST.contains(&name.as_str()));
    let rest = rest.map(|(name, amount)| (name.as_str(), *amount));
    first.chain(rest).find_map(|(name, amount)| lacks(name, amount))
}

/// What a pod asks for as a whole: its containers run together, its init containers one after the other before
/// them, and those of them that stay count with everything that starts after them. What the pod asks for itself
/// stands for its containers, and what its sandbox needs is added.
pub(crate) fn requests(pod: &Pod) -> Amounts {
    let mut total = total(pod, of_container);
    let whole = &pod.spec.resources;
    for (name, limit) in amounts(whole.limits.iter().filter(|(name, _)| is_of_pod(name))) {
        let of_containers = total.entry(name).or_default();
        if *of_containers == 0 {
            *of_containers = limit;
        }
    }
    total.extend(amounts(whole.requests.iter().filter(|(name, _)| is_of_pod(name))));
    add(&mut total, &amounts(pod.spec.overhead.iter()));
    total
}

/// What a pod may use as a whole, counted alike. What has no limit gets none by what its sandbox needs.
pub(crate) fn limits(pod: &Pod) -> Amounts {
    let mut total = total(pod, |container| amounts(container.resources.limits.iter()));
    total.extend(amounts(pod.spec.resources.limits.iter().filter(|(name, _)| is_of_pod(name))));
    for (name, more) in amounts(pod.spec.overhead.iter()) {
        total
            .entry(name)
            .and_modify(|limit| *limit = if *limit > 0 { limit.saturating_add(more) } else { 0 });
    }
    total
}

/// Whether a pod as a whole can ask for it (KEP-2837).
fn is_of_pod(name: &str) -> bool {
    ["cpu", "memory"].contains(&name) || name.starts_with("hugepages-")
}

fn total(pod: &Pod, of_container: impl Fn(&Container) -> Amounts) -> Amounts {
    let mut total = Amounts::new();
    for container in &pod.spec.containers {
        add(&mut total, &of_container(container));
    }
    let mut staying = Amounts::new();
    let mut peak = Amounts::new();
    for container in &pod.spec.init_containers {
        let mut at_once = of_container(container);
        if container.restart_policy == "Always" {
            add(&mut total, &at_once);
            add(&mut staying, &at_once);
            at_once.clone_from(&staying);
        } else {
            add(&mut at_once, &staying);
        }
        raise(&mut peak, &at_once);
    }
    raise(&mut total, &peak);
    total
}

/// A request that is not given is the limit, as the API server writes it.
fn of_container(container: &Container) -> Amounts {
    let resources = &container.resources;
    amounts(resources.limits.iter().chain(&resources.requests))
}

fn amounts<'a>(given: impl Iterator<Item = (&'a String, &'a Quantity)>) -> Amounts {
    given
        .map(|(name, amount)| (name.clone(), if name == "cpu" { amount.milli() } else { amount.units() }))
        .collect()
}

fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = to.entry(name.clone()).or_default();
        *sum = sum.saturating_add(*amount);
    }
}

fn raise(to: &mut Amounts, least: &Amounts) {
    for (name, amount) in least {
        let most = to.entry(name.clone()).or_default();
        *most = (*most).max(*amount);
    }
}

/// Whether this names something that Kubernetes itself knows nothing of, such as `example.com/camera`.
pub(crate) fn is_extended(name: &str) -> bool {
    let native = name
        .split_once('/')
        .is_none_or(|(domain, _)| domain == "kubernetes.io" || domain.ends_with(".kubernetes.io"));
    !native && !name.starts_with("requests.")
}
