//! EdgeController between its pipes and a real API server.

mod autonomy;

use std::{collections::BTreeSet, time::Duration};

use kubeedge_core::{
    id::{NodeName, Uid},
    message::{
        Acked, Answer, Delivered, Delivery, FromNode, NodeReport, ObjectEvent, ObjectRef, PodReport,
        PodState, Query, Report, ReportKey, SessionState, Snapshot, ToNode, UploadedEvent,
    },
    pipe::CallError,
};
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::super::{
    Config, EdgeController, Outside, pipes,
    state::{CONFIG_MAPS, EVENTS, NODES, PODS, is_deleting},
};
use crate::controller::{
    lease::LEASES,
    testing::{Cluster, eventually, node},
};

const LONG: Duration = Duration::from_secs(10);

struct Running {
    outside: Outside,
    _stop: DropGuard,
}

fn quick() -> Config {
    Config {
        retry_first: Duration::from_millis(10),
        lease_interval: Duration::from_millis(50),
        away_grace: Duration::from_millis(50),
        ..Config::default()
    }
}

fn run(client: kube::Client, config: Config) -> Running {
    let (inbox, outbox, outside) = pipes();
    let stop = CancellationToken::new();
    tokio::spawn(EdgeController::new(config, client, inbox, outbox).run(stop.clone()));
    Running { outside, _stop: stop.drop_guard() }
}

impl Running {
    async fn told(&mut self) -> (NodeName, ObjectEvent) {
        let told = tokio::time::timeout(LONG, self.outside.downstream.recv()).await;
        let ToNode { node, message } = told.expect("something goes down").unwrap();
        (node, message)
    }

    async fn applied(&mut self, reference: &ObjectRef) -> Uid {
        let (_, event) = self.told().await;
        assert!(matches!(&event, ObjectEvent::Applied(_)) && event.key() == reference, "{event:?}");
        event.uid().clone()
    }

    async fn deleted(&mut self, reference: &ObjectRef) -> Uid {
        let (_, event) = self.told().await;
        assert!(matches!(&event, ObjectEvent::Deleted { .. }) && event.key() == reference, "{event:?}");
        event.uid().clone()
    }

    fn report(&self, from: &str, number: u64, message: Report) {
        let delivery = Delivery { session: 1, number };
        self.outside
            .statuses
            .send(FromNode { node: node(from), message: Delivered { delivery, message } })
            .unwrap();
    }

    async fn acked(&mut self, number: u64) -> ReportKey {
        let acked = tokio::time::timeout(LONG, self.outside.acked.recv()).await.expect("an acknowledgement");
        let Acked { key, delivery } = acked.unwrap().message;
        assert_eq!(delivery.number, number);
        key
    }

    fn event(&self, from: &str, number: u64, message: UploadedEvent) {
        let delivery = Delivery { session: 1, number };
        let message = Delivered { delivery, message };
        self.outside.events.send(FromNode { node: node(from), message }).unwrap();
    }

    /// The next event that the node need not keep any longer.
    async fn taken(&mut self) -> u64 {
        let taken = tokio::time::timeout(LONG, self.outside.taken.recv()).await.expect("a word").unwrap();
        taken.message.number
    }

    fn session(&self, name: &str, message: SessionState) {
        self.outside.sessions.send(FromNode { node: node(name), message }).unwrap();
    }
}

fn pod(name: &str, on: &str, map: Option<&str>) -> Value {
    let env: Vec<Value> = map.iter().map(|map| json!({ "configMapRef": { "name": map } })).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "namespace": "default", "name": name },
        "spec": { "nodeName": on, "containers": [{ "name": "main", "image": "web", "envFrom": env }] },
    })
}

fn map(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "namespace": "default", "name": name },
        "data": { "key": "value" },
    })
}

fn uid(object: &Value) -> Uid {
    Uid::new(object["metadata"]["uid"].as_str().unwrap())
}

