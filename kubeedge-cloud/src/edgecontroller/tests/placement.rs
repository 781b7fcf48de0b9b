//! What nodes are told, compared with what they should have, after any history.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use kubeedge_core::{
    id::{NodeName, Uid},
    message::{Fingerprint, Object, ObjectEvent, ObjectRef},
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::{
    Config,
    state::{Output, State, WATCHED},
};
use crate::controller::{
    Change, Goes, Kind,
    testing::{node, object},
};

/// What somebody does to the API.
#[derive(Debug, Clone)]
enum Step {
    /// Creates or changes a pod: on which node, if any, which ConfigMaps and claims it refers to, and whether it is told of
    /// Services.
    Pod { name: u8, on: u8, maps: Vec<u8>, claims: Vec<u8>, links: bool, recreate: bool },
    /// Creates or changes a ConfigMap.
    Map { name: u8, value: u8, recreate: bool },
    /// Creates or changes a claim: to which volume it is bound, if to any.
    Claim { name: u8, volume: u8, recreate: bool },
    /// Creates or changes a volume.
    Volume { name: u8, value: u8, recreate: bool },
    /// Creates or changes a Service, with an address or without.
    Service { name: u8, address: bool, port: u8, recreate: bool },
    /// Deletes an object.
    Delete { kind: usize, name: u8 },
    /// The watch loses the following changes, until the next list.
    Lose,
    /// The watch falls behind: it tells what changes from here on later.
    Lag,
    /// The watch tells so much of what it is behind with.
    Tell { changes: usize },
    /// The API answers so many of the questions for objects that are asked at this moment, or gives no answer; the answers
    /// arrive later.
    Ask { questions: usize, fails: bool },
    /// Answers arrive.
    Answer { answers: usize },
    /// The watch begins again.
    List,
    /// A node loses its session: what it is told does not arrive.
    Away { on: u8 },
    /// A node has a session: it takes the snapshot, once there is one.
    Connect { on: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    let some = || prop::collection::vec(0..4_u8, 0..3);
    prop_oneof![
        4 => (0..4_u8, 0..3_u8, some(), some(), prop::bool::weighted(0.7), any::<bool>()).prop_map(
            |(name, on, maps, claims, links, recreate)| Step::Pod { name, on, maps, claims, links, recreate },
        ),
        2 => (0..4_u8, prop::bool::weighted(0.7), 0..2_u8, any::<bool>())
            .prop_map(|(name, address, port, recreate)| Step::Service { name, address, port, recreate }),
        2 => (0..4_u8, 0..3_u8, any::<bool>())
            .prop_map(|(name, volume, recreate)| Step::Claim { name, volume, recreate }),
        1 => (1..3_u8, 0..2_u8, any::<bool>())
            .prop_map(|(name, value, recreate)| Step::Volume { name, value, recreate }),
        3 => (0..4_u8, 0..2_u8, any::<bool>())
            .prop_map(|(name, value, recreate)| Step::Map { name, value, recreate }),
        3 => (0..5_usize, 0..4_u8).prop_map(|(kind, name)| Step::Delete { kind, name }),
        1 => Just(Step::Lose),
        1 => Just(Step::Lag),
        2 => (1..4_usize).prop_map(|changes| Step::Tell { changes }),
        3 => (1..4_usize, prop::bool::weighted(0.4)).prop_map(|(questions, fails)| Step::Ask { questions, fails }),
        3 => (1..4_usize).prop_map(|answers| Step::Answer { answers }),
        2 => Just(Step::List),
        1 => (1..3_u8).prop_map(|on| Step::Away { on }),
        2 => (1..3_u8).prop_map(|on| Step::Connect { on }),
    ]
}

/// The API, the state under test, and the nodes as they made themselves out of what they were told.
struct World {
    api: BTreeMap<ObjectRef, Object>,
    state: State,
    nodes: Nodes,
    away: BTreeSet<NodeName>,
    lost: bool,
    /// What the watch is behind with.
    behind: Option<VecDeque<Change>>,
    /// Answers of the API on their way.
    answers: VecDeque<(ObjectRef, Result<Option<Object>, String>)>,
    now: Instant,
    uids: u32,
    versions: u32,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            api: BTreeMap::new(),
            state: State::new(&Config::default()),
            nodes: BTreeMap::new(),
            away: BTreeSet::new(),
            lost: false,
            behind: None,
            answers: VecDeque::new(),
            now: Instant::now(),
            uids: 0,
            versions: 0,
        };
        world.list();
        world
    }

    fn act(&mut self, step: Step) {
        match step {
            Step::Pod { name, on, maps, claims, links, recreate } => {
                let on = if on == 0 { String::new() } else { format!("edge-{on}") };
                let env: Vec<Value> =
                    maps.iter().map(|map| json!({ "configMapRef": { "name": format!("o{map}") } })).collect();
                let claim =
                    |claim: &u8| json!({ "persistentVolumeClaim": { "claimName": format!("o{claim}") } });
                let volumes: Vec<Value> = claims.iter().map(claim).collect();
                let spec = json!({
                    "nodeName": on, "containers": [{ "envFrom": env }], "volumes": volumes, "enableServiceLinks": links,
                });
                self.put(&pod(name), "spec", spec, recreate);
            }
            Step::Map { name, value, recreate } => {
                let reference = ObjectRef::config_map("default", format!("o{name}"));
                self.put(&reference, "data", json!({ "key": value }), recreate);
            }
            Step::Claim { name, volume, recreate } => {
                let spec =
                    if volume == 0 { json!({}) } else { json!({ "volumeName": format!("o{volume}") }) };
                self.put(&claim(name), "spec", spec, recreate);
            }
            Step::Volume { name, value, recreate } => {
                self.put(&volume(name), "spec", json!({ "key": value }), recreate);
            }
            Step::Service { name, address, port, recreate } => {
                let address = if address { "10.0.0.7" } else { "None" };
                let spec = json!({ "clusterIP": address, "ports": [{ "port": port }] });
                self.put(&service(name), "spec", spec, recreate);
            }
            Step::Delete { kind, name } => {
                let map = ObjectRef::config_map("default", format!("o{name}"));
                let of = [pod(name), map, claim(name), volume(name), service(name)];
                if let Some(old) = self.api.remove(&of[kind]) {
                    self.watched(Change::Deleted(old));
                }
            }
            Step::Lose => {
                // What it had not told is lost with the rest.
                (self.lost, self.behind) = (true, None);
            }
            Step::Lag if self.lost => {}
            Step::Lag => drop(self.behind.get_or_insert_default()),
            Step::Tell { changes } => self.tell(changes),
            Step::Ask { questions, fails } => self.ask(questions, fails),
            Step::Answer { answers } => self.answer(answers),
            Step::List => self.list(),
            Step::Away { on } => drop(self.away.insert(node(&format!("edge-{on}")))),
            Step::Connect { on } => self.connect(&node(&format!("edge-{on}"))),
        }
    }

    /// What CloudHub makes of a snapshot.
    fn connect(&mut self, name: &NodeName) {
        if !self.state.is_settled(name) {
            return;
        }
        let (snapshot, unknown) = (self.state.snapshot(name), self.state.unknown(name));
        let held = self.nodes.entry(name.clone()).or_default();
        held.retain(|reference, _| unknown.contains(reference));
        held.extend(snapshot.iter().map(entry));
        self.away.remove(name);
    }

    fn put(&mut self, reference: &ObjectRef, member: &str, content: Value, recreate: bool) {
        self.versions += 1;
        let old = self.api.get(reference).cloned();
        let uid = match old.as_ref().filter(|_| !recreate) {
            Some(old) => old.uid.to_string(),
            None => {
                self.uids += 1;
                format!("u{}", self.uids)
            }
        };
        let new = object(&json!({
            "apiVersion": "v1", "kind": reference.kind(),
            "metadata": {
                "namespace": reference.namespace(), "name": reference.name(), "uid": uid,
                "resourceVersion": self.versions.to_string(),
            },
            member: content,
        }));
        if let Some(old) = old.filter(|_| recreate) {
            self.watched(Change::Deleted(old));
        }
        self.api.insert(reference.clone(), new.clone());
        self.watched(Change::Applied(new));
    }

    fn watched(&mut self, change: Change) {
        match &mut self.behind {
            Some(behind) => behind.push_back(change),
            None if self.lost => {}
            None => self.take(change),
        }
    }

    fn tell(&mut self, changes: usize) {
        for _ in 0..changes {
            let Some(change) = self.behind.as_mut().and_then(VecDeque::pop_front) else { break };
            self.take(change);
        }
        if self.behind.as_ref().is_some_and(VecDeque::is_empty) {
            self.behind = None;
        }
    }

    fn ask(&mut self, questions: usize, fails: bool) {
        self.now += Duration::from_secs(60);
        for _ in 0..questions {
            let Some((_, reference)) = self.state.poll_fetch(self.now) else { return };
            let answer = if fails { Err("down".to_owned()) } else { Ok(self.api.get(&reference).cloned()) };
            self.answers.push_back((reference, answer));
        }
    }

    fn answer(&mut self, answers: usize) {
        for (reference, answer) in self.answers.drain(..answers.min(self.answers.len())) {
            self.state.handle_fetched(&reference, answer, self.now);
            deliver(&mut self.state, &mut self.nodes, &self.away);
        }
    }

    /// Everything arrives.
    fn settle(&mut self) {
        while !self.is_all_known() {
            self.answer(usize::MAX);
            self.ask(usize::MAX, false);
        }
        self.tell(usize::MAX);
        // What the watch told last may have begun to refer to something.
        while !self.is_all_known() {
            self.answer(usize::MAX);
            self.ask(usize::MAX, false);
        }
        for name in self.away.clone() {
            self.connect(&name);
        }
    }

    fn is_all_known(&self) -> bool {
        let known = |name| self.state.is_settled(name) && self.state.unknown(name).is_empty();
        self.answers.is_empty() && self.names().iter().all(known)
    }

    fn names(&self) -> [NodeName; 2] {
        [node("edge-1"), node("edge-2")]
    }

    fn list(&mut self) {
        (self.lost, self.behind) = (false, None);
        for kind in WATCHED {
            self.list_kind(kind);
        }
    }

    fn list_kind(&mut self, kind: Kind) {
        self.take(Change::Began(kind));
        let of_kind = self.api.values().filter(|object| object.reference.kind() == kind.kind);
        for object in of_kind.cloned().collect::<Vec<_>>() {
            self.take(Change::Applied(object));
        }
        self.take(Change::Listed(kind));
    }

    fn deliver(&mut self) {
        deliver(&mut self.state, &mut self.nodes, &self.away);
    }

    fn take(&mut self, change: Change) {
        self.state.handle_change(change);
        self.deliver();
    }

    fn services_of(&self, namespace: &str) -> impl Iterator<Item = ObjectRef> {
        let has_address =
            |object: &&Object| crate::controller::references::place(object).goes == Goes::ToNamespace;
        let services = self.api.values().filter(has_address).map(|object| object.reference.clone());
        services.filter(move |reference| reference.namespace() == namespace)
    }

    /// What a node should have, computed from the API alone.
    fn expected(&self, name: &NodeName) -> BTreeMap<ObjectRef, (Uid, Fingerprint)> {
        let mut expected = BTreeSet::new();
        for pod in self.api.values().filter(|object| object.reference.kind() == "Pod") {
            let placed = crate::controller::references::place(pod);
            if placed.node.as_ref() == Some(name) {
                expected.insert(pod.reference.clone());
                expected.extend(placed.references);
                if !placed.is_apart {
                    expected.extend(self.services_of(pod.reference.namespace()));
                }
            }
        }
        let claims = expected.iter().filter_map(|reference| self.api.get(reference));
        let volumes: Vec<ObjectRef> = claims
            .filter(|object| object.reference.kind() == "PersistentVolumeClaim")
            .flat_map(|claim| crate::controller::references::place(claim).references)
            .collect();
        expected.extend(volumes);
        let exists = expected.into_iter().filter_map(|reference| self.api.get(&reference));
        exists.map(entry).collect()
    }
}

