//! Pods that run and are to have other resources: what they were allotted stays theirs until the rest is let in.
//!
//! Everything but this file reads the resources that were allotted, which stand in the pod's own place. What its
//! object asks for besides waits here, and the pod's conditions say why.

use std::{
    collections::{BTreeMap, btree_map},
    sync::Arc,
    time::{Duration, Instant},
};

use kubeedge_core::{id::Uid, runtime::ObservedSandbox};
use tracing::info;

use super::{
    Entry, Moment, State,
    exits::{is_running, newest},
};
use crate::edged::{
    action::Failure,
    admission::{self, Room},
    events::{Kind, Note},
    pod::{Container, Pod, Requirements, RestartPolicy},
    record::Held,
};

/// Resources that a pod's object asks for.
#[derive(Debug)]
pub(crate) struct Resize {
    wanted: Arc<Pod>,
    /// Why the pod does not have them: the condition's reason, and its message.
    refusal: Option<(&'static str, String)>,
}

/// What an instance of a container was given.
#[derive(Debug, Clone, Default)]
pub(crate) struct Given {
    pub(crate) resources: Requirements,
    failed: Option<Failed>,
}

/// That the runtime could not give it what it was allotted.
#[derive(Debug, Clone)]
struct Failed {
    message: String,
    count: u32,
    until: Instant,
}

impl Given {
    pub(super) fn new(resources: Requirements) -> Self {
        Self { resources, failed: None }
    }
}

/// What is next for a container that runs.
pub(super) enum NextResize {
    /// It has what it was allotted, or the last failure was too short ago.
    Nothing,
    InPlace,
    ByRestart,
}

impl State {
    /// Lets pods have what their objects ask for, as far as the node has it, the oldest first.
    pub(super) fn judge_resizes(&mut self, room: &Room) {
        let asking = self.pods.values().filter(|entry| entry.resize.is_some() && !entry.is_ending());
        let mut asking: Vec<_> =
            asking.filter_map(|entry| Some((entry.wanted()?.rank(), entry.uid.clone()))).collect();
        asking.sort();
        for (_, uid) in asking {
            let refusal = self.refuses_resize(&uid, room);
            if let Some(entry) = self.pods.get_mut(&uid) {
                entry.handle_judgement(refusal);
            }
        }
    }

    fn refuses_resize(&self, uid: &Uid, room: &Room) -> Option<(&'static str, String)> {
        let entry = self.pods.get(uid)?;
        let (resize, pod) = (entry.resize.as_ref()?, entry.wanted()?);
        admission::resize(pod, &resize.wanted, self.others(uid).filter_map(Entry::wanted), room).err()
    }
}

impl Entry {
    /// The pod with what it was allotted before, if it has been let in; what it asks for besides is to be judged.
    pub(super) fn keep_allotted(&mut self, mut pod: Pod) -> Pod {
        let old = self.resize.take();
        let allotted = std::mem::take(&mut self.allotments);
        let allotted: BTreeMap<String, Requirements> = match self.wanted() {
            Some(known) => known.containers().map(|one| (one.name.clone(), one.resources.clone())).collect(),
            None => allotted.into_iter().map(|(name, held)| (name, held.allotted)).collect(),
        };
        let same = |one: &Container| allotted.get(&one.name).is_none_or(|known| *known == one.resources);
        let let_in = self.admitted || self.ran;
        if !let_in || self.verdict.is_some() || pod.is_deleting() || pod.containers().all(same) {
            return pod;
        }
        let wanted = Arc::new(pod.clone());
        for container in pod.spec.init_containers.iter_mut().chain(&mut pod.spec.containers) {
            if let Some(known) = allotted.get(&container.name) {
                container.resources = known.clone();
            }
        }
        // What was refused is judged again, and said again only if the answer is another one.
        self.resize = Some(Resize { wanted, refusal: old.and_then(|old| old.refusal) });
        pod
    }