fn status(name: &str, uid: &Uid, phase: &str) -> Report {
    let state = PodState::Status(json!({ "phase": phase }).to_string().into());
    Report::Pod(PodReport { reference: ObjectRef::pod("default", name), uid: uid.clone(), state })
}

fn gone(name: &str, uid: &Uid) -> Report {
    let reference = ObjectRef::pod("default", name);
    Report::Pod(PodReport { reference, uid: uid.clone(), state: PodState::Gone })
}

fn node_report(name: &str) -> Report {
    let json = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": { "node-role.kubernetes.io/edge": "" } },
        "spec": { "taints": [{ "key": "edge", "effect": "NoSchedule" }] },
        "status": { "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady" }] },
    });
    Report::Node(NodeReport { json: json.to_string().into() })
}

fn ready(node: &Value) -> &Value {
    let conditions = node["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().find(|condition| condition["type"] == "Ready").unwrap_or(&Value::Null)
}

#[tokio::test]
async fn a_pod_reaches_its_node_with_its_config_map_which_leaves_with_the_reference() {
    let cluster = Cluster::start().await;
    cluster.create(CONFIG_MAPS, &map("settings")).await;
    let mut running = run(cluster.client(), quick());
    let created = cluster.create(PODS, &pod("web", "edge-1", Some("settings"))).await;
    let (web, settings) = (ObjectRef::pod("default", "web"), ObjectRef::config_map("default", "settings"));
    // Which list comes first is the API's affair.
    let (first, second) = (running.told().await, running.told().await);
    let mut keys = [first.1.key().clone(), second.1.key().clone()];
    keys.sort();
    assert_eq!(keys, [settings.clone(), web.clone()]);
    assert_eq!((first.0, second.0), (node("edge-1"), node("edge-1")));

    cluster.delete(PODS, "default", "web").await;
    assert_eq!(running.applied(&web).await, uid(&created), "it is told to end");
    running.report("edge-1", 1, gone("web", &uid(&created)));
    assert_eq!(running.deleted(&web).await, uid(&created));
    running.deleted(&settings).await;
    running.acked(1).await;
    assert_eq!(cluster.get(PODS, "default", "web").await, None);
}

#[tokio::test]
async fn an_object_deleted_and_created_again_has_another_uid() {
    let cluster = Cluster::start().await;
    cluster.create(PODS, &pod("web", "edge-1", Some("settings"))).await;
    let mut running = run(cluster.client(), quick());
    let settings = ObjectRef::config_map("default", "settings");
    running.applied(&ObjectRef::pod("default", "web")).await;
    let first = uid(&cluster.create(CONFIG_MAPS, &map("settings")).await);
    assert_eq!(running.applied(&settings).await, first);
    cluster.delete(CONFIG_MAPS, "default", "settings").await;
    assert_eq!(running.deleted(&settings).await, first);
    let second = uid(&cluster.create(CONFIG_MAPS, &map("settings")).await);
    assert_eq!(running.applied(&settings).await, second);
    assert_ne!(first, second);
}

#[tokio::test]
async fn a_deletion_that_a_watch_missed_is_found_when_it_is_listed_again() {
    let cluster = Cluster::remembering(4).await;
    let web = uid(&cluster.create(PODS, &pod("web", "edge-1", None)).await);
    let (client, gate) = cluster.client_behind("/api/v1/pods?&watch=true");
    let mut running = run(client, quick());
    running.applied(&ObjectRef::pod("default", "web")).await;
    cluster.remove(PODS, "default", "web", &web).await;
    for number in 0..20 {
        cluster.create(CONFIG_MAPS, &map(&format!("m{number}"))).await;
    }
    gate.open();
    assert_eq!(running.deleted(&ObjectRef::pod("default", "web")).await, web);
}

#[tokio::test]
async fn a_snapshot_is_given_only_when_every_kind_was_listed() {
    let cluster = Cluster::start().await;
    cluster.create(PODS, &pod("web", "edge-1", None)).await;
    let (client, gate) = cluster.client_behind("/api/v1/secrets");
    let mut running = run(client, quick());
    running.applied(&ObjectRef::pod("default", "web")).await;
    let soon = running.outside.snapshots.call(node("edge-1"), Duration::from_millis(50)).await;
    assert!(matches!(soon, Err(CallError::Late(..))), "{soon:?}");
    let call = running.outside.snapshots.call(node("edge-1"), LONG);
    let (snapshot, ()) = tokio::join!(call, async { gate.open() });
    assert_eq!(snapshot.unwrap().objects.len(), 1);
    assert_eq!(running.outside.snapshots.call(node("edge-2"), LONG).await.unwrap(), Snapshot::default());
}

#[tokio::test]
async fn an_object_that_the_api_withholds_for_ever_keeps_nothing_else_from_its_node() {
    let forbidden = r#"{"kind":"Status","status":"Failure","reason":"Forbidden","code":403}"#;
    for answer in [(403, forbidden), (400, "no"), (500, "decryption failed"), (200, "<html>")] {
        let cluster = Cluster::start().await;
        let (client, given) = cluster.client_without("/configmaps/withheld", answer);
        // They are listed before anything refers to them, and so have to be fetched.
        for name in ["plain", "withheld"] {
            cluster.create(CONFIG_MAPS, &map(name)).await;
        }
        let mut running = run(client, quick());
        running.outside.snapshots.call(node("edge-1"), LONG).await.unwrap();
        cluster.create(PODS, &pod("web", "edge-1", Some("withheld"))).await;
        cluster.create(PODS, &pod("other", "edge-1", Some("plain"))).await;
        // The pod that needs it is told without, in the end, and a node that connects is in sync without.
        let mut told = BTreeSet::new();
        while told.len() < 3 {
            let (_, event) = running.told().await;
            assert!(matches!(event, ObjectEvent::Applied(_)), "{event:?}");
            told.insert(event.key().name().to_owned());
        }
        assert_eq!(told, ["other", "plain", "web"].map(str::to_owned).into());
        let snapshot = running.outside.snapshots.call(node("edge-1"), LONG).await.unwrap();
        let withheld = ObjectRef::config_map("default", "withheld");
        assert_eq!((snapshot.objects.len(), snapshot.unknown), (3, [withheld.clone()].into()), "{answer:?}");
        given.send_replace(None);
        running.applied(&withheld).await;
        let snapshot = running.outside.snapshots.call(node("edge-1"), LONG).await.unwrap();
        assert_eq!((snapshot.objects.len(), snapshot.unknown.len()), (4, 0), "{answer:?}");
    }
}

#[tokio::test]
async fn a_pods_status_is_written_even_if_the_api_is_down_for_a_while() {
    let cluster = Cluster::start().await;
    let web = uid(&cluster.create(PODS, &pod("web", "edge-1", None)).await);
    let (client, gate) = cluster.client_behind("/none");
    let mut running = run(client, quick());
    running.applied(&ObjectRef::pod("default", "web")).await;
    gate.fail(2);
    running.report("edge-1", 1, status("web", &web, "Running"));
    assert_eq!(running.acked(1).await, ReportKey::Pod(ObjectRef::pod("default", "web"), web.clone()));
    let written = cluster.get(PODS, "default", "web").await.unwrap();
    assert_eq!(written["status"]["phase"], "Running");
    assert_eq!(gate.writes(), 1);
    let echo = tokio::time::timeout(Duration::from_millis(50), running.outside.downstream.recv()).await;
    assert!(echo.is_err(), "the status does not go back down: {echo:?}");
}

#[tokio::test]
async fn a_write_that_the_api_keeps_waiting_does_not_hold_up_the_others() {
    let cluster = Cluster::start().await;
    let slow = uid(&cluster.create(PODS, &pod("slow", "edge-1", None)).await);
    let web = uid(&cluster.create(PODS, &pod("web", "edge-1", None)).await);
    let (client, gate) = cluster.client_behind("/api/v1/namespaces/default/pods/slow");
    let mut running = run(client, quick());
    running.outside.snapshots.call(node("edge-1"), LONG).await.unwrap();
    running.report("edge-1", 1, status("slow", &slow, "Running"));
    running.report("edge-1", 2, status("web", &web, "Running"));
    running.acked(2).await;
    running.report("edge-1", 3, status("slow", &slow, "Succeeded"));
    gate.open();
    let newest = async || {
        let slow = cluster.get(PODS, "default", "slow").await.unwrap();
        (slow["status"]["phase"] == "Succeeded").then_some(())
    };
    eventually("the newest status", newest).await;
}

#[tokio::test]
async fn a_report_of_another_nodes_pod_changes_nothing() {
    let cluster = Cluster::start().await;
    let web = uid(&cluster.create(PODS, &pod("web", "edge-1", None)).await);
    let mut running = run(cluster.client(), quick());
    running.applied(&ObjectRef::pod("default", "web")).await;
    running.report("edge-2", 1, status("web", &web, "Failed"));
    running.acked(1).await;
    running.report("edge-2", 2, gone("web", &web));
    running.acked(2).await;
    let pod = cluster.get(PODS, "default", "web").await.unwrap();
    assert_ne!(pod["status"]["phase"], "Failed");
}

#[tokio::test]
async fn a_pod_that_is_gone_is_deleted_only_if_it_is_that_pod_and_its_deletion_was_asked_for() {
    let cluster = Cluster::start().await;
    let web = uid(&cluster.create(PODS, &pod("web", "edge-1", None)).await);
    let mut running = run(cluster.client(), quick());
    running.applied(&ObjectRef::pod("default", "web")).await;
    running.report("edge-1", 1, gone("web", &web));
    running.acked(1).await;
    assert!(cluster.get(PODS, "default", "web").await.is_some(), "nobody asked for its deletion");
    cluster.delete(PODS, "default", "web").await;
    running.applied(&ObjectRef::pod("default", "web")).await;
    running.report("edge-1", 2, gone("web", &Uid::new("an-earlier-one")));
    running.acked(2).await;
    assert!(cluster.get(PODS, "default", "web").await.is_some(), "it is another pod of that name");
    running.report("edge-1", 3, gone("web", &web));
    running.acked(3).await;
    assert_eq!(cluster.get(PODS, "default", "web").await, None);
}

/// What is on its way for a pod must not hit the next pod of its name: the watch may be behind.
async fn overtaken_by_a_new_pod(stalled: &'static str, report: fn(&str, &Uid) -> Report) -> Value {
    let cluster = Cluster::start().await;
    let first = uid(&cluster.create(PODS, &pod("web", "edge-1", None)).await);
    let (client, gate) = cluster.client_behind(stalled);
    let mut running = run(client, quick());
    cluster.delete(PODS, "default", "web").await;
    let deleting = async || match running.told().await.1 {
        ObjectEvent::Applied(pod) => is_deleting(&pod.json).then_some(()),
        ObjectEvent::Deleted { .. } => None,
    };
    eventually("a pod that is being deleted", deleting).await;
    running.report("edge-1", 1, report("web", &first));
    eventually("a write on its way", async || gate.is_reached().then_some(())).await;
    cluster.remove(PODS, "default", "web", &first).await;
    let second = uid(&cluster.create(PODS, &pod("web", "edge-1", None)).await);
    gate.open();
    running.acked(1).await;
    let web = cluster.get(PODS, "default", "web").await.expect("the new pod stays");
    assert_eq!(uid(&web), second);
    web
}

#[tokio::test]
async fn a_deletion_on_its_way_does_not_hit_the_next_pod_of_that_name() {
    overtaken_by_a_new_pod("pods/web?", gone).await;
}

#[tokio::test]
async fn a_status_on_its_way_does_not_hit_the_next_pod_of_that_name() {
    let web = overtaken_by_a_new_pod("pods/web/status?", |name, uid| status(name, uid, "Failed")).await;
    assert_ne!(web["status"]["phase"], "Failed");
}

#[tokio::test]
async fn a_node_registers_is_kept_alive_goes_unknown_and_comes_back_while_its_pods_stay() {
    let cluster = Cluster::start().await;
    cluster.create(PODS, &pod("web", "edge-1", None)).await;
    let mut running = run(cluster.client(), quick());
    running.session("edge-1", SessionState::Online);
    running.report("edge-1", 1, node_report("edge-1"));
    assert_eq!(running.acked(1).await, ReportKey::Node);
    let registered = cluster.get(NODES, "", "edge-1").await.unwrap();
    assert_eq!(ready(&registered)["status"], "True");
    assert_eq!(registered["spec"]["taints"][0]["key"], "edge");

    let lease = async || cluster.get(LEASES, "kube-node-lease", "edge-1").await;
    let first = eventually("a lease", lease).await;
    assert_eq!(first["spec"]["holderIdentity"], "edge-1");
    assert_eq!(first["spec"]["leaseDurationSeconds"], 40);
    assert_eq!(first["metadata"]["ownerReferences"][0]["uid"], registered["metadata"]["uid"]);
    let renewed =
        async || lease().await.filter(|lease| lease["spec"]["renewTime"] != first["spec"]["renewTime"]);
    eventually("a renewal", renewed).await;

    running.session("edge-1", SessionState::Offline);
    let unknown =
        async || cluster.get(NODES, "", "edge-1").await.filter(|node| ready(node)["status"] == "Unknown");
    let away = eventually("an unknown node", unknown).await;
    assert_eq!(ready(&away)["reason"], "NodeStatusUnknown");
    assert!(ready(&away)["message"].as_str().unwrap().contains("away since 20"), "{away}");
    let pod = cluster.get(PODS, "default", "web").await.unwrap();
    assert_eq!(pod["metadata"]["deletionTimestamp"], Value::Null);

    running.session("edge-1", SessionState::Online);
    running.report("edge-1", 2, node_report("edge-1"));
    running.acked(2).await;
    assert_eq!(ready(&cluster.get(NODES, "", "edge-1").await.unwrap())["status"], "True");
}

#[tokio::test]
async fn a_node_with_a_session_whose_object_is_deleted_comes_back() {
    let cluster = Cluster::start().await;
    let mut running = run(cluster.client(), quick());
    running.session("edge-1", SessionState::Online);
    running.report("edge-1", 1, node_report("edge-1"));
    running.acked(1).await;
    let first = uid(&cluster.get(NODES, "", "edge-1").await.unwrap());
    cluster.remove(NODES, "", "edge-1", &first).await;
    let back = async || {
        let node = cluster.get(NODES, "", "edge-1").await?;
        (ready(&node)["status"] == "True" && uid(&node) != first).then_some(())
    };
    eventually("the node", back).await;
}

#[tokio::test]
async fn a_node_cannot_speak_for_another() {
    let cluster = Cluster::start().await;
    let mut running = run(cluster.client(), quick());
    running.report("edge-1", 1, node_report("edge-2"));
    running.acked(1).await;
    assert_eq!(cluster.get(NODES, "", "edge-1").await, None);
    assert_eq!(cluster.get(NODES, "", "edge-2").await, None);
}

#[tokio::test]
async fn an_edge_node_that_does_not_connect_after_the_start_is_unknown() {
    let cluster = Cluster::start().await;
    let labelled = |name: &str, labels: Value| json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "labels": labels } });
    cluster.create(NODES, &labelled("edge-1", json!({ "node-role.kubernetes.io/edge": "" }))).await;
    cluster.create(NODES, &labelled("in-the-cloud", json!({}))).await;
    let config = Config { absent_grace: Duration::from_millis(20), ..quick() };
    let _running = run(cluster.client(), config);
    let unknown =
        async || cluster.get(NODES, "", "edge-1").await.filter(|node| ready(node)["status"] == "Unknown");
    eventually("an unknown node", unknown).await;
    assert_eq!(ready(&cluster.get(NODES, "", "in-the-cloud").await.unwrap()), &Value::Null);
}

