//! From a sandbox that is ready to containers that run: in the order of the pod, as the kubelet starts them.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use kubeedge_core::runtime::{ContainerState, ObservedContainer, ObservedSandbox};

use super::{
    super::admit::devices_of,
    super::{
        entry::{Entry, Image, Starting},
        exits::{exit_code, is_final, is_running, newest_of},
        probes::ProbeKind,
        resize::NextResize,
        steps::Busy,
    },
    Planner, Steps,
};
use crate::edged::{
    action::{Action, Create, Failure, PullPolicy, Slot, Task},
    devices::Question,
    events::Note,
    image, make,
    pod::{Container, Handler, Pod, RestartPolicy},
    resolve, tasks, words,
};

/// How a container stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stand {
    /// It waits, is on its way, or waits for its back-off.
    Waiting,
    /// It runs.
    Running,
    /// It has ended and is not to be started again.
    Over,
}

impl Planner<'_> {
    pub(super) fn containers(
        &mut self,
        entry: &mut Entry,
        pod: &Pod,
        sandbox: &ObservedSandbox,
        steps: &mut Steps,
    ) {
        self.images_ahead(entry, pod, steps);
        if !self.init_is_done(pod) {
            for container in &pod.spec.init_containers {
                let sidecar = container.is_sidecar();
                let stand =
                    self.container(entry, pod, container, sandbox, pod.restart_policy_of(container), steps);
                let name = &container.name;
                let done = match stand {
                    Stand::Waiting => false,
                    // The next one waits until its postStart hook and its startup probe have succeeded.
                    Stand::Running => {
                        sidecar
                            && entry.probes.is_started(name)
                            && !entry.starting.contains_key(name)
                            && !entry.busy.contains_key(&Slot::Container(name.clone()))
                    }
                    Stand::Over => newest_of(sandbox, name).and_then(exit_code) == Some(0),
                };
                if !done {
                    return;
                }
            }
        } else {
            for container in pod.sidecars() {
                self.container(entry, pod, container, sandbox, RestartPolicy::Always, steps);
            }
        }
        let mut first_start = false;
        for container in &pod.spec.containers {
            // A postStart hook holds up the first start of those behind it, which pods rely on for their order.
            let slot = Slot::Container(container.name.clone());
            let unborn = newest_of(sandbox, &container.name).is_none();
            if !(first_start && unborn) {
                self.container(entry, pod, container, sandbox, pod.spec.restart_policy, steps);
            }
            let starting = entry.starting.contains_key(&container.name) || entry.busy.contains_key(&slot);
            let instances = sandbox.containers.iter().filter(|one| one.name == container.name).count();
            first_start |= starting && instances <= 1;
        }
        self.tidy(entry, pod, sandbox, steps);
    }

    /// Whether a main container has been started: then the init containers' work is done.
    fn init_is_done(&self, pod: &Pod) -> bool {
        let sandbox = self.sandboxes.last();
        sandbox
            .is_some_and(|sandbox| pod.spec.containers.iter().any(|c| newest_of(sandbox, &c.name).is_some()))
    }

    fn container(
        &mut self,
        entry: &mut Entry,
        pod: &Pod,
        container: &Container,
        sandbox: &ObservedSandbox,
        policy: RestartPolicy,
        steps: &mut Steps,
    ) -> Stand {
        let name = &container.name;
        let slot = Slot::Container(name.clone());
        if let Some(busy) = entry.busy.get(&slot) {
            let runs = matches!(busy, Busy::PostStart(_) | Busy::Resize(_));
            return if runs { Stand::Running } else { Stand::Waiting };
        }
        if let Some(starting) = entry.starting.get(name).cloned() {
            self.go_on(entry, pod, container, starting, steps);
            return Stand::Waiting;
        }
        if !entry.is_free(&slot) {
            return Stand::Waiting;
        }
        if let Some(newest) = newest_of(sandbox, name) {
            match &newest.state {
                ContainerState::Running { .. } => {
                    self.running(entry, pod, container, newest, steps);
                    return Stand::Running;
                }
                ContainerState::Created => {
                    if !self.must_wait(entry, name) {
                        self.begin_start(entry, slot, Action::Start(newest.id.clone()), steps);
                    }
                    return Stand::Waiting;
                }
                ContainerState::Unknown => {
                    let action = Action::RemoveContainer { id: newest.id.clone(), files: Vec::new() };
                    steps.begin(entry, slot, action, self.now.at);
                    return Stand::Waiting;
                }
                ContainerState::Exited { .. } => {
                    let replaced = is_replaced(newest, container);
                    if is_final(newest, policy) && !replaced {
                        return Stand::Over;
                    }
                    if !replaced && self.backs_off(entry, pod, name) {
                        return Stand::Waiting;
                    }
                }
            }
        } else if !pod.is_init(name) && self.ended_before(entry, name, policy) {
            return Stand::Over;
        }
        if !self.must_wait(entry, name) {
            self.start(entry, pod, container, sandbox, steps);
        }
        Stand::Waiting
    }

    /// The step after the one that has ended, without waiting for an observation: its outcome says enough.
    fn go_on(
        &mut self,
        entry: &mut Entry,
        pod: &Pod,
        container: &Container,
        starting: Starting,
        steps: &mut Steps,
    ) {
        let slot = Slot::Container(container.name.clone());
        match starting {
            Starting::Created(id) => self.begin_start(entry, slot, Action::Start(id), steps),
            Starting::Started(id) => {
                let hook = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref());
                match hook {
                    Some(hook) => {
                        let task = tasks::hook(hook, container, &id, &self.host(entry));
                        steps.begin(entry, slot, Action::PostStart(task), self.now.at);
                    }
                    None => drop(entry.starting.remove(&container.name)),
                }
            }
            Starting::HookFailed(id) => {
                if self.must_wait(entry, &container.name) {
                    return;
                }
                entry.say(Note::killing(&container.name, "FailedPostStartHook"));
                let grace = Duration::from_secs(pod.grace_seconds());
                let stop = Action::Stop { id, grace, pre_stop: None };
                steps.begin(entry, slot, stop, self.now.at);
            }
        }
    }

    /// Looks whether a container that runs has to be stopped: it is not well, or it is another one that is wanted.
    fn running(
        &mut self,
        entry: &mut Entry,
        pod: &Pod,
        container: &Container,
        newest: &ObservedContainer,
        steps: &mut Steps,
    ) {
        let name = &container.name;
        if self.must_wait(entry, name) {
            return;
        }
        let failed = entry.probes.failed(name, &newest.id);
        let (message, grace) = if let Some(kind) = failed {
            let word = match kind {
                ProbeKind::Startup => "startup",
                ProbeKind::Liveness | ProbeKind::Readiness => "liveness",
            };
            let own = kind.of(container).and_then(|probe| probe.termination_grace_period_seconds);
            (format!("Container {name} failed {word} probe, will be restarted"), own)
        } else if is_replaced(newest, container) {
            (format!("Container {name} definition changed, will be restarted"), None)
        } else {
            match entry.next_resize(container, pod.restart_policy_of(container), self.now) {
                NextResize::Nothing => return,
                NextResize::InPlace => {
                    let resources = Box::new(make::limits(pod, container, &self.facts));
                    let cgroup = make::cgroup(pod, self.config, true);
                    let resize = Action::Resize(newest.id.clone(), resources, cgroup);
                    return steps.begin(entry, Slot::Container(name.clone()), resize, self.now.at);
                }
                NextResize::ByRestart => (format!("Container {name} resize requires restart"), None),
            }
        };
        entry.say(Note::killing(name, message));
        let grace = Duration::from_secs(grace.unwrap_or(pod.grace_seconds()));
        let pre_stop = self.pre_stop(entry, container, newest);
        let stop = Action::Stop { id: newest.id.clone(), grace, pre_stop };
        steps.begin(entry, Slot::Container(name.clone()), stop, self.now.at);
    }

    /// The hook that the container asks to be run before it is stopped, once.
    pub(super) fn pre_stop(
        &self,
        entry: &Entry,
        container: &Container,
        instance: &ObservedContainer,
    ) -> Option<Task> {
        let hook: &Handler = container.lifecycle.as_ref()?.pre_stop.as_ref()?;
        let run = is_running(instance) && !entry.hooked.contains(&instance.id);
        run.then(|| tasks::hook(hook, container, &instance.id, &self.host(entry)))
    }

    /// Where the pod is reached from its node.
    fn host(&self, entry: &Entry) -> String {
        tasks::host(&entry.ips)
    }

    fn backs_off(&self, entry: &mut Entry, pod: &Pod, name: &str) -> bool {
        let Some(crash) = entry.crashes.get_mut(name).filter(|crash| crash.until > self.now.at) else {
            return false;
        };
        let until = crash.until;
        if !std::mem::replace(&mut crash.said, true) {
            let reference = &pod.reference;
            let (pod_name, namespace) = (reference.name(), reference.namespace());
            entry.say(Note::back_off_restarting(name, pod_name, namespace, pod.uid.as_str()));
        }
        entry.wake_at(until);
        true
    }

    fn start(
        &mut self,
        entry: &mut Entry,
        pod: &Pod,
        container: &Container,
        sandbox: &ObservedSandbox,
        steps: &mut Steps,
    ) {
        let name = &container.name;
        if !entry.prepared || !self.image(entry, pod, container, steps) {
            return;
        }
        let attempt = entry.attempts.get(name).map_or(0, |last| last + 1);
        let made = resolve::environment(container, pod, &self.facts)
            .and_then(|env| make::container(pod, container, attempt, env, self.config, &self.facts));
        let (mut config, before) = match made {
            Ok(made) => made,
            Err(missing) => {
                if entry.unresolved.get(name) != Some(&missing.0) {
                    entry.say(Note::failed(name, format!("Error: {}", missing.0)));
                }
                entry.unresolved.insert(name.clone(), missing.0);
                return;
            }
        };
        entry.unresolved.remove(name);
        if let Some(skipped) =
            resolve::skipped_variables(container, pod, &self.facts).filter(|_| self.may_start)
        {
            entry.say(Note::skipped_variables(name, skipped));
        }
        let last_words = words::mount(&pod.uid, container, attempt, self.config);
        config.mounts.extend(last_words.clone());
        let last_words = last_words.map(|mount| mount.host_path);
        let wanted = self.offered.and_then(|offered| devices_of(pod, container, offered));
        let devices = wanted.map(|wanted| Question::Grant { uid: pod.uid.clone(), wanted });
        let cgroup = make::cgroup(pod, self.config, true);
        let create = Create { sandbox: sandbox.id.clone(), config, before, last_words, devices, cgroup };
        self.begin_start(entry, Slot::Container(name.clone()), Action::Create(Box::new(create)), steps);
    }

    /// Sees to the images of those containers that are the next to start, all at once.
    pub(super) fn images_ahead(&mut self, entry: &mut Entry, pod: &Pod, steps: &mut Steps) {
        let sandbox = self.sandboxes.last().filter(|sandbox| sandbox.ready);
        let unborn = |name: &str| sandbox.is_none_or(|sandbox| newest_of(sandbox, name).is_none());
        let init = pod.spec.init_containers.iter().any(|container| unborn(&container.name));
        let next =
            if init && !self.init_is_done(pod) { &pod.spec.init_containers } else { &pod.spec.containers };
        for container in next.iter().filter(|container| unborn(&container.name)) {
            if entry.is_free(&Slot::Container(container.name.clone()))
                && !entry.starting.contains_key(&container.name)
                && !self.must_wait(entry, &container.name)
                && !self.ended_before(entry, &container.name, pod.spec.restart_policy)
            {
                self.image(entry, pod, container, steps);
            }
        }
    }

    /// Whether the container's image can be used; if not, what is next for it is begun.
    fn image(&mut self, entry: &mut Entry, pod: &Pod, container: &Container, steps: &mut Steps) -> bool {
        let (name, image) = (&container.name, &container.image);
        let slot = Slot::Container(name.clone());
        let policy = PullPolicy::of(&container.image_pull_policy, image);
        let here = match entry.images.get(name) {
            Some(Image::Ready) => return true,
            Some(Image::Wanted { here }) => *here,
            None => {
                if let Err(message) = image::check(image) {
                    let failure = Failure { reason: "InvalidImageName", message };
                    // It can only be mended by another image, which is another plan.
                    entry.note_trouble(name, failure, Duration::from_secs(300), self.now);
                } else {
                    let action = Action::Inspect { image: image.clone() };
                    steps.begin(entry, slot, action, self.now.at);
                }
                return false;
            }
        };
        match (policy, here) {
            (PullPolicy::IfNotPresent | PullPolicy::Never, true) => {
                entry.say(Note::present(name, image));
                entry.images.insert(name.clone(), Image::Ready);
                true
            }
            (PullPolicy::Never, false) => {
                let message = format!("Container image \"{image}\" is not present with pull policy of Never");
                let failure = Failure { reason: "ErrImageNeverPull", message };
                entry.images.remove(name);
                // An image that must not be pulled appears by hand, so look at an even pace.
                entry.note_trouble(name, failure, Duration::from_secs(10), self.now);
                false
            }
            (PullPolicy::Always, _) | (PullPolicy::IfNotPresent, false) => {
                if self.may_pull == 0 {
                    entry.changed = true;
                    return false;
                }
                self.may_pull -= 1;
                entry.say(Note::pulling(name, image));
                let credentials = make::credentials(pod, image, &self.facts);
                let action = Action::Pull { image: image.clone(), credentials };
                steps.begin(entry, slot, action, self.now.at);
                false
            }
        }
    }

    /// Removes what nobody can ask about any more: each container keeps its newest two instances.
    fn tidy(&self, entry: &mut Entry, pod: &Pod, current: &ObservedSandbox, steps: &mut Steps) {
        let old = self.sandboxes.iter().find(|sandbox| sandbox.id != current.id);
        if let Some(old) = old {
            // How they ended is to be told after they are removed.
            if !entry.is_reading() && entry.busy.is_empty() {
                let action = Action::RemoveSandbox(old.id.clone());
                steps.begin(entry, Slot::Pod, action, self.now.at);
            }
            return;
        }
        let mut newest: BTreeMap<&str, u32> = BTreeMap::new();
        for container in &current.containers {
            let attempt = newest.entry(&container.name).or_default();
            *attempt = container.attempt.max(*attempt);
        }
        for stale in &current.containers {
            let slot = Slot::Container(stale.name.clone());
            let old = newest.get(stale.name.as_str()).is_some_and(|newest| stale.attempt + 1 < *newest);
            if old && entry.is_free(&slot) && !entry.starting.contains_key(&stale.name) {
                let mut files: Vec<PathBuf> = stale.log.iter().map(|log| log.path.clone()).collect();
                files.push(words::path(&pod.uid, &stale.name, stale.attempt, self.config));
                let action = Action::RemoveContainer { id: stale.id.clone(), files };
                steps.begin(entry, slot, action, self.now.at);
            }
        }
    }
}

/// Whether the instance was made from another specification than the container has.
fn is_replaced(instance: &ObservedContainer, container: &Container) -> bool {
    !instance.spec_hash.is_empty() && instance.spec_hash != make::spec_hash(container)
}