/// What each node was told and has made of it.
type Nodes = BTreeMap<NodeName, BTreeMap<ObjectRef, (Uid, Fingerprint)>>;

fn deliver(state: &mut State, nodes: &mut Nodes, away: &BTreeSet<NodeName>) {
    while let Some(output) = state.poll_output() {
        let Output::Downstream(to) = output else { panic!("{output:?}") };
        if away.contains(&to.node) {
            continue;
        }
        let held = nodes.entry(to.node.clone()).or_default();
        match to.message {
            ObjectEvent::Applied(object) => {
                let placed = crate::controller::references::place(&object);
                let waits = placed.references.iter().any(|used| state.is_awaited(used));
                assert!(!waits, "a node was told of {} before what it is made of", object.reference);
                if object.reference.kind() == "Pod" {
                    let known = state.snapshot(&to.node).into_iter().map(|object| object.reference);
                    let mut services = known.filter(|reference| reference.kind() == "Service");
                    let late = services.find(|reference| !held.contains_key(reference));
                    assert_eq!(late, None, "a node was told of {} before its Services", object.reference);
                }
                held.insert(object.reference, (object.uid, object.fingerprint));
            }
            ObjectEvent::Deleted { reference, uid } => {
                // Without a UID whichever the node has is meant.
                if held.get(&reference).is_some_and(|(held, _)| *held == uid || uid == Uid::default()) {
                    held.remove(&reference);
                }
            }
        }
    }
}