#[tokio::test]
async fn a_node_whose_lease_somebody_else_renews_is_left_to_them() {
    let cluster = Cluster::start().await;
    let spec = |times: i64| json!({ "holderIdentity": "kubelet", "leaseTransitions": times });
    for name in ["left", "renewed"] {
        let labels = json!({ "node-role.kubernetes.io/edge": "" });
        let node =
            json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "labels": labels } });
        cluster.create(NODES, &node).await;
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": { "namespace": "kube-node-lease", "name": name }, "spec": spec(0),
        });
        cluster.create(LEASES, &lease).await;
    }
    let lease_duration = Duration::from_secs(1);
    let _running =
        run(cluster.client(), Config { absent_grace: Duration::from_millis(20), lease_duration, ..quick() });
    for times in 1..=40 {
        cluster.merge(LEASES, "kube-node-lease", "renewed", &json!({ "spec": spec(times) })).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let status = async |name| ready(&cluster.get(NODES, "", name).await.unwrap())["status"].clone();
    assert_eq!((status("renewed").await, status("left").await), (Value::Null, "Unknown".into()));
}

#[tokio::test]
async fn a_node_asks_for_what_is_its_own() {
    let cluster = Cluster::start().await;
    cluster.create(CONFIG_MAPS, &map("settings")).await;
    cluster.create(CONFIG_MAPS, &map("other")).await;
    cluster.create(PODS, &pod("web", "edge-1", Some("settings"))).await;
    let running = run(cluster.client(), quick());
    running.outside.snapshots.call(node("edge-1"), LONG).await.unwrap();
    let ask = async |name: &str| {
        let message = Query::Get(ObjectRef::config_map("default", name));
        running.outside.queries.call(FromNode { node: node("edge-1"), message }, LONG).await.unwrap()
    };
    assert!(matches!(ask("settings").await, Answer::Object(_)));
    assert!(matches!(ask("other").await, Answer::Refused(_)));
}

