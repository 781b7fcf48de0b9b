//! A runtime that only remembers, in virtual time.

use kubeedge_core::runtime::{
    ContainerId, ContainerState, ObservedContainer, ObservedSandbox, SandboxConfig, SandboxId,
};

use super::super::*;
use crate::edged::action::{Create, Failure};

/// The runtime: what there is, and how often containers were started.
#[derive(Default)]
pub(super) struct FakeRuntime {
    pub(super) sandboxes: Vec<ObservedSandbox>,
    pub(super) images: BTreeSet<String>,
    pub(super) starts: BTreeMap<String, u32>,
    pub(super) away: bool,
    next: u64,
}

impl FakeRuntime {
    pub(super) fn find(&self, id: &ContainerId) -> Option<&ObservedContainer> {
        self.sandboxes.iter().flat_map(|sandbox| &sandbox.containers).find(|one| one.id == *id)
    }

    pub(super) fn run(&mut self, config: &SandboxConfig, now: Moment) -> Outcome {
        let same = |one: &ObservedSandbox| one.uid == config.uid && one.attempt == config.attempt;
        if self.sandboxes.iter().any(same) {
            let message = "this attempt is there already".to_owned();
            return Outcome::Failed(Failure { reason: "FailedCreatePodSandBox", message });
        }
        self.next += 1;
        self.sandboxes.push(ObservedSandbox {
            id: SandboxId(format!("s{}", self.next)),
            name: config.name.clone(),
            namespace: config.namespace.clone(),
            uid: config.uid.clone(),
            attempt: config.attempt,
            ready: true,
            ips: vec![format!("10.0.0.{}", self.next % 250 + 2)],
            created_at_ms: now.unix_ms,
            containers: Vec::new(),
        });
        Outcome::Done
    }

    pub(super) fn create(&mut self, create: &Create, now: Moment) -> Outcome {
        self.next += 1;
        let id = ContainerId(format!("c{}", self.next));
        let config = &create.config;
        let failed = |message: &str| {
            Outcome::Failed(Failure { reason: "CreateContainerError", message: message.to_owned() })
        };
        if !self.images.contains(&config.image) {
            return failed("no such image");
        }
        let Some(sandbox) = self.sandboxes.iter_mut().find(|sandbox| sandbox.id == create.sandbox) else {
            return failed("no such sandbox");
        };
        if sandbox.containers.iter().any(|one| one.name == config.name && one.attempt == config.attempt) {
            return failed("this attempt is there already");
        }
        sandbox.containers.push(ObservedContainer {
            id: id.clone(),
            name: config.name.clone(),
            attempt: config.attempt,
            image: config.image.clone(),
            image_id: "sha256:1".to_owned(),
            spec_hash: config.spec_hash.clone(),
            created_at_ms: now.unix_ms,
            state: ContainerState::Created,
            log: None,
        });
        Outcome::Created(id)
    }

    pub(super) fn start(&mut self, uid: &Uid, id: &ContainerId, now: Moment) -> Outcome {
        let name = self.find(id).map(|one| one.name.clone()).unwrap_or_default();
        assert_eq!(self.running(uid.as_str(), &name), 0, "{uid}/{name} is started while it runs");
        // A sandbox without power has no place for it.
        let all = self.sandboxes.iter_mut().filter(|one| one.ready).flat_map(|one| &mut one.containers);
        match all.into_iter().find(|one| one.id == *id) {
            Some(one) if one.state == ContainerState::Created => {
                one.state = ContainerState::Running { started_at_ms: now.unix_ms };
                *self.starts.entry(format!("{uid}/{}", one.name)).or_default() += 1;
                Outcome::Done
            }
            Some(_) | None => {
                let message = "it cannot be started".to_owned();
                Outcome::Failed(Failure { reason: "RunContainerError", message })
            }
        }
    }

    pub(super) fn exit(&mut self, id: &ContainerId, code: i32, now: Moment) {
        let all = self.sandboxes.iter_mut().flat_map(|sandbox| &mut sandbox.containers);
        for one in all.filter(|one| one.id == *id) {
            if let ContainerState::Running { started_at_ms } = one.state {
                one.state = ContainerState::Exited {
                    exit_code: Some(code),
                    reason: if code == 0 { "Completed" } else { "Error" }.to_owned(),
                    message: String::new(),
                    started_at_ms,
                    finished_at_ms: now.unix_ms,
                };
            }
        }
    }

    pub(super) fn stop_sandbox(&mut self, id: &SandboxId, now: Moment) {
        let Some(sandbox) = self.sandboxes.iter_mut().find(|sandbox| sandbox.id == *id) else { return };
        sandbox.ready = false;
        let ids: Vec<ContainerId> = sandbox.containers.iter().map(|one| one.id.clone()).collect();
        ids.iter().for_each(|id| self.exit(id, 137, now));
    }

    /// The machine loses its power: everything is dead and still known.
    pub(super) fn power_cycle(&mut self, now: Moment) {
        let ids: Vec<SandboxId> = self.sandboxes.iter().map(|sandbox| sandbox.id.clone()).collect();
        ids.iter().for_each(|id| self.stop_sandbox(id, now));
    }

    /// How many instances of this container run.
    pub(super) fn running(&self, uid: &str, name: &str) -> usize {
        let of_pod = self.sandboxes.iter().filter(|sandbox| sandbox.uid.as_str() == uid);
        let all = of_pod.flat_map(|sandbox| &sandbox.containers);
        all.filter(|one| one.name == name && is_running(one)).count()
    }
}
