//! What goes wrong under pods on a real containerd: the pod's status says it, its neighbours do not notice, and it heals
//! when the cause is gone.

#[path = "support/containerd.rs"]
mod containerd;
#[path = "support/pod_site.rs"]
mod pod_site;

use std::{
    fs,
    io::Write,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use containerd::Containerd;
use kubeedge_tests::site::wait_within;
use pod_site::{SOON, Site, ready, shell, with};
use serde_json::{Value, json};

/// A pod that runs and is asked every second, to which nothing must happen.
struct Neighbour {
    id: Value,
}

impl Neighbour {
    fn start(site: &Site) -> Result<Self> {
        let probe = json!({ "exec": { "command": ["true"] }, "periodSeconds": 1, "failureThreshold": 1 });
        let main = with(shell("main", "exec sleep 100000"), &json!({ "readinessProbe": probe }));
        site.apply("neighbour", json!({ "terminationGracePeriodSeconds": 1, "containers": [main] }))?;
        let status = site.wait("neighbour", "to be ready", ready)?;
        Ok(Self { id: status["containerStatuses"][0]["containerID"].clone() })
    }

    fn has_not_noticed(&self, site: &Site) -> Result<()> {
        let status = site.status("neighbour")?;
        let container = &status["containerStatuses"][0];
        ensure!(ready(&status) && container["containerID"] == self.id, "{status:#}");
        ensure!(container["restartCount"] == 0, "{status:#}");
        let unhealthy = site.events("neighbour")?.into_iter().any(|(reason, _)| reason == "Unhealthy");
        ensure!(!unhealthy, "{:?}", site.events("neighbour")?);
        Ok(())
    }
}

fn sleeper() -> Value {
    json!({ "terminationGracePeriodSeconds": 1, "containers": [shell("main", "exec sleep 100000")] })
}

fn waiting(status: &Value) -> String {
    let waiting = &status["containerStatuses"][0]["state"]["waiting"];
    format!(
        "{} {}",
        waiting["reason"].as_str().unwrap_or_default(),
        waiting["message"].as_str().unwrap_or_default()
    )
}

#[test]
fn a_disk_of_containerd_that_is_full_is_told_and_heals() -> Result<()> {
    // Eviction is for another test: here pods are to be tried again until there is room.
    let kubelet =
        ", evictionHard: {nodefs.available: \"1%\", imagefs.available: \"0%\", imagefs.inodesFree: \"0%\"}";
    let site = Site::start_on(Containerd::start_on_disk_of(96), kubelet)?;
    let neighbour = Neighbour::start(&site)?;
    let filler = fill(&site)?;
    site.apply("late", sleeper())?;
    let full = |status: &Value| waiting(status).contains("no space left");
    site.wait("late", "to say that the disk is full", full)?;
    neighbour.has_not_noticed(&site)?;
    fs::remove_file(filler)?;
    site.wait("late", "to run when there is room", ready)?;
    neighbour.has_not_noticed(&site)
}

#[test]
fn containerd_that_is_away_or_whose_socket_is_gone_is_told_and_its_pods_run_on() -> Result<()> {
    let mut site = Site::start()?;
    site.apply("before", sleeper())?;
    let id = |status: &Value| status["containerStatuses"][0]["containerID"].clone();
    let before = id(&site.wait("before", "to run", ready)?);
    let away = |status: &Value| status["phase"] == "Pending" && waiting(status).contains("unavailable");

    site.containerd.stop();
    site.apply("stopped", sleeper())?;
    site.wait("stopped", "to say that containerd is away", away)?;
    site.containerd.start_again();
    let stopped = id(&site.wait("stopped", "to run when containerd is back", ready)?);

    // A connection outlives its socket's name, so edgecore is started without one.
    let (socket, elsewhere) = (site.containerd.socket(), site.containerd.directory().join("elsewhere"));
    fs::rename(&socket, &elsewhere)?;
    site.edge.kill();
    site.edge.spawn()?;
    site.apply("socketless", sleeper())?;
    site.wait("socketless", "to say that the socket is gone", away)?;
    wait_within(SOON, "the node to say so too", || {
        Ok(site
            .cloud
            .kubectl(&["get", "node", "edge-1", "-o", "yaml"])?
            .contains("container runtime is down"))
    })?;
    ensure!(ready(&site.status("before")?), "what was Ready is not said to be anything else");
    fs::rename(&elsewhere, &socket)?;
    site.wait("socketless", "to run when the socket is back", ready)?;
    for (name, known) in [("before", before), ("stopped", stopped)] {
        let status = site.wait(name, "to be ready", ready)?;
        let container = &status["containerStatuses"][0];
        ensure!(id(&status) == known && container["restartCount"] == 0, "{name}: {status:#}");
    }
    Ok(())
}

/// Fills containerd's disk to the last byte.
fn fill(site: &Site) -> Result<PathBuf> {
    let path = site.containerd.directory().join("root/filler");
    let mut file = fs::File::create(&path)?;
    for size in [1 << 20, 4096, 1] {
        let block = vec![1; size];
        while file.write_all(&block).is_ok() {}
    }
    Ok(path)
}

#[test]
fn what_a_pod_lacks_is_told_and_it_starts_when_it_comes() -> Result<()> {
    let site = Site::start()?;
    let neighbour = Neighbour::start(&site)?;
    let mut image = sleeper();
    image["containers"][0]["image"] = json!("localhost/later:1");
    site.apply("image", image)?;
    let mut volume = sleeper();
    volume["volumes"] = json!([{ "name": "config", "configMap": { "name": "later" } }]);
    volume["containers"][0]["volumeMounts"] = json!([{ "name": "config", "mountPath": "/etc/app" }]);
    site.apply("volume", volume)?;
    let mut folder = sleeper();
    let path = site.folder.path().join("later");
    folder["volumes"] = json!([{ "name": "data", "hostPath": { "path": path, "type": "Directory" } }]);
    folder["containers"][0]["volumeMounts"] = json!([{ "name": "data", "mountPath": "/data" }]);
    site.apply("folder", folder)?;

    site.wait("image", "to lack its image", |status| waiting(status).contains("localhost/later:1"))?;
    site.wait("volume", "to lack its ConfigMap", |status| waiting(status).contains("later"))?;
    site.wait_event("volume", "FailedMount", "later")?;
    site.wait("folder", "to lack its folder", |status| waiting(status).contains("later"))?;
    site.wait_event("folder", "FailedMount", "later")?;
    neighbour.has_not_noticed(&site)?;

    let tag = ["images", "tag", containerd::IMAGE, "localhost/later:1"];
    site.containerd.ctr(&tag).map_err(anyhow::Error::msg)?;
    site.cloud.apply(
        r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "later"}, "data": {"a": "1"}}"#,
    )?;
    fs::create_dir(&path)?;
    for pod in ["volume", "folder", "image"] {
        site.wait(pod, "to run with what it lacked", ready)?;
    }
    neighbour.has_not_noticed(&site)
}

