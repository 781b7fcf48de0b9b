//! EdgeHub and CloudHub together over a network in memory, with models of the parts around them.
#![expect(clippy::unwrap_used, reason = "a test says by a panic what did not hold")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use kubeedge_cloud::cloudhub::{self, CloudHub};
use kubeedge_core::{
    id::{NodeName, ResourceVersion, Uid},
    message::{
        Acked, Connectivity, Delivered, Fingerprint, FromNode, NodeReport, Object, ObjectEvent, ObjectRef,
        Report, ReportKey, ToNode,
    },
    pipe::LatestSender,
    transport::memory::{self, MemoryListener, MemoryNetwork},
};
use kubeedge_edge::edgehub::{self, EdgeHub};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

type Objects = Arc<Mutex<BTreeMap<ObjectRef, Object>>>;
type Reports = Arc<Mutex<BTreeMap<(NodeName, ReportKey), Report>>>;

/// CloudHub with an API in memory: every object is for the node that is its namespace.
struct Cloud {
    api: Objects,
    reports: Reports,
    downstream: LatestSender<(NodeName, ObjectRef), ToNode<ObjectEvent>>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Cloud {
    fn start(listener: MemoryListener, api: Objects, reports: Reports) -> Self {
        let (inbox, outbox, outside) = cloudhub::pipes();
        let cloudhub::Outside { downstream, acked, mut snapshots, mut statuses, .. } = outside;
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let hub = CloudHub::new(cloudhub::Config::default(), vec![Box::new(listener)], inbox, outbox);
        let stopped = stop.clone();
        tasks.spawn(async move { hub.run(stopped).await.unwrap() });
        let read = api.clone();
        tasks.spawn(async move {
            while let Some(call) = snapshots.recv().await {
                let objects = read.lock().unwrap().clone();
                let (node, replier) = call.split();
                let of_node = |object: &Object| object.reference.namespace() == node.as_str();
                let objects: Vec<Object> = objects.into_values().filter(of_node).collect();
                replier.answer(objects.into());
            }
        });
        let written = reports.clone();
        tasks.spawn(async move {
            while let Some(FromNode { node, message: Delivered { delivery, message } }) =
                statuses.recv().await
            {
                let key = message.key();
                written.lock().unwrap().insert((node.clone(), key.clone()), message);
                let _ = acked.send(ToNode { node, message: Acked { key, delivery } });
            }
        });
        Self { api, reports, downstream, stop, tasks }
    }

    fn apply(&self, node: &NodeName, name: &str, version: u64) {
        let reference = ObjectRef::pod(node.as_str(), name);
        let object = Object {
            reference: reference.clone(),
            uid: Uid::new(name),
            resource_version: ResourceVersion(version),
            fingerprint: Fingerprint(version),
            json: version.to_string().into(),
        };
        self.api.lock().unwrap().insert(reference, object.clone());
        self.downstream.send(ToNode { node: node.clone(), message: ObjectEvent::Applied(object) }).unwrap();
    }

    fn delete(&self, node: &NodeName, name: &str) {
        let reference = ObjectRef::pod(node.as_str(), name);
        let gone = self.api.lock().unwrap().remove(&reference);
        if let Some(Object { uid, .. }) = gone {
            let message = ObjectEvent::Deleted { reference, uid };
            self.downstream.send(ToNode { node: node.clone(), message }).unwrap();
        }
    }

    async fn stop(mut self) {
        self.stop.cancel();
        timeout(Duration::from_secs(10), self.tasks.join_next()).await.unwrap().unwrap().unwrap();
    }
}

/// EdgeHub with a store in memory.
struct Edge {
    node: NodeName,
    store: Objects,
    reports: LatestSender<ReportKey, Report>,
    connectivity: watch::Receiver<Connectivity>,
    _tasks: JoinSet<()>,
}

impl Edge {
    fn start(network: &MemoryNetwork, name: &str, store: Objects) -> Self {
        let node: NodeName = name.parse().unwrap();
        let (inbox, outbox, outside) = edgehub::pipes();
        let edgehub::Outside { reports, acked, mut objects, mut inventory, connectivity, .. } = outside;
        let transport = Arc::new(network.transport(node.clone()));
        let hub = EdgeHub::new(edgehub::Config::new(node.clone()), transport, inbox, outbox);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { hub.run(CancellationToken::new()).await.unwrap() });
        let kept = store.clone();
        tasks.spawn(async move {
            loop {
                tokio::select! {
                    Some(Delivered { delivery, message }) = objects.recv() => {
                        let key = message.key().clone();
                        keep(&kept, message);
                        let _ = acked.send(Acked { key, delivery });
                    }
                    Some(call) = inventory.recv() => {
                        let held = kept.lock().unwrap().values().map(Object::entry).collect();
                        call.answer(held);
                    }
                }
            }
        });
        Self { node, store, reports, connectivity, _tasks: tasks }
    }

