//! What a container and a pod may use, in the kernel's terms. Pure.

use std::collections::BTreeMap;

use kubeedge_core::runtime::Resources;

use crate::edged::{
    admission::{limits as limits_of_pod, requests},
    cgroups::{Limits, PERIOD_US, shares},
    pod::{Container, Pod, Requirements},
    quantity::Quantity,
    resolve::Facts,
};

pub(crate) fn limits(pod: &Pod, container: &Container, facts: &Facts<'_>) -> Resources {
    let limits = &container.resources.limits;
    let of_pod = &pod.spec.resources.limits;
    // Of what the pod as a whole may use, each container may use all.
    let limit = |name: &str| set(limits.get(name)).or(set(of_pod.get(name)));
    let request = |name: &str| container.resources.requests.get(name).or(limits.get(name)).copied();
    let cpu_limit = limit("cpu").map_or(0, Quantity::milli);
    Resources {
        cpu_shares: shares(request("cpu").map_or(0, Quantity::milli)),
        cpu_quota: if cpu_limit > 0 { quota(cpu_limit) } else { 0 },
        cpu_period: if cpu_limit > 0 { PERIOD_US } else { 0 },
        memory_limit: limit("memory").map_or(0, Quantity::units),
        oom_score_adj: oom_score_adj(pod, container, facts.memory_bytes),
        hugepages: huge_pages(limits),
        ..Resources::default()
    }
}

/// What the processes of a pod may use together, as the kubelet sets it: what its containers are promised, and the
/// sum of their limits where each has one.
pub(crate) fn pod_limits(pod: &Pod, pids: Option<u64>) -> Limits {
    let (requests, limits) = (requests(pod), limits_of_pod(pod));
    let all = || pod.spec.init_containers.iter().chain(&pod.spec.containers);
    let declared = |name: &str| {
        set(pod.spec.resources.limits.get(name)).is_some()
            || all().all(|container| set(container.resources.limits.get(name)).is_some())
    };
    let limit = |name: &str| limits.get(name).copied().filter(|amount| declared(name) && *amount > 0);
    let best_effort = qos_class(pod) == "BestEffort";
    let bytes = limits.iter().map(|(name, amount)| (name.clone(), Quantity::whole(*amount)));
    Limits {
        cpu_shares: shares(if best_effort { 0 } else { requests.get("cpu").copied().unwrap_or(0) }),
        cpu_quota_us: limit("cpu").map(quota),
        memory_bytes: limit("memory"),
        pids,
        huge_pages: huge_pages(&bytes.collect()),
    }
}

/// The same as the runtime is told it, without what the sandbox itself needs.
pub(crate) fn sandbox_resources(pod: &Pod) -> Resources {
    let mut bare = pod.clone();
    bare.spec.overhead.clear();
    let limits = pod_limits(&bare, None);
    resources(&limits)
}

/// What the sandbox itself needs.
pub(crate) fn overhead(pod: &Pod) -> Resources {
    let of = |name: &str| set(pod.spec.overhead.get(name));
    if pod.spec.overhead.is_empty() {
        return Resources::default();
    }
    resources(&Limits {
        cpu_shares: of("cpu").map_or(0, |cpu| shares(cpu.milli())),
        cpu_quota_us: of("cpu").map(|cpu| quota(cpu.milli())),
        memory_bytes: of("memory").map(Quantity::units),
        ..Limits::default()
    })
}

fn resources(limits: &Limits) -> Resources {
    Resources {
        cpu_shares: limits.cpu_shares,
        cpu_quota: limits.cpu_quota_us.unwrap_or(0),
        cpu_period: limits.cpu_quota_us.map_or(0, |_| PERIOD_US),
        memory_limit: limits.memory_bytes.unwrap_or(0),
        hugepages: limits.huge_pages.clone(),
        ..Resources::default()
    }
}

/// Processor time of each period; a thousandth of a second is the least that the kernel takes.
fn quota(milli: i64) -> i64 {
    (milli * PERIOD_US / 1000).max(1000)
}

/// An amount that is given and not zero.
fn set(quantity: Option<&Quantity>) -> Option<Quantity> {
    quantity.copied().filter(|quantity| quantity.milli() > 0)
}

/// Who is killed first when memory runs out, by the kubelet's rules: what nobody promised anything, then what uses
/// more than was promised, last what must not go.
fn oom_score_adj(pod: &Pod, container: &Container, memory_of_node: i64) -> i64 {
    const SYSTEM_CRITICAL: i32 = 2_000_000_000;
    if pod.spec.priority.is_some_and(|priority| priority >= SYSTEM_CRITICAL) {
        return -997;
    }
    match qos_class(pod) {
        "Guaranteed" => -997,
        "Burstable" => {
            let resources = &container.resources;
            let own = resources.requests.get("memory").or(resources.limits.get("memory"));
            let promised = own.map_or(0, |own| own.units()).saturating_add(unclaimed_memory(pod));
            let share = 1000 * i128::from(promised) / i128::from(memory_of_node.max(1));
            i64::try_from(1000 - share).unwrap_or(3).clamp(3, 999)
        }
        _ => 1000,
    }
}

/// What each container has of the memory that the pod as a whole is promised and no container of it.
fn unclaimed_memory(pod: &Pod) -> i64 {
    let Some(whole) =
        set(pod.spec.resources.requests.get("memory").or(pod.spec.resources.limits.get("memory")))
    else {
        return 0;
    };
    let mut bare = pod.clone();
    (bare.spec.resources, bare.spec.overhead) = Default::default();
    let claimed = requests(&bare).get("memory").copied().unwrap_or(0);
    let count = pod.spec.containers.len() + pod.sidecars().count();
    (whole.units() - claimed).max(0) / i64::try_from(count.max(1)).unwrap_or(1)
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

/// The pod's quality of service, by the rules of the API: what the pod as a whole asks for decides, if it does.
pub(crate) fn qos_class(pod: &Pod) -> &'static str {
    let whole = &pod.spec.resources;
    let containers = pod.spec.init_containers.iter().chain(&pod.spec.containers);
    let asks: Vec<&Requirements> = if names(whole).is_empty() {
        containers.map(|container| &container.resources).collect()
    } else {
        vec![whole]
    };
    let guaranteed = asks.iter().all(|asked| {
        ["cpu", "memory"].iter().all(|name| {
            let limit = set(asked.limits.get(*name));
            let request = set(asked.requests.get(*name)).or(limit);
            limit.is_some() && limit == request
        })
    });
    match (guaranteed, asks.iter().any(|asked| !names(asked).is_empty())) {
        (true, _) => "Guaranteed",
        (false, true) => "Burstable",
        (false, false) => "BestEffort",
    }
}

/// Which of the resources that count for the quality of service are asked for.
fn names(asked: &Requirements) -> Vec<&'static str> {
    let asks = |name: &&str| set(asked.limits.get(*name)).or(set(asked.requests.get(*name))).is_some();
    ["cpu", "memory"].into_iter().filter(asks).collect()
}
