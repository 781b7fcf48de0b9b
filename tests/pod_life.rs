//! The life of pods on a real containerd, as people see it with a stock kubectl.

#[path = "support/containerd.rs"]
mod containerd;

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use containerd::{Containerd, IMAGE};
use kubeedge_tests::{
    binaries,
    site::{Cloud, Edge, EdgeOptions, wait_within},
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);

/// A cloud, an edge on a real containerd, and a folder of the node that pods leave marks in.
struct Site {
    edge: Edge,
    cloud: Cloud,
    containerd: Containerd,
    folder: tempfile::TempDir,
}

impl Site {
    fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::create_dir_all(folder.path().join("marks"))?;
        let containerd = Containerd::start();
        let binaries = binaries();
        let cloud = Cloud::start(&binaries, &folder.path().join("cloud"))?;
        let options = EdgeOptions { containerd: Some(containerd.socket()), ..EdgeOptions::new("edge-1") };
        let edge = Edge::start(&binaries, &folder.path().join("edge"), &cloud, &options)?;
        Ok(Self { edge, cloud, containerd, folder })
    }

    fn mark(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join("marks").join(name)
    }

    /// Applies a pod whose containers see the marks at `/marks`.
    fn apply(&self, name: &str, mut spec: Value) -> Result<()> {
        spec["nodeName"] = json!("edge-1");
        let marks = self.folder.path().join("marks");
        spec["volumes"] = json!([{ "name": "marks", "hostPath": { "path": marks } }]);
        let lists = ["initContainers", "containers"];
        for list in lists {
            for container in spec[list].as_array_mut().into_iter().flatten() {
                container["image"] = container.get("image").cloned().unwrap_or_else(|| json!(IMAGE));
                container["imagePullPolicy"] = json!("IfNotPresent");
                container["volumeMounts"] = json!([{ "name": "marks", "mountPath": "/marks" }]);
            }
        }
        let metadata = json!({ "name": name, "namespace": "default" });
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec });
        self.cloud.apply(&pod.to_string()).map(drop)
    }

    fn status(&self, pod: &str) -> Result<Value> {
        let pod: Value = serde_json::from_str(&self.cloud.kubectl(&["get", "pod", pod, "-o", "json"])?)?;
        Ok(pod["status"].clone())
    }

    /// Waits until the pod's status is as it should be.
    fn wait(&self, pod: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        wait_within(SOON, &format!("{pod}: {what}"), || {
            last = self.status(pod)?;
            Ok(holds(&last))
        })
        .with_context(|| format!("{last:#}\n{}", tail(&self.edge.log())))?;
        Ok(last)
    }

    fn events(&self, pod: &str) -> Result<Vec<(String, String)>> {
        let field = format!("involvedObject.name={pod}");
        let all = self.cloud.kubectl(&["get", "events", "--field-selector", &field, "-o", "json"])?;
        let all: Value = serde_json::from_str(&all)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let events = all["items"].as_array().into_iter().flatten();
        Ok(events.map(|event| (text(&event["reason"]), text(&event["message"]))).collect())
    }

    fn wait_event(&self, pod: &str, reason: &str, message: &str) -> Result<()> {
        wait_within(SOON, &format!("{pod}: the event {reason}: {message}"), || {
            let events = self.events(pod)?;
            Ok(events.iter().any(|(of, text)| of == reason && text.contains(message)))
        })
        .with_context(|| format!("{:#?}", self.events(pod)))
    }
}

fn shell(name: &str, script: &str) -> Value {
    json!({ "name": name, "command": ["sh", "-c", script] })
}

fn with(mut container: Value, members: &Value) -> Value {
    for (key, value) in members.as_object().into_iter().flatten() {
        container[key] = value.clone();
    }
    container
}

fn exec(script: &str) -> Value {
    json!({ "exec": { "command": ["sh", "-c", script] } })
}

fn ready(status: &Value) -> bool {
    let conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|it| it["type"] == "Ready" && it["status"] == "True")
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

