//! How containers end, and when they may start again.

use std::time::{Duration, Instant};

use kubeedge_core::runtime::{ContainerId, ContainerState, ObservedContainer, ObservedSandbox};

use super::{Moment, entry::Entry};
use crate::edged::{
    action::Failure,
    pod::{Pod, RestartPolicy},
};

/// A step that failed, and when it is tried again.
#[derive(Debug, Clone)]
pub(crate) struct Trouble {
    pub(crate) failure: Failure,
    /// Which step it was, see [`super::steps::Busy::rank`].
    pub(crate) rank: u8,
    pub(crate) count: u32,
    pub(crate) since: Instant,
    pub(crate) until: Instant,
    /// Whether it has been recorded that it is being waited.
    pub(crate) said: bool,
}

impl Trouble {
    /// Whether there is no image to start.
    pub(crate) fn is_about_image(&self) -> bool {
        matches!(
            self.failure.reason,
            "ErrImagePull" | "ErrImageNeverPull" | "InvalidImageName" | "ImageInspectError"
        )
    }
}

/// How a container keeps ending, as kubelet counts it: the first restart is immediate, the next waits 10 s,
/// then twice as long each time up to 5 min; 10 min of running make good for everything.
#[derive(Debug, Clone)]
pub(crate) struct Crash {
    /// The instance that ended last.
    pub(crate) instance: ContainerId,
    pub(crate) delay: Duration,
    pub(crate) until: Instant,
    /// Whether it has been recorded that it is being waited.
    pub(crate) said: bool,
}

impl Crash {
    pub(crate) fn next_delay(&self) -> Duration {
        (self.delay * 2).clamp(Duration::from_secs(10), Duration::from_secs(300))
    }
}

/// What a container said at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LastWords {
    /// It is being read.
    Reading,
    Read(String),
}

impl Entry {
    /// Remembers ends that were not seen before, and when their containers may start again.
    pub(super) fn note_exits(&mut self, pod: &Pod, sandboxes: &[ObservedSandbox], now: Moment) {
        for container in sandboxes.iter().flat_map(|sandbox| &sandbox.containers) {
            let attempt = self.attempts.entry(container.name.clone()).or_insert(0);
            *attempt = container.attempt.max(*attempt);
        }
        for name in pod.containers().map(|container| &container.name) {
            let Some(newest) = newest(sandboxes, name) else { continue };
            let ContainerState::Exited { started_at_ms, finished_at_ms, .. } = &newest.state else {
                continue;
            };
            let known = self.crashes.get(name);
            if known.is_some_and(|crash| crash.instance == newest.id) {
                continue;
            }
            let ran = Duration::from_millis(finished_at_ms.saturating_sub(*started_at_ms));
            let well = *started_at_ms > 0 && ran >= Duration::from_secs(600);
            let delay = known.filter(|_| !well).map_or(Duration::ZERO, |crash| crash.delay);
            // Counted from the end itself. The clock may have been set meanwhile: the wait is never longer.
            let since = Duration::from_millis(now.unix_ms.saturating_sub(*finished_at_ms));
            let until = now.at + delay.saturating_sub(since);
            let crash = Crash { instance: newest.id.clone(), delay, until, said: false };
            self.crashes.insert(name.clone(), crash);
        }
    }
}

/// The newest instance of a container in a sandbox.
pub(crate) fn newest_of<'a>(sandbox: &'a ObservedSandbox, name: &str) -> Option<&'a ObservedContainer> {
    let of_name = sandbox.containers.iter().filter(|container| container.name == name);
    of_name.max_by_key(|container| container.attempt)
}

/// The newest instance of a container in any sandbox of its pod.
pub(crate) fn newest<'a>(sandboxes: &'a [ObservedSandbox], name: &str) -> Option<&'a ObservedContainer> {
    sandboxes.iter().rev().find_map(|sandbox| newest_of(sandbox, name))
}

pub(crate) fn is_running(container: &ObservedContainer) -> bool {
    matches!(container.state, ContainerState::Running { .. })
}

/// Whether it has to be stopped before its sandbox goes.
pub(crate) fn is_alive(container: &ObservedContainer) -> bool {
    matches!(container.state, ContainerState::Running { .. } | ContainerState::Unknown)
}

/// The exit code of a container that ended; an end that nobody saw counts as a kill.
pub(crate) fn exit_code(container: &ObservedContainer) -> Option<i32> {
    match &container.state {
        ContainerState::Exited { exit_code, .. } => Some(exit_code.unwrap_or(137)),
        ContainerState::Created | ContainerState::Running { .. } | ContainerState::Unknown => None,
    }
}

/// Whether it has ended and is not to be started again.
pub(crate) fn is_final(container: &ObservedContainer, policy: RestartPolicy) -> bool {
    exit_code(container).is_some_and(|code| may_not_restart(code, policy))
}

/// Whether a container that ended with this code is not to be started again.
pub(crate) fn may_not_restart(code: i32, policy: RestartPolicy) -> bool {
    match policy {
        RestartPolicy::Always => false,
        RestartPolicy::OnFailure => code == 0,
        RestartPolicy::Never => true,
    }
}
