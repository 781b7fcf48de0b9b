//! A node in virtual time: the state, a runtime that is scripted, and a disk that survives.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kubeedge_core::{
    message::ObjectEvent,
    runtime::{ContainerId, RuntimeError},
};
use serde_json::{Value, json};

use super::{
    super::*,
    runtime::FakeRuntime,
    trace::{reason, text},
};
use crate::edged::{
    Cgroups,
    action::{Action, Failure, Slot},
    devices::Question,
    record::Record,
};

const EPOCH_MS: u64 = 1_700_000_000_000;

/// What a call of the runtime comes to when its time is over.
enum Pending {
    Action(Uid, Slot, Action),
    Observation,
    Probe(Uid, ProbeKey),
    Words(Uid, ContainerId),
    Exit(ContainerId, i32),
}

pub(super) struct World {
    pub(super) state: State,
    pub(super) now: Moment,
    pub(super) runtime: FakeRuntime,
    pub(super) script: Script,
    pending: Vec<(Instant, u64, Pending)>,
    serial: u64,
    /// Statuses by UID, in the order in which they were told.
    pub(super) told: BTreeMap<String, Vec<Value>>,
    pub(super) gone: BTreeSet<String>,
    pub(super) events: Vec<Value>,
    /// What was begun, as text, with the milliseconds since the world began.
    pub(super) trace: Vec<(u64, String)>,
    pub(super) observations: u64,
    /// The paths that were removed with each pod.
    pub(super) removed: Vec<Vec<std::path::PathBuf>>,
    records: BTreeMap<Uid, Record>,
    objects: BTreeMap<ObjectRef, Object>,
    config: Config,
    room: Option<Room>,
    /// What was asked about devices.
    pub(super) asked_devices: Vec<Question>,
    /// What the pods that share the processors were given together, one after the other.
    pub(super) shares: Vec<i64>,
}

/// How the runtime and the containers behave. Containers are named `<uid>/<name>`.
#[derive(Default)]
pub(super) struct Script {
    /// How long a step takes whose text begins like this; 10 ms otherwise.
    pub(super) takes: Vec<(&'static str, Duration)>,
    /// Steps that fail whose text begins like this, so often.
    pub(super) fails: Vec<(&'static str, &'static str, u32)>,
    /// How instances end in turn: after what time, with what code.
    pub(super) exits: BTreeMap<&'static str, VecDeque<(Duration, i32)>>,
    /// What a probe finds; success otherwise.
    pub(super) probes: BTreeMap<(&'static str, ProbeKind), ProbeResult>,
    /// How long each probe takes; 10 ms otherwise.
    pub(super) probe_takes: Option<Duration>,
    /// Containers that ignore the request to stop.
    pub(super) deaf: BTreeSet<&'static str>,
    /// Pods for which there are no devices, and why.
    pub(super) no_devices: BTreeMap<&'static str, &'static str>,
    /// What containers say at their end.
    pub(super) words: BTreeMap<&'static str, &'static str>,
}

impl World {
    /// A node that is in sync with the cloud.
    pub(super) fn new() -> Self {
        let mut world = Self::offline();
        world.connect(Connectivity::Synchronized);
        world
    }

    pub(super) fn offline() -> Self {
        let now = Moment { at: Instant::now(), unix_ms: EPOCH_MS };
        let mut config = Config::new("edge-1".parse().unwrap());
        config.node_ip = "192.0.2.7".to_owned();
        config.cgroups = Some(Cgroups::default());
        Self {
            state: fresh(&config, now),
            now,
            runtime: FakeRuntime::default(),
            script: Script::default(),
            pending: Vec::new(),
            serial: 0,
            told: BTreeMap::new(),
            gone: BTreeSet::new(),
            events: Vec::new(),
            trace: Vec::new(),
            observations: 0,
            removed: Vec::new(),
            records: BTreeMap::new(),
            objects: BTreeMap::new(),
            config,
            room: None,
            asked_devices: Vec::new(),
            shares: Vec::new(),
        }
    }

    /// Says what the node offers; without it every pod fits.
    pub(super) fn offer(&mut self, cpu_milli: i64, memory_mib: i64) {
        let allocatable = [("cpu", cpu_milli), ("memory", memory_mib << 20), ("example.com/camera", 2)];
        let room = Room {
            allocatable: allocatable.map(|(name, amount)| (name.to_owned(), amount)).into(),
            pods: 110,
            name: "edge-1".to_owned(),
            confirmed: true,
            ..Room::default()
        };
        self.room = Some(room.clone());
        self.state.handle_room(room, BTreeSet::new());
        self.turn();
    }

    pub(super) fn connect(&mut self, connectivity: Connectivity) {
        self.state.handle_connectivity(connectivity, self.now);
        self.turn();
    }

    /// Applies a pod of this name, which is also its UID.
    pub(super) fn apply(&mut self, name: &str, spec: Value) {
        self.apply_with(name, spec, &json!({}));
    }

    pub(super) fn apply_with(&mut self, name: &str, spec: Value, metadata: &Value) {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": "default", "uid": name },
            "spec": spec,
        });
        for (key, value) in metadata.as_object().unwrap() {
            pod["metadata"][key] = value.clone();
        }
        self.store(pod);
    }

