//! How the node looks after itself, through the pipes.

use kubeedge_core::{
    message::{Answer, Query},
    runtime::{ContainerStats, Image, ImageId, Images, MemoryUsage},
};

use super::*;
use crate::edged::{Amount, ImageCollection, LogRotation, Signal, StaticPods, Threshold};

fn asking(name: &str, resources: &Value, extra: &Value) -> Value {
    let container = json!({ "name": "app", "image": "app:1", "resources": resources });
    let mut pod = pod(name, &json!({ "spec": { "containers": [container] } }));
    json_merge(&mut pod, extra);
    pod
}

fn failed(status: &Value) -> bool {
    status["phase"] == "Failed"
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_does_not_fit_fails_and_stays_failed_and_who_ran_is_never_turned_away() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = MemoryRuntime::new();
    let take_two = |config: &mut Config| config.max_pods = 2;
    let mut node = Node::start_with(directory.path(), Arc::new(runtime.clone()), take_two);
    let created = |name: &str, second: u32| {
        let time = format!("2026-01-01T00:00:0{second}Z");
        pod(name, &json!({ "metadata": { "creationTimestamp": time } }))
    };
    // They come at once: who was created first is first.
    for (name, second) in [("a", 3), ("b", 2), ("c", 1)] {
        node.apply(&created(name, second));
    }
    let status = node.pod("a", failed).await;
    assert_eq!(status["reason"], "OutOfpods");
    let message =
        "Pod was rejected: Node didn't have enough resource: pods, requested: 1, used: 2, capacity: 2";
    assert_eq!(status["message"], message);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!([runtime.starts("a/app"), runtime.starts("b/app"), runtime.starts("c/app")], [0, 1, 1]);
    node.end().await;

    // A smaller node after a restart keeps what runs, and does not take what it had turned away.
    let take_one = |config: &mut Config| config.max_pods = 1;
    let node = Node::start_with(directory.path(), Arc::new(runtime.clone()), take_one);
    for (name, second) in [("a", 3), ("b", 2), ("c", 1)] {
        node.apply(&created(name, second));
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!([runtime.starts("a/app"), runtime.starts("b/app"), runtime.starts("c/app")], [0, 1, 1]);
    assert_eq!(runtime.observe().await.unwrap().iter().filter(|sandbox| sandbox.ready).count(), 2);
    node.end().await;

    // Room alone does not bring back a pod that has failed.
    let mut node = Node::start(directory.path(), Arc::new(runtime.clone()));
    for (name, second) in [("a", 3), ("b", 2), ("c", 1)] {
        node.apply(&created(name, second));
    }
    node.outside.connectivity.send_replace(Connectivity::Online);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(runtime.starts("a/app"), 0);
    node.apply(&deleting("a", 0));
    node.gone("a").await;
    node.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_label_that_the_node_does_not_know_of_itself_is_looked_up() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = MemoryRuntime::new();
    let mut node = Node::start(directory.path(), Arc::new(runtime.clone()));
    node.outside.connectivity.send_replace(Connectivity::Online);
    let selecting =
        |name: &str, zone: &str| pod(name, &json!({ "spec": { "nodeSelector": { "zone": zone } } }));
    node.apply(&selecting("here", "a"));
    node.apply(&selecting("there", "b"));
    let call = node.outside.queries.recv().await.unwrap();
    assert_eq!(call.question, Query::Get(ObjectRef::node("edge-1")));
    let api = json!({ "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": "edge-1", "uid": "n", "labels": { "zone": "a" } } });
    call.answer(Answer::Object(Object::from_json(api.to_string()).unwrap()));
    let status = node.pod("there", failed).await;
    assert_eq!(status["reason"], "NodeAffinity");
    let message =
        "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
    assert_eq!(status["message"], message);
    node.apply(&selecting("again", "a"));
    node.running("again").await;
    // Which of the two starts first is a matter of chance, and the reports about the other may be behind us.
    let started = async {
        while runtime.starts("here/app") == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), started).await.expect("it has the label");
    assert_eq!((runtime.starts("here/app"), runtime.starts("there/app")), (1, 0));

    // Nobody answers, and then there is no link: the scheduler will have known.
    node.apply(&selecting("unanswered", "c"));
    node.running("unanswered").await;
    node.outside.connectivity.send_replace(Connectivity::Offline);
    node.apply(&selecting("offline", "d"));
    node.running("offline").await;
    node.end().await;
}

