//! From containers that run to nothing: main containers first, sidecars after them in reverse order.

use std::time::Duration;

use kubeedge_core::{id::check_subdomain, runtime::ObservedContainer};

use super::{
    super::{entry::Entry, exits::is_alive, steps::Busy},
    Planner, Steps,
};
use crate::edged::{
    action::{Action, Slot},
    events::Note,
    pod::Pod,
};

/// What is left for a container at least when hooks or those before it have used up the grace. 2 s: the kubelet's.
pub(crate) const LEAST_GRACE: Duration = Duration::from_secs(2);

impl Planner<'_> {
    /// Everything of the pod has to go.
    pub(super) fn end(&self, entry: &mut Entry, steps: &mut Steps) {
        let grace = grace_of(entry);
        if !self.stop(entry, grace, steps) {
            return;
        }
        if self.must_wait(entry, "") {
            return;
        }
        // What its containers said at their end is told before they are removed.
        if entry.pod.is_some() && entry.is_reading() {
            return;
        }
        if let Some(sandbox) = self.sandboxes.first() {
            let action = Action::RemoveSandbox(sandbox.id.clone());
            return steps.begin(entry, Slot::Pod, action, self.now.at);
        }
        // The names of an orphan come from the runtime's labels, which others can write.
        let (namespace, name) = (entry.reference.namespace(), entry.reference.name());
        let uid_is_plain =
            entry.uid.as_str().chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        let safe = check_subdomain("namespace", namespace).is_ok()
            && check_subdomain("name", name).is_ok()
            && uid_is_plain
            && !entry.uid.as_str().is_empty();
        let paths = if safe {
            let pod = self.config.pod_directory(&entry.uid);
            let logs = self.config.pod_logs(&entry.reference, &entry.uid);
            vec![pod, logs]
        } else {
            Vec::new()
        };
        steps.begin(entry, Slot::Pod, Action::RemoveFiles { paths }, self.now.at);
    }

    /// The pod has ended for good and stays: what still runs of it is stopped.
    pub(super) fn wind_down(&self, entry: &mut Entry, pod: &Pod, steps: &mut Steps) {
        let grace = entry.verdict.as_ref().and_then(|verdict| verdict.grace);
        let grace = grace.unwrap_or(Duration::from_secs(pod.grace_seconds()));
        if !self.stop(entry, grace, steps) || self.must_wait(entry, "") {
            return;
        }
        let ready = self.sandboxes.iter().find(|sandbox| sandbox.ready);
        if let Some(ready) = ready {
            steps.begin(entry, Slot::Pod, Action::StopSandbox(ready.id.clone()), self.now.at);
        }
    }

    /// Stops what is alive. Returns whether nothing is, and no step is in flight or unseen.
    fn stop(&self, entry: &mut Entry, grace: Duration, steps: &mut Steps) -> bool {
        let since = *entry.ending.get_or_insert(self.now.at);
        let deadline = since + grace;
        entry.starting.clear();
        self.give_up_starts(entry, deadline, steps);
        let all: Vec<&ObservedContainer> = self
            .sandboxes
            .iter()
            .flat_map(|sandbox| &sandbox.containers)
            .filter(|one| is_alive(one))
            .collect();
        let pod = entry.wanted().cloned();
        let sidecars: Vec<String> =
            pod.iter().flat_map(|pod| pod.sidecars().map(|container| container.name.clone())).collect();
        // The rank of a sidecar is how many have to be gone before it, counted from the last one.
        let rank =
            |name: &str| sidecars.iter().position(|sidecar| sidecar == name).map(|at| sidecars.len() - at);
        let first = all.iter().map(|one| rank(&one.name).unwrap_or(0)).min().unwrap_or(0);
        for one in all.iter().filter(|one| rank(&one.name).unwrap_or(0) == first) {
            let slot = Slot::Container(one.name.clone());
            if !entry.is_free(&slot) || self.must_wait(entry, &one.name) {
                continue;
            }
            let left = deadline.saturating_duration_since(self.now.at);
            let container = pod.as_ref().and_then(|pod| pod.container(&one.name));
            let pre_stop = container.and_then(|container| self.pre_stop(entry, container, one));
            entry.say(Note::stopping(&one.name));
            let stop = Action::Stop { id: one.id.clone(), grace: left, pre_stop };
            steps.begin(entry, slot, stop, self.now.at);
        }
        all.is_empty() && entry.busy.is_empty() && entry.touched.is_empty()
    }

    /// Breaks off what leads to running, and stops that take longer than there is time.
    fn give_up_starts(&self, entry: &mut Entry, deadline: std::time::Instant, steps: &mut Steps) {
        // Not for what a stop takes longer only because it always has a little time.
        let latest = deadline.max(self.now.at) + LEAST_GRACE;
        for (slot, busy) in &mut entry.busy {
            match busy {
                Busy::Inspect | Busy::Pull | Busy::PostStart(_) | Busy::Resize(_) => {
                    steps.abort.push(slot.clone())
                }
                Busy::Stop { until, aborting } if latest < *until && !*aborting => {
                    *aborting = true;
                    steps.abort.push(slot.clone());
                }
                Busy::Prepare
                | Busy::RunSandbox
                | Busy::Create
                | Busy::Start(_)
                | Busy::Stop { .. }
                | Busy::RemoveFiles
                | Busy::Step => {}
            }
        }
    }
}

/// How long its containers may take. An orphan gets what Kubernetes gives by default: nobody can say what it
/// was promised.
fn grace_of(entry: &Entry) -> Duration {
    Duration::from_secs(entry.wanted().map_or(30, Pod::grace_seconds))
}
