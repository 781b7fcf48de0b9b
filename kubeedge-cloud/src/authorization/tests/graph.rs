//! Random histories of a cluster and random requests of its nodes, against a model that looks through all pods.

use std::collections::BTreeSet;

use kubeedge_core::{
    id::Uid,
    message::{Object, ObjectRef, TokenRequest},
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    super::{Action, Denial, allows},
    node,
};
use crate::controller::{Change, Kind, Placement, references};

const PODS: Kind = Kind { api_version: "v1", kind: "Pod", plural: "pods", optional: false };

/// A pod as the model knows it.
#[derive(Debug, Clone)]
struct Pod {
    name: u8,
    uid: u8,
    node: u8,
    secrets: BTreeSet<u8>,
    /// By a claim, which is bound to the volume of the same number.
    claims: BTreeSet<u8>,
    account: u8,
    /// Whether it is told of Services.
    links: bool,
}

#[derive(Debug, Clone)]
enum Step {
    Put(Pod),
    Delete(u8),
    PutSecret(u8),
    DeleteSecret(u8),
    /// A claim is bound to a volume, or to none.
    Claim(u8, Option<u8>),
    DeleteClaim(u8),
    /// A Service has an address, or none.
    Service(u8, bool),
    DeleteService(u8),
}

#[derive(Debug, Clone)]
enum Ask {
    Secret(u8),
    Pod(u8),
    Claim(u8),
    Volume(u8),
    Service(u8),
    Node(u8),
    Write(u8, u8),
    Token(u8, u8, u8),
    Event(u8),
}

fn name(kind: &str, number: u8) -> String {
    format!("{kind}-{number}")
}

fn pod_object(pod: &Pod) -> Object {
    let secrets =
        pod.secrets.iter().map(|number| json!({ "secretRef": { "name": name("secret", *number) } }));
    let secrets: Vec<Value> = secrets.collect();
    let claims = pod.claims.iter().map(|number| {
        json!({ "name": name("volume", *number), "persistentVolumeClaim": { "claimName": name("claim", *number) } })
    });
    let token = json!({ "name": "token", "projected": { "sources": [{ "serviceAccountToken": {} }] } });
    let volumes: Vec<Value> = claims.chain([token]).collect();
    let json = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": "default", "name": name("pod", pod.name), "uid": name("uid", pod.uid) },
        "spec": {
            "nodeName": name("node", pod.node), "enableServiceLinks": pod.links, "serviceAccountName": name("account", pod.account),
            "containers": [{ "name": "main", "envFrom": secrets }], "volumes": volumes,
        },
    });
    Object::from_json(json.to_string()).unwrap()
}

fn other(kind: &str, number: u8, spec: &Value) -> Object {
    let json = json!({
        "apiVersion": "v1", "kind": kind, "spec": spec,
        "metadata": { "namespace": "default", "name": name(&kind_word(kind), number), "uid": name(kind, number) },
    });
    Object::from_json(json.to_string()).unwrap()
}

/// Every second Service is of another namespace than all pods.
fn service(number: u8) -> ObjectRef {
    let namespace = if number.is_multiple_of(2) { "default" } else { "other" };
    ObjectRef::new("v1", "Service", namespace, name("service", number))
}

fn service_object(number: u8, has_address: bool) -> Object {
    let reference = service(number);
    let json = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "namespace": reference.namespace(), "name": reference.name(), "uid": name("service", number) },
        "spec": { "clusterIP": if has_address { "10.0.0.1" } else { "None" } },
    });
    Object::from_json(json.to_string()).unwrap()
}

fn kind_word(kind: &str) -> String {
    match kind {
        "PersistentVolumeClaim" => "claim".to_owned(),
        other => other.to_lowercase(),
    }
}

fn claim_object(number: u8, bound: Option<u8>) -> Object {
    let spec = bound.map_or_else(|| json!({}), |volume| json!({ "volumeName": name("volume", volume) }));
    other("PersistentVolumeClaim", number, &spec)
}

