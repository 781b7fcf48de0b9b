//! Nodes ask for serving certificates, of a real API server.

use std::time::Duration;

use kubeedge_core::{
    id::Uid,
    message::{Answer, CertificateRequest, FromNode, Query},
};
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::super::{
    Config, EdgeController, Outside,
    certificates::{Step, step, wanted},
    pipes,
    state::{CERTIFICATES, NODES},
};
use crate::{
    authorization::{Denial, Denials, Serving, tests::serving::request},
    controller::{
        api::{Api, Place},
        testing::{Cluster, node},
    },
};

const LONG: Duration = Duration::from_secs(10);

const NAME: &str = "metaserver-csr-edge-1";

struct Site {
    cluster: Cluster,
    outside: Outside,
    denials: Denials,
    _stop: DropGuard,
}

impl Site {
    async fn start() -> Self {
        let cluster = Cluster::start().await;
        let addresses = json!([{ "type": "InternalIP", "address": "192.0.2.7" }]);
        let edge = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": "edge-1" }, "status": { "addresses": addresses },
        });
        cluster.create(NODES, &edge).await;
        let (inbox, outbox, outside) = pipes();
        let controller = EdgeController::new(Config::default(), cluster.client(), inbox, outbox);
        let (denials, stop) = (controller.denials(), CancellationToken::new());
        tokio::spawn(controller.run(stop.clone()));
        Self { cluster, outside, denials, _stop: stop.drop_guard() }
    }

    async fn ask(&self, of: &str, pkcs10: &[u8]) -> Answer {
        let message = Query::Certificate(CertificateRequest { pkcs10: pkcs10.to_vec().into() });
        self.outside.queries.call(FromNode { node: node(of), message }, LONG).await.unwrap()
    }

    async fn given(&self, pkcs10: &[u8]) -> Value {
        match self.ask("edge-1", pkcs10).await {
            Answer::Object(object) => serde_json::from_slice(&object.json).unwrap(),
            other @ (Answer::NotFound | Answer::Refused(_) | Answer::Token(_)) => panic!("{other:?}"),
        }
    }

    async fn in_api(&self) -> Option<Value> {
        self.cluster.get(CERTIFICATES, "", NAME).await
    }
}

#[tokio::test]
async fn a_request_is_created_once_and_approved_and_whoever_asks_again_sees_what_has_come_of_it() {
    let site = Site::start().await;
    let asked = request(|params| {
        let address = "192.0.2.7".parse().unwrap();
        params.subject_alt_names.push(rcgen::SanType::IpAddress(address));
    });
    let first = site.given(&asked).await;
    let serving = Serving::read(&asked).unwrap();
    assert_eq!(first["spec"], wanted(&node("edge-1"), &serving)["spec"]);
    let conditions = first["status"]["conditions"].as_array().unwrap();
    assert_eq!(conditions.len(), 1);
    assert_eq!(
        (&conditions[0]["type"], &conditions[0]["reason"]),
        (&json!("Approved"), &json!("KubeEdgeNodeServing"))
    );
    assert!(conditions[0]["message"].as_str().unwrap().contains("node edge-1"), "{conditions:?}");

    assert_eq!(site.given(&asked).await, first, "to ask again changes nothing");
    // Who signs is another.
    let place = Place { kind: CERTIFICATES, namespace: "", name: NAME };
    let signed = json!({ "status": { "certificate": "UEVN" } });
    Api::new(site.cluster.client()).merge(place, "status", &signed).await.unwrap();
    assert_eq!(site.given(&asked).await["status"]["certificate"], "UEVN");

    // With another key the node asks anew, and what was signed before is not in its way.
    let anew = site.given(&request(|_| {})).await;
    assert_ne!(anew["metadata"]["uid"], first["metadata"]["uid"]);
    assert_eq!(anew["status"]["conditions"][0]["type"], "Approved");
    assert_eq!(anew["status"]["certificate"], Value::Null);
    assert_eq!(site.denials.counts().map(|(_, count)| count).sum::<u64>(), 0);
}

#[tokio::test]
async fn what_is_no_request_of_the_node_itself_gets_no_object_and_is_counted() {
    let site = Site::start().await;
    let asked = request(|_| {});
    let foreign = request(|params| {
        params.subject_alt_names = vec![rcgen::SanType::IpAddress("192.0.2.8".parse().unwrap())];
    });
    let refusals = [
        ("edge-2", &asked[..], Denial::CertificateSubject),
        ("edge-1", b"none", Denial::Unreadable),
        ("edge-1", &foreign, Denial::CertificateNames),
    ];
    for (of, pkcs10, denial) in refusals {
        let told = site.ask(of, pkcs10).await;
        let Answer::Refused(why) = told else { panic!("{denial:?}: {told:?}") };
        assert!(why.contains(denial.reason()) && why.contains(of), "{why}");
        assert_eq!(site.denials.of(denial), 1, "{denial:?}");
    }
    assert_eq!(site.in_api().await, None);
    // Whose addresses nobody knows is given none either.
    let uid =
        Uid::new(site.cluster.get(NODES, "", "edge-1").await.unwrap()["metadata"]["uid"].as_str().unwrap());
    site.cluster.remove(NODES, "", "edge-1", &uid).await;
    assert!(matches!(site.ask("edge-1", &asked).await, Answer::Refused(why) if why.contains("addresses")));
    assert_eq!(site.in_api().await, None);
}

#[tokio::test]
async fn a_strangers_request_under_the_name_gives_way_and_is_not_approved() {
    let site = Site::start().await;
    let serving = Serving::read(&request(|_| {})).unwrap();
    let mut stranger = wanted(&node("edge-1"), &serving);
    stranger["spec"]["signerName"] = "kubernetes.io/kube-apiserver-client".into();
    stranger["spec"]["usages"] = json!(["client auth"]);
    let stranger = site.cluster.create(CERTIFICATES, &stranger).await;
    let given = site.given(&request(|_| {})).await;
    assert_ne!(given["metadata"]["uid"], stranger["metadata"]["uid"]);
    assert_eq!(given["spec"]["signerName"], "kubernetes.io/kubelet-serving");
}

#[test]
fn the_next_step_depends_on_what_is_there_and_a_denial_is_not_overruled() {
    let (node, serving) = (node("edge-1"), Serving::read(&request(|_| {})).unwrap());
    let wanted = wanted(&node, &serving);
    let found = |conditions: Value| {
        let mut found = wanted.clone();
        found["metadata"]["uid"] = "u".into();
        found["metadata"]["resourceVersion"] = "7".into();
        found["status"] = json!({ "conditions": conditions });
        found
    };
    let of = |of: &str| json!([{ "type": of, "status": "True", "message": "by hand" }]);
    let Step::Approve(patch) = step(&found(json!([])), &wanted, &node) else { panic!("it is not approved") };
    assert_eq!(patch["metadata"], json!({ "resourceVersion": "7", "uid": "u" }));
    assert_eq!(step(&found(of("Approved")), &wanted, &node), Step::Answer);
    assert_eq!(step(&found(of("Failed")), &wanted, &node), Step::Answer);
    let denied = step(&found(of("Denied")), &wanted, &node);
    assert!(matches!(&denied, Step::Refuse(why) if why.contains("by hand")), "{denied:?}");

    let other = Serving::read(&request(|_| {})).unwrap();
    let other = super::super::certificates::wanted(&node, &other);
    assert_eq!(step(&found(of("Approved")), &other, &node), Step::Replace(Uid::new("u")));
    assert!(matches!(step(&found(of("Denied")), &other, &node), Step::Refuse(_)), "with another key either");
}