#[test]
fn a_probe_that_hangs_and_a_container_that_ignores_the_signal_hold_up_nobody() -> Result<()> {
    let site = Site::start()?;
    let neighbour = Neighbour::start(&site)?;
    // The command outlives its probe, and the container its signal.
    let deaf = "trap '' TERM; while true; do sleep 1; done";
    let hang = json!({ "exec": { "command": ["sh", "-c", "trap '' TERM; sleep 1000"] }, "periodSeconds": 1,
        "timeoutSeconds": 1, "failureThreshold": 2 });
    let main = with(shell("main", deaf), &json!({ "livenessProbe": hang }));
    site.apply("hang", json!({ "terminationGracePeriodSeconds": 2, "containers": [main] }))?;
    site.wait_event("hang", "Unhealthy", "timed out")?;
    site.wait_event("hang", "Killing", "failed liveness probe")?;
    let restarted = |status: &Value| status["containerStatuses"][0]["restartCount"].as_u64() >= Some(1);
    let status = site.wait("hang", "to be restarted", restarted)?;
    let last = &status["containerStatuses"][0]["lastState"]["terminated"];
    ensure!(last["exitCode"] == 137, "it was killed: {status:#}");
    let began = Instant::now();
    site.cloud.kubectl(&["delete", "pod", "hang", "--timeout=60s"])?;
    ensure!(began.elapsed() < Duration::from_secs(30), "it took {:?}", began.elapsed());
    neighbour.has_not_noticed(&site)
}
