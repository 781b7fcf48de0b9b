//! Behaviour through the pipes: over the runtime in memory with time that is ours.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kubeedge_core::{
    message::{
        Connectivity, LogRequest, Object, ObjectEvent, ObjectRef, PodState, Report, ReportKey, Response,
    },
    pipe::{LatestReceiver, LatestSender},
    runtime::{
        ContainerRuntime,
        memory::{Exec, MemoryRuntime},
    },
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Config, Edged, Error, Outside, pipes};

mod upkeep;

/// Edged in a directory of its own.
struct Node {
    outside: Outside,
    stop: CancellationToken,
    running: JoinHandle<Result<(), Error>>,
}

impl Node {
    fn start(directory: &Path, runtime: Arc<dyn ContainerRuntime>) -> Self {
        Self::start_with(directory, runtime, |_| {})
    }

    fn start_with(
        directory: &Path,
        runtime: Arc<dyn ContainerRuntime>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let (inbox, outbox, outside) = pipes();
        let mut config = Config::new("edge-1".parse().unwrap());
        // The disk that tests run on may be as full as it likes.
        config.eviction.hard.clear();
        config.root = directory.join("root");
        config.logs = directory.join("logs");
        config.node_ip = "192.0.2.7".into();
        change(&mut config);
        let stop = CancellationToken::new();
        let running = tokio::spawn(Edged::new(config, runtime, inbox, outbox).run(stop.clone()));
        Self { outside, stop, running }
    }

    fn apply(&self, object: &Value) {
        let object = Object::from_json(object.to_string()).unwrap();
        self.outside.workloads.send(ObjectEvent::Applied(object)).unwrap();
    }

    /// The next report of the pod with this UID that `accept`s.
    async fn pod(&mut self, uid: &str, accept: impl Fn(&Value) -> bool) -> Value {
        let wait = async {
            loop {
                let report = self.outside.reports.recv().await.expect("Edged ended");
                if let Report::Pod(pod) = report
                    && pod.uid.as_str() == uid
                    && let PodState::Status(bytes) = pod.state
                {
                    let status: Value = serde_json::from_slice(&bytes).unwrap();
                    if accept(&status) {
                        return status;
                    }
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(3600), wait).await.expect("no such report")
    }

    async fn running(&mut self, uid: &str) -> Value {
        self.pod(uid, |status| status["phase"] == "Running" && ready(status)).await
    }

    async fn gone(&mut self, uid: &str) {
        let wait = async {
            while let Some(report) = self.outside.reports.recv().await {
                if let Report::Pod(pod) = report
                    && pod.uid.as_str() == uid
                    && pod.state == PodState::Gone
                {
                    return;
                }
            }
            panic!("Edged ended");
        };
        tokio::time::timeout(Duration::from_secs(3600), wait).await.expect("the pod is not gone");
    }

    async fn end(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }
}

fn ready(status: &Value) -> bool {
    let conditions = status["conditions"].as_array().unwrap();
    conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn pod(name: &str, extra: &Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "default", "uid": name },
        "spec": { "containers": [{ "name": "app", "image": "app:1" }] },
    });
    json_merge(&mut pod, extra);
    pod
}

fn json_merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                json_merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

fn deleting(name: &str, grace: u64) -> Value {
    let metadata =
        json!({ "deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": grace });
    pod(name, &json!({ "metadata": metadata }))
}

fn config_map(name: &str, data: &Value) -> Value {
    let metadata = json!({ "name": name, "namespace": "default", "uid": name });
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data })
}

