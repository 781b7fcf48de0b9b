//! I want edge and cloud in one process: for tests of my own, or to understand how they meet.
//!
//! Everything is the real thing but what stands at its borders: the link is memory, the store is memory, and the
//! containers only pretend. The Kubernetes API is the standalone one.
#![expect(clippy::print_stdout, reason = "an example speaks to people")]

use std::{sync::Arc, time::Duration};

use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api,
    api::{PostParams, WatchEvent, WatchParams},
};
use kubeedge_cloud::{
    cloudhub, devicecontroller, edgecontroller,
    standalone::{self, ApiServer},
};
use kubeedge_core::{
    device::memory::MemoryProtocol, id::NodeName, pipe, runtime::memory::MemoryRuntime,
    store::memory::MemoryStore, transport::memory,
};
use kubeedge_edge::{devicetwin, edged, edgehub};
use kubeedge_examples::{Cloud, CloudConfig, Edge, EdgeConfig};
use serde_json::json;

#[tokio::main]
async fn main() -> Result<()> {
    let node: NodeName = "edge-1".parse()?;
    let (network, listener) = memory::network();
    let api = ApiServer::open(None, standalone::Config::default()).await?;
    let client = api.client();
    let cloud = Cloud::start(
        CloudConfig {
            client: client.clone(),
            listeners: vec![Box::new(listener)],
            cloudhub: cloudhub::Config::default(),
            edgecontroller: edgecontroller::Config::default(),
            devicecontroller: devicecontroller::Config::default(),
            rules: None,
        },
        pipe::calls("requests", 64),
    );
    let root = tempfile::tempdir()?;
    let edge = Edge::start(EdgeConfig {
        transport: Arc::new(network.transport(node.clone())),
        store: Arc::new(MemoryStore::new()),
        runtime: Arc::new(MemoryRuntime::new()),
        protocol: Arc::new(MemoryProtocol::new("memory")),
        edgehub: edgehub::Config::new(node.clone()),
        edged: edged::Config {
            root: root.path().join("root"),
            logs: root.path().join("logs"),
            // A full disk on your machine is no reason to turn the pod away; a node keeps the kubelet's thresholds.
            eviction: edged::Eviction::never(),
            ..edged::Config::new(node.clone())
        },
        devicetwin: devicetwin::Config::new(node.clone()),
        dmi: None,
        eventbus: None,
        servicebus: None,
    });

    wait(&Api::<Node>::all(client.clone()), "edge-1", |node| {
        let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    })
    .await?;
    println!("node edge-1 is Ready");

    let pods: Api<Pod> = Api::default_namespaced(client);
    let pod = json!({
        "metadata": {"name": "hello"},
        "spec": {"nodeName": "edge-1", "containers": [{"name": "main", "image": "hello:1"}]},
    });
    pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
    wait(&pods, "hello", |pod| {
        pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"))
    })
    .await?;
    println!("pod hello is Running");

    edge.stop().await?;
    cloud.stop().await?;
    Ok(())
}

/// Waits until an object is as it should be.
async fn wait<K>(api: &Api<K>, name: &str, holds: impl Fn(&K) -> bool) -> Result<()>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    let one = WatchParams::default().fields(&format!("metadata.name={name}"));
    let watch = async {
        let mut events = std::pin::pin!(api.watch(&one, "0").await?);
        while let Some(event) = futures::StreamExt::next(&mut events).await {
            if let WatchEvent::Added(object) | WatchEvent::Modified(object) = event?
                && holds(&object)
            {
                return Ok(());
            }
        }
        bail!("the watch of {name} ended")
    };
    tokio::time::timeout(Duration::from_secs(10), watch).await?
}
