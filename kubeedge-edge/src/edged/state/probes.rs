//! When containers are probed, and what follows from it. Pure.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use kubeedge_core::{id::Uid, runtime::ContainerId};

use super::Moment;
use crate::edged::pod::{Container, Probe};

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ProbeKind {
    /// Until it succeeds, the others wait; when it fails for good, the container is restarted.
    Startup,
    /// When it fails for good, the container is restarted.
    Liveness,
    /// While it fails, the pod is not ready.
    Readiness,
}

impl ProbeKind {
    pub(crate) const ALL: [Self; 3] = [Self::Startup, Self::Liveness, Self::Readiness];

    /// As it begins a sentence.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }

    pub(crate) fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// A probe in flight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProbeKey {
    pub(crate) container: String,
    pub(crate) kind: ProbeKind,
    /// The instance that is probed; what is heard of another one says nothing.
    pub(crate) instance: ContainerId,
}

/// What a probe has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ProbeResult {
    Success,
    /// It is not well, for this reason.
    Failure(String),
    /// The probe could not be made, which says nothing about the container.
    Errored(String),
}

/// What follows from a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Followed {
    /// The container's readiness, or whether it has started or has to be restarted, is another one than before.
    pub(crate) changed: bool,
}

/// The probes of one pod.
#[derive(Debug, Default)]
pub(crate) struct Probes {
    probers: BTreeMap<(String, ProbeKind), Prober>,
}

#[derive(Debug)]
struct Prober {
    instance: ContainerId,
    period: Duration,
    timeout: Duration,
    successes: u32,
    failures: u32,
    next: Instant,
    in_flight: bool,
    /// The last result and how often in a row.
    streak: Option<(bool, u32)>,
    verdict: Option<bool>,
    /// By how much the second probe comes earlier, so that pods that began together are not probed together.
    jitter: Duration,
}

impl Probes {
    /// Makes the probers be those of the containers that run. `seed` says what was known of an instance before this
    /// process started.
    pub(crate) fn sync(
        &mut self,
        uid: &Uid,
        running: &BTreeMap<String, (&Container, ContainerId, u64)>,
        seed: impl Fn(&ContainerId, ProbeKind) -> Option<bool>,
        now: Moment,
    ) {
        self.probers.retain(|(name, _), prober| {
            running.get(name).is_some_and(|(_, instance, _)| *instance == prober.instance)
        });
        for (name, (container, instance, started_at_ms)) in running {
            for kind in ProbeKind::ALL {
                let Some(probe) = kind.of(container) else { continue };
                self.probers.entry((name.clone(), kind)).or_insert_with(|| {
                    let known = seed(instance, kind);
                    let jitter = jitter(uid, name, kind);
                    Prober::new(probe, instance.clone(), *started_at_ms, known, jitter, now)
                });
            }
        }
    }

    /// Which probes are to be made now. Each is in flight until [`Self::handle`] takes its result.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<(ProbeKey, Duration)> {
        let waits: Vec<String> = self
            .probers
            .keys()
            .filter(|(name, _)| !self.is_started(name))
            .map(|(name, _)| name.clone())
            .collect();
        let mut due = Vec::new();
        for ((name, kind), prober) in &mut self.probers {
            let gated = *kind != ProbeKind::Startup && waits.contains(name);
            if gated || !prober.is_due(*kind, now) {
                continue;
            }
            prober.in_flight = true;
            let key = ProbeKey { container: name.clone(), kind: *kind, instance: prober.instance.clone() };
            due.push((key, prober.timeout));
        }
        due
    }

    /// Takes the result of a probe.
    pub(crate) fn handle(&mut self, key: &ProbeKey, result: &ProbeResult, now: Instant) -> Option<Followed> {
        let prober = self.probers.get_mut(&(key.container.clone(), key.kind))?;
        if prober.instance != key.instance {
            return None;
        }
        let before = prober.verdict;
        prober.take(result, now);
        let changed = prober.verdict != before;
        if changed && key.kind == ProbeKind::Startup && prober.verdict == Some(true) {
            for kind in [ProbeKind::Liveness, ProbeKind::Readiness] {
                if let Some(waiting) = self.probers.get_mut(&(key.container.clone(), kind)) {
                    waiting.next = waiting.next.min(now);
                }
            }
        }
        Some(Followed { changed })
    }

    /// Whether the container has started as far as its startup probe says; without one it has when it runs.
    pub(crate) fn is_started(&self, container: &str) -> bool {
        self.verdict(container, ProbeKind::Startup).is_none_or(|verdict| verdict == Some(true))
    }

    /// Whether the container, which runs, is ready.
    pub(crate) fn is_ready(&self, container: &str) -> bool {
        self.is_started(container)
            && self.verdict(container, ProbeKind::Readiness).is_none_or(|verdict| verdict == Some(true))
    }

    /// The probe for which this instance has to be restarted.
    pub(crate) fn failed(&self, container: &str, instance: &ContainerId) -> Option<ProbeKind> {
        [ProbeKind::Startup, ProbeKind::Liveness].into_iter().find(|kind| {
            let prober = self.probers.get(&(container.to_owned(), *kind));
            prober.is_some_and(|prober| prober.verdict == Some(false) && prober.instance == *instance)
        })
    }

    /// When the next probe is to be made.
    pub(crate) fn next(&self) -> Option<Instant> {
        let waits =
            |(name, kind): &(String, ProbeKind)| *kind != ProbeKind::Startup && !self.is_started(name);
        let idle = self.probers.iter().filter(|(key, prober)| !waits(key) && prober.waits(key.1));
        idle.map(|(_, prober)| prober.next).min()
    }

    fn verdict(&self, container: &str, kind: ProbeKind) -> Option<Option<bool>> {
        self.probers.get(&(container.to_owned(), kind)).map(|prober| prober.verdict)
    }
}