#[tokio::test(start_paused = true)]
async fn a_pod_runs_and_its_status_is_what_kubectl_expects() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = MemoryRuntime::new();
    let mut node = Node::start(directory.path(), Arc::new(runtime.clone()));
    node.apply(&pod("web", &json!({})));
    let status = node.running("web").await;
    let container = &status["containerStatuses"][0];
    assert_eq!(container["name"], "app");
    assert_eq!(container["ready"], true);
    assert_eq!(container["restartCount"], 0);
    assert!(container["state"]["running"]["startedAt"].is_string());
    assert!(container["containerID"].as_str().unwrap().starts_with("memory://"), "{container}");
    assert_eq!(status["qosClass"], "BestEffort");
    assert_eq!(status["hostIP"], "192.0.2.7");
    assert!(status["podIP"].as_str().unwrap().starts_with("10."));
    assert_eq!(runtime.starts("web/app"), 1);
    node.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_adopts_what_runs_and_starts_nothing_twice() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = MemoryRuntime::new();
    let mut first = Node::start(directory.path(), Arc::new(runtime.clone()));
    for name in ["one", "two"] {
        first.apply(&pod(name, &json!({})));
        first.running(name).await;
    }
    first.end().await;
    // The second process hears of its pods late, one of them only after a while.
    let mut second = Node::start(directory.path(), Arc::new(runtime.clone()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    second.apply(&pod("one", &json!({})));
    second.running("one").await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    second.apply(&pod("two", &json!({})));
    second.running("two").await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((runtime.starts("one/app"), runtime.starts("two/app")), (1, 1));
    assert_eq!(runtime.observe().await.unwrap().len(), 2);
    second.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_start_that_an_earlier_process_began_is_waited_for_without_a_word() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = MemoryRuntime::new();
    runtime.start_under_way("web/app", 5);
    let mut node = Node::start(directory.path(), Arc::new(runtime.clone()));
    node.outside.connectivity.send_replace(Connectivity::Synchronized);
    node.apply(&pod("web", &json!({})));
    let status = node.running("web").await;
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0);
    assert_eq!(runtime.starts("web/app"), 1);
    let mut reasons = Vec::new();
    while let Ok(upload) = tokio::time::timeout(Duration::from_secs(10), node.outside.events.recv()).await {
        let Some(event) = upload else { panic!("not an event") };
        let event: Value = serde_json::from_slice(&event.json).unwrap();
        reasons.push(event["reason"].as_str().unwrap().to_owned());
    }
    assert_eq!(reasons, ["Pulling", "Pulled", "Created"]);
    node.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_of_no_known_pod_is_removed_only_after_its_grace() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = MemoryRuntime::new();
    let mut first = Node::start(directory.path(), Arc::new(runtime.clone()));
    first.apply(&pod("left", &json!({})));
    first.running("left").await;
    first.end().await;
    let second = Node::start(directory.path(), Arc::new(runtime.clone()));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(runtime.observe().await.unwrap().len(), 1, "the store may have lost it");
    second.end().await;
    let second = Node::start(directory.path(), Arc::new(runtime.clone()));
    second.outside.connectivity.send_replace(Connectivity::Synchronized);
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(runtime.observe().await.unwrap().len(), 1);
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert!(runtime.observe().await.unwrap().is_empty());
    second.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_is_restarted_at_once_and_then_with_back_off() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = MemoryRuntime::new();
    runtime.exit_at_start("web/app", [1, 1, 1]);
    let mut node = Node::start(directory.path(), Arc::new(runtime.clone()));
    node.apply(&pod("web", &json!({})));
    let waiting =
        |status: &Value| status["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff";
    let status = node.pod("web", waiting).await;
    assert_eq!(runtime.starts("web/app"), 2);
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 1);
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(runtime.starts("web/app"), 2, "10 s are not over");
    let status = node.running("web").await;
    assert_eq!(status["containerStatuses"][0]["restartCount"], 3);
    assert_eq!(runtime.starts("web/app"), 4);
    let kept = runtime.observe().await.unwrap()[0].containers.len();
    assert_eq!(kept, 2, "only the newest two instances are kept");
    node.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_may_not_restart_ends_for_good() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = MemoryRuntime::new();
    runtime.exit_at_start("good/app", [0]);
    runtime.exit_at_start("bad/app", [3]);
    let mut node = Node::start(directory.path(), Arc::new(runtime.clone()));
    for (name, phase) in [("good", "Succeeded"), ("bad", "Failed")] {
        node.apply(&pod(name, &json!({ "spec": { "restartPolicy": "Never" } })));
        let status = node.pod(name, |status| status["phase"] == phase).await;
        assert!(status["containerStatuses"][0]["state"]["terminated"].is_object(), "{status}");
    }
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!((runtime.starts("good/app"), runtime.starts("bad/app")), (1, 1));
    node.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_delete_stops_with_grace_removes_everything_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = MemoryRuntime::new();
    let mut node = Node::start(directory.path(), Arc::new(runtime.clone()));
    node.apply(&pod("web", &json!({})));
    node.running("web").await;
    assert!(directory.path().join("root/pods/web").exists());
    runtime.ignore_stop("web/app");
    node.apply(&deleting("web", 20));
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(runtime.observe().await.unwrap().len(), 1, "the grace is not over");
    node.gone("web").await;
    assert!(runtime.observe().await.unwrap().is_empty());
    assert!(!directory.path().join("root/pods/web").exists());
    // Until the API has forgotten the pod, each session hears it again.
    node.outside.connectivity.send_replace(Connectivity::Online);
    node.gone("web").await;
    node.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_shorter_grace_overtakes_a_longer_one() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = MemoryRuntime::new();
    let mut node = Node::start(directory.path(), Arc::new(runtime.clone()));
    node.apply(&pod("web", &json!({})));
    node.running("web").await;
    runtime.ignore_stop("web/app");
    node.apply(&deleting("web", 3000));
    tokio::time::sleep(Duration::from_secs(5)).await;
    node.apply(&deleting("web", 0));
    let gone = tokio::time::timeout(Duration::from_secs(10), node.gone("web"));
    gone.await.expect("the long grace was waited for");
    node.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_object_deleted_or_replaced_takes_its_pod_along() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = MemoryRuntime::new();
    let mut node = Node::start(directory.path(), Arc::new(runtime.clone()));
    node.apply(&pod("web", &json!({})));
    node.running("web").await;
    node.apply(&pod("web", &json!({ "metadata": { "uid": "web-2" } })));
    node.running("web-2").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let uids: Vec<_> = runtime.observe().await.unwrap().into_iter().map(|sandbox| sandbox.uid).collect();
    assert_eq!(uids, [kubeedge_core::id::Uid::new("web-2")]);
    let reference = ObjectRef::pod("default", "web");
    // A third of that name came and went before it was heard of: all that the pipe holds is its end.
    node.apply(&pod("web", &json!({ "metadata": { "uid": "web-3" } })));
    let gone = ObjectEvent::Deleted { reference, uid: kubeedge_core::id::Uid::new("web-3") };
    node.outside.workloads.send(gone).unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(runtime.observe().await.unwrap().is_empty());
    node.end().await;
}

