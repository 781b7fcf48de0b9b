//! What people already ask of pods, on a real containerd: a table of manifests, each with what Kubernetes'
//! documentation promises of its status, its files and environment (which its containers print), and its events.
//!
//! The rows are in `table/*.yaml`. A row's pod is called after it; what a row leaves out is filled in: the image
//! is that of the tests, `restartPolicy` is `Never`, and a pod is given one second to stop. `${HOST}` is a folder
//! of the node, see [`prepare_host`], `${IPC}` its IPC namespace. `PODS=text` runs only the rows whose names contain the text, as
//! `cargo xtask soak pods --only` does.

#[path = "../support/containerd.rs"]
mod containerd;
mod matching;
mod row;

use std::{
    fs,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use containerd::{Containerd, IMAGE};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use kubeedge_tests::{
    api::client,
    binaries,
    site::{Cloud, Edge, EdgeOptions, cluster, wait_for},
};
use matching::differences;
use row::{Expect, OnCluster, Row};
use serde_json::Value;

/// How many rows run at once: as many as a node of this size starts without one waiting for the other.
const AT_ONCE: usize = 16;

/// How long a row has for all that it promises. A probe or a hook takes its seconds, and the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_what_the_documentation_of_kubernetes_promises() -> Result<()> {
    let site = Arc::new(Site::start().await?);
    let wanted = std::env::var("PODS").unwrap_or_default();
    let mut rows = Row::all(&site.host, IMAGE)?;
    rows.retain(|row| row.name.contains(&wanted));
    if cluster::admin().is_some() {
        rows.retain(|row| match &row.cluster {
            Some(OnCluster::LeftOut(why)) => {
                println!("{} is left out: {why}", row.name);
                false
            }
            Some(OnCluster::Refused(_) | OnCluster::MayTakeAway(_)) | None => true,
        });
    }
    let began = Instant::now();
    let total = rows.len();
    let outcomes = stream::iter(rows.into_iter().map(|row| {
        let site = Arc::clone(&site);
        async move { site.run(&row).await.map_err(|error| format!("{}: {error:#}", row.name)) }
    }));
    let outcomes: Vec<_> = outcomes.buffer_unordered(AT_ONCE).collect().await;
    let failed: Vec<String> = outcomes.into_iter().filter_map(Result::err).collect();
    println!("{total} pods, {} not as promised, {:?}", failed.len(), began.elapsed());
    if !failed.is_empty() {
        bail!("{} of {total} pods are not as promised:\n\n{}", failed.len(), failed.join("\n\n"));
    }
    Ok(())
}

/// A cloud and an edge on a real containerd.
struct Site {
    client: Client,
    edge: Edge,
    cloud: Cloud,
    _containerd: Containerd,
    _socket: UnixListener,
    host: PathBuf,
    _folder: tempfile::TempDir,
}

