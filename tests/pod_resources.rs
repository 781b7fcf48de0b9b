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
    let id = container_id(&site.status("first")?, 0)?;
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

fn container_id(status: &Value, index: usize) -> Result<String> {
    let id = &status["containerStatuses"][index]["containerID"];
    Ok(id.as_str().and_then(|id| id.split("://").nth(1)).context("it has an id")?.to_owned())
}

/// A file of a cgroup: the controller and the name that it has in cgroup v1, and the name in v2.
type File = (&'static str, &'static str, &'static str);

const MEMORY: File = ("memory", "memory.limit_in_bytes", "memory.max");
const SHARES: File = ("cpu", "cpu.shares", "cpu.weight");
const QUOTA: File = ("cpu", "cpu.cfs_quota_us", "cpu.max");
const PIDS: File = ("pids", "pids.max", "pids.max");

/// The directory of the pod's cgroup that this container is in, and whether it is of cgroup v1.
fn cgroup(site: &Site, id: &str, controller: &str) -> Result<(PathBuf, bool)> {
    let tasks = site.containerd.ctr(&["tasks", "ls"]).map_err(anyhow::Error::msg)?;
    let task = tasks.lines().find(|line| line.starts_with(id)).with_context(|| format!("{id} in {tasks}"))?;
    let pid = task.split_whitespace().nth(1).context("it has a process")?;
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.splitn(3, ':').collect()).collect();
    let v1 = lines.iter().find(|line| line[1].split(',').any(|name| name == controller));
    let (line, root) = match v1 {
        Some(line) => (line, format!("/sys/fs/cgroup/{}", line[1])),
        None => (lines.first().context("it is in a cgroup")?, "/sys/fs/cgroup".to_owned()),
    };
    let path = PathBuf::from(root + line[2]);
    Ok((path.parent().context("it is below its pod's")?.to_owned(), v1.is_some()))
}

/// What a file of the pod's cgroup says, in the words of cgroup v1.
fn of_pod(site: &Site, id: &str, file: File) -> Result<String> {
    let (directory, v1) = cgroup(site, id, file.0)?;
    let path = directory.join(if v1 { file.1 } else { file.2 });
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(text.trim().to_owned())
}

