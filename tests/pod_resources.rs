//! What pods get of a node on a real containerd: devices of a plugin in Python, and other limits while they run.

#[path = "support/containerd.rs"]
mod containerd;
#[path = "support/pod_site.rs"]
mod pod_site;

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use kubeedge_tests::{binaries, site::wait_within};
use pod_site::{SOON, Site, ready, shell, with};
use serde_json::{Value, json};

/// A device plugin, which ends with the test.
struct Plugin(Child);

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Plugin {
    fn start(site: &Site) -> Result<Self> {
        let target = binaries().folder;
        let target = target.parent().context("the binaries are in a folder of the target folder")?;
        let python = target.join("python/grpc/bin/python");
        ensure!(python.exists(), "{} is missing: `cargo xtask test` makes it", python.display());
        let folder = site.edge.folder().join("root/device-plugins");
        fs::create_dir_all(&folder)?;
        let errors = fs::File::create(site.folder.path().join("plugin.err"))?;
        let plugin = Command::new(python)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/device_plugin/plugin.py"))
            .arg("--folder")
            .arg(&folder)
            .arg("--log")
            .arg(log(site))
            .stdin(Stdio::null())
            .stderr(errors)
            .spawn()?;
        Ok(Self(plugin))
    }
}

fn log(site: &Site) -> PathBuf {
    site.folder.path().join("plugin.jsonl")
}

/// What the plugin has noted, and what it has complained of.
fn logs(site: &Site) -> String {
    let errors = fs::read_to_string(site.folder.path().join("plugin.err")).unwrap_or_default();
    fs::read_to_string(log(site)).unwrap_or_default() + &errors + &pod_site::tail(&site.edge.log())
}

fn wait_for_cameras(site: &Site, capacity: &str, allocatable: &str) -> Result<()> {
    wait_within(SOON, &format!("{capacity} cameras, {allocatable} of them well"), || {
        let node: Value =
            serde_json::from_str(&site.cloud.kubectl(&["get", "node", "edge-1", "-o", "json"])?)?;
        let count = |amounts: &str| node["status"][amounts]["example.com/camera"].clone();
        Ok(count("capacity") == capacity && count("allocatable") == allocatable)
    })
    .with_context(|| logs(site))
}

/// Applies a pod that notes which camera it has.
fn apply(site: &Site, name: &str) -> Result<()> {
    let script = format!(
        "test -c /dev/camera && test -e /calibration/camera.sock && echo $CAMERA >> /marks/{name}; exec sleep 100000"
    );
    let main = with(
        shell("main", &script),
        &json!({ "resources": { "limits": { "example.com/camera": "1" }, "requests": { "example.com/camera": "1" } } }),
    );
    site.apply(name, json!({ "terminationGracePeriodSeconds": 1, "containers": [main] }))
}

fn camera(site: &Site, name: &str) -> Result<String> {
    site.wait(name, "to run", ready).with_context(|| logs(site))?;
    wait_within(SOON, "the pod's own word", || Ok(site.mark(name).exists()))?;
    Ok(fs::read_to_string(site.mark(name))?)
}

#[test]
fn pods_have_devices_of_a_plugin_over_restarts_of_all_of_them() -> Result<()> {
    let mut site = Site::start()?;
    let plugin = Plugin::start(&site)?;
    wait_for_cameras(&site, "2", "2")?;
    apply(&site, "first")?;
    ensure!(camera(&site, "first")? == "right\n", "the plugin prefers it: {}", logs(&site));
    apply(&site, "second")?;
    ensure!(camera(&site, "second")? == "left\n", "{}", logs(&site));
    let noted = fs::read_to_string(log(&site))?;
    ensure!(noted.contains("\"prepare\"") && noted.contains("\"prefer\""), "{noted}");
    apply(&site, "third")?;
    let refused = site.wait("third", "to be refused", |status| status["phase"] == "Failed")?;
    ensure!(refused["reason"] == "OutOfexample.com/camera", "{refused:#}");
    site.cloud.kubectl(&["delete", "pod", "third", "--timeout=60s"])?;

    // edgecore is killed: who has which camera is known, also for a container that is started again.
    site.edge.kill();
    site.edge.spawn()?;
    let registered = || fs::read_to_string(log(&site)).map(|text| text.matches("\"registered\"").count());
    wait_within(SOON, "the plugin to register again", || Ok(registered()? >= 2))
        .with_context(|| logs(&site))?;
    wait_for_cameras(&site, "2", "2")?;
    apply(&site, "fourth")?;
    let refused = site.wait("fourth", "to be refused", |status| status["phase"] == "Failed")?;
    ensure!(refused["reason"] == "OutOfexample.com/camera", "{refused:#}");
    for (name, has) in [("first", "right\n"), ("second", "left\n")] {
        ensure!(fs::read_to_string(site.mark(name))? == has, "{name} has not been started again");
        ensure!(site.status(name)?["containerStatuses"][0]["restartCount"] == 0);
    }
    let id = site.status("first")?["containerStatuses"][0]["containerID"].clone();
    let id = id.as_str().and_then(|id| id.split("://").nth(1)).context("it has an id")?.to_owned();
    site.containerd.ctr(&["tasks", "kill", "-s", "KILL", &id]).map_err(anyhow::Error::msg)?;
    wait_within(
        SOON,
        "the next instance",
        || Ok(fs::read_to_string(site.mark("first"))? == "right\nright\n"),
    )
    .with_context(|| logs(&site))?;

    // The plugin is killed: its devices are not well, and nothing that runs is touched.
    drop(plugin);
    wait_for_cameras(&site, "2", "0")?;
    let _plugin = Plugin::start(&site)?;
    wait_for_cameras(&site, "2", "2")?;
    site.cloud.kubectl(&["delete", "pod", "first", "--timeout=60s"])?;
    apply(&site, "fifth")?;
    ensure!(camera(&site, "fifth")? == "right\n", "what the first one had is free: {}", logs(&site));
    ensure!(ready(&site.status("second")?), "{:#}", site.status("second")?);
    Ok(())
}

