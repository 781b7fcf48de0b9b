//! The life of pods on a real containerd, as people see it with a stock kubectl.

#[path = "support/containerd.rs"]
mod containerd;
#[path = "support/pod_site.rs"]
mod pod_site;

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use kubeedge_tests::site::{cluster, wait_within};
use pod_site::{SOON, Site, exec, ready, shell, tail, with};
use serde_json::{Value, json};

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

#[test]
fn a_container_is_told_of_the_services_that_there_are_when_it_starts_with_a_link_or_without() -> Result<()> {
    let mut site = Site::start()?;
    let service = |port: u16| {
        let mut spec = json!({ "ports": [{ "port": port }] });
        if cluster::admin().is_none() {
            spec["clusterIP"] = json!("10.0.0.11");
        }
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "db" }, "spec": spec })
            .to_string()
    };
    let says = |name: &str| {
        let script = format!(
            "echo {name} $DB_PORT >> /marks/told; while test ! -e /marks/again-{name}; do sleep 0.1; done; \
             rm /marks/again-{name}"
        );
        json!({ "terminationGracePeriodSeconds": 1, "containers": [shell("main", &script)] })
    };
    let told = |site: &Site| fs::read_to_string(site.mark("told")).unwrap_or_default();
    site.cloud.apply(&service(5432))?;
    let address = site.cloud.kubectl(&["get", "service", "db", "-o", "jsonpath={.spec.clusterIP}"])?;
    site.apply("first", says("first"))?;
    site.wait("first", "to be ready", ready)?;
    ensure!(told(&site) == format!("first tcp://{address}:5432\n"), "{}", told(&site));

    site.cloud.apply(&service(5433))?;
    site.apply("second", says("second"))?;
    site.wait("second", "to be ready", ready)?;
    let both = format!("first tcp://{address}:5432\nsecond tcp://{address}:5433\n");
    ensure!(told(&site) == both, "a change of a Service restarts nothing: {}", told(&site));

    site.edge.kill();
    site.cloud.kill();
    site.edge.spawn()?;
    fs::write(site.mark("again-first"), "")?;
    wait_within(SOON, "the container to be started anew", || Ok(told(&site).lines().count() > 2))
        .with_context(|| tail(&site.edge.log()))?;
    ensure!(told(&site) == format!("{both}first tcp://{address}:5433\n"), "{}", told(&site));
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