#[test]
fn probes_hooks_and_sidecars_do_on_containerd_what_the_manifest_says() -> Result<()> {
    let mut site = Site::start()?;
    let mut readiness = json!({ "httpGet": { "path": "/index.html", "port": "web" }, "periodSeconds": 1 });
    readiness["failureThreshold"] = json!(1);
    let mut liveness = exec("test ! -e /marks/sick");
    liveness["periodSeconds"] = json!(1);
    liveness["failureThreshold"] = json!(2);
    let main = with(
        shell("main", "echo began >> /marks/order; mkdir -p /www; httpd -p 8080 -h /www; exec sleep 100000"),
        &json!({
            "ports": [{ "name": "web", "containerPort": 8080 }],
            "startupProbe": { "tcpSocket": { "port": 8080 }, "periodSeconds": 1, "failureThreshold": 30 },
            "readinessProbe": readiness,
            "livenessProbe": liveness,
            "lifecycle": { "postStart": exec("echo hello >> /marks/order"),
                           "preStop": exec("echo drained >> /marks/order; echo page > /www/index.html") },
        }),
    );
    let init = shell("prepare", "echo prepared >> /marks/order");
    let proxy = with(
        shell(
            "proxy",
            "echo proxy >> /marks/order; trap 'echo proxy-ends >> /marks/order; exit 0' TERM; \
                        while true; do sleep 0.1; done",
        ),
        &json!({ "restartPolicy": "Always", "startupProbe": exec("test -e /marks/order") }),
    );
    let spec =
        json!({ "terminationGracePeriodSeconds": 10, "initContainers": [init, proxy], "containers": [main] });
    site.apply("web", spec)?;
    let started = |status: &Value| status["containerStatuses"][0]["started"] == true;
    let status = site.wait("web", "to have started", started)?;
    ensure!(!ready(&status), "there is no page yet: {status:#}");
    site.wait_event("web", "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 404")?;
    ensure!(status["initContainerStatuses"][0]["state"]["terminated"]["reason"] == "Completed", "{status:#}");
    ensure!(status["initContainerStatuses"][1]["state"]["running"].is_object(), "{status:#}");
    let order = fs::read_to_string(site.mark("order"))?;
    ensure!(order.starts_with("prepared\nproxy\n"), "{order}");
    ensure!(order.contains("began") && order.contains("hello"), "{order}");

    // Its preStop hook writes the page, so the next instance would have none: it lives in the container.
    fs::write(site.mark("sick"), "")?;
    site.wait_event("web", "Killing", "Container main failed liveness probe, will be restarted")?;
    fs::remove_file(site.mark("sick"))?;
    let restarted = |status: &Value| {
        status["containerStatuses"][0]["restartCount"] == 1
            && status["containerStatuses"][0]["started"] == true
    };
    site.wait("web", "to be restarted", restarted)?;
    ensure!(fs::read_to_string(site.mark("order"))?.contains("drained"), "the hook has run");

    let described = site.cloud.kubectl(&["describe", "pod", "web"])?;
    for wanted in [
        "Events:",
        "Created container: main",
        "Started container proxy",
        "Liveness probe failed",
        "already present on machine",
    ] {
        ensure!(described.contains(wanted), "{wanted} is missing in:\n{described}");
    }

    let before = site.status("web")?;
    site.edge.kill();
    site.edge.spawn()?;
    std::thread::sleep(Duration::from_secs(3));
    let after = site.status("web")?;
    ensure!(
        before["containerStatuses"][0]["containerID"] == after["containerStatuses"][0]["containerID"],
        "{before:#} {after:#}"
    );
    ensure!(after["containerStatuses"][0]["restartCount"] == 1 && restarted(&after), "{after:#}");

    site.cloud.kubectl(&["delete", "pod", "web", "--timeout=60s"])?;
    let order = fs::read_to_string(site.mark("order"))?;
    ensure!(order.ends_with("drained\nproxy-ends\n"), "the sidecar ends last: {order}");
    let left = site.containerd.ctr(&["containers", "ls", "-q"]).map_err(anyhow::Error::msg)?;
    ensure!(left.is_empty(), "{left}");
    Ok(())
}