#[test]
fn a_container_that_runs_gets_other_limits_in_the_kernel_without_a_restart() -> Result<()> {
    let mut site = Site::start()?;
    let script = "while true; do cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max \
                  > /marks/next 2> /dev/null; cat /marks/next > /marks/limit; sleep 0.2; done";
    let sized = |cpu: &str, memory: &str| json!({ "requests": { "cpu": "50m", "memory": "32Mi" }, "limits": { "cpu": cpu, "memory": memory } });
    let main = with(shell("main", script), &json!({ "resources": sized("500m", "64Mi") }));
    site.apply("web", json!({ "terminationGracePeriodSeconds": 1, "containers": [main] }))?;
    site.wait("web", "to run", ready)?;
    let limit = |site: &Site, bytes: u64| {
        wait_within(SOON, &format!("a limit of {bytes} bytes"), || {
            let limit = fs::read_to_string(site.mark("limit")).unwrap_or_default();
            Ok(limit.trim() == bytes.to_string())
        })
        .with_context(|| format!("{:?}", fs::read_to_string(site.mark("limit"))))
    };
    limit(&site, 64 << 20)?;
    // What `kubectl patch pod web --subresource resize` does since Kubernetes 1.32.
    let patch = |site: &Site, resources: Value| {
        let pod: Value = serde_json::from_str(&site.cloud.kubectl(&["get", "pod", "web", "-o", "json"])?)?;
        let mut spec = json!({ "containers": pod["spec"]["containers"] });
        spec["containers"][0]["resources"] = resources;
        let body = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "web" }, "spec": spec });
        let file = site.folder.path().join("resize.json");
        fs::write(&file, body.to_string())?;
        let path = "/api/v1/namespaces/default/pods/web/resize";
        site.cloud.kubectl(&["replace", "--raw", path, "-f", &file.to_string_lossy()]).map(drop)
    };
    patch(&site, sized("1", "128Mi"))?;
    let given = |status: &Value| status["containerStatuses"][0]["resources"]["limits"]["memory"] == "128Mi";
    let status = site.wait("web", "to have more", given)?;
    limit(&site, 128 << 20)?;
    ensure!(status["containerStatuses"][0]["restartCount"] == 0, "{status:#}");
    let condition = |status: &Value, kind: &str| {
        let mut all = status["conditions"].as_array().into_iter().flatten();
        all.find(|condition| condition["type"] == kind).cloned()
    };
    ensure!(condition(&status, "PodResizeInProgress").is_none(), "{status:#}");

    // More than the node has is refused in the pod's conditions, and the pod runs on as it is, also over a restart.
    let huge = json!({ "requests": { "cpu": "5000", "memory": "32Mi" }, "limits": { "cpu": "5000", "memory": "128Mi" } });
    patch(&site, huge)?;
    let refused =
        |status: &Value| condition(status, "PodResizePending").is_some_and(|it| it["reason"] == "Infeasible");
    let status = site.wait("web", "to be refused more", refused)?;
    let message = condition(&status, "PodResizePending").map(|it| it["message"].to_string());
    ensure!(message.is_some_and(|it| it.contains("Node didn't have enough capacity: cpu")), "{status:#}");
    site.wait_event("web", "ResizeInfeasible", "enough capacity")?;
    site.edge.kill();
    site.edge.spawn()?;
    patch(&site, sized("1", "96Mi"))?;
    limit(&site, 96 << 20)?;
    let status =
        site.wait("web", "to be refused nothing", |status| condition(status, "PodResizePending").is_none())?;
    ensure!(status["containerStatuses"][0]["restartCount"] == 0, "{status:#}");
    Ok(())
}