    fn report(&self, number: u64) {
        self.reports.send(Report::Node(NodeReport { json: number.to_string().into() })).unwrap();
    }

    async fn wait_for(&mut self, state: Connectivity) {
        let changed = self.connectivity.wait_for(|now| *now == state);
        timeout(Duration::from_secs(120), changed).await.unwrap().unwrap();
    }
}

fn keep(store: &Objects, event: ObjectEvent) {
    let mut store = store.lock().unwrap();
    match event {
        ObjectEvent::Applied(object) => {
            store.insert(object.reference.clone(), object);
        }
        ObjectEvent::Deleted { reference, uid } => {
            if store.get(&reference).is_some_and(|held| held.uid == uid) {
                store.remove(&reference);
            }
        }
    }
}

fn agree(cloud: &Cloud, edge: &Edge) -> bool {
    let of_node = |object: &&Object| object.reference.namespace() == edge.node.as_str();
    let wanted: Vec<Object> = cloud.api.lock().unwrap().values().filter(of_node).cloned().collect();
    let held: Vec<Object> = edge.store.lock().unwrap().values().cloned().collect();
    wanted == held
}

async fn until(what: &str, done: impl Fn() -> bool) {
    for _ in 0..1200 {
        if done() {
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
    panic!("{what}: not within two minutes");
}

#[tokio::test(start_paused = true)]
async fn objects_and_reports_arrive_across_cuts_and_restarts_of_either_side() {
    let (network, listener) = memory::network();
    let mut cloud = Cloud::start(listener, Objects::default(), Reports::default());
    let mut edge = Edge::start(&network, "edge-1", Objects::default());
    let node = edge.node.clone();
    (0..300).for_each(|number| cloud.apply(&node, &format!("pod-{number}"), 1));
    edge.report(1);
    edge.wait_for(Connectivity::Synchronized).await;
    until("first", || agree(&cloud, &edge)).await;

    // A cut that nobody is told of.
    network.cut();
    cloud.apply(&node, "pod-1", 2);
    cloud.delete(&node, "pod-2");
    edge.report(2);
    edge.wait_for(Connectivity::Offline).await;
    edge.report(3);
    network.restore();
    until("after the cut", || agree(&cloud, &edge)).await;
    let key = (node.clone(), ReportKey::Node);
    let written = |cloud: &Cloud| match cloud.reports.lock().unwrap().get(&key) {
        Some(Report::Node(report)) => report.json.clone(),
        other => panic!("{other:?}"),
    };
    until("the report", || written(&cloud) == "3").await;

    // The cloud restarts.
    let (api, reports) = (cloud.api.clone(), cloud.reports.clone());
    cloud.stop().await;
    edge.wait_for(Connectivity::Offline).await;
    edge.report(4);
    cloud = Cloud::start(network.listen(), api, reports);
    cloud.delete(&node, "pod-3");
    edge.wait_for(Connectivity::Synchronized).await;
    until("after the cloud's restart", || agree(&cloud, &edge) && written(&cloud) == "4").await;

    // The edge loses power.
    let store = edge.store.clone();
    drop(edge);
    cloud.delete(&node, "pod-4");
    let mut edge = Edge::start(&network, "edge-1", store);
    edge.wait_for(Connectivity::Synchronized).await;
    until("after the edge's restart", || agree(&cloud, &edge)).await;
}

#[tokio::test(start_paused = true)]
async fn many_nodes_come_back_together() {
    let (network, listener) = memory::network();
    let cloud = Cloud::start(listener, Objects::default(), Reports::default());
    let mut edges: Vec<Edge> =
        (0..50).map(|number| Edge::start(&network, &format!("edge-{number}"), Objects::default())).collect();
    for edge in &mut edges {
        edge.wait_for(Connectivity::Synchronized).await;
    }
    network.drop_connections();
    for edge in &edges {
        (0..20).for_each(|number| cloud.apply(&edge.node, &format!("pod-{number}"), 1));
        edge.report(1);
    }
    sleep(Duration::from_secs(5)).await;
    for edge in &mut edges {
        assert_eq!(*edge.connectivity.borrow(), Connectivity::Synchronized, "{}", edge.node);
        assert!(agree(&cloud, edge), "{}", edge.node);
    }
    assert_eq!(cloud.reports.lock().unwrap().len(), 50);
}
