//! The phase of a pod, from the states of its containers.

use serde_json::Value;

use super::containers::Scene;
use crate::edged::pod::RestartPolicy;

/// How far a pod has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
}

impl Phase {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }

    pub(super) fn read(word: &Value) -> Option<Self> {
        let all = [Self::Pending, Self::Running, Self::Succeeded, Self::Failed];
        all.into_iter().find(|phase| *word == phase.word())
    }

    /// Whether nothing comes after it.
    pub(crate) fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// How a container counts.
enum Standing {
    Waiting,
    Running,
    Ended(i64),
}

fn standing(status: &Value) -> Standing {
    let state = &status["state"];
    if state["running"].is_object() {
        return Standing::Running;
    }
    // One that waits to be started again counts by how it ended.
    let code = |ended: &Value| ended["terminated"]["exitCode"].as_i64();
    match code(state).or_else(|| code(&status["lastState"])) {
        Some(code) => Standing::Ended(code),
        None => Standing::Waiting,
    }
}

/// The phase by the API's rules (Pod lifecycle, "Pod phase").
pub(super) fn of(scene: &Scene<'_>, init: &[Value], containers: &[Value]) -> Phase {
    let Scene { pod, entry, sandboxes, .. } = *scene;
    if let Some(ended) = entry.shown.phase.filter(|phase| phase.is_terminal()) {
        return ended;
    }
    if entry.verdict.is_some() {
        return Phase::Failed;
    }
    let policy = pod.spec.restart_policy;
    let (mut pending, mut failed, mut sidecars) = (0, 0, 0);
    for (container, status) in pod.spec.init_containers.iter().zip(init) {
        match (container.is_sidecar(), standing(status)) {
            (true, Standing::Running) => {
                sidecars += 1;
                pending += usize::from(status["started"] != true);
            }
            (true, Standing::Ended(_)) | (false, Standing::Ended(0)) => {}
            (false, Standing::Ended(_)) => failed += 1,
            (_, Standing::Waiting) | (false, Standing::Running) => pending += 1,
        }
    }
    let (mut waiting, mut running, mut stopped, mut succeeded) = (0, sidecars, 0, 0);
    for status in containers {
        match standing(status) {
            Standing::Waiting => waiting += 1,
            Standing::Running => running += 1,
            Standing::Ended(code) => {
                stopped += 1;
                succeeded += usize::from(code == 0);
            }
        }
    }
    if failed > 0 && policy == RestartPolicy::Never {
        return Phase::Failed;
    }
    let all_ended =
        |statuses: &[Value]| statuses.iter().all(|status| !status["state"]["terminated"].is_null());
    let by_result = if stopped == succeeded { Phase::Succeeded } else { Phase::Failed };
    // A pod that is being deleted has ended when its containers have, whatever its policy.
    if entry.is_ending() && stopped == containers.len() && running == 0 && all_ended(containers) {
        return by_result;
    }
    let begun = waiting < containers.len();
    // A pod that may not be restarted is over when its sandbox died under it.
    let lost = policy == RestartPolicy::Never
        && running == 0
        && sandboxes.last().is_some_and(|sandbox| !sandbox.ready && !sandbox.containers.is_empty());
    if (pending > 0 || failed > 0) && !begun || waiting > 0 {
        return if lost { Phase::Failed } else { Phase::Pending };
    }
    if running > 0 {
        return Phase::Running;
    }
    match policy {
        RestartPolicy::Always => Phase::Running,
        RestartPolicy::OnFailure if stopped == succeeded => Phase::Succeeded,
        RestartPolicy::OnFailure => Phase::Running,
        RestartPolicy::Never => by_result,
    }
}
