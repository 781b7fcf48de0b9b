//! What a container may use, in the kernel's terms. Pure.

use std::collections::BTreeMap;

use kubeedge_core::runtime::Resources;

use crate::edged::{
    pod::{Container, Pod},
    quantity::Quantity,
    resolve::Facts,
};

/// The kernel's usual period for limits of processor time.
const PERIOD_US: i64 = 100_000;

pub(crate) fn limits(pod: &Pod, container: &Container, facts: &Facts<'_>) -> Resources {
    let limits = &container.resources.limits;
    let limit = |name: &str| limits.get(name).copied();
    let request = |name: &str| container.resources.requests.get(name).copied().or(limit(name));
    let cpu_limit = limit("cpu").map_or(0, Quantity::milli);
    Resources {
        cpu_shares: shares(request("cpu").map_or(0, Quantity::milli)),
        cpu_quota: if cpu_limit > 0 { (cpu_limit * PERIOD_US / 1000).max(1000) } else { 0 },
        cpu_period: if cpu_limit > 0 { PERIOD_US } else { 0 },
        memory_limit: limit("memory").map_or(0, Quantity::units),
        oom_score_adj: oom_score_adj(pod, request("memory").map_or(0, Quantity::units), facts.memory_bytes),
        hugepages: huge_pages(limits),
        ..Resources::default()
    }
}

/// Processor time in the kernel's shares: 1024 are one processor, 2 the least and 262144 the most that it takes.
fn shares(milli: i64) -> u64 {
    (milli.clamp(0, 1 << 32) * 1024 / 1000).clamp(2, 262_144).unsigned_abs()
}

/// Who is killed first when memory runs out, by the kubelet's rules: what nobody promised anything, then what uses
/// more than was promised, last what must not go.
fn oom_score_adj(pod: &Pod, memory_request: i64, memory_of_node: i64) -> i64 {
    const SYSTEM_CRITICAL: i32 = 2_000_000_000;
    if pod.spec.priority.is_some_and(|priority| priority >= SYSTEM_CRITICAL) {
        return -997;
    }
    match qos_class(pod) {
        "Guaranteed" => -997,
        "Burstable" => {
            let share = 1000 * i128::from(memory_request) / i128::from(memory_of_node.max(1));
            i64::try_from(1000 - share).unwrap_or(3).clamp(3, 999)
        }
        _ => 1000,
    }
}

/// Limits of huge pages, by the size of a page as the kernel writes it.
fn huge_pages(limits: &BTreeMap<String, Quantity>) -> BTreeMap<String, u64> {
    let pages = limits.iter().filter_map(|(name, limit)| {
        let size = Quantity::parse(name.strip_prefix("hugepages-")?)?.units();
        let kernel = match size {
            _ if size >= 1 << 30 => format!("{}GB", size >> 30),
            _ if size >= 1 << 20 => format!("{}MB", size >> 20),
            _ => format!("{}KB", size >> 10),
        };
        Some((kernel, u64::try_from(limit.units()).ok()?))
    });
    pages.collect()
}

/// The pod's quality of service, by the rules of the API.
pub(crate) fn qos_class(pod: &Pod) -> &'static str {
    let containers = || pod.spec.init_containers.iter().chain(&pod.spec.containers);
    let set = |quantity: Option<&Quantity>| quantity.copied().filter(|quantity| quantity.milli() > 0);
    let guaranteed = containers().all(|container| {
        ["cpu", "memory"].iter().all(|name| {
            let limit = set(container.resources.limits.get(*name));
            let request = set(container.resources.requests.get(*name)).or(limit);
            limit.is_some() && limit == request
        })
    });
    let any = containers().any(|container| {
        let resources = &container.resources;
        ["cpu", "memory"]
            .iter()
            .any(|name| set(resources.limits.get(*name)).or(set(resources.requests.get(*name))).is_some())
    });
    match (guaranteed, any) {
        (true, _) => "Guaranteed",
        (false, true) => "Burstable",
        (false, false) => "BestEffort",
    }
}
