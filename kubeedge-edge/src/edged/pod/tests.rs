use std::collections::BTreeSet;

use k8s_openapi::api::core::v1;
use kubeedge_core::message::Object;
use serde_json::{Value, json};

use super::{
    Admission, Pod,
    fields::{Becomes, Field, POD_SPEC, unsupported},
};

fn object(uid: &str, spec: &Value) -> Object {
    let metadata = json!({ "name": "p", "namespace": "d", "uid": uid });
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec });
    Object::from_json(pod.to_string()).unwrap()
}

fn container(extra: &Value) -> Value {
    let mut container = json!({ "name": "c", "image": "i" });
    for (name, value) in extra.as_object().unwrap() {
        container[name] = value.clone();
    }
    container
}

#[test]
fn names_that_lead_out_of_the_pods_directory_make_the_pod_invalid() {
    let with = |uid: &str, container: &str| {
        let spec = json!({ "containers": [{ "name": container, "image": "i" }], "volumes": null });
        Pod::parse(&object(uid, &spec))
    };
    assert!(with("u-1", "c").is_ok());
    assert!(with("../u", "c").is_err());
    assert!(with("u", "../c").is_err());
    assert!(with("", "c").is_err());
}

#[test]
fn every_member_of_a_pods_spec_of_kubernetes_1_33_stands_in_the_table_once_and_no_other() {
    let schema = serde_json::to_value(schemars::schema_for!(v1::PodSpec)).unwrap();
    compare(&schema, &schema, POD_SPEC, "spec");
}

fn compare(root: &Value, schema: &Value, table: &[Field], path: &str) {
    let schema = target(root, schema);
    let members: BTreeSet<&str> = schema["properties"]
        .as_object()
        .unwrap_or_else(|| panic!("{path}"))
        .keys()
        .map(String::as_str)
        .collect();
    let mut named = BTreeSet::new();
    for field in table {
        assert!(named.insert(field.name), "{path}.{} stands in the table twice", field.name);
        let why = match field.becomes {
            Becomes::Done => "done",
            Becomes::Harmless(why) | Becomes::Refused(why) | Becomes::Only(_, why) | Becomes::Told(why) => {
                why
            }
            Becomes::Parts(parts) => {
                let below = format!("{path}.{}", field.name);
                compare(root, &schema["properties"][field.name], parts, &below);
                "in parts"
            }
        };
        assert!(!why.is_empty(), "{path}.{} does not say why", field.name);
    }
    assert_eq!(members, named, "the members of {path}: Kubernetes' on the left, the table's on the right");
}

/// The type that a member has: through references, nullable types and lists.
fn target<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    if let Some(reference) = schema["$ref"].as_str() {
        return target(root, root.pointer(reference.trim_start_matches('#')).unwrap());
    }
    if let Some(options) = schema["anyOf"].as_array() {
        return target(root, options.iter().find(|option| option["type"] != "null").unwrap());
    }
    if let Some(all) = schema["allOf"].as_array() {
        return target(root, &all[0]);
    }
    if schema["items"].is_object() { target(root, &schema["items"]) } else { schema }
}

#[test]
fn a_pod_that_asks_for_what_is_not_done_is_refused_with_the_members_path() {
    let refused = |spec: Value| unsupported(&spec).map(|(path, _)| path);
    let with = |extra: Value| json!({ "containers": [container(&json!({})), container(&extra)] });
    let devices = json!({ "volumeDevices": [{ "name": "d", "devicePath": "/dev/x" }] });
    assert_eq!(refused(with(devices)).unwrap(), "spec.containers[1].volumeDevices");
    let stop = json!({ "lifecycle": { "stopSignal": "SIGUSR1" } });
    assert_eq!(refused(with(stop)).unwrap(), "spec.containers[1].lifecycle.stopSignal");
    let unmasked = json!({ "securityContext": { "procMount": "Unmasked" } });
    assert_eq!(refused(with(unmasked)).unwrap(), "spec.containers[1].securityContext.procMount");
    assert_eq!(refused(json!({ "hostUsers": false })).unwrap(), "spec.hostUsers");
    let volume = |source: Value| json!({ "volumes": [{ "name": "a" }, source] });
    assert_eq!(refused(volume(json!({ "nfs": { "path": "/" } }))).unwrap(), "spec.volumes[1].nfs");
    let bundle = json!({ "projected": { "sources": [{ "clusterTrustBundle": { "path": "a" } }] } });
    assert_eq!(refused(volume(bundle)).unwrap(), "spec.volumes[1].projected.sources[0].clusterTrustBundle");
    let pages = json!({ "emptyDir": { "medium": "HugePages-2Mi" } });
    assert_eq!(refused(volume(pages)).unwrap(), "spec.volumes[1].emptyDir.medium");
    let debug = json!({ "containers": [container(&json!({}))], "ephemeralContainers": [{ "name": "d" }] });
    let told = Pod::parse(&object("u", &debug)).unwrap().undone.unwrap();
    assert!(told.starts_with("spec.ephemeralContainers: "), "a pod that runs does not fail for it: {told}");
    let error = Pod::parse(&object("u", &json!({ "resourceClaims": [{ "name": "r" }] }))).unwrap_err();
    assert_eq!(error.reason, "UnsupportedField");
    assert!(error.message.starts_with("spec.resourceClaims: "), "{error}");
}

