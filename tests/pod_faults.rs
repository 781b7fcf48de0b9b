//! Pods on a real containerd while edgecore is killed, and while containerd itself is away.

#[path = "support/containerd.rs"]
mod containerd;
#[path = "simulation/random.rs"]
mod random;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use containerd::{Containerd, IMAGE};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    config::Kubeconfig,
};
use kubeedge_tests::{
    binaries,
    site::{Cloud, Edge, EdgeOptions, wait_within},
};
use random::Random;
use serde_json::json;

/// How often edgecore is killed; `POD_KILLS` says otherwise, as `cargo xtask soak pod-kills` does.
const KILLS: u64 = 50;
/// At most so many pods are there at a time.
const PODS_MAX: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn killing_edgecore_50_times_leaks_no_container_starts_none_that_runs_and_misses_none() -> Result<()> {
    let kills = std::env::var("POD_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let seed = std::env::var("POD_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    println!("POD_SEED={seed} POD_KILLS={kills}");
    let mut random = Random::new(seed);
    let mut site = Site::start().await?;
    let (mut wanted, mut ever) = (BTreeSet::new(), 0);
    for _ in 0..kills {
        for _ in 0..random.below(4) {
            site.change(&mut random, &mut wanted, &mut ever).await?;
        }
        tokio::time::sleep(Duration::from_millis(random.below(700))).await;
        site.edge.kill();
        for _ in 0..random.below(2) {
            site.change(&mut random, &mut wanted, &mut ever).await?;
        }
        site.edge.spawn()?;
    }
    site.converge(&wanted).await.with_context(|| tail(&site.edge.log()))?;
    // A start that was under way when edgecore was killed is broken off by containerd, which ends what it had started;
    // the pod's status counts the start after it as a restart. There is no other reason to start one again.
    let mut wrong = Vec::new();
    // The last status may still be on its way.
    for _ in 0..100 {
        let (starts, restarts) = (site.starts()?, site.restarts().await?);
        let counts = wanted.iter().map(|name| {
            let restarts = restarts.get(name).copied().unwrap_or(0);
            (name, starts.get(name).copied().unwrap_or(0), restarts)
        });
        wrong = counts.filter(|(_, starts, restarts)| *starts == 0 || *starts > restarts + 1).collect();
        if wrong.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(wrong.is_empty(), "pods with starts and restarts: {wrong:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_outlive_containerd_s_restart_and_new_ones_wait_for_it() -> Result<()> {
    let mut site = Site::start().await?;
    let mut wanted: BTreeSet<String> = ["before-1", "before-2"].map(str::to_owned).into();
    for name in &wanted {
        site.create(name).await?;
    }
    site.converge(&wanted).await.with_context(|| tail(&site.edge.log()))?;

    site.containerd.stop();
    wait_within(Duration::from_secs(60), "the node to say that its runtime is away", || {
        let node = site.cloud.kubectl(&["get", "node", "edge-1", "-o", "yaml"])?;
        Ok(node.contains("container runtime is down"))
    })?;
    site.create("meanwhile").await?;
    wanted.insert("meanwhile".to_owned());
    tokio::time::sleep(Duration::from_secs(2)).await;
    site.containerd.start_again();
    site.converge(&wanted).await.with_context(|| tail(&site.edge.log()))?;
    wait_within(Duration::from_secs(60), "the node to be Ready again", || {
        Ok(site.cloud.kubectl(&["get", "nodes"])?.contains(" Ready "))
    })?;
    let starts = site.starts()?;
    ensure!(starts.values().all(|count| *count == 1), "a pod was started again: {starts:?}");
    Ok(())
}

/// A cloud and an edge on a real containerd, whose pods note each start in a file of the node.
struct Site {
    pods: Api<Pod>,
    edge: Edge,
    cloud: Cloud,
    containerd: Containerd,
    folder: tempfile::TempDir,
}

impl Site {
    async fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let containerd = Containerd::start();
        let binaries = binaries();
        let cloud = Cloud::start(&binaries, &folder.path().join("cloud"))?;
        let options = EdgeOptions { containerd: Some(containerd.socket()), ..EdgeOptions::new("edge-1") };
        let edge = Edge::start(&binaries, &folder.path().join("edge"), &cloud, &options)?;
        let _ = rustls::crypto::ring::default_provider().install_default();
        let kubeconfig = Kubeconfig::read_from(cloud.kubeconfig())?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
        let pods = Api::default_namespaced(Client::try_from(config)?);
        let site = Self { pods, edge, cloud, containerd, folder };
        fs::create_dir_all(site.marks())?;
        Ok(site)
    }

    fn marks(&self) -> PathBuf {
        self.folder.path().join("marks")
    }

    /// Creates, changes or deletes a pod.
    async fn change(
        &self,
        random: &mut Random,
        wanted: &mut BTreeSet<String>,
        ever: &mut usize,
    ) -> Result<()> {
        let pick = |random: &mut Random, wanted: &BTreeSet<String>| {
            let index = random.below(wanted.len() as u64) as usize;
            wanted.iter().nth(index).cloned().context("it is one of them")
        };
        match random.below(5) {
            0 | 1 if wanted.len() < PODS_MAX => {
                *ever += 1;
                let name = format!("pod-{ever}");
                self.create(&name).await?;
                wanted.insert(name);
            }
            2 | 3 if !wanted.is_empty() => {
                let name = pick(random, wanted)?;
                let patch =
                    json!({ "metadata": { "labels": { "round": random.below(1_000_000).to_string() } } });
                self.pods.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
            }
            4 if !wanted.is_empty() => {
                let name = pick(random, wanted)?;
                self.pods.delete(&name, &DeleteParams::default()).await?;
                wanted.remove(&name);
            }
            _ => {}
        }
        Ok(())
    }

    async fn create(&self, name: &str) -> Result<()> {
        let pod = json!({
            "metadata": { "name": name },
            "spec": {
                "nodeName": "edge-1",
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", format!("echo started >> /marks/{name}; exec sleep 100000")],
                    "volumeMounts": [{ "name": "marks", "mountPath": "/marks" }],
                }],
                "volumes": [{ "name": "marks", "hostPath": { "path": self.marks() } }],
            },
        });
        self.pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
        Ok(())
    }

    /// How often each pod has started, by its own word.
    fn starts(&self) -> Result<BTreeMap<String, usize>> {
        let mut starts = BTreeMap::new();
        for mark in fs::read_dir(self.marks())? {
            let mark = mark?;
            let lines = fs::read_to_string(mark.path())?.lines().count();
            starts.insert(mark.file_name().to_string_lossy().into_owned(), lines);
        }
        Ok(starts)
    }

    /// How often each pod's container was started again, by the pods' status.
    async fn restarts(&self) -> Result<BTreeMap<String, usize>> {
        let pods = self.pods.list(&ListParams::default()).await?.items.into_iter().filter_map(|pod| {
            let containers = pod.status?.container_statuses?;
            Some((pod.metadata.name?, usize::try_from(containers.first()?.restart_count).ok()?))
        });
        Ok(pods.collect())
    }

    /// Waits until the API has just the wanted pods, all of them Running, and containerd runs a sandbox and a
    /// container for each and nothing besides. A start that was broken off leaves its container ended, and
    /// one such is kept for `kubectl logs --previous`.
    async fn converge(&self, wanted: &BTreeSet<String>) -> Result<()> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(90);
        loop {
            let seen = self.seen().await;
            let pods = wanted.len();
            let done = seen.as_ref().is_ok_and(|seen| {
                seen.pods == *wanted
                    && seen.sandboxes == pods
                    && (pods..=2 * pods).contains(&seen.containers)
                    && seen.running == 2 * pods
            });
            if done {
                return Ok(());
            }
            ensure!(tokio::time::Instant::now() < deadline, "wanted {wanted:?}; seen {seen:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn seen(&self) -> Result<Seen> {
        let mut pods = BTreeSet::new();
        for pod in self.pods.list(&ListParams::default()).await? {
            let name = pod.metadata.name.context("a pod has a name")?;
            let phase = pod.status.and_then(|status| status.phase).unwrap_or_default();
            let goes = pod.metadata.deletion_timestamp.is_some();
            pods.insert(if phase == "Running" && !goes { name } else { format!("{name} ({phase})") });
        }
        let ask = |arguments: &[&str]| self.containerd.ctr(arguments).map_err(anyhow::Error::msg);
        let (containers, tasks) = (ask(&["containers", "ls"])?, ask(&["tasks", "ls"])?);
        let count = |text: &str, word: &str| text.lines().filter(|line| line.contains(word)).count();
        Ok(Seen {
            pods,
            sandboxes: count(&containers, "localhost/pause:1"),
            containers: count(&containers, IMAGE),
            running: count(&tasks, "RUNNING"),
        })
    }
}

/// What there is: pods in the API, and what containerd has.
#[derive(Debug)]
struct Seen {
    pods: BTreeSet<String>,
    sandboxes: usize,
    containers: usize,
    running: usize,
}

/// The end of a log.
fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
