use bytes::Bytes;
use kubeedge_core::message::{MirrorReport, ObjectRef};
use serde_json::{Value, json};

use super::{
    super::{Denial, mirror::check},
    node,
};

const MIRROR: &str = "kubernetes.io/config.mirror";

fn report(name: &str, pod: &Value) -> MirrorReport {
    let pod = Some(Bytes::from(pod.to_string()));
    MirrorReport { reference: ObjectRef::pod("default", name), pod }
}

fn pod(change: impl FnOnce(&mut Value)) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "web-edge-1", "namespace": "default", "annotations": { MIRROR: "abc" } },
        "spec": { "nodeName": "edge-1", "containers": [{ "name": "app", "image": "app:1" }] },
    });
    change(&mut pod);
    pod
}

fn with_volume(volume: &Value) -> Value {
    pod(|pod| pod["spec"]["volumes"] = json!([volume]))
}

#[test]
fn a_node_may_ask_for_what_stands_for_its_own_files() {
    let edge = node("edge-1");
    assert_eq!(check(&edge, &report("web-edge-1", &pod(|_| {}))), Ok(()));
    let gone = MirrorReport { reference: ObjectRef::pod("default", "web-edge-1"), pod: None };
    assert_eq!(check(&edge, &gone), Ok(()));
}

#[test]
fn a_node_cannot_create_pods_that_are_not_its_own_or_could_be_given_what_is_not() {
    let spec = |member: &'static str, value: Value| pod(|pod| pod["spec"][member] = value);
    let source = |source: Value| with_volume(&json!({ "projected": { "sources": [source] } }));
    let wants_more = [
        spec("serviceAccountName", json!("admin")),
        spec("serviceAccount", json!("admin")),
        spec("imagePullSecrets", json!([{ "name": "keys" }])),
        spec("resourceClaims", json!([{ "name": "gpu" }])),
        with_volume(&json!({ "secret": { "secretName": "keys" } })),
        with_volume(&json!({ "configMap": { "name": "settings" } })),
        with_volume(&json!({ "persistentVolumeClaim": { "claimName": "c" } })),
        with_volume(&json!({ "name": "v", "ephemeral": {} })),
        with_volume(&json!({ "csi": { "driver": "d", "nodePublishSecretRef": { "name": "keys" } } })),
        source(json!({ "serviceAccountToken": {} })),
        source(json!({ "clusterTrustBundle": {} })),
        source(json!({ "podCertificate": {} })),
        source(json!({ "secret": { "name": "keys" } })),
        pod(|pod| pod["spec"]["containers"][0]["envFrom"] = json!([{ "configMapRef": { "name": "c" } }])),
        pod(|pod| {
            let from = json!({ "secretKeyRef": { "name": "keys", "key": "k" } });
            pod["spec"]["initContainers"] = json!([{ "env": [{ "name": "A", "valueFrom": from }] }]);
        }),
    ];
    let wants_more = wants_more.into_iter().map(|pod| ("web-edge-1", pod, Denial::MirrorWantsMore));
    let others = [
        ("web", pod(|_| {}), Denial::NotAMirror),
        ("web-edge-2", pod(|_| {}), Denial::NotAMirror),
        ("webedge-1", pod(|_| {}), Denial::NotAMirror),
        ("-edge-1", pod(|_| {}), Denial::Unreadable),
        ("other-edge-1", pod(|_| {}), Denial::Unreadable),
        ("web-edge-1", pod(|pod| pod["metadata"]["annotations"] = json!({})), Denial::NotAMirror),
        ("web-edge-1", pod(|pod| pod["metadata"]["namespace"] = json!("kube-system")), Denial::Unreadable),
        ("web-edge-1", pod(|pod| pod["spec"]["nodeName"] = json!("edge-2")), Denial::MirrorElsewhere),
        ("web-edge-1", json!("no object"), Denial::Unreadable),
    ];
    for (name, pod, denial) in others.into_iter().chain(wants_more) {
        assert_eq!(check(&node("edge-1"), &report(name, &pod)), Err(denial), "{name} {pod}");
    }
    let cut = MirrorReport { reference: ObjectRef::pod("default", "web-edge-1"), pod: Some("{".into()) };
    assert_eq!(check(&node("edge-1"), &cut), Err(Denial::Unreadable));
}