#[test]
fn what_the_api_server_adds_and_what_nobody_knows_yet_is_not_refused() {
    let spec = json!({
        "containers": [container(&json!({
            "resizePolicy": [{ "resourceName": "cpu", "restartPolicy": "NotRequired" }],
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            "securityContext": { "procMount": "Default", "windowsOptions": { "hostProcess": false } },
            "lifecycle": {}, "resources": {}, "volumeDevices": [], "fromTheFuture": { "a": 1 },
        }))],
        "enableServiceLinks": true, "hostUsers": true, "os": { "name": "linux" }, "priority": 0,
        "tolerations": [{ "operator": "Exists" }], "resourceClaims": null, "resources": {},
        "volumes": [{ "name": "v", "emptyDir": {} }],
    });
    assert!(Pod::parse(&object("u", &spec)).is_ok());
}

fn node(sysctls: &[String]) -> Admission<'_> {
    Admission { sysctls, apparmor: false, cgroups: false }
}

#[test]
fn a_profile_of_apparmor_needs_a_kernel_that_has_it() {
    let with = |kind: &str| {
        let security = json!({ "securityContext": { "appArmorProfile": { "type": kind } } });
        Pod::parse(&object("u", &json!({ "containers": [container(&security)] }))).unwrap()
    };
    assert_eq!(with("RuntimeDefault").forbidden(node(&[])).unwrap().reason, "AppArmor");
    assert_eq!(with("Unconfined").forbidden(node(&[])), None);
    assert_eq!(
        with("RuntimeDefault").forbidden(Admission { sysctls: &[], apparmor: true, cgroups: true }),
        None
    );
}

#[test]
fn kernel_parameters_that_reach_beyond_the_pod_are_refused_unless_the_node_allows_them() {
    let with = |extra: Value, name: &str| {
        let sysctls = json!({ "sysctls": [{ "name": name, "value": "1" }] });
        let mut spec = json!({ "containers": [container(&json!({}))], "securityContext": sysctls });
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        Pod::parse(&object("u", &spec)).unwrap()
    };
    let plain = json!({});
    assert_eq!(with(plain.clone(), "net.ipv4.tcp_syncookies").forbidden(node(&[])), None);
    assert_eq!(with(plain.clone(), "net/ipv4/tcp_syncookies").forbidden(node(&[])), None);
    let refused = with(plain.clone(), "kernel.msgmax").forbidden(node(&[])).unwrap();
    assert_eq!(refused.reason, "SysctlForbidden");
    assert_eq!(refused.message, "forbidden sysctl: \"kernel.msgmax\" not allowlisted");
    assert_eq!(with(plain.clone(), "kernel.msgmax").forbidden(node(&["kernel.msg*".to_owned()])), None);
    assert_eq!(with(plain, "net.core.somaxconn").forbidden(node(&["net.core.somaxconn".to_owned()])), None);
    let host = json!({ "hostNetwork": true });
    assert!(with(host, "net.ipv4.tcp_syncookies").forbidden(node(&[])).is_some());
    let ipc = json!({ "hostIPC": true });
    assert!(with(ipc, "kernel.shm_rmid_forced").forbidden(node(&[])).is_some());
}

#[test]
fn a_mount_of_no_volume_or_out_of_one_makes_the_pod_invalid() {
    let with = |mount: Value| {
        let spec = json!({
            "containers": [container(&json!({ "volumeMounts": [mount] }))],
            "volumes": [{ "name": "v", "emptyDir": {} }],
        });
        Pod::parse(&object("u", &spec)).map(drop).map_err(|error| error.message)
    };
    assert!(with(json!({ "name": "v", "mountPath": "/v", "subPath": "a/b" })).is_ok());
    for wrong in [
        json!({ "name": "other", "mountPath": "/v" }),
        json!({ "name": "v", "mountPath": "" }),
        json!({ "name": "v", "mountPath": "/v", "subPath": "../a" }),
        json!({ "name": "v", "mountPath": "/v", "subPath": "/a" }),
    ] {
        let error = with(wrong.clone()).unwrap_err();
        assert!(error.contains("spec.containers[0].volumeMounts[0]."), "{wrong}: {error}");
    }
}

#[test]
fn limits_of_a_pod_as_a_whole_need_cgroups_of_pods() {
    let spec = json!({ "containers": [{ "name": "app", "image": "app:1" }], "resources": { "limits": { "memory": "1Gi" } } });
    let with = |cgroups| Admission { sysctls: &[], apparmor: false, cgroups };
    let pod = Pod::parse(&object("u-1", &spec)).unwrap();
    assert_eq!(pod.forbidden(with(true)), None);
    let refused = pod.forbidden(with(false)).unwrap();
    assert_eq!(refused.reason, "UnsupportedField");
    assert!(refused.message.starts_with("spec.resources.limits[memory]: "), "{}", refused.message);
}