    pub(super) fn store(&mut self, object: Value) {
        let object = Object::from_json(object.to_string()).unwrap();
        self.objects.insert(object.reference.clone(), object.clone());
        self.state.handle_object(ObjectEvent::Applied(object), self.now);
        self.turn();
    }

    /// Asks for the deletion of a pod, as the API does with a grace.
    pub(super) fn delete(&mut self, name: &str, grace: u64) {
        let old = &self.objects[&ObjectRef::pod("default", name)];
        let mut pod: Value = serde_json::from_slice(&old.json).unwrap();
        pod["metadata"]["deletionTimestamp"] = json!("2023-11-14T22:13:20Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        self.store(pod);
    }

    /// Removes the pod's object, as the API does in the end or at once by force.
    pub(super) fn forget(&mut self, name: &str) {
        let reference = ObjectRef::pod("default", name);
        self.objects.remove(&reference);
        self.state.handle_object(ObjectEvent::Deleted { reference, uid: Uid::new(name) }, self.now);
        self.turn();
    }

    /// Does what the API does when a pod that is deleted is gone from its node.
    pub(super) fn forget_gone(&mut self) {
        for name in std::mem::take(&mut self.gone) {
            if self.objects.contains_key(&ObjectRef::pod("default", &name)) {
                self.forget(&name);
            }
        }
    }

    pub(super) fn wait(&mut self, seconds: u64) {
        self.wait_ms(seconds * 1000);
    }

    /// Lets time pass. What happens in it happens in order.
    pub(super) fn wait_ms(&mut self, millis: u64) {
        let until = self.now.at + Duration::from_millis(millis);
        let mut turns = 0;
        self.turn();
        loop {
            let due = self.pending.iter().map(|(due, ..)| *due).min();
            let next = due.into_iter().chain([self.state.poll_timeout()]).min().unwrap_or(until);
            if next > until {
                break;
            }
            turns = if next > self.now.at { 0 } else { turns + 1 };
            assert!(turns < 2000, "it turns without end at {:?}\n{}", self.elapsed(), self.story());
            self.pass_to(next.max(self.now.at));
            self.complete();
            self.turn();
        }
        self.pass_to(until);
        self.turn();
    }

    fn pass_to(&mut self, at: Instant) {
        let passed = at.duration_since(self.now.at);
        self.now = Moment { at, unix_ms: self.now.unix_ms + passed.as_millis() as u64 };
    }

    fn elapsed(&self) -> u64 {
        self.now.unix_ms - EPOCH_MS
    }

    /// Ends this process and begins another, which finds the runtime, the disk and the store. Of what was in
    /// flight, `had_effect` says whether it took effect; nobody hears of it.
    pub(super) fn restart(&mut self, mut had_effect: impl FnMut() -> bool) {
        let pending = std::mem::take(&mut self.pending);
        for (due, serial, pending) in pending {
            match pending {
                Pending::Action(uid, _, action) => {
                    if had_effect() {
                        let _ = self.effect(&uid, &action);
                    }
                }
                Pending::Exit(id, code) => self.pending.push((due, serial, Pending::Exit(id, code))),
                Pending::Observation | Pending::Probe(..) | Pending::Words(..) => {}
            }
        }
        self.state = fresh(&self.config, self.now);
        if let Some(room) = self.room.clone() {
            self.state.handle_room(room, BTreeSet::new());
        }
        for (uid, record) in &self.records {
            self.state.restore(uid.clone(), record.clone());
        }
        for object in self.objects.values() {
            self.state.handle_object(ObjectEvent::Applied(object.clone()), self.now);
        }
        self.state.handle_connectivity(Connectivity::Synchronized, self.now);
        self.turn();
    }

    /// Takes what the state asks for, until it asks for nothing.
    fn turn(&mut self) {
        self.state.handle_timeout(self.now);
        while let Some(output) = self.state.poll_output() {
            match output {
                Output::Do(uid, slot, action) => {
                    let text = text(&uid, &slot, &action);
                    let takes = self.takes(&uid, &text, &action);
                    self.trace.push((self.elapsed(), text));
                    if let Action::RemoveFiles { paths } = &action {
                        self.removed.push(paths.clone());
                    }
                    self.schedule(takes, Pending::Action(uid, slot, action));
                }
                Output::Abort(uid, slot) => {
                    self.pending.retain(|(.., pending)| {
                        !matches!(pending, Pending::Action(u, s, _) if *u == uid && *s == slot)
                    });
                    self.state.handle_done(&uid, &slot, Outcome::Aborted, self.now);
                }
                Output::Probe(uid, key, _, within) => {
                    let takes = self.script.probe_takes.unwrap_or(Duration::from_millis(10)).min(within);
                    self.schedule(takes, Pending::Probe(uid, key));
                }
                Output::Read(uid, id, _) => {
                    self.schedule(Duration::from_millis(1), Pending::Words(uid, id));
                }
                Output::Observe => self.schedule(Duration::from_millis(1), Pending::Observation),
                Output::Report(Report::Pod(report)) => self.report(&report),
                Output::Report(other) => panic!("{other:?}"),
                Output::Allocate(uid, question) => {
                    let refused = self.script.no_devices.get(uid.as_str()).map(|why| (*why).to_owned());
                    self.asked_devices.push(question);
                    self.state.handle_allocated(&uid, refused.map_or(Ok(()), Err));
                }
                Output::AskForNode => panic!("the room of these stories is not known"),
                Output::Token(request) => panic!("no pod of these stories mounts a token: {request:?}"),
                Output::Keep(uid, record) => drop(self.records.insert(uid, record)),
                Output::Forget(uid) => drop(self.records.remove(&uid)),
                Output::Share(milli) => self.shares.push(milli),
            }
            self.state.handle_timeout(self.now);
        }
        while let Some(event) = self.state.next_event() {
            self.events.push(serde_json::from_slice(&event.json).unwrap());
            self.state.handle_event_sent();
        }
    }

    fn report(&mut self, report: &PodReport) {
        let uid = report.uid.to_string();
        match &report.state {
            PodState::Gone => drop(self.gone.insert(uid)),
            PodState::Status(bytes) => {
                let status = serde_json::from_slice(bytes).unwrap();
                self.told.entry(uid).or_default().push(status);
            }
        }
    }

    fn schedule(&mut self, after: Duration, pending: Pending) {
        self.serial += 1;
        self.pending.push((self.now.at + after, self.serial, pending));
    }

    fn takes(&self, uid: &Uid, text: &str, action: &Action) -> Duration {
        let scripted = self.script.takes.iter().find(|(start, _)| text.starts_with(start));
        if let Some((_, takes)) = scripted {
            return *takes;
        }
        let usual = Duration::from_millis(10);
        let Action::Stop { id, grace, .. } = action else { return usual };
        let name = self.runtime.find(id).map(|one| format!("{uid}/{}", one.name)).unwrap_or_default();
        if self.script.deaf.contains(name.as_str()) { *grace } else { usual }
    }

    /// Brings to its end what is due, in order.
    fn complete(&mut self) {
        self.pending.sort_by_key(|(due, serial, _)| (*due, *serial));
        let due = self.pending.iter().take_while(|(due, ..)| *due <= self.now.at).count();
        let all: Vec<_> = self.pending.drain(..due).collect();
        for (_, _, pending) in all {
            match pending {
                Pending::Action(uid, slot, action) => {
                    let outcome = self.outcome(&uid, &slot, &action);
                    self.state.handle_done(&uid, &slot, outcome, self.now);
                }
                Pending::Observation => {
                    self.observations += 1;
                    let observed = if self.runtime.away {
                        Err(RuntimeError::Unavailable { what: "list".into(), message: "no socket".into() })
                    } else {
                        Ok(self.runtime.sandboxes.clone())
                    };
                    self.state.handle_observed(observed, self.now);
                }
                Pending::Probe(uid, key) => {
                    let name = format!("{uid}/{}", key.container);
                    let found =
                        self.script.probes.iter().find(|((of, kind), _)| *of == name && *kind == key.kind);
                    let result = found.map_or(ProbeResult::Success, |(_, result)| result.clone());
                    self.state.handle_probe(&uid, &key, &result, self.now);
                }
                Pending::Words(uid, id) => {
                    let name = self.runtime.find(&id).map(|one| format!("{uid}/{}", one.name));
                    let said = name.and_then(|name| self.script.words.get(name.as_str()).copied());
                    self.state.handle_words(&uid, &id, said.unwrap_or_default().to_owned());
                }
                Pending::Exit(id, code) => self.runtime.exit(&id, code, self.now),
            }
            // What is due at the same time may already have been given up by what came before it.
            self.turn();
        }
    }

    fn outcome(&mut self, uid: &Uid, slot: &Slot, action: &Action) -> Outcome {
        let text = text(uid, slot, action);
        if self.runtime.away && !matches!(action, Action::Prepare(..) | Action::RemoveFiles { .. }) {
            let message = "no socket".to_owned();
            return Outcome::Failed(Failure { reason: reason(action), message });
        }
        let fails =
            self.script.fails.iter_mut().find(|(start, _, times)| text.starts_with(start) && *times > 0);
        if let Some((_, message, times)) = fails {
            *times -= 1;
            return Outcome::Failed(Failure { reason: reason(action), message: (*message).to_owned() });
        }
        self.effect(uid, action)
    }

    /// What the step does to the runtime.
    fn effect(&mut self, uid: &Uid, action: &Action) -> Outcome {
        let now = self.now;
        match action {
            Action::Prepare(..) | Action::PostStart(_) | Action::Resize(..) | Action::RemoveFiles { .. } => {
                Outcome::Done
            }
            Action::Inspect { image } => Outcome::Found(self.runtime.images.contains(image)),
            Action::Pull { image, .. } => {
                self.runtime.images.insert(image.clone());
                Outcome::Pulled(Duration::from_millis(10))
            }
            Action::RunSandbox(config) => self.runtime.run(config, now),
            Action::Create(create) => self.runtime.create(create, now),
            Action::Start(id) => {
                let outcome = self.runtime.start(uid, id, now);
                let name = self.runtime.find(id).map(|one| format!("{uid}/{}", one.name)).unwrap_or_default();
                let exit = self.script.exits.get_mut(name.as_str()).and_then(VecDeque::pop_front);
                if let Some((after, code)) = exit {
                    self.schedule(after, Pending::Exit(id.clone(), code));
                }
                outcome
            }
            Action::Stop { id, .. } => {
                let name = self.runtime.find(id).map(|one| format!("{uid}/{}", one.name)).unwrap_or_default();
                let code = if self.script.deaf.contains(name.as_str()) { 137 } else { 143 };
                self.runtime.exit(id, code, now);
                Outcome::Stopped { hook: None, overdue: false }
            }
            Action::RemoveContainer { id, .. } => {
                for sandbox in &mut self.runtime.sandboxes {
                    sandbox.containers.retain(|one| one.id != *id);
                }
                Outcome::Done
            }
            Action::StopSandbox(id) => {
                self.runtime.stop_sandbox(id, now);
                Outcome::Done
            }
            Action::RemoveSandbox(id) => {
                self.runtime.sandboxes.retain(|sandbox| sandbox.id != *id);
                Outcome::Done
            }
        }
    }
}

fn fresh(config: &Config, now: Moment) -> State {
    State::new(config.clone(), Capacity { cpu_milli: 2000, memory_bytes: 1 << 30 }, now)
}
