//! Claim: a pod that is applied in the cloud runs at the edge hardly later than its container runtime needs by itself.
//!
//! Workload: busybox pods on a private containerd. In turns, one is made by the bare calls of the runtime (sandbox,
//! image, container, start) and one is created in the standalone API and awaited there by a watch, until its status
//! says Running. Then 30 at once, both ways, and what edgecore costs while these 30 run and nothing happens. At last the
//! cloud is killed, and edgecore is killed and started again five times: how soon it knows its 30 pods.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command for people")]

#[path = "../../tests/support/containerd.rs"]
mod containerd;
#[path = "../../tests/site.rs"]
#[expect(dead_code, unreachable_pub, reason = "written for the tests, which use all of it")]
mod site;

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use containerd::IMAGE;
use futures::{TryStreamExt, future::try_join_all, pin_mut};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, PostParams},
    config::Kubeconfig,
    runtime::{WatchStreamExt, watcher},
};
use kubeedge_core::{
    id::Uid,
    runtime::{ContainerConfig, ContainerRuntime, SandboxConfig, SandboxId, containerd::Containerd},
};
use serde::Serialize;
use serde_json::json;
use site::{Binaries, Cloud, Edge, EdgeOptions, wait_for};

/// How often one pod is started each way.
const ROUNDS: usize = 30;
/// How many pods are started at once.
const MANY: usize = 30;
/// How often edgecore is started again to find them.
const ADOPTIONS: usize = 5;

/// What is printed.
#[derive(Debug, Serialize)]
struct Figures {
    n: usize,
    cri_ms_p50: f64,
    apply_to_running_ms_p50: f64,
    apply_to_running_ms_p99: f64,
    cri_30_pods_ms: f64,
    apply_to_running_30_pods_ms: f64,
    rss_kib_30_pods: u64,
    idle_cpu_percent_30_pods: f64,
    adopt_ms_30_pods: f64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let figures = measure().await?;
    if std::env::args().any(|argument| argument == "--json") {
        println!("{}", serde_json::to_string(&figures)?);
        return Ok(());
    }
    println!("one pod, {} times each way", figures.n);
    println!("  the runtime's bare calls, median      {:>8.1} ms", figures.cri_ms_p50);
    println!("  from apply to Running, median         {:>8.1} ms", figures.apply_to_running_ms_p50);
    println!("  from apply to Running, 99th percentile{:>8.1} ms", figures.apply_to_running_ms_p99);
    println!("{MANY} pods at once");
    println!("  the runtime's bare calls              {:>8.1} ms", figures.cri_30_pods_ms);
    println!("  from the first apply to all Running   {:>8.1} ms", figures.apply_to_running_30_pods_ms);
    println!("edgecore while they run");
    println!("  resident memory                       {:>8} KiB", figures.rss_kib_30_pods);
    println!("  of one core                           {:>8.2} %", figures.idle_cpu_percent_30_pods);
    println!("edgecore killed and started again without a cloud");
    println!("  until its /pods has them all running  {:>8.1} ms", figures.adopt_ms_30_pods);
    Ok(())
}

