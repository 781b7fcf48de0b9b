//! From the text of a file to a pod. Pure.

use std::path::Path;

use bytes::Bytes;
use kubeedge_core::{
    id::{NodeName, check_subdomain},
    message::Object,
};
use serde_json::{Map, Value, json};

use crate::edged::{pod::Pod, volumes::volume_references};

/// The annotation with the hash of what the pod was made from, which is also its UID.
pub(super) const HASH: &str = "kubernetes.io/config.hash";

/// The annotation of the API's object that stands for the pod, with the pod's hash.
pub(crate) const MIRROR: &str = "kubernetes.io/config.mirror";

/// The priorities of the classes that every cluster has.
const CLASSES: [(&str, i64); 2] =
    [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

/// Reads a pod, YAML or JSON, and makes it this node's, as the kubelet does: its name ends with the node's, and
/// its UID is a hash, so that it is the same pod after a restart.
pub(super) fn pod(text: &str, path: &Path, node: &NodeName) -> Result<Object, String> {
    let options = serde_saphyr::options! { with_snippet: false };
    let mut pod: Value =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?;
    if pod["kind"] != "Pod" || pod["apiVersion"] != "v1" {
        return Err("it is not a Pod of apiVersion v1".to_owned());
    }
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let name = format!("{name}-{node}");
    check_subdomain("pod name", &name).map_err(|error| error.to_string())?;
    let uid = hash(&pod, path, node);
    let metadata = member(&mut pod, "metadata")?;
    metadata.insert("name".to_owned(), name.into());
    metadata.insert("uid".to_owned(), uid.clone().into());
    if metadata.get("namespace").is_none_or(|namespace| namespace == "") {
        metadata.insert("namespace".to_owned(), "default".into());
    }
    for of_api in
        ["ownerReferences", "resourceVersion", "creationTimestamp", "deletionTimestamp", "finalizers"]
    {
        metadata.remove(of_api);
    }
    if !metadata.get("annotations").is_some_and(Value::is_object) {
        metadata.insert("annotations".to_owned(), json!({}));
    }
    metadata["annotations"][HASH] = uid.into();
    metadata["annotations"]["kubernetes.io/config.source"] = "file".into();
    let spec = member(&mut pod, "spec")?;
    spec.insert("nodeName".to_owned(), node.as_str().into());
    // No taint drives away what the node needs to work.
    let everything = json!({ "operator": "Exists", "effect": "NoExecute" });
    match spec.get_mut("tolerations").and_then(Value::as_array_mut) {
        Some(tolerations) => tolerations.push(everything),
        None => drop(spec.insert("tolerations".to_owned(), json!([everything]))),
    }
    let class = spec.get("priorityClassName").and_then(Value::as_str).unwrap_or_default();
    if let Some((_, priority)) = CLASSES.iter().find(|(name, _)| *name == class) {
        spec.insert("priority".to_owned(), (*priority).into());
    }
    if let Some(pod) = pod.as_object_mut() {
        pod.remove("status");
    }
    let object = Object::from_json(pod.to_string()).map_err(|error| error.to_string())?;
    check(&object, &pod["spec"])?;
    Ok(object)
}

fn member<'a>(pod: &'a mut Value, name: &str) -> Result<&'a mut Map<String, Value>, String> {
    pod.get_mut(name).and_then(Value::as_object_mut).ok_or_else(|| format!("it has no {name}"))
}

/// What comes from the API is not there when the node starts without it.
fn check(object: &Object, spec: &Value) -> Result<(), String> {
    let pod = Pod::parse(object).map_err(|error| error.to_string())?;
    if spec["serviceAccountName"].as_str().is_some_and(|name| !name.is_empty()) {
        return Err("a static pod cannot have a service account".to_owned());
    }
    let of_env = pod.spec.containers.iter().chain(&pod.spec.init_containers).any(|container| {
        let from = container.env.iter().filter_map(|variable| variable.value_from.as_ref());
        let mut from = from.map(|from| from.config_map_key_ref.is_some() || from.secret_key_ref.is_some());
        !container.env_from.is_empty() || from.any(|object| object)
    });
    if of_env || !volume_references(&pod).is_empty() || !pod.spec.image_pull_secrets.is_empty() {
        return Err("a static pod cannot refer to ConfigMaps and Secrets".to_owned());
    }
    Ok(())
}

/// FNV-1a over 128 bits, which stays the same in every version of this program, as a UID must. The members of
/// objects are in order, so it does not matter how the file is written.
fn hash(pod: &Value, path: &Path, node: &NodeName) -> String {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let file = path.as_os_str().as_encoded_bytes();
    let text = pod.to_string();
    let bytes = node.as_str().bytes().chain([0]).chain(file.iter().copied()).chain([0]).chain(text.bytes());
    let hash = bytes.fold(OFFSET, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME));
    format!("{hash:032x}")
}

/// Whether this is a UID of a static pod: those of the API have dashes.
pub(crate) fn is_hash(uid: &str) -> bool {
    uid.len() == 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What stands in the API for the pod.
pub(crate) fn mirror_of(pod: &Object) -> Bytes {
    let mut json: Value = serde_json::from_slice(&pod.json).unwrap_or_default();
    if let Some(metadata) = json["metadata"].as_object_mut() {
        metadata.remove("uid");
        metadata["annotations"][MIRROR] = pod.uid.as_str().into();
    }
    json.to_string().into()
}
