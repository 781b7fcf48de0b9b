//! The next step for one pod: pure, and from what is observed only.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use kubeedge_core::{
    id::check_subdomain,
    runtime::{ContainerState, ObservedContainer, ObservedSandbox},
};

use super::{
    Moment,
    entry::{Busy, Crash, Entry, Stage},
};
use crate::edged::{
    Config,
    action::{Action, Prepare, PullPolicy},
    make,
    pod::{Container, Pod, RestartPolicy},
    resolve::{self, Facts},
    volumes,
};

/// What the plan of one pod looks at.
pub(crate) struct Planner<'a> {
    pub(crate) config: &'a Config,
    pub(crate) facts: Facts<'a>,
    /// The pod's sandboxes, the newest last.
    pub(crate) sandboxes: &'a [ObservedSandbox],
    /// Whether every pod that the node had is known: only then is a sandbox nobody's.
    pub(crate) settled: bool,
    pub(crate) now: Moment,
}

/// What is next for a container.
enum Next {
    /// Nothing for now.
    Rest,
    /// Nothing ever again: it has ended for good.
    Over,
    Act(Action),
}

impl Planner<'_> {
    /// The next step, or `None` if everything is as it should be or has to wait.
    pub(crate) fn next(&self, entry: &mut Entry) -> Option<Action> {
        if entry.stage == Stage::Gone || self.must_wait(entry, "") {
            return None;
        }
        if entry.stage == Stage::Orphan && !entry.deleted {
            let due = entry.since.at + self.config.orphan_grace;
            if self.now.at < due {
                entry.wake_at(due);
                return None;
            }
            // Settling wakes it; to wait for a time that has passed would be to ask again and again.
            if !self.settled {
                return None;
            }
            entry.deleted = true;
        }
        if entry.is_ending() {
            return Some(self.end(entry));
        }
        let Some(Ok(pod)) = entry.pod.clone() else { return None };
        self.note_exits(entry, &pod);
        self.run(entry, &pod)
    }

    /// Whether the step in flight should be given up for a stop that is due.
    pub(crate) fn wants_abort(&self, entry: &mut Entry) -> bool {
        let ending = entry.is_ending();
        let grace = grace_of(entry);
        let aborts = match &mut entry.busy {
            Some(Busy::Pull { .. }) => ending,
            Some(Busy::Kill { grace: given, aborting }) => {
                let sooner = ending && Duration::from_secs(grace) < *given && !*aborting;
                *aborting |= sooner;
                sooner
            }
            Some(Busy::Prepare | Busy::RemoveFiles | Busy::Step { .. }) | None => false,
        };
        entry.rest();
        aborts
    }

    /// Whether the last failure under this name was too short ago.
    fn must_wait(&self, entry: &mut Entry, name: &str) -> bool {
        let until =
            entry.troubles.get(name).map(|trouble| trouble.until).filter(|until| *until > self.now.at);
        if let Some(until) = until {
            entry.wake_at(until);
        }
        until.is_some()
    }

    fn end(&self, entry: &Entry) -> Action {
        if !self.sandboxes.is_empty() {
            let grace = grace_of(entry);
            let alive =
                |container: &&ObservedContainer| !matches!(container.state, ContainerState::Exited { .. });
            let sandboxes = self.sandboxes.iter().map(|sandbox| {
                let alive = sandbox.containers.iter().filter(alive);
                (sandbox.id.clone(), alive.map(|container| container.id.clone()).collect())
            });
            return Action::Kill { sandboxes: sandboxes.collect(), grace: Duration::from_secs(grace) };
        }
        // The names of an orphan come from the runtime's labels, which others can write.
        let (namespace, name) = (entry.reference.namespace(), entry.reference.name());
        let uid_is_plain =
            entry.uid.as_str().chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        let safe = check_subdomain("namespace", namespace).is_ok()
            && check_subdomain("name", name).is_ok()
            && uid_is_plain
            && !entry.uid.as_str().is_empty();
        let directories = if safe {
            let pod = self.config.pod_directory(&entry.uid);
            vec![pod, self.config.pod_logs(&entry.reference, &entry.uid)]
        } else {
            Vec::new()
        };
        Action::RemoveFiles { directories }
    }

    fn run(&self, entry: &mut Entry, pod: &Pod) -> Option<Action> {
        let newest = self.sandboxes.last();
        if self.is_over(entry, pod) {
            let stop = newest.filter(|sandbox| sandbox.ready);
            return stop.map(|sandbox| Action::StopSandbox(sandbox.id.clone()));
        }
        if let Some(action) = self.volumes(entry, pod) {
            return Some(action);
        }
        let Some(sandbox) = newest.filter(|sandbox| sandbox.ready) else {
            if !entry.prepared {
                return None;
            }
            let attempt = newest.map_or(0, |old| old.attempt + 1);
            let running = newest.filter(|old| old.containers.iter().any(is_running));
            return Some(match running {
                Some(old) => Action::StopSandbox(old.id.clone()),
                None => Action::RunSandbox(Box::new(make::sandbox(pod, attempt, self.config))),
            });
        };
        let started =
            sandbox.containers.iter().any(|one| pod.spec.containers.iter().any(|c| c.name == one.name));
        if !started {
            for container in &pod.spec.init_containers {
                let sidecar = container.restart_policy == "Always";
                let policy = match (sidecar, pod.spec.restart_policy) {
                    (true, _) => RestartPolicy::Always,
                    (false, RestartPolicy::Never) => RestartPolicy::Never,
                    (false, RestartPolicy::Always | RestartPolicy::OnFailure) => RestartPolicy::OnFailure,
                };
                let newest = newest_of(sandbox, &container.name);
                match self.container(entry, pod, container, sandbox, policy) {
                    Next::Act(action) => return Some(action),
                    Next::Rest if sidecar && newest.is_some_and(is_running) => {}
                    Next::Over if newest.is_some_and(|one| exit_code(one) == Some(0)) => {}
                    Next::Rest | Next::Over => return None,
                }
            }
        }
        for container in &pod.spec.containers {
            let next = self.container(entry, pod, container, sandbox, pod.spec.restart_policy);
            if let Next::Act(action) = next {
                return Some(action);
            }
        }
        self.tidy(sandbox)
    }

    /// Remembers ends that were not seen before, and when their containers may start again.
    fn note_exits(&self, entry: &mut Entry, pod: &Pod) {
        for sandbox in self.sandboxes {
            for container in &sandbox.containers {
                let attempt = entry.attempts.entry(container.name.clone()).or_insert(0);
                *attempt = container.attempt.max(*attempt);
            }
        }
        for container in pod.spec.init_containers.iter().chain(&pod.spec.containers) {
            let newest = self.sandboxes.iter().rev().find_map(|sandbox| newest_of(sandbox, &container.name));
            let Some(newest) = newest else { continue };
            let ContainerState::Exited { started_at_ms, finished_at_ms, .. } = &newest.state else {
                continue;
            };
            let known = entry.crashes.get(&container.name);
            if known.is_some_and(|crash| crash.instance == newest.id) {
                continue;
            }
            let ran = Duration::from_millis(finished_at_ms.saturating_sub(*started_at_ms));
            let well = *started_at_ms > 0 && ran >= Duration::from_secs(600);
            let delay = known.filter(|_| !well).map_or(Duration::ZERO, |crash| crash.delay);
            let crash = Crash { instance: newest.id.clone(), delay, until: self.now.at + delay };
            entry.crashes.insert(container.name.clone(), crash);
        }
    }

    /// Whether the pod has ended for good.
    fn is_over(&self, entry: &Entry, pod: &Pod) -> bool {
        let policy = pod.spec.restart_policy;
        let newest = |name: &str| self.sandboxes.iter().rev().find_map(|sandbox| newest_of(sandbox, name));
        let over = |container: &Container| newest(&container.name).is_some_and(|one| is_final(one, policy));
        let init_failed = pod.spec.init_containers.iter().any(|container| {
            policy == RestartPolicy::Never
                && container.restart_policy != "Always"
                && newest(&container.name).is_some_and(|one| exit_code(one).is_some_and(|code| code != 0))
        });
        // A pod that may not be restarted is over when its sandbox died under it.
        let lost = policy == RestartPolicy::Never
            && self.sandboxes.last().is_some_and(|sandbox| !sandbox.ready && !sandbox.containers.is_empty());
        let ended_before = pod.had_ended() || entry.shown.has_ended();
        pod.spec.containers.iter().all(over)
            || init_failed
            || lost
            || (ended_before && self.sandboxes.is_empty())
    }

    fn volumes(&self, entry: &mut Entry, pod: &Pod) -> Option<Action> {
        if !entry.dirty {
            return None;
        }
        let files = match volumes::volumes(pod, &self.facts) {
            Ok(files) => files,
            // What runs keeps the files that it has.
            Err(missing) => {
                entry.unresolved = Some(missing.0);
                return None;
            }
        };
        entry.unresolved = None;
        entry.dirty = false;
        let named =
            |empty: bool| pod.spec.volumes.iter().filter(move |volume| volume.empty_dir.is_some() == empty);
        let host_paths = named(false).filter_map(|volume| volume.host_path.as_ref());
        Some(Action::Prepare(Prepare {
            volumes: self.config.pod_volumes(&pod.uid),
            logs: self.config.pod_logs(&pod.reference, &pod.uid),
            files,
            empty: named(true).map(|volume| volume.name.clone()).collect(),
            host_paths: host_paths.map(|host| (PathBuf::from(&host.path), host.kind.clone())).collect(),
        }))
    }

    fn container(
        &self,
        entry: &mut Entry,
        pod: &Pod,
        container: &Container,
        sandbox: &ObservedSandbox,
        policy: RestartPolicy,
    ) -> Next {
        let name = &container.name;
        if let Some(newest) = newest_of(sandbox, name) {
            match &newest.state {
                ContainerState::Running { .. } => {
                    let other =
                        !newest.spec_hash.is_empty() && newest.spec_hash != make::spec_hash(container);
                    let grace = Duration::from_secs(pod.grace_seconds());
                    let stop = Action::Stop { id: newest.id.clone(), grace };
                    return if other { Next::Act(stop) } else { Next::Rest };
                }
                ContainerState::Created if self.must_wait(entry, name) => return Next::Rest,
                ContainerState::Created => {
                    let id = newest.id.clone();
                    return Next::Act(Action::StartCreated { container: name.clone(), id });
                }
                ContainerState::Unknown => {
                    return Next::Act(Action::RemoveContainer { id: newest.id.clone(), log: None });
                }
                ContainerState::Exited { .. } => {
                    let replaced =
                        newest.spec_hash != make::spec_hash(container) && !newest.spec_hash.is_empty();
                    if is_final(newest, policy) && !replaced {
                        return Next::Over;
                    }
                    let until = entry.crashes.get(name).map(|crash| crash.until);
                    if let Some(until) = until.filter(|until| *until > self.now.at && !replaced) {
                        entry.wake_at(until);
                        return Next::Rest;
                    }
                }
            }
        }
        if self.must_wait(entry, name) {
            return Next::Rest;
        }
        let env = match resolve::environment(container, pod, &self.facts) {
            Ok(env) => env,
            Err(missing) => {
                entry.unresolved = Some(missing.0);
                return Next::Rest;
            }
        };
        if !entry.prepared {
            return Next::Rest;
        }
        entry.unresolved = None;
        if !entry.images.contains(name) {
            return Next::Act(Action::Pull {
                container: name.clone(),
                image: container.image.clone(),
                policy: PullPolicy::of(&container.image_pull_policy, &container.image),
                credentials: make::credentials(pod, &container.image, &self.facts),
            });
        }
        let attempt = entry.attempts.get(name).map_or(0, |last| last + 1);
        let (config, sub_paths) = make::container(pod, container, attempt, env, self.config, &self.facts);
        Next::Act(Action::Start { sandbox: sandbox.id.clone(), config: Box::new(config), sub_paths })
    }

    /// Removes what nobody can ask about any more: each container keeps its newest two instances.
    fn tidy(&self, current: &ObservedSandbox) -> Option<Action> {
        let old = self.sandboxes.iter().find(|sandbox| sandbox.id != current.id);
        if let Some(old) = old {
            return Some(Action::RemoveSandbox(old.id.clone()));
        }
        let mut newest: BTreeMap<&str, u32> = BTreeMap::new();
        for container in &current.containers {
            let attempt = newest.entry(&container.name).or_default();
            *attempt = container.attempt.max(*attempt);
        }
        let stale = current.containers.iter().find(|container| {
            newest.get(container.name.as_str()).is_some_and(|newest| container.attempt + 1 < *newest)
        })?;
        let log = stale.log.as_ref().map(|log| log.path.clone());
        Some(Action::RemoveContainer { id: stale.id.clone(), log })
    }
}

/// How long its containers may take. An orphan gets what Kubernetes gives by default: nobody can say what it
/// was promised.
fn grace_of(entry: &Entry) -> u64 {
    entry.wanted().map_or(30, Pod::grace_seconds)
}

impl Entry {
    /// Marks it as looked at.
    pub(crate) fn rest(&mut self) {
        self.changed = false;
    }
}

/// The newest instance of a container in a sandbox.
pub(crate) fn newest_of<'a>(sandbox: &'a ObservedSandbox, name: &str) -> Option<&'a ObservedContainer> {
    let of_name = sandbox.containers.iter().filter(|container| container.name == name);
    of_name.max_by_key(|container| container.attempt)
}

fn is_running(container: &ObservedContainer) -> bool {
    matches!(container.state, ContainerState::Running { .. })
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
    exit_code(container).is_some_and(|code| match policy {
        RestartPolicy::Always => false,
        RestartPolicy::OnFailure => code == 0,
        RestartPolicy::Never => true,
    })
}
