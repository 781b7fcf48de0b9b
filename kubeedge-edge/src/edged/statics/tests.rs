//! Files in, changes out.

use super::{read::HASH, *};

const WEB: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}, annotations: {a: b}, creationTimestamp: null}
spec:
  priorityClassName: system-node-critical
  containers:
  - {name: app, image: app:1}
";

fn statics() -> Statics {
    Statics::new("edge-1".parse().unwrap())
}

fn applied(changes: &[Change]) -> Vec<(String, String)> {
    let shown = |change: &Change| match change {
        Change::Applied(pod) => (format!("+{}", pod.reference.name()), pod.uid.to_string()),
        Change::Removed(reference, uid) => (format!("-{}", reference.name()), uid.to_string()),
    };
    changes.iter().map(shown).collect()
}

#[test]
fn a_file_becomes_a_pod_of_this_node_that_is_the_same_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("web.yaml"), WEB).unwrap();
    let changes = statics().handle_scan(scan(directory.path()));
    let [Change::Applied(pod)] = changes.as_slice() else { panic!("{changes:?}") };
    let json: serde_json::Value = serde_json::from_slice(&pod.json).unwrap();
    let uid = pod.uid.as_str();
    assert!(is_hash(uid), "{uid}");
    assert_eq!(
        json,
        serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "web-edge-1", "namespace": "default", "uid": uid, "labels": { "app": "web" },
                "annotations": { "a": "b", HASH: uid, "kubernetes.io/config.source": "file" } },
            "spec": { "nodeName": "edge-1", "containers": [{ "name": "app", "image": "app:1" }],
                "priorityClassName": "system-node-critical", "priority": 2_000_001_000,
                "tolerations": [{ "operator": "Exists", "effect": "NoExecute" }] },
        })
    );
    assert_eq!(statics().handle_scan(scan(directory.path())), changes);
    let mirror: serde_json::Value = serde_json::from_slice(&mirror_of(pod)).unwrap();
    assert_eq!(
        (&mirror["metadata"]["annotations"][MIRROR], &mirror["metadata"]["uid"]),
        (&uid.into(), &().into())
    );
}

#[test]
fn files_come_change_and_go_and_a_broken_one_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    let mut statics = statics();
    let mut changes = || applied(&statics.handle_scan(scan(directory.path())));
    assert_eq!(changes(), []);
    write("web.yaml", WEB);
    write(".hidden.yaml", &WEB.replace("web", "hidden"));
    fs::create_dir(directory.path().join("deeper")).unwrap();
    let first = changes();
    assert_eq!((first.len(), first[0].0.as_str()), (1, "+web-edge-1"));
    assert_eq!(changes(), [], "nothing has changed");
    write("web.yaml", "kind: [");
    assert_eq!(changes(), [], "what runs goes on");
    write("web.yaml", &format!("{WEB}# the same, in other words\n"));
    assert_eq!(changes(), []);
    write("web.yaml", &WEB.replace("app:1", "app:2.0"));
    let second = changes();
    assert_eq!(second[0].0, "+web-edge-1");
    assert_ne!(second[0].1, first[0].1, "another pod");
    write("again.yaml", WEB);
    assert_eq!(changes(), [], "the name is taken");
    fs::remove_file(directory.path().join("again.yaml")).unwrap();
    fs::remove_file(directory.path().join("web.yaml")).unwrap();
    assert_eq!(changes(), [("-web-edge-1".to_owned(), second[0].1.clone())]);
}

#[test]
fn a_directory_that_cannot_be_read_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(
        directory.path().join("web.json"),
        serde_json::json!({ "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "web" }, "spec": { "containers": [{ "name": "app", "image": "app:1" }] } })
        .to_string(),
    )
    .unwrap();
    let mut statics = statics();
    assert_eq!(
        statics.handle_scan(scan(&directory.path().join("web.json"))).len(),
        1,
        "one file can be named too"
    );
    assert_eq!(statics.handle_scan(Err(io::ErrorKind::PermissionDenied.into())), []);
    assert_eq!(statics.pods().len(), 1);
}

#[test]
fn what_needs_the_api_is_refused_with_its_reason() {
    let read = |text: &str| read::pod(text, Path::new("/x"), &"edge-1".parse().unwrap()).unwrap_err();
    let spec = |spec: &str| WEB.replace("  containers:", &format!("  {spec}\n  containers:"));
    for (text, expected) in [
        ("a: [".to_owned(), "line"),
        ("apiVersion: v1\nkind: ConfigMap".to_owned(), "not a Pod"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: web}".to_owned(), "no spec"),
        (WEB.replace("name: web", "name: Web"), "pod name"),
        (WEB.replace("name: app", "name: ../app"), "container name"),
        (spec("serviceAccountName: admin"), "service account"),
        (spec("volumes: [{name: v, secret: {secretName: s}}]"), "Secrets"),
        (WEB.replace("image: app:1", "image: app:1, envFrom: [{configMapRef: {name: c}}]"), "Secrets"),
    ] {
        let error = read(&text);
        assert!(error.contains(expected), "{expected}: {error}");
    }
}