#[tokio::test(start_paused = true)]
async fn configuration_reaches_environment_and_files_and_its_change_reaches_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = MemoryRuntime::new();
    let mut node = Node::start(directory.path(), Arc::new(runtime.clone()));
    let container = json!({
        "name": "app", "image": "app:1", "args": ["--level=$(LEVEL)"],
        "env": [
            { "name": "LEVEL", "valueFrom": { "configMapKeyRef": { "name": "settings", "key": "level" } } },
            { "name": "NODE", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } },
            { "name": "ADDRESS", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
        ],
        "envFrom": [{ "prefix": "S_", "secretRef": { "name": "keys" } }],
        "volumeMounts": [{ "name": "files", "mountPath": "/etc/app" }],
    });
    let volumes = json!([{ "name": "files", "configMap": { "name": "settings" } }]);
    node.apply(&pod("web", &json!({ "spec": { "containers": [container], "volumes": volumes } })));
    let missing = |status: &Value| status.to_string().contains("configmap \\\"settings\\\" not found");
    let status = node.pod("web", missing).await;
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "ContainerCreating");

    node.apply(&config_map("settings", &json!({ "level": "info" })));
    let keys = json!({ "apiVersion": "v1", "kind": "Secret", "data": { "token": "c2VjcmV0" },
        "metadata": { "name": "keys", "namespace": "default", "uid": "keys" } });
    node.apply(&keys);
    node.running("web").await;
    let config = runtime.container_config("web/app").unwrap();
    let value = |name: &str| config.env.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    assert_eq!(
        (value("LEVEL"), value("NODE"), value("S_token")),
        (Some("info"), Some("edge-1"), Some("secret"))
    );
    assert!(value("ADDRESS").unwrap().starts_with("10."));
    assert_eq!(config.args, ["--level=info"]);
    let file = config.mounts[0].host_path.join("level");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "info");

    node.apply(&config_map("settings", &json!({ "level": "debug", "more": "x" })));
    let changed = async {
        while std::fs::read_to_string(&file).unwrap() != "debug" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(1), changed).await.expect("the file has not changed");
    assert_eq!(runtime.starts("web/app"), 1);
    node.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_fails_is_said_and_tried_again_and_a_delete_does_not_wait_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = MemoryRuntime::new();
    runtime.fail_pulls("app:1", "no such host", 2);
    let mut node = Node::start(directory.path(), Arc::new(runtime.clone()));
    node.apply(&pod("web", &json!({})));
    let reason = |reason: &'static str| {
        move |status: &Value| status["containerStatuses"][0]["state"]["waiting"]["reason"] == reason
    };
    node.pod("web", reason("ErrImagePull")).await;
    node.pod("web", reason("ImagePullBackOff")).await;
    node.running("web").await;
    assert_eq!(runtime.pulls("app:1"), 3);
    node.apply(&pod(
        "local",
        &json!({ "spec": { "containers":
        [{ "name": "app", "image": "absent:1", "imagePullPolicy": "Never" }] } }),
    ));
    node.pod("local", reason("ErrImageNeverPull")).await;
    node.apply(&deleting("local", 0));
    node.gone("local").await;
    node.end().await;
}