/// What is asked of the graph, and by whom, answered by looking through everything.
#[derive(Default)]
struct Model {
    pods: Vec<Pod>,
    claims: Vec<(u8, Option<u8>)>,
    /// Those with an address.
    services: BTreeSet<u8>,
}

impl Model {
    fn step(&mut self, step: &Step) {
        match step {
            Step::Put(pod) => {
                self.pods.retain(|old| old.name != pod.name);
                self.pods.push(pod.clone());
            }
            Step::Delete(name) => self.pods.retain(|old| old.name != *name),
            Step::PutSecret(_) | Step::DeleteSecret(_) => {}
            Step::Claim(number, bound) => {
                self.claims.retain(|(old, _)| old != number);
                self.claims.push((*number, *bound));
            }
            Step::DeleteClaim(number) => self.claims.retain(|(old, _)| old != number),
            Step::Service(number, true) => drop(self.services.insert(*number)),
            Step::Service(number, false) | Step::DeleteService(number) => drop(self.services.remove(number)),
        }
    }

    fn allows(&self, who: u8, ask: &Ask) -> Result<(), Denial> {
        let own: Vec<&Pod> = self.pods.iter().filter(|pod| pod.node == who).collect();
        let read = |may: bool| if may { Ok(()) } else { Err(Denial::NotReferenced) };
        let named = |name: u8| self.pods.iter().find(|pod| pod.name == name);
        let write = |name: u8, uid: u8| match named(name) {
            None => Err(Denial::NoSuchObject),
            Some(pod) if pod.node != who => Err(Denial::OtherPod),
            Some(pod) if pod.uid != uid => Err(Denial::NoSuchObject),
            Some(pod) => Ok(pod),
        };
        match ask {
            Ask::Secret(number) => read(own.iter().any(|pod| pod.secrets.contains(number))),
            Ask::Pod(name) => read(own.iter().any(|pod| pod.name == *name)),
            Ask::Claim(number) => read(own.iter().any(|pod| pod.claims.contains(number))),
            Ask::Volume(volume) => {
                let bound = |number: &u8| self.claims.contains(&(*number, Some(*volume)));
                read(own.iter().any(|pod| pod.claims.iter().any(bound)))
            }
            Ask::Service(number) => {
                let here = number.is_multiple_of(2) && self.services.contains(number);
                read(here && own.iter().any(|pod| pod.links))
            }
            Ask::Node(number) => {
                if *number == who {
                    Ok(())
                } else {
                    Err(Denial::OtherNode)
                }
            }
            Ask::Write(name, uid) => write(*name, *uid).map(drop),
            Ask::Token(name, uid, account) => match write(*name, *uid)? {
                pod if pod.account == *account => Ok(()),
                _ => Err(Denial::TokenNotMounted),
            },
            Ask::Event(name) => match named(*name) {
                Some(pod) if pod.node == who => Ok(()),
                _ => Err(Denial::OtherEvent),
            },
        }
    }
}

fn step(graph: &mut Placement, step: &Step) {
    let known = |graph: &Placement, reference: &ObjectRef| graph.get(reference);
    let delete = |graph: &mut Placement, reference: &ObjectRef| {
        if let Some(object) = known(graph, reference) {
            graph.handle_change(Change::Deleted(object));
        }
    };
    let claim = |number: u8| ObjectRef::new("v1", "PersistentVolumeClaim", "default", name("claim", number));
    match step {
        Step::Put(pod) => graph.handle_change(Change::Applied(pod_object(pod))),
        Step::Delete(number) => delete(graph, &ObjectRef::pod("default", name("pod", *number))),
        Step::PutSecret(number) => graph.handle_change(Change::Applied(other("Secret", *number, &json!({})))),
        Step::DeleteSecret(number) => delete(graph, &ObjectRef::secret("default", name("secret", *number))),
        Step::Claim(number, bound) => graph.handle_change(Change::Applied(claim_object(*number, *bound))),
        Step::DeleteClaim(number) => delete(graph, &claim(*number)),
        Step::Service(number, has_address) => {
            graph.handle_change(Change::Applied(service_object(*number, *has_address)));
        }
        Step::DeleteService(number) => delete(graph, &service(*number)),
    }
    while graph.poll_output().is_some() {}
}