fn pod(name: u8) -> ObjectRef {
    ObjectRef::pod(if name < 3 { "default" } else { "other" }, format!("o{name}"))
}

fn service(name: u8) -> ObjectRef {
    let namespace = if name < 2 { "default" } else { "other" };
    ObjectRef::new("v1", "Service", namespace, format!("o{name}"))
}

fn claim(name: u8) -> ObjectRef {
    ObjectRef::new("v1", "PersistentVolumeClaim", "default", format!("o{name}"))
}

fn volume(name: u8) -> ObjectRef {
    ObjectRef::new("v1", "PersistentVolume", "", format!("o{name}"))
}

fn entry(object: &Object) -> (ObjectRef, (Uid, Fingerprint)) {
    (object.reference.clone(), (object.uid.clone(), object.fingerprint))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn after_any_history_each_node_has_what_its_pods_need_and_nothing_else(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut world = World::new();
        for step in steps {
            world.act(step);
            world.deliver();
            if world.lost || world.behind.is_some() {
                continue;
            }
            for name in world.names() {
                if !world.state.is_settled(&name) {
                    continue;
                }
                let mut expected = world.expected(&name);
                let mut held = world.nodes.get(&name).cloned().unwrap_or_default();
                for unknown in world.state.unknown(&name) {
                    expected.remove(&unknown);
                    held.remove(&unknown);
                }
                if !world.away.contains(&name) {
                    prop_assert_eq!(&held, &expected, "what {} made of what it was told", &name);
                }
                let snapshot: BTreeMap<_, _> = world.state.snapshot(&name).iter().map(entry).collect();
                prop_assert_eq!(&snapshot, &expected, "the snapshot of {}", &name);
            }
        }
        if world.lost {
            world.list();
        }
        world.settle();
        world.deliver();
        for name in world.names() {
            let held = world.nodes.get(&name).cloned().unwrap_or_default();
            prop_assert_eq!(&held, &world.expected(&name), "what {} has in the end", &name);
            let snapshot: BTreeMap<_, _> = world.state.snapshot(&name).iter().map(entry).collect();
            prop_assert_eq!(&snapshot, &world.expected(&name), "the last snapshot of {}", &name);
        }
    }
}
