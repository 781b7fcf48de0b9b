//! Tables: a pod, what runs beside it, and what the kubelet would say.

use kubeedge_core::message::Object;
use serde_json::{Value, json};

use super::{resources::requests, *};

fn room() -> Room {
    let allocatable =
        [("cpu", 2000), ("memory", 1 << 30), ("ephemeral-storage", 10 << 30), ("example.com/camera", 1)];
    Room {
        allocatable: allocatable.map(|(name, amount)| (name.to_owned(), amount)).into(),
        pods: 4,
        name: "edge-1".to_owned(),
        labels: own_labels(&Config::new("edge-1".parse().unwrap())),
        taints: vec![],
        confirmed: true,
    }
}

fn with(spec: Value, metadata: Value) -> Pod {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "web", "namespace": "default", "uid": "web" },
        "spec": { "containers": [{ "name": "app", "image": "app:1" }] },
    });
    for (part, more) in [("spec", spec), ("metadata", metadata)] {
        pod[part].as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
    }
    Pod::parse(&Object::from_json(pod.to_string()).unwrap()).unwrap()
}

fn pod(spec: Value) -> Pod {
    with(spec, json!({}))
}

fn asks(requests: Value) -> Pod {
    pod(json!({ "containers": [{ "name": "app", "image": "app:1", "resources": { "requests": requests } }] }))
}

fn refusal(pod: &Pod, others: &[Pod], room: &Room) -> Option<(String, String)> {
    match admit(pod, others.iter(), room, false) {
        Judgement::Admitted => None,
        Judgement::Refused(refusal) => Some((refusal.reason, refusal.message)),
        other @ (Judgement::Preempts(_) | Judgement::Waits | Judgement::AskForNode) => panic!("{other:?}"),
    }
}

#[test]
fn a_pod_that_does_not_fit_is_refused_in_the_kubelets_words() {
    let half = asks(json!({ "cpu": "500m", "memory": "512Mi" }));
    let others = [half];
    for (requests, reason, message) in [
        (json!({ "cpu": "2" }), "OutOfcpu", "cpu, requested: 2000, used: 500, capacity: 2000"),
        (
            json!({ "memory": "513Mi" }),
            "OutOfmemory",
            "memory, requested: 537919488, used: 536870912, capacity: 1073741824",
        ),
        (
            json!({ "ephemeral-storage": "11Gi" }),
            "OutOfephemeral-storage",
            "ephemeral-storage, requested: 11811160064, used: 0, capacity: 10737418240",
        ),
        (
            json!({ "example.com/camera": "2" }),
            "OutOfexample.com/camera",
            "example.com/camera, requested: 2, used: 0, capacity: 1",
        ),
        (
            json!({ "hugepages-2Mi": "2Mi" }),
            "OutOfhugepages-2Mi",
            "hugepages-2Mi, requested: 2097152, used: 0, capacity: 0",
        ),
        // The first of several that are missing, in the scheduler's order.
        (
            json!({ "memory": "2Gi", "cpu": "3" }),
            "OutOfcpu",
            "cpu, requested: 3000, used: 500, capacity: 2000",
        ),
    ] {
        let message = format!("Node didn't have enough resource: {message}");
        assert_eq!(refusal(&asks(requests), &others, &room()), Some((reason.to_owned(), message)));
    }
    for fits in
        [json!({ "cpu": "1500m", "memory": "512Mi" }), json!({ "example.org/unknown": "7" }), json!({})]
    {
        assert_eq!(refusal(&asks(fits), &others, &room()), None);
    }
    let many: Vec<Pod> = (0..4).map(|_| pod(json!({}))).collect();
    let message = "Node didn't have enough resource: pods, requested: 1, used: 4, capacity: 4";
    assert_eq!(refusal(&pod(json!({})), &many, &room()), Some(("OutOfpods".to_owned(), message.to_owned())));
}

#[test]
fn a_pod_asks_for_the_most_that_it_needs_at_any_time() {
    let container = |cpu: &str, policy: Option<&str>| json!({ "name": "c", "image": "i", "restartPolicy": policy, "resources": { "limits": { "cpu": cpu } } });
    let cpu = |init: Vec<Value>, main: Vec<Value>| {
        requests(&pod(json!({ "initContainers": init, "containers": main })))["cpu"]
    };
    let main = || vec![container("300m", None), container("200m", None)];
    assert_eq!(cpu(vec![], main()), 500);
    assert_eq!(cpu(vec![container("1", None), container("400m", None)], main()), 1000);
    assert_eq!(cpu(vec![container("100m", Some("Always"))], main()), 600);
    assert_eq!(cpu(vec![container("100m", Some("Always")), container("1", None)], main()), 1100);
    assert_eq!(cpu(vec![container("1", None), container("100m", Some("Always"))], main()), 1000);
}