#[tokio::test(start_paused = true)]
async fn short_of_memory_one_pod_after_the_other_ends_and_critical_ones_stay() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = MemoryRuntime::new();
    let never_enough = |config: &mut Config| {
        let least = Amount::Units(i64::MAX);
        config.eviction.hard =
            vec![Threshold { signal: Signal::Memory, least, grace: Duration::ZERO, reclaim: None }];
        // The reserve is not what this is about.
        config.max_pods = 10;
    };
    let little = json!({ "requests": { "memory": "0.5" } });
    let uses = |name: &str, mib: u64| {
        let memory = Some(MemoryUsage { working_set_bytes: mib << 20, ..MemoryUsage::default() });
        runtime.set_usage(&format!("{name}/app"), ContainerStats { memory, ..ContainerStats::default() });
    };
    uses("small", 10);
    uses("large", 500);
    // They run already, and the node comes to be short of memory.
    let node = Node::start(directory.path(), Arc::new(runtime.clone()));
    let critical = json!({ "spec": { "priority": 2_000_000_000 } });
    let pods = [
        asking("small", &little, &json!({})),
        asking("large", &little, &json!({})),
        asking("critical", &little, &critical),
    ];
    pods.iter().for_each(|pod| node.apply(pod));
    for name in ["small", "large", "critical"] {
        while runtime.starts(&format!("{name}/app")) == 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    node.end().await;
    let mut node = Node::start_with(directory.path(), Arc::new(runtime.clone()), never_enough);
    pods.iter().for_each(|pod| node.apply(pod));
    node.outside.connectivity.send_replace(Connectivity::Online);
    let status = node.pod("large", failed).await;
    assert_eq!(status["reason"], "Evicted");
    let message = status["message"].as_str().unwrap();
    assert!(message.starts_with("The node was low on resource: memory. Threshold quantity: "), "{message}");
    assert!(
        message.contains("Container app was using 500Mi, request is 1, has larger consumption of memory. "),
        "{message}"
    );
    let conditions = status["conditions"].as_array().unwrap();
    let disrupted = conditions.iter().find(|condition| condition["type"] == "DisruptionTarget").unwrap();
    assert_eq!(
        (&disrupted["status"], &disrupted["reason"]),
        (&json!("True"), &json!("TerminationByKubelet"))
    );
    node.pod("small", failed).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let running: Vec<String> =
        runtime.observe().await.unwrap().into_iter().filter(|s| s.ready).map(|s| s.name).collect();
    assert_eq!(running, ["critical"]);
    // Who comes while the node is short, and asks for nothing, is turned away.
    node.apply(&pod("late", &json!({})));
    let status = node.pod("late", failed).await;
    assert_eq!(status["message"], "Pod was rejected: The node had condition: [MemoryPressure]. ");
    node.end().await;
}

