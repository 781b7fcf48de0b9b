//! What happens to a site of real processes when things go wrong: killed, cut off.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams, PostParams},
    config::Kubeconfig,
};
use kubeedge_examples::relay::UdpRelay;
use kubeedge_tests::{
    binaries,
    site::{Cloud, Edge, EdgeOptions, wait_for, wait_within},
};
use serde_json::json;

/// How many ConfigMaps one pod mounts.
const MAPS: usize = 50;
/// How many updates are made in all.
const UPDATES: usize = 500;

#[tokio::test(flavor = "multi_thread")]
async fn killing_cloudcore_during_500_updates_loses_none() -> Result<()> {
    let mut site = Site::start("edge-1", None).await?;
    let mut killed = 0;
    for update in 0..UPDATES {
        site.update(update).await;
        if update % 170 == 100 {
            site.cloud.kill();
            killed += 1;
            site.cloud.spawn()?;
            site.client = client(&site.cloud).await?;
        }
    }
    assert_eq!(killed, 3);
    site.in_sync(Duration::from_secs(30)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_edgecore_during_500_updates_loses_none_and_restarts_no_pod() -> Result<()> {
    let mut site = Site::start("edge-1", None).await?;
    let before = site.pod_started_at().await?;
    for update in 0..UPDATES {
        site.update(update).await;
        if update % 170 == 100 {
            site.edge.kill();
            site.edge.spawn()?;
        }
    }
    site.in_sync(Duration::from_secs(30)).await?;
    assert_eq!(site.pod_started_at().await?, before, "the pod was restarted");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_cut_for_60_s_is_noticed_by_both_ends_and_in_sync_5_s_after_it_is_back() -> Result<()>
{
    let mut site = Site::start_with_heartbeat("edge-1", 15).await?;
    let relay = site.relay.take().context("the site has a relay")?;
    relay.cut();
    let cut = Instant::now();
    for update in 0..100 {
        site.update(update).await;
    }
    // Three heartbeats of 15 s.
    let noticed = Duration::from_secs(45);
    wait_within(noticed, "the cloud to notice", || {
        Ok(site.cloud.kubectl(&["get", "nodes"])?.contains("NotReady"))
    })?;
    wait_within(noticed.saturating_sub(cut.elapsed()), "the edge to notice", || {
        Ok(site.edge.log().contains("no connection to the cloud"))
    })?;
    tokio::time::sleep(Duration::from_secs(60).saturating_sub(cut.elapsed())).await;
    relay.restore();
    site.in_sync(Duration::from_secs(5)).await.with_context(|| site.edge.log())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_starts_without_a_cloud_has_everything_it_had() -> Result<()> {
    let mut site = Site::start("edge-1", None).await?;
    let before = process_of_pod(&site.edge)?;
    site.edge.kill();
    site.cloud.kill();
    // The pod ends with the machine; the edge has to start it again from what it has stored.
    Command::new("kill").args(["-KILL", &before.to_string()]).status()?;
    fs::remove_dir_all(site.edge.folder().join("root")).ok();
    site.edge.spawn()?;
    wait_for("the pod to run again", || Ok(process_of_pod(&site.edge).is_ok_and(|pid| pid != before)))
        .with_context(|| site.edge.log())?;
    let config = find(&site.edge.folder().join("root"), "map-0").context("no ConfigMap is at the edge")?;
    assert_eq!(fs::read_to_string(config)?, "start");
    Ok(())
}

/// A cloud and an edge with one pod that mounts many ConfigMaps.
struct Site {
    client: Client,
    relay: Option<UdpRelay>,
    edge: Edge,
    cloud: Cloud,
    _folder: tempfile::TempDir,
}

impl Site {
    async fn start(node: &str, quic: Option<u16>) -> Result<Self> {
        Self::start_on(node, EdgeOptions { quic, ..EdgeOptions::new(node) }, 1, false).await
    }

    async fn start_with_heartbeat(node: &str, heartbeat: u64) -> Result<Self> {
        let options = EdgeOptions { websocket: false, ..EdgeOptions::new(node) };
        Self::start_on(node, options, heartbeat, true).await
    }

    async fn start_on(node: &str, mut options: EdgeOptions, heartbeat: u64, relayed: bool) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let binaries = binaries();
        let cloud = Cloud::start_with_heartbeat(&binaries, &folder.path().join("cloud"), heartbeat)?;
        let mut relay = None;
        if relayed {
            let started = UdpRelay::start(([127, 0, 0, 1], cloud.ports.quic).into()).await?;
            options.quic = Some(started.address().port());
            relay = Some(started);
        }
        let client = client(&cloud).await?;
        let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
        for map in 0..MAPS {
            let map =
                json!({"metadata": {"name": format!("map-{map}")}, "data": {format!("map-{map}"): "start"}});
            maps.create(&PostParams::default(), &serde_json::from_value(map)?).await?;
        }
        let pods: Api<Pod> = Api::default_namespaced(client.clone());
        pods.create(&PostParams::default(), &serde_json::from_value(pod(node))?).await?;
        let edge = Edge::start(&binaries, &folder.path().join("edge"), &cloud, &options)?;
        cloud
            .kubectl(&["wait", "--for=condition=Ready", "pod/reader", "--timeout=60s"])
            .with_context(|| edge.log())?;
        Ok(Self { client, relay, edge, cloud, _folder: folder })
    }

    /// Writes update number `update`, and again until the API has taken it.
    async fn update(&self, update: usize) {
        let maps: Api<ConfigMap> = Api::default_namespaced(self.client.clone());
        let name = format!("map-{}", update % MAPS);
        let patch = json!({"data": {name.clone(): format!("update-{update}")}});
        while maps.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until every mounted file says what the API says.
    async fn in_sync(&self, patience: Duration) -> Result<()> {
        let maps: Api<ConfigMap> = Api::default_namespaced(self.client.clone());
        let mut wanted = Vec::new();
        for map in 0..MAPS {
            let name = format!("map-{map}");
            let data = maps.get(&name).await?.data.unwrap_or_default();
            wanted.push((name.clone(), data[&name].clone()));
        }
        let root = self.edge.folder().join("root");
        let mut missing = Vec::new();
        let done = wait_within(patience, "every file to say what the API says", || {
            missing = wanted
                .iter()
                .filter_map(|(name, value)| {
                    let found = find(&root, name).and_then(|file| fs::read_to_string(file).ok());
                    (found.as_ref() != Some(value))
                        .then(|| format!("{name}: {value} in the API, {found:?} at the edge"))
                })
                .collect();
            Ok(missing.is_empty())
        });
        done.with_context(|| format!("{missing:#?}"))
    }

    async fn pod_started_at(&self) -> Result<String> {
        let pods: Api<Pod> = Api::default_namespaced(self.client.clone());
        let status = pods.get("reader").await?.status.context("the pod has no status")?;
        Ok(format!("{:?}", status.container_statuses.context("no container")?[0].container_id))
    }
}

fn pod(node: &str) -> serde_json::Value {
    let names = (0..MAPS).map(|map| format!("map-{map}"));
    let volumes: Vec<_> =
        names.clone().map(|name| json!({"name": name, "configMap": {"name": name}})).collect();
    let mounts: Vec<_> =
        names.map(|name| json!({"name": name, "mountPath": format!("/maps/{name}")})).collect();
    json!({
        "metadata": {"name": "reader"},
        "spec": {
            "nodeName": node,
            "containers": [{"name": "main", "image": "none", "command": ["sleep", "100000"], "volumeMounts": mounts}],
            "volumes": volumes,
        },
    })
}

async fn client(cloud: &Cloud) -> Result<Client> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kubeconfig = Kubeconfig::read_from(cloud.kubeconfig())?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
    Ok(Client::try_from(config)?)
}

/// The mounted file of this name below a folder.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        // The writer's own folders are reached through the link that makes a change atomic.
        if entry.file_name().to_string_lossy().starts_with("..") {
            continue;
        }
        if entry.file_name() == name && fs::metadata(&path).is_ok_and(|found| found.is_file()) {
            return Some(path);
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && let Some(found) = find(&path, name)
        {
            return Some(found);
        }
    }
    None
}

/// The process of the only pod.
fn process_of_pod(edge: &Edge) -> Result<u32> {
    let marker = edge.folder().join("processes");
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        if fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(&marker)) {
            return Ok(pid);
        }
    }
    anyhow::bail!("no process of a pod runs")
}