#[tokio::test]
async fn an_event_of_the_node_is_recorded_and_counted() {
    let cluster = Cluster::start().await;
    cluster.create(PODS, &pod("web", "edge-1", None)).await;
    let running = run(cluster.client(), quick());
    running.outside.snapshots.call(node("edge-1"), LONG).await.unwrap();
    for count in 1..=2 {
        let event = json!({
            "metadata": { "namespace": "default", "name": "web.1" },
            "involvedObject": { "apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": "web" },
            "reason": "BackOff", "message": "again", "type": "Warning", "count": count,
        });
        let message = UploadedEvent { json: event.to_string().into() };
        running.event("edge-1", 1, message);
        let counted =
            async || cluster.get(EVENTS, "default", "web.1").await.filter(|event| event["count"] == count);
        let event = eventually("the event", counted).await;
        assert_eq!(event["source"]["host"], "edge-1");
    }
}

#[tokio::test]
async fn an_event_that_comes_while_the_api_is_gone_is_acknowledged_when_it_is_back_and_has_it() {
    let cluster = Cluster::start().await;
    cluster.create(PODS, &pod("web", "edge-1", None)).await;
    let (client, gate) = cluster.client_behind("/none");
    let mut running = run(client, quick());
    running.outside.snapshots.call(node("edge-1"), LONG).await.unwrap();
    let event = |name: &str, about: &str| UploadedEvent {
        json: json!({
            "metadata": { "namespace": "default", "name": name },
            "involvedObject": { "kind": "Pod", "namespace": "default", "name": about },
        })
        .to_string()
        .into(),
    };
    gate.fail(usize::MAX);
    running.event("edge-1", 1, event("web.1", "web"));
    running.event("edge-1", 2, event("web.2", "web"));
    running.event("edge-1", 3, event("other.1", "other"));
    assert_eq!(running.taken().await, 3, "nobody will ever take what is not the node's");
    let early = tokio::time::timeout(Duration::from_millis(300), running.outside.taken.recv()).await;
    assert!(early.is_err(), "acknowledged before the API has it: {early:?}");
    gate.fail(0);
    assert_eq!((running.taken().await, running.taken().await), (1, 2));
    for name in ["web.1", "web.2"] {
        assert!(cluster.get(EVENTS, "default", name).await.is_some(), "{name}");
    }
}