#[tokio::test(start_paused = true)]
async fn images_are_reported_and_those_that_nobody_uses_go_when_their_time_is_over() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = MemoryRuntime::new();
    let image = |name: &str, size_bytes: u64, pinned: bool| Image {
        id: ImageId(format!("sha256:{name}")),
        tags: vec![format!("docker.io/library/{name}:1")],
        digests: vec![format!("docker.io/library/{name}@sha256:1")],
        size_bytes,
        pinned,
        ..Image::default()
    };
    runtime.put_image(image("old", 10, false));
    runtime.put_image(image("pause", 20, true));
    let soon = |config: &mut Config| {
        config.image_collection = ImageCollection {
            age_max: Duration::from_secs(60),
            interval: Duration::from_secs(10),
            ..ImageCollection::default()
        };
        config.sandbox_image = "pause:2".into();
    };
    runtime.put_image(Image { tags: vec!["docker.io/library/pause:2".into()], ..image("pause2", 5, false) });
    let mut node = Node::start_with(directory.path(), Arc::new(runtime.clone()), soon);
    node.apply(&pod("web", &json!({})));
    node.running("web").await;
    node.outside.connectivity.send_replace(Connectivity::Online);
    let report = next_node(&mut node.outside.reports).await;
    let largest = json!({ "names": ["docker.io/library/pause@sha256:1", "docker.io/library/pause:1"], "sizeBytes": 20 });
    assert_eq!(report["status"]["images"][0], largest);
    tokio::time::sleep(Duration::from_secs(120)).await;
    let left: Vec<String> =
        runtime.images().await.unwrap().into_iter().map(|image| image.tags[0].clone()).collect();
    assert_eq!(left, ["app:1", "docker.io/library/pause:1", "docker.io/library/pause:2"]);
    // The images alone are no reason to talk at once: `next_node` waits for a minute.
    tokio::time::sleep(Duration::from_secs(170)).await;
    assert!(node.outside.reports.try_recv().is_none());
    let report = next_node(&mut node.outside.reports).await;
    assert_eq!(report["status"]["images"].as_array().unwrap().len(), 3);
    node.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_static_pod_runs_without_the_cloud_and_is_told_of_under_what_stands_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let manifests = directory.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    let file = manifests.join("web.yaml");
    let text = |image: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec: {{containers: [{{name: app, image: '{image}'}}]}}\n"
        )
    };
    std::fs::write(&file, text("app:1")).unwrap();
    let runtime = MemoryRuntime::new();
    let statics = |config: &mut Config| {
        let interval = Duration::from_secs(1);
        config.static_pods = Some(StaticPods { path: manifests.clone(), interval });
    };
    let running = async || {
        let sandboxes = runtime.observe().await.unwrap();
        let alive = sandboxes.into_iter().filter(|sandbox| sandbox.ready);
        alive.map(|sandbox| (sandbox.name, sandbox.uid.to_string())).collect::<Vec<_>>()
    };
    let mut node = Node::start_with(directory.path(), Arc::new(runtime.clone()), statics);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let first = running().await;
    assert_eq!((first.len(), first[0].0.as_str()), (1, "web-edge-1"));
    let uid = first[0].1.clone();
    assert_eq!(runtime.starts(&format!("{uid}/app")), 1);

    node.outside.connectivity.send_replace(Connectivity::Synchronized);
    let mirror = next_mirror(&mut node).await.unwrap();
    assert_eq!(mirror["metadata"]["annotations"]["kubernetes.io/config.mirror"], uid.as_str());
    let standing = |uid: &str, extra: &Value| {
        let mut pod = mirror.clone();
        pod["metadata"]["uid"] = json!(uid);
        json_merge(&mut pod, extra);
        pod
    };
    node.apply(&standing("api-1", &json!({})));
    assert_eq!(node.running("api-1").await["phase"], "Running");

    // What stands for it is deleted: it is let go, and another one is asked for. The pod does not notice.
    node.apply(&standing("api-1", &json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } })));
    node.gone("api-1").await;
    let reference = ObjectRef::pod("default", "web-edge-1");
    let gone = ObjectEvent::Deleted { reference, uid: kubeedge_core::id::Uid::new("api-1") };
    node.outside.workloads.send(gone).unwrap();
    assert!(next_mirror(&mut node).await.is_some());
    node.apply(&standing("api-2", &json!({})));
    node.running("api-2").await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((running().await, runtime.starts(&format!("{uid}/app"))), (first.clone(), 1));
    node.end().await;

    // A restart without a link adopts it; what the store has of its object is not run.
    let mut node = Node::start_with(directory.path(), Arc::new(runtime.clone()), statics);
    node.apply(&standing("api-2", &json!({})));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((running().await, runtime.starts(&format!("{uid}/app"))), (first.clone(), 1));

    // Another text is another pod, which begins when the one before has ended.
    std::fs::write(&file, text("app:22")).unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let second = running().await;
    assert_eq!(second.len(), 1, "{second:?}");
    assert_ne!(second[0].1, uid);
    node.outside.connectivity.send_replace(Connectivity::Online);
    let mirror = next_mirror(&mut node).await.unwrap();
    assert_eq!(mirror["metadata"]["annotations"]["kubernetes.io/config.mirror"], second[0].1.as_str());
    node.end().await;

    // The file goes while nobody looks: so does the pod, without a word from the cloud.
    std::fs::remove_file(&file).unwrap();
    let mut node = Node::start_with(directory.path(), Arc::new(runtime.clone()), statics);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(running().await, []);
    node.outside.connectivity.send_replace(Connectivity::Online);
    node.apply(&standing("api-3", &json!({})));
    assert_eq!(next_mirror(&mut node).await, None, "nothing should stand for it");
    node.end().await;
}

async fn next_mirror(node: &mut Node) -> Option<Value> {
    let wait = async {
        loop {
            if let Some(Report::Mirror(mirror)) = node.outside.reports.recv().await {
                return mirror.pod.map(|pod| serde_json::from_slice(&pod).unwrap());
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("no report of a mirror")
}

#[tokio::test(start_paused = true)]
async fn a_log_goes_on_in_another_file_and_its_older_ones_go_with_the_container() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = MemoryRuntime::new();
    let short = |config: &mut Config| {
        config.log_rotation = LogRotation { bytes_max: 100, files_max: 3, interval: Duration::from_secs(1) };
    };
    let mut node = Node::start_with(directory.path(), Arc::new(runtime.clone()), short);
    node.apply(&pod("web", &json!({})));
    node.running("web").await;
    let log = directory.path().join("logs/default_web_web/app/0.log");
    std::fs::create_dir_all(log.parent().unwrap()).unwrap();
    std::fs::write(&log, "x".repeat(101)).unwrap();
    while runtime.reopened("web/app") == 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!log.exists());
    let older = std::fs::read_dir(log.parent().unwrap()).unwrap().count();
    assert_eq!(older, 1);
    // Two more instances, and the first one is nobody's any more.
    for attempt in 1..3 {
        runtime.exit("web/app", 1);
        while runtime.starts("web/app") == attempt {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(std::fs::read_dir(log.parent().unwrap()).unwrap().count(), 0);
    node.end().await;
}