#[tokio::test(start_paused = true)]
async fn after_a_loss_of_power_pods_get_new_sandboxes_and_count_on() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = MemoryRuntime::new();
    let mut node = Node::start(directory.path(), Arc::new(runtime.clone()));
    node.apply(&pod("web", &json!({})));
    node.running("web").await;
    node.end().await;
    runtime.power_cycle();
    let mut node = Node::start(directory.path(), Arc::new(runtime.clone()));
    node.apply(&pod("web", &json!({})));
    let status = node.running("web").await;
    assert_eq!(status["containerStatuses"][0]["restartCount"], 1);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let sandboxes = runtime.observe().await.unwrap();
    assert_eq!(sandboxes.len(), 1, "the dead sandbox is removed");
    assert_eq!(runtime.starts("web/app"), 2);
    node.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_cannot_be_read_fails_alone() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = MemoryRuntime::new();
    let mut node = Node::start(directory.path(), Arc::new(runtime.clone()));
    node.apply(&pod("odd", &json!({ "spec": { "containers": "none" } })));
    node.apply(&pod("web", &json!({})));
    let status = node.pod("odd", |status| status["phase"] == "Failed").await;
    assert_eq!(status["reason"], "InvalidPod");
    node.running("web").await;
    node.end().await;
}

#[tokio::test(start_paused = true)]
async fn init_containers_run_one_after_the_other_before_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = MemoryRuntime::new();
    runtime.exit_at_start("web/first", [1, 0]);
    let mut node = Node::start(directory.path(), Arc::new(runtime.clone()));
    let init = json!([{ "name": "first", "image": "app:1" }, { "name": "second", "image": "app:1" }]);
    node.apply(&pod("web", &json!({ "spec": { "initContainers": init } })));
    let waiting = |status: &Value| status["initContainerStatuses"][1]["state"]["running"].is_object();
    let status = node.pod("web", waiting).await;
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
    assert_eq!((runtime.starts("web/first"), runtime.starts("web/app")), (2, 0));
    runtime.exit("web/second", 0);
    node.running("web").await;
    node.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_node_is_reported_at_the_start_of_each_session_and_then_only_when_it_changes() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = MemoryRuntime::new();
    let mut node = Node::start(directory.path(), Arc::new(runtime.clone()));
    tokio::time::sleep(Duration::from_secs(5)).await;
    node.outside.connectivity.send_replace(Connectivity::Online);
    let report = next_node(&mut node.outside.reports).await;
    let ready = |node: &Value| {
        let conditions = node["status"]["conditions"].as_array().unwrap().clone();
        conditions.into_iter().find(|condition| condition["type"] == "Ready").unwrap()
    };
    assert_eq!(ready(&report)["status"], "True");
    assert_eq!(ready(&report)["reason"], "KubeletReady");
    assert_eq!(report["metadata"]["labels"]["node-role.kubernetes.io/edge"], "");
    assert_eq!(report["status"]["capacity"]["pods"], "110");
    assert_eq!(report["status"]["addresses"][0]["address"], "192.0.2.7");
    assert_eq!(report["status"]["nodeInfo"]["containerRuntimeVersion"], "memory://1");
    let silence = tokio::time::timeout(Duration::from_secs(600), node.outside.reports.recv()).await;
    assert!(silence.is_err(), "an idle node must not send: {silence:?}");
    runtime.set_not_ready(vec!["NetworkReady: no CNI configuration".into()]);
    let report = next_node(&mut node.outside.reports).await;
    assert_eq!(ready(&report)["status"], "False");
    node.outside.connectivity.send_replace(Connectivity::Offline);
    tokio::time::sleep(Duration::from_secs(1)).await;
    node.outside.connectivity.send_replace(Connectivity::Online);
    next_node(&mut node.outside.reports).await;
    node.end().await;
}

