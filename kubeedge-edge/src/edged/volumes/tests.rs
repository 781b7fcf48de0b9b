use std::path::{Path, PathBuf};

use kubeedge_core::message::ObjectRef;
use serde_json::{Value, json};

use super::{Files, Made, depend_on, place, prepare, volume_references};
use crate::edged::{
    pod::Pod,
    testing::{Scene, pod},
};

fn of(volume: Value) -> Pod {
    pod(json!({ "volumes": [volume] }), json!({}))
}

fn made(scene: &Scene, pod: &Pod) -> Result<Made, String> {
    let prepare = prepare(pod, &scene.config, &scene.facts()).map_err(|missing| missing.0)?;
    Ok(prepare.volumes.into_values().next().unwrap())
}

/// Path, text and mode of each file of the pod's only volume.
fn files(scene: &Scene, pod: &Pod) -> Vec<(String, String, u32)> {
    match made(scene, pod).unwrap() {
        Made::Files { files, .. } => lines(files),
        other @ (Made::Empty { .. } | Made::Host { .. } | Made::Local { .. }) => panic!("{other:?}"),
    }
}

fn lines(files: Files) -> Vec<(String, String, u32)> {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    files.into_iter().map(|(path, file)| (path, text(file.bytes), file.mode)).collect()
}

fn file(path: &str, text: &str, mode: u32) -> (String, String, u32) {
    (path.to_owned(), text.to_owned(), mode)
}

#[test]
fn config_maps_and_secrets_become_files_with_the_items_and_modes_that_are_asked_for() {
    let mut scene = Scene::new();
    scene.config_map("m", json!({ "a": "1", "b": "2" }));
    scene.secret("s", json!({ "k": "dg==" }));
    scene.put("v1", "ConfigMap", "bin", json!({ "data": { "t": "x" }, "binaryData": { "b": "AAE=" } }));
    let whole = of(json!({ "name": "v", "configMap": { "name": "m" } }));
    assert_eq!(files(&scene, &whole), [file("a", "1", 0o644), file("b", "2", 0o644)]);
    let items = json!([{ "key": "b", "path": "sub/b.conf", "mode": 0o400 }, { "key": "a", "path": "a" }]);
    let some = of(json!({ "name": "v", "configMap": { "name": "m", "items": items, "defaultMode": 0o600 } }));
    assert_eq!(files(&scene, &some), [file("a", "1", 0o600), file("sub/b.conf", "2", 0o400)]);
    let secret = of(json!({ "name": "v", "secret": { "secretName": "s", "defaultMode": 0o440 } }));
    assert_eq!(files(&scene, &secret), [file("k", "v", 0o440)]);
    assert!(matches!(made(&scene, &secret), Ok(Made::Files { in_memory: true, .. })));
    assert!(matches!(made(&scene, &whole), Ok(Made::Files { in_memory: false, .. })));
    let binary = of(json!({ "name": "v", "configMap": { "name": "bin" } }));
    assert_eq!(files(&scene, &binary), [file("b", "\0\u{1}", 0o644), file("t", "x", 0o644)]);
}

#[test]
fn what_is_absent_holds_the_pod_up_unless_it_is_optional() {
    let mut scene = Scene::new();
    scene.config_map("m", json!({ "a": "1" }));
    let of_name = |name: &str, optional: bool, key: &str| {
        let items = json!([{ "key": key, "path": "p" }]);
        of(json!({ "name": "v", "configMap": { "name": name, "optional": optional, "items": items } }))
    };
    assert_eq!(
        made(&scene, &of_name("gone", false, "a")).unwrap_err(),
        "volume \"v\" : configmap \"gone\" not found"
    );
    assert_eq!(
        made(&scene, &of_name("m", false, "z")).unwrap_err(),
        "volume \"v\" : couldn't find key z in ConfigMap default/m"
    );
    assert_eq!(files(&scene, &of_name("gone", true, "a")), []);
    assert_eq!(files(&scene, &of_name("m", true, "z")), []);
    assert_eq!(files(&scene, &of_name("m", true, "a")), [file("p", "1", 0o644)]);
}