#[test]
fn a_node_that_the_pod_does_not_want_refuses_it() {
    let affine = |key: &str, operator: &str, values: Value| {
        let term = json!({ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] });
        pod(json!({ "affinity": { "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [term] } } } }))
    };
    let field =
        json!({ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["edge-1"] }] });
    let by_name = pod(json!({ "affinity": { "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [{}, field] } } } }));
    let mut room = room();
    room.labels.insert("cores".into(), "4".into());
    for wanted in [
        pod(json!({ "nodeSelector": { "kubernetes.io/hostname": "edge-1" } })),
        affine("cores", "Gt", json!(["3"])),
        affine("zone", "DoesNotExist", json!(null)),
        affine("zone", "NotIn", json!(["a"])),
        affine("cores", "In", json!(["2", "4"])),
        by_name,
    ] {
        assert_eq!(refusal(&wanted, &[], &room), None);
    }
    for unwanted in [
        pod(json!({ "nodeSelector": { "kubernetes.io/hostname": "edge-2" } })),
        affine("cores", "Lt", json!(["4"])),
        affine("zone", "Exists", json!(null)),
        affine("cores", "NotIn", json!(["4"])),
        affine("cores", "Like", json!(["4"])),
    ] {
        let message = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
        assert_eq!(refusal(&unwanted, &[], &room), Some(("NodeAffinity".into(), message.into())));
    }
    room.confirmed = false;
    let selects = pod(json!({ "nodeSelector": { "set-with-kubectl": "" } }));
    assert_eq!(admit(&selects, [].iter(), &room, false), Judgement::AskForNode);
}

#[test]
fn a_port_of_the_node_leads_to_one_pod() {
    let with_port = |port: Value, host_network: bool| {
        pod(
            json!({ "hostNetwork": host_network, "containers": [{ "name": "a", "image": "i", "ports": [port] }] }),
        )
    };
    let taken = [with_port(json!({ "containerPort": 80, "hostPort": 8080 }), false)];
    let message = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
    let conflict = Some(("NodePorts".to_owned(), message.to_owned()));
    for (port, host_network, expected) in [
        (json!({ "containerPort": 1, "hostPort": 8080 }), false, conflict.clone()),
        (json!({ "containerPort": 8080 }), true, conflict.clone()),
        (json!({ "containerPort": 1, "hostPort": 8080, "hostIP": "127.0.0.1" }), false, conflict),
        (json!({ "containerPort": 1, "hostPort": 8080, "protocol": "UDP" }), false, None),
        (json!({ "containerPort": 8080 }), false, None),
    ] {
        assert_eq!(refusal(&with_port(port.clone(), host_network), &taken, &room()), expected, "{port}");
    }
    let here = [with_port(json!({ "containerPort": 1, "hostPort": 1, "hostIP": "10.0.0.1" }), false)];
    let there = with_port(json!({ "containerPort": 1, "hostPort": 1, "hostIP": "10.0.0.2" }), false);
    assert_eq!(refusal(&there, &here, &room()), None);
}

#[test]
fn a_taint_that_ends_pods_refuses_those_that_do_not_tolerate_it_but_not_static_ones() {
    let mut room = room();
    let taint = |effect: &str| Taint { key: "broken".into(), value: "disk".into(), effect: effect.into() };
    room.taints = vec![taint("NoSchedule"), taint("NoExecute")];
    let message = "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate";
    let refused = Some(("TaintToleration".to_owned(), message.to_owned()));
    for (toleration, expected) in [
        (json!({ "operator": "Exists" }), None),
        (json!({ "key": "broken", "value": "disk", "effect": "NoExecute" }), None),
        (json!({ "key": "broken", "value": "disk", "effect": "NoSchedule" }), refused.clone()),
        (json!({ "key": "broken", "value": "fan" }), refused.clone()),
    ] {
        let tolerant = pod(json!({ "tolerations": [toleration] }));
        assert_eq!(refusal(&tolerant, &[], &room), expected);
    }
    let plain = pod(json!({}));
    assert_eq!(refusal(&plain, &[], &room), refused);
    assert_eq!(admit(&plain, [].iter(), &room, true), Judgement::Admitted);
    room.taints = vec![taint("NoSchedule")];
    assert_eq!(refusal(&plain, &[], &room), None);
}

#[test]
fn a_pod_for_another_system_is_refused() {
    let windows = pod(json!({ "os": { "name": "windows" } }));
    assert_eq!(refusal(&windows, &[], &room()).unwrap().0, "PodOSNotSupported");
    let labelled = with(json!({}), json!({ "labels": { "kubernetes.io/os": "windows" } }));
    assert_eq!(refusal(&labelled, &[], &room()).unwrap().0, "PodOSSelectorNodeLabelDoesNotMatch");
    assert_eq!(refusal(&pod(json!({ "os": { "name": "linux" } })), &[], &room()), None);
}

#[test]
fn pods_of_files_and_of_the_highest_priorities_are_critical() {
    assert!(!is_critical(&pod(json!({ "priority": 1_999_999_999 }))));
    assert!(is_critical(&pod(json!({ "priority": 2_000_000_000 }))));
    for (annotation, value) in [("kubernetes.io/config.source", "file"), ("kubernetes.io/config.mirror", "x")]
    {
        assert!(is_critical(&with(json!({}), json!({ "annotations": { annotation: value } }))));
    }
}

#[test]
fn what_a_sandbox_needs_and_what_a_pod_asks_for_as_a_whole_counts() {
    let app = json!({ "name": "app", "image": "app:1", "resources": { "requests": { "cpu": "100m", "memory": "1Mi" } } });
    let overhead = pod(json!({ "containers": [app], "overhead": { "cpu": "50m" } }));
    assert_eq!(requests(&overhead)["cpu"], 150);
    let whole = json!({ "requests": { "cpu": "1500m" }, "limits": { "cpu": "2", "memory": "2Mi", "hugepages-2Mi": "4Mi" } });
    let whole = pod(json!({ "containers": [app], "resources": whole }));
    let asked = requests(&whole);
    assert_eq!((asked["cpu"], asked["memory"], asked["hugepages-2Mi"]), (1500, 1 << 20, 4 << 20));
    let limited = limits(&whole);
    assert_eq!((limited["cpu"], limited["memory"]), (2000, 2 << 20));
}