async fn measure() -> Result<Figures> {
    let here = std::env::current_exe()?;
    let binaries = Binaries { folder: here.parent().context("the program is in a folder")?.to_owned() };
    let real = containerd::Containerd::start();
    let bare = Bare::new(&real)?;
    let folder = tempfile::tempdir()?;
    let mut cloud = Cloud::start_with_heartbeat(&binaries, &folder.path().join("cloud"), 15)?;
    let port = site::free_port()?;
    let options = EdgeOptions {
        containerd: Some(real.socket()),
        kubelet: format!(", readOnlyPort: {port}"),
        ..EdgeOptions::new("edge-1")
    };
    let mut edge = Edge::start(&binaries, &folder.path().join("edge"), &cloud, &options)?;
    wait_for("the node to be Ready", || Ok(cloud.kubectl(&["get", "nodes"])?.contains(" Ready ")))?;
    let pods = Pods::new(&cloud).await?;
    // After a start Edged keeps room for sandboxes that it does not know, as those of the bare calls, until it has heard
    // of all the pods that the node had.
    tokio::time::sleep(Duration::from_secs(15)).await;

    let (mut cri, mut applied) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (bare_took, took) =
            (bare.one(&format!("bare-{round}")).await?, pods.start(&[format!("pod-{round}")]).await?);
        eprintln!(
            "{} of {ROUNDS}: bare calls {} ms, from apply to Running {} ms",
            round + 1,
            ms(bare_took),
            ms(took)
        );
        cri.push(bare_took);
        applied.push(took);
        pods.delete_all().await?;
    }
    let names = |kind: &str| (0..MANY).map(|number| format!("{kind}-{number}")).collect::<Vec<_>>();
    let began = Instant::now();
    let sandboxes = try_join_all(names("many-bare").into_iter().map(|name| bare.start(name))).await?;
    let cri_many = began.elapsed();
    try_join_all(sandboxes.iter().map(|id| bare.runtime.remove_sandbox(id))).await?;
    let apply_many = pods.start(&names("many")).await?;
    let pid = edge.pid().context("no edgecore")?;
    let (rss, cpu) = idle(pid).await?;
    cloud.kill();
    let mut adopted = (0..ADOPTIONS).map(|_| adopt(&mut edge, port)).collect::<Result<Vec<_>>>()?;
    Ok(Figures {
        n: ROUNDS,
        cri_ms_p50: percentile(&mut cri, 50),
        apply_to_running_ms_p50: percentile(&mut applied, 50),
        apply_to_running_ms_p99: percentile(&mut applied, 99),
        cri_30_pods_ms: ms(cri_many),
        apply_to_running_30_pods_ms: ms(apply_many),
        rss_kib_30_pods: rss,
        idle_cpu_percent_30_pods: cpu,
        adopt_ms_30_pods: percentile(&mut adopted, 50),
    })
}