#[test]
fn the_downward_api_gives_fields_and_resources_as_files() {
    let scene = Scene::new();
    let items = json!([
        { "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } },
        { "path": "note", "fieldRef": { "fieldPath": "metadata.annotations['note']" }, "mode": 0o400 },
        { "path": "name", "fieldRef": { "fieldPath": "metadata.name" } },
        { "path": "cpu", "resourceFieldRef": { "containerName": "app", "resource": "limits.cpu" } },
        { "path": "mem", "resourceFieldRef":
            { "containerName": "app", "resource": "requests.memory", "divisor": "1Mi" } },
        { "path": "disk", "resourceFieldRef":
            { "containerName": "app", "resource": "limits.ephemeral-storage", "divisor": "1Mi" } },
    ]);
    let volume = json!({ "name": "v", "downwardAPI": { "items": items, "defaultMode": 0o640 } });
    let pod = pod(
        json!({ "volumes": [volume] }),
        json!({ "resources": { "requests": { "memory": "65M" }, "limits": { "cpu": "1500m" } } }),
    );
    assert_eq!(
        files(&scene, &pod),
        [
            file("cpu", "2", 0o640),
            file("disk", "1024", 0o640),
            file("labels", "app=\"web\"\ntier=\"front\"", 0o640),
            file("mem", "62", 0o640),
            file("name", "web", 0o640),
            file("note", "a \"b\"", 0o400),
        ]
    );
}

#[test]
fn a_projected_volume_has_everything_under_one_roof_with_a_token_once_it_is_given() {
    let mut scene = Scene::new();
    scene.config_map("kube-root-ca.crt", json!({ "ca.crt": "CA" }));
    scene.secret("s", json!({ "k": "dg==" }));
    let sources = json!([
        { "serviceAccountToken": { "path": "token", "expirationSeconds": 3607 } },
        { "serviceAccountToken": { "path": "vault/token", "audience": "vault" } },
        { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
        { "secret": { "name": "s", "items": [{ "key": "k", "path": "deep/k", "mode": 0o400 }] } },
        { "downwardAPI": { "items": [{ "path": "namespace", "fieldRef": { "fieldPath": "metadata.namespace" } }] } },
    ]);
    let volume = json!({ "name": "v", "projected": { "sources": sources, "defaultMode": 0o644 } });
    let pod = of(volume.clone());
    let waits = made(&scene, &pod).unwrap_err();
    assert!(
        waits.starts_with("volume \"v\" : failed to fetch token of serviceaccount \"default\""),
        "{waits}"
    );
    scene.give_tokens(&pod);
    assert_eq!(
        files(&scene, &pod),
        [
            file("ca.crt", "CA", 0o644),
            file("deep/k", "v", 0o400),
            file("namespace", "default", 0o644),
            file("token", "for ", 0o644),
            file("vault/token", "for vault", 0o644),
        ]
    );
    // With a user or a group, nobody else reads the token.
    let of_user = |security: Value| {
        let spec = json!({ "volumes": [volume], "securityContext": security });
        match made(&scene, &crate::edged::testing::pod(spec, json!({}))).unwrap() {
            Made::Files { mut files, .. } => files.remove("token").unwrap(),
            other @ (Made::Empty { .. } | Made::Host { .. } | Made::Local { .. }) => panic!("{other:?}"),
        }
    };
    let token = of_user(json!({ "runAsUser": 1000 }));
    assert_eq!((token.mode, token.user, token.group), (0o600, Some(1000), None));
    let token = of_user(json!({ "fsGroup": 2000 }));
    assert_eq!((token.mode, token.user, token.group), (0o640, None, Some(2000)));
}

#[test]
fn an_empty_dir_in_memory_is_no_larger_than_anyone_allows() {
    let scene = Scene::new();
    let with = |empty: Value, limits: Value| {
        let spec = json!({ "volumes": [{ "name": "v", "emptyDir": empty }] });
        match made(&scene, &pod(spec, json!({ "resources": { "limits": limits } }))).unwrap() {
            Made::Empty { bytes } => bytes,
            other @ (Made::Files { .. } | Made::Host { .. } | Made::Local { .. }) => panic!("{other:?}"),
        }
    };
    assert_eq!(with(json!({}), json!({})), None);
    assert_eq!(with(json!({ "medium": "Memory" }), json!({})), Some(Some(8 << 30)));
    assert_eq!(with(json!({ "medium": "Memory" }), json!({ "memory": "1Gi" })), Some(Some(1 << 30)));
    let small = json!({ "medium": "Memory", "sizeLimit": "64Mi" });
    assert_eq!(with(small, json!({ "memory": "1Gi" })), Some(Some(64 << 20)));
}

fn claim(scene: &mut Scene, volume: Value) {
    scene.put("v1", "PersistentVolumeClaim", "data", json!({ "spec": { "volumeName": "pv" } }));
    let mut spec = json!({ "claimRef": { "namespace": "default", "name": "data" }, "csi": null });
    spec.as_object_mut().unwrap().extend(volume.as_object().unwrap().clone());
    scene.put("v1", "PersistentVolume", "pv", json!({ "spec": spec }));
}

#[test]
fn a_claim_leads_to_the_storage_of_this_node_that_it_is_bound_to() {
    let mut scene = Scene::new();
    let pod = of(json!({ "name": "v", "persistentVolumeClaim": { "claimName": "data", "readOnly": true } }));
    assert_eq!(made(&scene, &pod).unwrap_err(), "volume \"v\" : persistentvolumeclaim \"data\" not found");
    scene.put("v1", "PersistentVolumeClaim", "data", json!({ "spec": {} }));
    assert!(made(&scene, &pod).unwrap_err().contains("PersistentVolumeClaim is not bound: \"data\""));
    claim(&mut scene, json!({ "hostPath": { "path": "/data", "type": null } }));
    assert_eq!(made(&scene, &pod), Ok(Made::Host { path: "/data".into(), kind: String::new() }));
    let at = place(&pod.spec.volumes[0], &pod, &scene.config, &scene.facts()).unwrap();
    assert_eq!((at.path.as_path(), at.read_only), (Path::new("/data"), true));
    let affinity = |key: &str, value: &str| {
        let terms = json!([{ "matchExpressions": [{ "key": key, "operator": "In", "values": [value] }] }]);
        json!({ "local": { "path": "/disk" }, "nodeAffinity": { "required": { "nodeSelectorTerms": terms } } })
    };
    claim(&mut scene, affinity("kubernetes.io/hostname", "edge-1"));
    assert_eq!(made(&scene, &pod), Ok(Made::Local { path: PathBuf::from("/disk") }));
    claim(&mut scene, affinity("kubernetes.io/hostname", "edge-2"));
    assert!(made(&scene, &pod).unwrap_err().contains("is on another node"));
    claim(&mut scene, affinity("zone", "b"));
    assert!(made(&scene, &pod).unwrap_err().contains("is on another node"));
    claim(&mut scene, affinity("given-by-others", "x"));
    assert!(made(&scene, &pod).is_ok(), "the scheduler knows labels that the node does not");
    claim(&mut scene, json!({ "nfs": { "path": "/" } }));
    assert!(made(&scene, &pod).unwrap_err().contains("neither hostPath nor local"));
    claim(&mut scene, json!({ "local": { "path": "/dev/x" }, "volumeMode": "Block" }));
    assert!(made(&scene, &pod).unwrap_err().contains("raw block device"));
    claim(
        &mut scene,
        json!({ "hostPath": { "path": "/data" }, "claimRef": { "namespace": "other", "name": "data" } }),
    );
    assert!(made(&scene, &pod).unwrap_err().contains("is not bound to claim"));
}

#[test]
fn a_pod_depends_on_all_that_its_volumes_are_made_of() {
    let pod = pod(
        json!({ "volumes": [
            { "name": "a", "configMap": { "name": "m" } },
            { "name": "b", "projected": { "sources": [{ "secret": { "name": "s" } }] } },
            { "name": "c", "persistentVolumeClaim": { "claimName": "data" } },
            { "name": "d", "ephemeral": {} },
        ] }),
        json!({}),
    );
    let claim = |name: &str| ObjectRef::new("v1", "PersistentVolumeClaim", "default", name);
    let wanted = [ObjectRef::config_map("default", "m"), ObjectRef::secret("default", "s"), claim("data")];
    let found = volume_references(&pod);
    assert!(wanted.iter().all(|reference| found.contains(reference)) && found.contains(&claim("web-d")));
    assert!(depend_on(&pod, &ObjectRef::new("v1", "PersistentVolume", "", "any")));
    assert!(!depend_on(&pod, &ObjectRef::config_map("default", "other")));
}