    fn handle_judgement(&mut self, refusal: Option<(&'static str, String)>) {
        let Some(resize) = &mut self.resize else { return };
        match refusal {
            None => {
                info!(pod = %self.reference, "the pod gets other resources");
                self.pod = Some(Ok(Arc::clone(&resize.wanted)));
                self.resize = None;
                // Volumes may show the limits of containers.
                (self.dirty, self.changed) = (true, true);
            }
            Some(refusal) if resize.refusal.as_ref() == Some(&refusal) => {}
            Some((reason, message)) => {
                info!(pod = %self.reference, reason, message, "the pod does not get other resources");
                resize.refusal = Some((reason, message.clone()));
                self.changed = true;
                self.say(Note::of_pod(Kind::Warning, format!("Resize{reason}"), message));
            }
        }
    }

    /// Why the pod does not have the resources that its object asks for.
    pub(crate) fn resize_refusal(&self) -> Option<(&'static str, String)> {
        self.resize.as_ref()?.refusal.clone()
    }

    /// Whether a container that runs has not been given what it was allotted; inside, why it could not be.
    pub(crate) fn resizing(&self, sandboxes: &[ObservedSandbox]) -> Option<Option<String>> {
        let pod = self.wanted()?;
        let runs = |one: &&Container| newest(sandboxes, &one.name).is_some_and(is_running);
        let behind = pod
            .containers()
            .filter(runs)
            .filter_map(|one| self.given.get(&one.name).filter(|given| given.resources != one.resources));
        let failed: Vec<_> = behind.map(|given| given.failed.as_ref().map(|it| it.message.clone())).collect();
        (!failed.is_empty()).then(|| failed.into_iter().flatten().next())
    }

    /// What is to be done so that a container that runs has what it was allotted.
    pub(super) fn next_resize(
        &mut self,
        container: &Container,
        policy: RestartPolicy,
        now: Moment,
    ) -> NextResize {
        let given = match self.given.entry(container.name.clone()) {
            // An earlier process that kept no record of it has given it what the pod asked for.
            btree_map::Entry::Vacant(unknown) => unknown.insert(Given::new(container.resources.clone())),
            btree_map::Entry::Occupied(known) => known.into_mut(),
        };
        if given.resources == container.resources {
            given.failed = None;
            return NextResize::Nothing;
        }
        if let Some(until) = given.failed.as_ref().map(|failed| failed.until).filter(|at| *at > now.at) {
            self.wake_at(until);
            return NextResize::Nothing;
        }
        let changes = |name: &str| {
            let of = |all: &Requirements| (all.requests.get(name).copied(), all.limits.get(name).copied());
            of(&given.resources) != of(&container.resources)
        };
        let restarts = container
            .resize_policy
            .iter()
            .any(|policy| policy.restart_policy == "RestartContainer" && changes(&policy.resource_name));
        // What must not be started again would be lost.
        if restarts && policy != RestartPolicy::Never { NextResize::ByRestart } else { NextResize::InPlace }
    }

    pub(super) fn allotted_of(&self, name: &str) -> Requirements {
        let container = self.wanted().and_then(|pod| pod.container(name));
        container.map(|container| container.resources.clone()).unwrap_or_default()
    }

    /// Takes that an instance is created from what the container was allotted.
    pub(super) fn note_given(&mut self, name: &str) {
        let given = Given::new(self.allotted_of(name));
        self.given.insert(name.to_owned(), given);
    }

    pub(super) fn resized(&mut self, name: String, resources: Requirements) {
        info!(pod = %self.reference, container = name, "the container has other limits");
        self.given.insert(name, Given::new(resources));
    }

    pub(super) fn resize_failed(&mut self, name: &str, failure: Failure, now: Moment) {
        let Some(given) = self.given.get_mut(name) else { return };
        let count = given.failed.as_ref().map_or(0, |failed| failed.count) + 1;
        let until = now.at + Duration::from_secs((10 << (count - 1).min(5)).min(300));
        let message = format!("container {name}: {}", failure.message);
        let told = given.failed.as_ref().is_some_and(|failed| failed.message == message);
        given.failed = Some(Failed { message: message.clone(), count, until });
        self.wake_at(until);
        if !told {
            self.say(Note::of_container(Kind::Warning, name, failure.reason, message));
        }
    }

    /// What is kept for after a restart.
    pub(super) fn held_resources(&self) -> BTreeMap<String, Held> {
        let Some(pod) = self.wanted() else { return BTreeMap::new() };
        let held = pod.containers().map(|container| {
            let given = self.given.get(&container.name).map(|given| given.resources.clone());
            (container.name.clone(), Held { allotted: container.resources.clone(), given })
        });
        held.filter(|(_, held)| held.allotted != Requirements::default()).collect()
    }
}