impl Prober {
    fn new(
        probe: &Probe,
        instance: ContainerId,
        started_at_ms: u64,
        known: Option<bool>,
        jitter: f64,
        now: Moment,
    ) -> Self {
        // The API's defaults, and its least values.
        let seconds = |value: Option<u32>, default: u32| {
            Duration::from_secs(u64::from(value.filter(|value| *value > 0).unwrap_or(default)))
        };
        let times = |value: Option<u32>, default: u32| value.filter(|value| *value > 0).unwrap_or(default);
        let period = seconds(probe.period_seconds, 10);
        let ran = Duration::from_millis(now.unix_ms.saturating_sub(started_at_ms));
        let delay = Duration::from_secs(u64::from(probe.initial_delay_seconds)).saturating_sub(ran);
        // What was running before this process is probed at once only as fast as its turn comes.
        let adopted = if known.is_some() { period.mul_f64(jitter) } else { Duration::ZERO };
        Self {
            instance,
            period,
            timeout: seconds(probe.timeout_seconds, 1),
            successes: times(probe.success_threshold, 1),
            failures: times(probe.failure_threshold, 3),
            next: now.at + delay.max(adopted),
            in_flight: false,
            streak: known.map(|known| (known, 1)),
            verdict: known.filter(|known| *known),
            jitter: period.mul_f64(jitter / 4.0),
        }
    }

    /// Whether it will ever be made again by itself.
    fn waits(&self, kind: ProbeKind) -> bool {
        let settled = match kind {
            ProbeKind::Startup => self.verdict.is_some(),
            ProbeKind::Liveness => self.verdict == Some(false),
            ProbeKind::Readiness => false,
        };
        !self.in_flight && !settled
    }

    fn is_due(&self, kind: ProbeKind, now: Instant) -> bool {
        self.waits(kind) && self.next <= now
    }

    fn take(&mut self, result: &ProbeResult, now: Instant) {
        self.in_flight = false;
        // From the time it was due, so that slow probes keep their pace; a time that has passed is made up once.
        self.next = (self.next + self.period - std::mem::take(&mut self.jitter)).max(now);
        let success = match result {
            ProbeResult::Success => true,
            ProbeResult::Failure(_) => false,
            ProbeResult::Errored(_) => return,
        };
        let run = match self.streak {
            Some((last, run)) if last == success => run.saturating_add(1),
            Some(_) | None => 1,
        };
        self.streak = Some((success, run));
        if run >= if success { self.successes } else { self.failures } {
            self.verdict = Some(success);
        }
    }
}

/// Between 0 and 1, always the same for a probe.
fn jitter(uid: &Uid, container: &str, kind: ProbeKind) -> f64 {
    let text = [uid.as_str(), container, kind.title()].join("/");
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, fold);
    (hash >> 40) as f64 / (1u64 << 24) as f64
}