#[tokio::test]
async fn an_event_of_another_is_not_rewritten_by_one_of_its_name() {
    let cluster = Cluster::start().await;
    let web = cluster.create(PODS, &pod("web", "edge-1", None)).await;
    let web = web["metadata"]["uid"].as_str().unwrap().to_owned();
    let event = |name: &str, about: &str, host: &str, message: &str| {
        json!({
            "apiVersion": "v1", "kind": "Event", "metadata": { "namespace": "default", "name": name },
            "involvedObject": { "kind": "Pod", "namespace": "default", "name": "web", "uid": about },
            "source": { "host": host }, "message": message,
        })
    };
    cluster.create(EVENTS, &event("of-another-node", &web, "edge-2", "true")).await;
    cluster.create(EVENTS, &event("of-nobody", &web, "", "true")).await;
    cluster.create(EVENTS, &event("about-another-pod", "p2", "edge-1", "true")).await;
    cluster.create(EVENTS, &event("own", &web, "edge-1", "true")).await;
    let (client, gate) = cluster.client_behind("/none");
    let running = run(client, quick());
    running.outside.snapshots.call(node("edge-1"), LONG).await.unwrap();
    for name in ["of-another-node", "of-nobody", "about-another-pod", "own"] {
        let json = event(name, &web, "edge-1", "false").to_string().into();
        let message = UploadedEvent { json };
        running.event("edge-1", 1, message);
    }
    // Each was tried to be created; only the own one is merged into.
    eventually("all attempts", async || (gate.writes() >= 5).then_some(())).await;
    let said = async |name: &str| cluster.get(EVENTS, "default", name).await.unwrap()["message"].clone();
    eventually("the own event", async || (said("own").await == "false").then_some(())).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    for name in ["of-another-node", "of-nobody", "about-another-pod"] {
        assert_eq!(said(name).await, "true", "{name}");
    }
}

#[tokio::test]
async fn a_lease_that_runs_out_between_renewals_is_refused_as_configuration() {
    let cluster = Cluster::start().await;
    let (inbox, outbox, _outside) = pipes();
    let config = Config { lease_interval: Duration::from_secs(60), ..Config::default() };
    let part = EdgeController::new(config, cluster.client(), inbox, outbox);
    assert!(part.run(CancellationToken::new()).await.is_err());
}

#[tokio::test]
async fn it_stops_when_told_even_if_everyone_else_has_gone() {
    let cluster = Cluster::start().await;
    let (inbox, outbox, outside) = pipes();
    drop(outside);
    let stop = CancellationToken::new();
    let part = EdgeController::new(quick(), cluster.client(), inbox, outbox);
    let running = tokio::spawn(part.run(stop.clone()));
    cluster.create(PODS, &pod("web", "edge-1", None)).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!running.is_finished());
    stop.cancel();
    tokio::time::timeout(LONG, running).await.unwrap().unwrap().unwrap();
}