impl Site {
    async fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let containerd = Containerd::start();
        let binaries = binaries();
        let cloud = Cloud::start(&binaries, &folder.path().join("cloud"))?;
        let options = EdgeOptions { containerd: Some(containerd.socket()), ..EdgeOptions::new("edge-1") };
        let edge = Edge::start(&binaries, &folder.path().join("edge"), &cloud, &options)?;
        wait_for("the node to be Ready", || Ok(cloud.kubectl(&["get", "nodes"])?.contains(" Ready ")))
            .with_context(|| edge.log())?;
        let client = client(&cloud.kubeconfig()).await?;
        // What is mounted there goes with containerd's own mounts.
        let host = containerd.directory().join("host");
        let socket = prepare_host(&host)?;
        Ok(Self { client, edge, host, cloud, _containerd: containerd, _socket: socket, _folder: folder })
    }

    #[expect(clippy::print_stdout, reason = "whoever runs it on a cluster is to know what was left out")]
    async fn run(&self, row: &Row) -> Result<()> {
        for object in &row.objects {
            self.apply(object).await?;
        }
        let pods: Api<Pod> = Api::default_namespaced(self.client.clone());
        let pod = serde_json::from_value(row.pod()).context("it is no pod")?;
        let created = pods.create(&PostParams::default(), &pod).await;
        if let (Some(OnCluster::Refused(words)), Some(_)) = (&row.cluster, cluster::admin()) {
            let said = created.err().context("the pod was not refused")?.to_string();
            ensure!(said.contains(words), "{said}");
            return Ok(());
        }
        let created = serde_json::to_value(created.context("create the pod")?)?;
        if let (Some(OnCluster::MayTakeAway(place)), Some(_)) = (&row.cluster, cluster::admin())
            && created.pointer(place).is_none()
        {
            println!("{} is left out: this cluster takes {place} away", row.name);
            pods.delete(&row.name, &DeleteParams::default()).await?;
            return Ok(());
        }
        let mut outcome = self.wait(row, &row.expect).await;
        for step in &row.then {
            if outcome.is_err() {
                break;
            }
            for object in &step.apply {
                self.apply(object).await?;
            }
            outcome = self.wait(row, &step.expect).await.context("after the change");
        }
        pods.delete(&row.name, &DeleteParams::default()).await?;
        outcome
    }

    /// Waits until the pod is all that is expected of it. Its status need not be so any more when its events arrive, which come
    /// after it: a container is started again and again.
    async fn wait(&self, row: &Row, expect: &Expect) -> Result<()> {
        let (deadline, mut was_so) = (Instant::now() + PATIENCE, false);
        loop {
            let found = self.differences(row, expect, &mut was_so).await?;
            if found.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{}", found.join("\n  "));
            }
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
    }

    async fn differences(&self, row: &Row, expect: &Expect, was_so: &mut bool) -> Result<Vec<String>> {
        let pods: Api<Pod> = Api::default_namespaced(self.client.clone());
        let pod = serde_json::to_value(pods.get(&row.name).await?)?;
        let mut found = if expect.status.is_null() || *was_so {
            Vec::new()
        } else {
            differences("status", &expect.status, &pod["status"])
        };
        if !found.is_empty() {
            found.push(format!("the status is {}", pod["status"]));
            return Ok(found);
        }
        *was_so = true;
        for (container, lines) in &expect.log {
            let log = tokio::task::block_in_place(|| self.cloud.pod_log(&self.edge, &row.name, container));
            let log = log.unwrap_or_else(|error| format!("{error:#}"));
            for line in lines.iter().filter(|line| !matching::has_line(&log, line)) {
                found.push(format!("log of {container}: {line:?} is missing in:\n{log}"));
            }
        }
        if !expect.events.is_empty() {
            let events = self.events(row).await?;
            for event in &expect.events {
                if !events.iter().any(|one| differences("", event, one).is_empty()) {
                    let all: Vec<String> =
                        events.iter().map(|one| format!("{}: {}", one["reason"], one["message"])).collect();
                    found.push(format!("event {event} is missing among:\n{}", all.join("\n")));
                }
            }
        }
        Ok(found)
    }

    async fn events(&self, row: &Row) -> Result<Vec<Value>> {
        let events: Api<Event> = Api::default_namespaced(self.client.clone());
        let of_pod = ListParams::default().fields(&format!("involvedObject.name={}", row.name));
        events.list(&of_pod).await?.items.into_iter().map(|event| Ok(serde_json::to_value(event)?)).collect()
    }

    /// Creates an object, or changes it if it exists.
    async fn apply(&self, object: &Value) -> Result<()> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
        let (group, version) = version.split_once('/').unwrap_or(("", &version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
        let api: Api<DynamicObject> = if matches!(kind.as_str(), "PersistentVolume" | "RuntimeClass") {
            Api::all_with(self.client.clone(), &resource)
        } else {
            Api::default_namespaced_with(self.client.clone(), &resource)
        };
        let name = text(&object["metadata"]["name"]);
        let made = api.create(&PostParams::default(), &serde_json::from_value(object.clone())?).await;
        match made {
            Err(kube::Error::Api(status)) if status.code == 409 => {
                api.patch(&name, &PatchParams::default(), &Patch::Merge(object)).await.map(drop)
            }
            made => made.map(drop),
        }
        .with_context(|| format!("apply {kind} {name}"))
    }
}

/// What `${HOST}` has: `directory`, `file` with the text `of the node`, `socket`, `local` for storage, and `propagated`,
/// which is mounted so that mounts below it can be seen elsewhere.
fn prepare_host(host: &Path) -> Result<UnixListener> {
    for directory in ["directory", "local", "propagated"] {
        fs::create_dir_all(host.join(directory))?;
    }
    let propagated = host.join("propagated");
    for arguments in [["--bind", &propagated.to_string_lossy()].as_slice(), &["--make-shared"]] {
        let mounted = Command::new("mount").args(arguments).arg(&propagated).status()?;
        ensure!(mounted.success(), "mount {}: {mounted}", propagated.display());
    }
    fs::write(host.join("file"), "of the node")?;
    fs::write(host.join("directory/inside"), "inside")?;
    Ok(UnixListener::bind(host.join("socket"))?)
}