fn asked(graph: &Placement, who: u8, ask: &Ask) -> Result<(), Denial> {
    let me = node(&name("node", who));
    let read = |reference: ObjectRef| allows(&me, Action::Read(&reference), graph);
    let pod = |number: u8| ObjectRef::pod("default", name("pod", number));
    match ask {
        Ask::Secret(number) => read(ObjectRef::secret("default", name("secret", *number))),
        Ask::Pod(number) => read(pod(*number)),
        Ask::Claim(number) => {
            read(ObjectRef::new("v1", "PersistentVolumeClaim", "default", name("claim", *number)))
        }
        Ask::Volume(number) => read(ObjectRef::new("v1", "PersistentVolume", "", name("volume", *number))),
        Ask::Service(number) => read(service(*number)),
        Ask::Node(number) => read(ObjectRef::node(name("node", *number))),
        Ask::Write(number, uid) => {
            let action = Action::WritePod { pod: &pod(*number), uid: &Uid::new(name("uid", *uid)) };
            allows(&me, action, graph)
        }
        Ask::Token(number, uid, account) => {
            let request = TokenRequest {
                namespace: "default".to_owned(),
                service_account: name("account", *account),
                pod: name("pod", *number),
                pod_uid: Uid::new(name("uid", *uid)),
                audience: String::new(),
                expiration_seconds: 3600,
            };
            allows(&me, Action::Token(&request), graph)
        }
        Ask::Event(number) => {
            let event = json!({
                "metadata": { "namespace": "default", "name": "e" },
                "involvedObject": { "kind": "Pod", "namespace": "default", "name": name("pod", *number) },
            });
            allows(&me, Action::Record(&event), graph)
        }
    }
}

fn some_pod() -> impl Strategy<Value = Pod> {
    let some = || prop::collection::btree_set(0..4u8, 0..3);
    (0..4u8, 0..6u8, 0..3u8, some(), some(), 0..2u8, any::<bool>()).prop_map(
        |(name, uid, node, secrets, claims, account, links)| Pod {
            name,
            uid,
            node,
            secrets,
            claims,
            account,
            links,
        },
    )
}

fn some_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => some_pod().prop_map(Step::Put),
        2 => (0..4u8).prop_map(Step::Delete),
        1 => (0..4u8).prop_map(Step::PutSecret),
        1 => (0..4u8).prop_map(Step::DeleteSecret),
        2 => (0..4u8, prop::option::of(0..3u8)).prop_map(|(claim, volume)| Step::Claim(claim, volume)),
        1 => (0..4u8).prop_map(Step::DeleteClaim),
        2 => (0..4u8, any::<bool>()).prop_map(|(service, address)| Step::Service(service, address)),
        1 => (0..4u8).prop_map(Step::DeleteService),
    ]
}

/// Everything that anybody could ask for.
fn all_asks() -> impl Iterator<Item = Ask> {
    let of_four = (0..4u8).flat_map(|n| {
        [Ask::Secret(n), Ask::Pod(n), Ask::Claim(n), Ask::Volume(n), Ask::Service(n), Ask::Event(n)]
    });
    let writes = (0..4u8).flat_map(|pod| (0..6u8).map(move |uid| Ask::Write(pod, uid)));
    let tokens = (0..4u8).flat_map(|pod| {
        (0..6u8).flat_map(move |uid| (0..2u8).map(move |account| Ask::Token(pod, uid, account)))
    });
    of_four.chain((0..3u8).map(Ask::Node)).chain(writes).chain(tokens)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happened_a_node_may_do_what_follows_from_the_pods_there_are_and_nothing_else(
        steps in prop::collection::vec(some_step(), 1..40)
    ) {
        let mut graph = Placement::new("Pod", &[PODS], references::place);
        let mut model = Model::default();
        for one in &steps {
            step(&mut graph, one);
            model.step(one);
        }
        for who in 0..3u8 {
            for ask in all_asks() {
                prop_assert_eq!(asked(&graph, who, &ask), model.allows(who, &ask), "node {} asks {:?}", who, ask);
            }
        }
    }
}