#[test]
fn what_goes_wrong_reads_in_kubectl_as_people_know_it() -> Result<()> {
    let site = Site::start()?;
    let grace = |mut spec: Value| {
        spec["terminationGracePeriodSeconds"] = json!(2);
        spec
    };
    let crash = shell("main", "echo boom > /dev/termination-log; exit 3");
    site.apply("crash", grace(json!({ "containers": [crash] })))?;
    let log = with(
        shell("main", "echo one; echo the last line; exit 1"),
        &json!({ "terminationMessagePolicy": "FallbackToLogsOnError" }),
    );
    site.apply("log", grace(json!({ "restartPolicy": "Never", "containers": [log] })))?;
    let absent = json!({ "name": "main", "image": "localhost:1/absent:1" });
    site.apply("absent", grace(json!({ "containers": [absent] })))?;
    let command = json!({ "name": "main", "command": ["/no/such/command"] });
    site.apply("command", grace(json!({ "containers": [command] })))?;
    let hungry = with(
        shell("main", "exec sleep 100000"),
        &json!({ "readinessProbe":
        { "exec": { "command": ["sleep", "1000"] }, "timeoutSeconds": 1, "periodSeconds": 1 } }),
    );
    site.apply("hang", grace(json!({ "containers": [hungry] })))?;
    let deaf = shell("main", "trap '' TERM; while true; do sleep 1; done");
    site.apply("deaf", grace(json!({ "containers": [deaf] })))?;
    let late = shell("main", "exec sleep 100000");
    site.apply("late", grace(json!({ "activeDeadlineSeconds": 4, "containers": [late] })))?;
    let job = shell("main", "sleep 1");
    let side = with(shell("side", "exec sleep 100000"), &json!({ "restartPolicy": "Always" }));
    site.apply(
        "job",
        grace(json!({ "restartPolicy": "OnFailure", "initContainers": [side], "containers": [job] })),
    )?;

    let reason = |status: &Value| status["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    let status = site.wait("crash", "CrashLoopBackOff", |status| reason(status) == "CrashLoopBackOff")?;
    let last = &status["containerStatuses"][0]["lastState"]["terminated"];
    ensure!(last["exitCode"] == 3 && last["reason"] == "Error" && last["message"] == "boom\n", "{last:#}");
    site.wait_event("crash", "BackOff", "Back-off restarting failed container main in pod crash_default")?;

    let status = site.wait("log", "Failed", |status| status["phase"] == "Failed")?;
    let ended = &status["containerStatuses"][0]["state"]["terminated"];
    ensure!(ended["message"] == "one\nthe last line\n", "{ended:#}");

    site.wait("absent", "ImagePullBackOff", |status| reason(status) == "ImagePullBackOff")?;
    site.wait_event("absent", "Failed", "Failed to pull image \"localhost:1/absent:1\"")?;

    let broken = |status: &Value| {
        let last = &status["containerStatuses"][0]["lastState"]["terminated"]["reason"];
        reason(status) == "CrashLoopBackOff" && *last == "StartError"
    };
    site.wait("command", "StartError", broken)?;
    site.wait_event("command", "Failed", "no such file or directory")?;

    site.wait("hang", "Running", |status| status["phase"] == "Running" && !ready(status))?;
    site.wait_event("hang", "Unhealthy", "timed out")?;

    let status = site.wait("late", "DeadlineExceeded", |status| status["reason"] == "DeadlineExceeded")?;
    ensure!(status["phase"] == "Failed", "{status:#}");
    let status = site.wait("job", "Succeeded", |status| status["phase"] == "Succeeded")?;
    ensure!(status["containerStatuses"][0]["restartCount"] == 0, "{status:#}");

    site.wait("deaf", "Running", ready)?;
    let began = std::time::Instant::now();
    site.cloud.kubectl(&["delete", "pod", "deaf", "hang", "command", "--timeout=60s"])?;
    ensure!(began.elapsed() < Duration::from_secs(20), "it took {:?}", began.elapsed());
    site.cloud.kubectl(&["delete", "pods", "--all", "--timeout=60s"])?;
    let left = site.containerd.ctr(&["containers", "ls", "-q"]).map_err(anyhow::Error::msg)?;
    ensure!(left.is_empty(), "{left}");
    let root = find(site.edge.folder(), "pods");
    ensure!(root.is_none_or(|pods| fs::read_dir(pods).is_ok_and(|mut left| left.next().is_none())));
    Ok(())
}

/// The directory of this name somewhere below.
fn find(below: &Path, name: &str) -> Option<std::path::PathBuf> {
    let entries = fs::read_dir(below).into_iter().flatten().flatten();
    let directories = entries.map(|entry| entry.path()).filter(|path| path.is_dir());
    directories.into_iter().find_map(|path| {
        if path.file_name().is_some_and(|it| it == name) { Some(path) } else { find(&path, name) }
    })
}