#[test]
fn pods_have_cgroups_where_the_kubelet_has_them_with_the_limits_that_it_sets() -> Result<()> {
    // A root of its own, since other nodes may be on this machine.
    let root = format!("ke-test-{}", std::process::id());
    let kubelet = format!(", cgroupRoot: /{root}, podPidsLimit: 321, kubeReserved: {{memory: 1Gi}}");
    let mut site = Site::start_on(containerd::Containerd::start(), &kubelet)?;
    let sized = |name: &str, requests: Value, limits: Value| {
        with(
            shell(name, "exec sleep 100000"),
            &json!({ "resources": { "requests": requests, "limits": limits } }),
        )
    };
    let apply = |name: &str, mut spec: Value| {
        spec["terminationGracePeriodSeconds"] = json!(1);
        site.apply(name, spec)
    };
    let best = sized("main", json!({}), json!({ "cpu": "500m", "memory": "64Mi" }));
    apply("guaranteed", json!({ "containers": [best] }))?;
    let two = [
        sized("main", json!({ "cpu": "100m" }), json!({ "memory": "32Mi" })),
        sized("side", json!({ "cpu": "200m" }), json!({ "cpu": "1", "memory": "64Mi" })),
    ];
    let class = r#"{"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "heavy"},
        "handler": "runc", "overhead": {"podFixed": {"cpu": "100m", "memory": "16Mi"}}}"#;
    site.cloud.apply(class)?;
    let overhead = json!({ "cpu": "100m", "memory": "16Mi" });
    apply("burstable", json!({ "containers": two, "runtimeClassName": "heavy", "overhead": overhead }))?;
    apply("besteffort", json!({ "containers": [shell("main", "exec sleep 100000")] }))?;
    let whole = json!({ "limits": { "cpu": "1", "memory": "128Mi" } });
    apply("whole", json!({ "containers": [shell("main", "exec sleep 100000")], "resources": whole }))?;

    let mut directories = Vec::new();
    let pods = [
        ("guaranteed", "", "512", Some("50000"), Some(64 << 20)),
        // Its first container has no limit of processor time, so the pod as a whole has none.
        ("burstable", "burstable/", "409", None, Some(112 << 20)),
        ("besteffort", "besteffort/", "2", None, None),
        ("whole", "", "1024", Some("100000"), Some(128 << 20)),
    ];
    for (name, class, shares, quota, memory) in pods {
        let status = site.wait(name, "to run", ready)?;
        let id = container_id(&status, 0)?;
        let pod: Value = serde_json::from_str(&site.cloud.kubectl(&["get", "pod", name, "-o", "json"])?)?;
        let uid = pod["metadata"]["uid"].as_str().context("it has a UID")?;
        if name == "whole" && pod["spec"]["resources"].is_null() {
            println!(
                "the API takes away what a pod as a whole may have, as Kubernetes 1.33 does: that is left out"
            );
            continue;
        }
        for controller in ["cpu", "memory"] {
            let (directory, _) = cgroup(&site, &id, controller)?;
            let wanted = format!("{root}/kubepods/{class}pod{uid}");
            ensure!(directory.ends_with(&wanted), "{name}: {} and not {wanted}", directory.display());
            directories.push(directory);
        }
        let (_, v1) = cgroup(&site, &id, "memory")?;
        let said = |file| of_pod(&site, &id, file);
        if v1 {
            ensure!(said(SHARES)? == shares, "{name}: {}", said(SHARES)?);
            ensure!(said(QUOTA)? == quota.unwrap_or("-1"), "{name}: {}", said(QUOTA)?);
        } else {
            ensure!(said(QUOTA)?.starts_with(quota.unwrap_or("max")), "{name}: {}", said(QUOTA)?);
        }
        match memory {
            Some(bytes) => ensure!(said(MEMORY)? == u64::to_string(&bytes), "{name}: {}", said(MEMORY)?),
            None => ensure!(said(MEMORY)?.len() > 15 || said(MEMORY)? == "max", "{name}: {}", said(MEMORY)?),
        }
        ensure!(said(PIDS)? == "321", "{name}: {}", said(PIDS)?);
    }
    let class = directories[2].parent().context("it is below its class")?.to_owned();
    let shares =
        || Ok(fs::read_to_string(class.join("cpu.shares")).or(fs::read_to_string(class.join("cpu.weight")))?);
    wait_within(SOON, "the share of the burstable", || {
        let shares: Result<String> = shares();
        Ok(["409", "16"].contains(&shares?.trim()))
    })?;
    let all = class.parent().context("it is below all")?.to_owned();
    ensure!(all.ends_with("kubepods"), "{}", all.display());

    // One goes as usual; the object of another one is gone while nobody is there to see it.
    site.cloud.kubectl(&["delete", "pod", "guaranteed", "besteffort", "whole", "--timeout=60s"])?;
    site.edge.kill();
    site.cloud.kubectl(&["delete", "pod", "burstable", "--force", "--grace-period=0"])?;
    site.edge.spawn()?;
    wait_within(SOON, "the cgroups of the pods to be gone", || Ok(!directories.iter().any(|it| it.exists())))
        .with_context(|| pod_site::tail(&site.edge.log()))?;
    let find = std::process::Command::new("find")
        .args(["/sys/fs/cgroup", "-path", &format!("*{root}*"), "-name", "pod*"])
        .output()?;
    ensure!(find.stdout.is_empty(), "{}", String::from_utf8_lossy(&find.stdout));
    site.edge.kill();
    let hierarchies = fs::read_dir("/sys/fs/cgroup")?.flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]) {
        for name in ["kubepods/burstable", "kubepods/besteffort", "kubepods", ""] {
            let _ = fs::remove_dir(hierarchy.join(&root).join(name));
        }
    }
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
    let id = container_id(&status, 0)?;
    let of_pod = |memory: u64| {
        wait_within(SOON, &format!("the pod as a whole to have {memory} bytes"), || {
            Ok(of_pod(&site, &id, MEMORY)? == memory.to_string())
        })
    };
    of_pod(128 << 20)?;
    ensure!(status["containerStatuses"][0]["restartCount"] == 0, "{status:#}");
    let condition = |status: &Value, kind: &str| {
        let mut all = status["conditions"].as_array().into_iter().flatten();
        all.find(|condition| condition["type"] == kind).cloned()
    };
    ensure!(condition(&status, "PodResizeInProgress").is_none(), "{status:#}");

    // More than the node has is refused in the pod's conditions, and the pod runs on as it is, also over a restart.
    let huge = json!({ "requests": { "cpu": "5000", "memory": "32Mi" }, "limits": { "cpu": "5000", "memory": "128Mi" } });
    match patch(&site, huge) {
        // Kubernetes 1.36 knows by itself what a node could never give, and does not ask it.
        Err(error) if format!("{error:#}").contains("enough allocatable resources: cpu") => {
            println!("the API refuses more than the node has, so the node's refusal is left out");
        }
        taken => {
            taken?;
            let refused = |status: &Value| {
                condition(status, "PodResizePending").is_some_and(|it| it["reason"] == "Infeasible")
            };
            let status = site.wait("web", "to be refused more", refused)?;
            let message = condition(&status, "PodResizePending").map(|it| it["message"].to_string());
            let names = message.is_some_and(|it| it.contains("Node didn't have enough capacity: cpu"));
            ensure!(names, "{status:#}");
            site.wait_event("web", "ResizeInfeasible", "enough capacity")?;
        }
    }
    site.edge.kill();
    site.edge.spawn()?;
    match patch(&site, sized("1", "96Mi")) {
        // Kubernetes 1.33 does not let a limit of memory go down without a restart.
        Err(error) if format!("{error:#}").contains("memory limits cannot be decreased") => {
            println!("the API lets no limit of memory go down, so that is left out");
            return Ok(());
        }
        taken => taken?,
    };
    limit(&site, 96 << 20)?;
    ensure!(self::of_pod(&site, &id, MEMORY)? == (96 << 20).to_string(), "the pod as a whole has less too");
    let status =
        site.wait("web", "to be refused nothing", |status| condition(status, "PodResizePending").is_none())?;
    ensure!(status["containerStatuses"][0]["restartCount"] == 0, "{status:#}");
    Ok(())
}