async fn next_node(reports: &mut LatestReceiver<ReportKey, Report>) -> Value {
    let wait = async {
        loop {
            if let Some(Report::Node(node)) = reports.recv().await {
                return serde_json::from_slice(&node.json).unwrap();
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("no node report")
}

#[tokio::test(start_paused = true)]
async fn an_idle_node_seldom_looks_at_its_runtime() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = MemoryRuntime::new();
    let node = Node::start(directory.path(), Arc::new(runtime.clone()));
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(runtime.observations() <= 62, "{}", runtime.observations());
    node.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_is_away_for_a_while_costs_no_pod_its_life() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = MemoryRuntime::new();
    let mut node = Node::start(directory.path(), Arc::new(runtime.clone()));
    node.apply(&pod("web", &json!({})));
    node.running("web").await;
    runtime.set_unavailable(Some("the socket is gone"));
    tokio::time::sleep(Duration::from_secs(120)).await;
    runtime.set_unavailable(None);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(runtime.starts("web/app"), 1);
    node.end().await;
}

#[tokio::test(start_paused = true)]
async fn logs_are_found_by_pod_and_container_and_what_is_not_here_is_404() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = MemoryRuntime::new();
    let mut node = Node::start(directory.path(), Arc::new(runtime.clone()));
    node.apply(&pod("web", &json!({})));
    node.running("web").await;
    let log = directory.path().join("logs/default_web_web/app");
    std::fs::create_dir_all(&log).unwrap();
    std::fs::write(log.join("0.log"), "2026-01-01T00:00:00Z stdout F hello\n").unwrap();
    let ask = |pod: &str, container: &str| LogRequest {
        namespace: "default".into(),
        pod: pod.into(),
        container: container.into(),
        ..LogRequest::default()
    };
    let limit = Duration::from_secs(10);
    let answer = node.outside.logs.call(ask("web", ""), limit).await.unwrap();
    let Response::Logs(chunk) = answer else { panic!("{answer:?}") };
    assert_eq!((&chunk.data[..], chunk.end, chunk.running), (&b"hello\n"[..], true, true));
    for (pod, container) in [("other", ""), ("web", "other")] {
        let answer = node.outside.logs.call(ask(pod, container), limit).await.unwrap();
        assert!(matches!(answer, Response::Failed { code: 404, .. }), "{answer:?}");
    }
    node.end().await;
}

#[tokio::test(start_paused = true)]
async fn probes_and_hooks_run_in_the_container_and_readiness_outlives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = MemoryRuntime::new();
    let well = Arc::new(AtomicBool::new(false));
    let seen = well.clone();
    runtime.on_exec("web/app", move |command| match command[0].as_str() {
        "ready" if !seen.load(Ordering::Relaxed) => Exec::exit(1, "not yet"),
        _ => Exec::exit(0, ""),
    });
    let exec = |command: &str| json!({ "exec": { "command": [command] } });
    let mut probe = exec("ready");
    probe["periodSeconds"] = json!(5);
    let container = json!({ "name": "app", "image": "app:1", "readinessProbe": probe,
        "lifecycle": { "postStart": exec("began"), "preStop": exec("drain") } });
    let web = pod("web", &json!({ "spec": { "containers": [container] } }));
    let mut node = Node::start(directory.path(), Arc::new(runtime.clone()));
    node.apply(&web);
    let status = node.pod("web", |status| status["containerStatuses"][0]["started"] == true).await;
    assert!(!ready(&status));
    well.store(true, Ordering::Relaxed);
    node.running("web").await;
    node.end().await;

    let mut node = Node::start(directory.path(), Arc::new(runtime.clone()));
    node.apply(&web);
    let status = node.pod("web", |_| true).await;
    assert!(ready(&status), "the first that is said after a restart: {status}");
    let mut going = web.clone();
    json_merge(&mut going, &json!({ "metadata": deleting("web", 20)["metadata"] }));
    node.apply(&going);
    node.gone("web").await;
    let commands = runtime.execs("web/app").concat();
    assert_eq!((commands.first().unwrap().as_str(), commands.last().unwrap().as_str()), ("began", "drain"));
    node.end().await;
    assert_eq!(std::fs::read_dir(directory.path().join("root/status")).unwrap().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn events_wait_for_a_session_and_keep_their_own_times() {
    let directory = tempfile::tempdir().unwrap();
    let mut node = Node::start(directory.path(), Arc::new(MemoryRuntime::new()));
    node.apply(&pod("web", &json!({})));
    node.running("web").await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(node.outside.events.try_recv().is_none(), "nobody would take them");
    node.outside.connectivity.send_replace(Connectivity::Online);
    let mut reasons = Vec::new();
    while reasons.len() < 4 {
        let upload = tokio::time::timeout(Duration::from_secs(10), node.outside.events.recv()).await;
        let Some(event) = upload.unwrap() else { panic!("not an event") };
        let event: Value = serde_json::from_slice(&event.json).unwrap();
        assert_eq!(event["involvedObject"]["uid"], "web");
        assert_eq!(event["source"], json!({ "component": "kubelet", "host": "edge-1" }));
        reasons.push(event["reason"].as_str().unwrap().to_owned());
    }
    assert_eq!(reasons, ["Pulling", "Pulled", "Created", "Started"]);
    node.end().await;
}

#[tokio::test(start_paused = true)]
async fn closed_pipes_do_not_keep_it_busy_nor_stop_it() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = MemoryRuntime::new();
    let node = Node::start(directory.path(), Arc::new(runtime.clone()));
    let Node { outside, stop, running } = node;
    let Outside {
        workloads,
        logs,
        releases,
        pods,
        inventory,
        connectivity,
        queries,
        reports,
        events,
        tokens,
        devices,
    } = outside;
    drop((tokens, inventory, devices));
    send(&workloads, &pod("web", &json!({})));
    tokio::time::sleep(Duration::from_secs(3)).await;
    drop((workloads, logs, releases, pods, connectivity, queries, reports, events));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(runtime.starts("web/app"), 1);
    assert!(!running.is_finished());
    stop.cancel();
    running.await.unwrap().unwrap();
}

fn send(workloads: &LatestSender<ObjectRef, ObjectEvent>, object: &Value) {
    workloads.send(ObjectEvent::Applied(Object::from_json(object.to_string()).unwrap())).unwrap();
}

/// Over real processes, in real time.
mod processes {
    use kubeedge_core::runtime::process::{self, ProcessRuntime};

    use super::*;

    fn runtime(directory: &Path) -> Arc<ProcessRuntime> {
        let config = process::Config { directory: directory.join("processes") };
        Arc::new(ProcessRuntime::open(config).unwrap())
    }

    fn shell(name: &str, script: &str) -> Value {
        let container = json!({
            "name": "app", "image": "none", "command": ["/bin/sh", "-c", script],
            "volumeMounts": [{ "name": "files", "mountPath": "/etc/app" }],
        });
        let volumes = json!([{ "name": "files", "configMap": { "name": "settings" } }]);
        pod(name, &json!({ "spec": { "containers": [container], "volumes": volumes } }))
    }

    async fn log(node: &Node, pod: &str, wanted: &str) -> String {
        let request = LogRequest { namespace: "default".into(), pod: pod.into(), ..LogRequest::default() };
        let wait = async {
            loop {
                let answer = node.outside.logs.call(request.clone(), Duration::from_secs(10)).await.unwrap();
                if let Response::Logs(chunk) = answer
                    && let Ok(text) = std::str::from_utf8(&chunk.data)
                    && text.contains(wanted)
                {
                    return text.to_owned();
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait).await.expect("the log does not have it")
    }

    #[tokio::test]
    async fn a_process_outlives_edged_sees_its_configuration_change_and_goes_with_its_pod() {
        let directory = tempfile::tempdir().unwrap();
        let script = "echo pid $$; last=; while true; do now=$(cat etc/app/level); \
                      [ \"$now\" = \"$last\" ] || echo level $now; last=$now; sleep 0.05; done";
        let objects = [config_map("settings", &json!({ "level": "info" })), shell("web", script)];
        let mut first = Node::start(directory.path(), runtime(directory.path()));
        objects.iter().for_each(|object| first.apply(object));
        let status = first.running("web").await;
        assert_eq!(status["podIP"], "192.0.2.7", "a process is in the node's network");
        log(&first, "web", "level info").await;
        first.apply(&config_map("settings", &json!({ "level": "debug" })));
        let before = log(&first, "web", "level debug").await;
        first.end().await;

        let mut second = Node::start(directory.path(), runtime(directory.path()));
        second.apply(&config_map("settings", &json!({ "level": "trace" })));
        second.apply(&objects[1]);
        let status = second.running("web").await;
        assert_eq!(status["containerStatuses"][0]["restartCount"], 0);
        let after = log(&second, "web", "level trace").await;
        assert!(after.starts_with(&before), "the same process wrote on: {before:?} {after:?}");
        assert_eq!(after.matches("pid").count(), 1);
        let pid = after.split_whitespace().nth(1).unwrap().to_owned();
        second.apply(&deleting("web", 5));
        second.gone("web").await;
        let left = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(left.is_empty() || left.contains(") Z "), "{left}");
        second.end().await;
    }

    #[tokio::test]
    async fn a_pod_without_a_command_says_what_is_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let mut node = Node::start(directory.path(), runtime(directory.path()));
        node.apply(&pod("web", &json!({})));
        let failed = |status: &Value| {
            status["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerError"
        };
        let status = node.pod("web", failed).await;
        assert!(status.to_string().contains("needs a command"), "{status}");
        node.end().await;
    }
}
