//! An edge and a cloud that can lose their power, and the question whether they agree.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kubeedge_cloud::cloudhub::{self, CloudHub};
use kubeedge_core::{
    device::memory::MemoryProtocol,
    hub::NodeConfig,
    id::{NodeName, Uid},
    message::{Object, ObjectRef, PodState},
    runtime::{ContainerRuntime, ContainerState, memory::MemoryRuntime},
    store::memory::MemoryStore,
    transport::memory::{self, MemoryNetwork},
};
use kubeedge_edge::{devicetwin, edged, edgehub, metamanager::Read};
use kubeedge_examples::{Edge, EdgeConfig};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{model::Api, random::Random};

/// How long both sides are given to agree, in virtual time: sessions, back-offs and grace periods are seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// The whole of it.
pub(crate) struct World {
    pub(crate) network: MemoryNetwork,
    api: Api,
    node: NodeName,
    store: MemoryStore,
    runtime: MemoryRuntime,
    protocol: Arc<MemoryProtocol>,
    root: tempfile::TempDir,
    edge: Option<Edge>,
    cloud: JoinSet<()>,
    seed: u64,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let node: NodeName = "edge-1".parse().expect("it is a node name");
        let (network, _) = memory::network();
        let mut world = Self {
            network,
            api: Api::new(node.clone()),
            node,
            store: MemoryStore::new(),
            runtime: MemoryRuntime::new(),
            protocol: Arc::new(MemoryProtocol::new("memory")),
            root: tempfile::tempdir().expect("a folder can be made"),
            edge: None,
            cloud: JoinSet::new(),
            seed,
        };
        world.runtime.add_image("image:1");
        world.start_cloud();
        world.start_edge();
        world
    }

    fn start_cloud(&mut self) {
        let (inbox, outbox, outside) = cloudhub::pipes();
        let link = NodeConfig { heartbeat: Duration::from_secs(2), ..NodeConfig::default() };
        let config = cloudhub::Config { link, ..cloudhub::Config::default() };
        let hub = CloudHub::new(config, vec![Box::new(self.network.listen())], inbox, outbox);
        let delay = Duration::from_millis(self.seed % 7);
        self.cloud.spawn(self.api.clone().control(outside, delay));
        self.cloud
            .spawn(async move { hub.run(CancellationToken::new()).await.expect("CloudHub does not fail") });
    }

    fn start_edge(&mut self) {
        self.edge = Some(Edge::start(EdgeConfig {
            transport: Arc::new(self.network.transport(self.node.clone())),
            store: Arc::new(self.store.clone()),
            runtime: Arc::new(self.runtime.clone()),
            protocol: self.protocol.clone(),
            edgehub: edgehub::Config { seed: self.seed, ..edgehub::Config::new(self.node.clone()) },
            edged: edged::Config {
                root: self.root.path().join("root"),
                logs: self.root.path().join("logs"),
                // How full the disk of the machine is has nothing to do with what is simulated.
                eviction: edged::Eviction::never(),
                ..edged::Config::new(self.node.clone())
            },
            devicetwin: devicetwin::Config::new(self.node.clone()),
            dmi: None,
            eventbus: None,
            servicebus: None,
        }));
    }

    /// Changes something in the API.
    pub(crate) fn change(&self, random: &mut Random) {
        self.api.change(random);
    }

    /// Takes the edge's power away after some more commits, and starts it again.
    pub(crate) async fn lose_edge(&mut self, commits: u64) {
        self.store.cut_power_after(commits);
        tokio::time::sleep(Duration::from_millis(500)).await;
        drop(self.edge.take());
        tokio::task::yield_now().await;
        self.store = self.store.cut_power();
        self.start_edge();
    }

    /// Takes the cloud's power away, and starts it again.
    pub(crate) async fn lose_cloud(&mut self) {
        self.cloud.shutdown().await;
        self.network.drop_connections();
        self.start_cloud();
    }

    /// Waits until both sides agree.
    pub(crate) async fn agree(&mut self, seed: u64) {
        let mut different = String::new();
        let agreed = tokio::time::timeout(PATIENCE, async {
            loop {
                match self.difference().await {
                    None => return,
                    Some(found) => different = found,
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
        assert!(agreed.await.is_ok(), "seed {seed}: {different}");
        self.nothing_was_started_twice(seed).await;
    }

    /// The first thing on which the sides differ.
    async fn difference(&self) -> Option<String> {
        let wanted: BTreeMap<ObjectRef, Object> = self
            .api
            .lock()
            .objects
            .iter()
            .map(|(name, (_, object))| (name.clone(), object.clone()))
            .collect();
        for kind in ["ConfigMap", "Secret", "Pod", "Device", "DeviceModel"] {
            let held = match self.held(kind).await {
                Ok(held) => held,
                Err(error) => return Some(error),
            };
            let wanted: Vec<_> =
                wanted.values().filter(|object| object.reference.kind() == kind).map(identity).collect();
            let held: Vec<_> = held.iter().map(identity).collect();
            if wanted != held {
                return Some(format!("{kind}: the API has {wanted:?}, the edge {held:?}"));
            }
        }
        let pods: Vec<_> = wanted.values().filter(|object| object.reference.kind() == "Pod").collect();
        self.pods_differ(&pods).await.or_else(|| self.devices_differ(&wanted))
    }

    async fn held(&self, kind: &str) -> Result<Vec<Object>, String> {
        let api_version = if kind.starts_with("Device") { "devices.kubeedge.io/v1beta1" } else { "v1" };
        let read = Read::List { api_version: api_version.into(), kind: kind.into(), namespace: None };
        let edge = self.edge.as_ref().expect("an edge runs");
        let answer =
            edge.reads.call(read, Duration::from_secs(5)).await.map_err(|error| error.to_string())?;
        let mut objects = answer.map_err(|error| error.to_string())?;
        objects.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(objects)
    }

    async fn pods_differ(&self, pods: &[&Object]) -> Option<String> {
        let mut wanted: Vec<&Uid> = pods.iter().map(|pod| &pod.uid).collect();
        wanted.sort();
        let sandboxes = self.runtime.observe().await.expect("the runtime answers");
        let mut running: Vec<_> = sandboxes
            .iter()
            .filter(|sandbox| {
                sandbox
                    .containers
                    .iter()
                    .any(|container| matches!(container.state, ContainerState::Running { .. }))
            })
            .map(|sandbox| &sandbox.uid)
            .collect();
        running.sort();
        if running != wanted {
            return Some(format!("pods in the API {wanted:?}, running {running:?}"));
        }
        let state = self.api.lock();
        pods.iter().find_map(|pod| {
            let reported = state.pods.get(&(pod.reference.clone(), pod.uid.clone()));
            let text = match reported {
                Some(PodState::Status(json)) => String::from_utf8_lossy(json).into_owned(),
                Some(PodState::Gone) => "gone".into(),
                None => "nothing".into(),
            };
            (!text.contains("\"Running\"")).then(|| format!("{} is reported as {text}", pod.reference))
        })
    }

    fn devices_differ(&self, wanted: &BTreeMap<ObjectRef, Object>) -> Option<String> {
        let state = self.api.lock();
        let devices = wanted.values().filter(|object| object.reference.kind() == "Device");
        devices.into_iter().find_map(|object| {
            let id = object.reference.device_id().expect("the model names devices well");
            let body: serde_json::Value =
                serde_json::from_slice(&object.json).expect("the model writes JSON");
            let desired = body["spec"]["properties"][0]["desired"]["value"].as_str();
            let report = state.devices.get(&id);
            let twin = report.and_then(|report| report.twins.iter().find(|twin| twin.property == "setpoint"));
            let reported =
                twin.and_then(|twin| twin.reported.as_ref()).map(|reported| reported.value.as_str());
            (reported != desired).then(|| format!("{id}: {desired:?} is desired, {reported:?} reported"))
        })
    }

    async fn nothing_was_started_twice(&self, seed: u64) {
        for sandbox in self.runtime.observe().await.expect("the runtime answers") {
            let starts = self.runtime.starts(&format!("{}/main", sandbox.uid));
            assert!(starts <= 1, "seed {seed}: the container of {} was started {starts} times", sandbox.name);
        }
    }
}

fn identity(object: &Object) -> String {
    format!("{}={}#{:x}", object.reference, object.uid, object.fingerprint.0)
}
