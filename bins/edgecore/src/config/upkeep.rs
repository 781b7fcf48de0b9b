//! How the node looks after itself: of the kubelet's configuration, what is about the node as a whole.

use std::time::Duration;

use anyhow::{Result, ensure};
use kubeedge_edge::edged::{
    Amount, Eviction, ImageCollection, LogRotation, Reserved, Signal, StaticPods, Threshold,
};

use super::tree::Node;

/// How the node looks after itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Upkeep {
    /// What is kept back for Kubernetes' own programs.
    pub(crate) kube_reserved: Reserved,
    /// What is kept back for everything else that is no pod.
    pub(crate) system_reserved: Reserved,
    /// When pods end because something runs short.
    pub(crate) eviction: Eviction,
    /// When images that nobody uses are removed.
    pub(crate) images: ImageCollection,
    /// When a container's log goes on in another file.
    pub(crate) log_rotation: LogRotation,
    /// How many images are fetched at once.
    pub(crate) parallel_pulls: usize,
    /// Where pods come from besides the cloud.
    pub(crate) static_pods: Option<StaticPods>,
}

/// 1000: more than any registry serves; the kubelet's own limit is none.
const PULLS_MAX: usize = 1000;

pub(super) fn read(kubelet: &Node<'_>) -> Result<Upkeep> {
    let (high, low) = (kubelet.at("imageGCHighThresholdPercent"), kubelet.at("imageGCLowThresholdPercent"));
    let images = ImageCollection {
        high_percent: high.number(0, 100)?,
        low_percent: low.number(0, 100)?,
        age_min: kubelet.at("imageMinimumGCAge").duration()?,
        age_max: kubelet.at("imageMaximumGCAge").duration()?,
        ..ImageCollection::default()
    };
    ensure!(
        images.low_percent < images.high_percent,
        low.wrong(format!("{} is not below imageGCHighThresholdPercent", images.low_percent))
    );
    let log_rotation = LogRotation {
        bytes_max: u64::try_from(units(&kubelet.at("containerLogMaxSize"))?).unwrap_or(0),
        files_max: kubelet.at("containerLogMaxFiles").number(2, 1000)?,
        interval: some_time(&kubelet.at("containerLogMonitorInterval"))?,
    };
    let serial = kubelet.at("serializeImagePulls").bool()?;
    let pulls = kubelet.at("maxParallelImagePulls");
    let parallel_pulls = match (serial, pulls.number(0, PULLS_MAX)?) {
        (true, most @ 2..) => {
            return Err(pulls.wrong(format!("{most} is more than one while serializeImagePulls is true")));
        }
        (true, _) => 1,
        (false, 0) => PULLS_MAX,
        (false, most) => most,
    };
    let path = kubelet.at("staticPodPath");
    let static_pods = match path.filled()? {
        None => None,
        Some(_) => {
            Some(StaticPods { path: path.file()?, interval: some_time(&kubelet.at("fileCheckFrequency"))? })
        }
    };
    Ok(Upkeep {
        kube_reserved: reserved(&kubelet.at("kubeReserved"))?,
        system_reserved: reserved(&kubelet.at("systemReserved"))?,
        eviction: eviction(kubelet)?,
        images,
        log_rotation,
        parallel_pulls,
        static_pods,
    })
}

fn reserved(node: &Node<'_>) -> Result<Reserved> {
    let mut reserved = Reserved::default();
    for (name, value) in node.members()? {
        match name {
            "cpu" => reserved.cpu_milli = milli(&value)?,
            "memory" => reserved.memory_bytes = units(&value)?,
            "ephemeral-storage" => reserved.ephemeral_storage_bytes = units(&value)?,
            // Process ids are no resource that pods ask for.
            "pid" => drop(units(&value)?),
            _ => return Err(value.wrong("not one of cpu, memory, ephemeral-storage and pid")),
        }
    }
    Ok(reserved)
}

/// An amount; YAML may have taken it for a number.
fn amount_text(node: &Node<'_>) -> Result<String> {
    match node.text() {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Ok(node.number(0, i64::MAX)?.to_string()),
    }
}

fn amount(node: &Node<'_>) -> Result<Amount> {
    let text = amount_text(node)?;
    text.parse().map_err(|error| node.wrong(format!("{error}")))
}

fn units(node: &Node<'_>) -> Result<i64> {
    match amount(node)? {
        Amount::Units(units) => Ok(units),
        Amount::Share(_) => Err(node.wrong("an amount such as 100Mi expected, and a percentage found")),
    }
}

fn milli(node: &Node<'_>) -> Result<i64> {
    let text = amount_text(node)?;
    let milli = match text.strip_suffix('m') {
        Some(milli) => milli.parse::<i64>().ok(),
        None => text.parse::<f64>().ok().map(|cpus| (cpus * 1000.0).round() as i64),
    };
    milli
        .filter(|milli| (0..=1_000_000_000).contains(milli))
        .ok_or_else(|| node.wrong(format!("{text:?} is not a number of processors such as 500m or 1.5")))
}

fn eviction(kubelet: &Node<'_>) -> Result<Eviction> {
    let (hard, soft) = (kubelet.at("evictionHard"), kubelet.at("evictionSoft"));
    let graces = kubelet.at("evictionSoftGracePeriod");
    let reclaim = |signal: Signal| -> Result<Option<Amount>> {
        let all = kubelet.at("evictionMinimumReclaim");
        for (name, value) in all.members()? {
            if name.parse::<Signal>().map_err(|error| value.wrong(error))? == signal {
                return amount(&value).map(Some);
            }
        }
        Ok(None)
    };
    let mut eviction = Eviction {
        grace_max: Duration::from_secs(kubelet.at("evictionMaxPodGracePeriod").number(0u32, 86_400)?.into()),
        pressure_lasts: kubelet.at("evictionPressureTransitionPeriod").duration()?,
        ..Eviction::default()
    };
    // What the file does not name keeps its default, as with every other map of this file.
    for (name, value) in hard.members()? {
        let signal: Signal = name.parse().map_err(|error| value.wrong(error))?;
        let least = amount(&value)?;
        eviction.hard.retain(|threshold| threshold.signal != signal);
        eviction.hard.push(Threshold { signal, least, grace: Duration::ZERO, reclaim: None });
    }
    for threshold in &mut eviction.hard {
        threshold.reclaim = reclaim(threshold.signal)?;
    }
    for (name, value) in soft.members()? {
        let signal: Signal = name.parse().map_err(|error| value.wrong(error))?;
        let grace = graces.members()?.into_iter().find(|(of, _)| *of == name);
        let Some((_, grace)) = grace else {
            return Err(value.wrong("evictionSoftGracePeriod has no time for it"));
        };
        let (least, grace) = (amount(&value)?, grace.duration()?);
        eviction.soft.push(Threshold { signal, least, grace, reclaim: reclaim(signal)? });
    }
    // 0 % and 100 % switch a threshold off, as with the kubelet.
    let counts = |threshold: &Threshold| !matches!(threshold.least, Amount::Share(0 | 10_000));
    eviction.hard.retain(counts);
    eviction.soft.retain(counts);
    Ok(eviction)
}

fn some_time(node: &Node<'_>) -> Result<Duration> {
    let duration = node.duration()?;
    ensure!(duration >= Duration::from_millis(100), node.wrong("it is shorter than 100ms"));
    Ok(duration)
}