/// Kills edgecore and starts it again. Returns how long it took until its interface had all pods with a container that
/// runs, which it says only of what it has seen in the runtime.
fn adopt(edge: &mut Edge, port: u16) -> Result<Duration> {
    edge.kill();
    // The next process writes another one.
    let token = edge.folder().join("root/api-token");
    fs::remove_file(&token)?;
    let began = Instant::now();
    edge.spawn()?;
    while running_pods(port, &token).unwrap_or(0) < MANY {
        if began.elapsed() > Duration::from_secs(30) {
            bail!("edgecore did not know its pods within half a minute: {}", edge.log());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(began.elapsed())
}

/// How many containers run by the kubelet's interface.
fn running_pods(port: u16, token: &Path) -> Result<usize> {
    let token = fs::read_to_string(token)?;
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    let token = token.trim();
    let request = format!(
        "GET /pods HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.matches("\"running\":").count())
}

/// Pods by the bare calls of the runtime.
struct Bare {
    runtime: Arc<dyn ContainerRuntime>,
    logs: tempfile::TempDir,
}

impl Bare {
    fn new(real: &containerd::Containerd) -> Result<Self> {
        let config = kubeedge_core::runtime::containerd::Config {
            socket: real.socket(),
            ..kubeedge_core::runtime::containerd::Config::default()
        };
        Ok(Self { runtime: Arc::new(Containerd::new(config)?), logs: tempfile::tempdir()? })
    }

    /// Starts a pod, removes it, and returns how long the start took.
    async fn one(&self, name: &str) -> Result<Duration> {
        let began = Instant::now();
        let sandbox = self.start(name.to_owned()).await?;
        let took = began.elapsed();
        self.runtime.remove_sandbox(&sandbox).await?;
        Ok(took)
    }

    async fn start(&self, name: String) -> Result<SandboxId> {
        let sandbox = SandboxConfig {
            name: name.clone(),
            // Edged leaves pods that it does not know alone for ten seconds, which is longer than these live.
            namespace: "bare".to_owned(),
            uid: Uid::new(name.as_str()),
            hostname: name.clone(),
            log_directory: self.logs.path().join(&name),
            ..SandboxConfig::default()
        };
        let id = self.runtime.run_sandbox(&sandbox).await?;
        self.runtime.image(IMAGE).await?.context("the image is imported")?;
        let container = ContainerConfig {
            name: "main".to_owned(),
            image: IMAGE.to_owned(),
            command: vec!["sleep".to_owned(), "100000".to_owned()],
            log_path: "main.log".into(),
            ..ContainerConfig::default()
        };
        let container = self.runtime.create_container(&id, &container).await?;
        self.runtime.start_container(&container).await?;
        Ok(id)
    }
}

/// Pods by way of the API.
struct Pods {
    api: Api<Pod>,
}

impl Pods {
    async fn new(cloud: &Cloud) -> Result<Self> {
        let kubeconfig = Kubeconfig::read_from(cloud.kubeconfig())?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
        Ok(Self { api: Api::namespaced(Client::try_from(config)?, "default") })
    }

    /// Creates the pods, and returns after how long the watch has said of each that it is Running.
    async fn start(&self, names: &[String]) -> Result<Duration> {
        let events =
            watcher(self.api.clone(), watcher::Config::default()).default_backoff().applied_objects();
        pin_mut!(events);
        // The watch is there before the first pod is.
        let mut waiting: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        let watch = async {
            while let Some(pod) = events.try_next().await? {
                let status = pod.status.unwrap_or_default();
                let runs = status.phase.as_deref() == Some("Running");
                let awaited = runs && pod.metadata.name.is_some_and(|name| waiting.remove(name.as_str()));
                if awaited && waiting.is_empty() {
                    return Ok(Instant::now());
                }
            }
            bail!("the watch has ended")
        };
        let create = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let began = Instant::now();
            let params = PostParams::default();
            let manifests = names.iter().map(|name| manifest(name)).collect::<Result<Vec<_>>>()?;
            try_join_all(manifests.iter().map(|pod| self.api.create(&params, pod))).await?;
            Ok::<_, anyhow::Error>(began)
        };
        let both = async { tokio::try_join!(create, watch) };
        let (began, done) = tokio::time::timeout(Duration::from_secs(120), both)
            .await
            .context("the pods did not come to run within two minutes")??;
        Ok(done - began)
    }

    async fn delete_all(&self) -> Result<()> {
        let now = DeleteParams::default().grace_period(0);
        self.api.delete_collection(&now, &ListParams::default()).await?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.api.list(&ListParams::default()).await?.items.is_empty() {
            if Instant::now() > deadline {
                bail!("the pods were not deleted within a minute");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

fn manifest(name: &str) -> Result<Pod> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": { "nodeName": "edge-1", "terminationGracePeriodSeconds": 0, "containers": [{
            "name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "100000"],
        }] },
    }))?)
}

/// edgecore's memory in KiB and its share of a core in percent, over half a minute in which nothing happens.
async fn idle(pid: u32) -> Result<(u64, f64)> {
    const WINDOW: Duration = Duration::from_secs(30);
    tokio::time::sleep(Duration::from_secs(15)).await;
    let before = cpu_ticks(pid)?;
    tokio::time::sleep(WINDOW).await;
    // 100 ticks a second, on every Linux that there is (USER_HZ).
    let seconds = (cpu_ticks(pid)? - before) as f64 / 100.0;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let rss = rss.split_whitespace().next().context("VmRSS is empty")?.parse()?;
    Ok((rss, seconds / WINDOW.as_secs_f64() * 100.0))
}

fn cpu_ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit(')').next().context("it has a name in brackets")?;
    let mut fields = after_name.split_whitespace().skip(11);
    let mut next = || fields.next().context("utime and stime").and_then(|text| Ok(text.parse::<u64>()?));
    Ok(next()? + next()?)
}

fn percentile(durations: &mut [Duration], percent: usize) -> f64 {
    durations.sort();
    let index = (durations.len() * percent).div_ceil(100).max(1) - 1;
    ms(durations[index])
}

fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}
