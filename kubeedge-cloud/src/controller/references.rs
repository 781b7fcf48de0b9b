//! What a pod refers to: the ConfigMaps, Secrets and storage that its node needs to run it, and the Secrets that its storage is
//! reached with; and whether Services are for it, which it does not name.

use std::collections::BTreeSet;

use kubeedge_core::message::{Object, ObjectRef};
use serde_json::Value;

use super::{Goes, Placed};

/// Reads which node a Pod is on and what it refers to, to which storage a claim is bound, or which Secrets storage is reached
/// with. A pod that cannot be read is on no node.
pub(crate) fn place(object: &Object) -> Placed {
    match object.reference.kind() {
        "Pod" => place_pod(object),
        "PersistentVolumeClaim" => {
            Placed { references: bound(object).into_iter().collect(), ..Placed::default() }
        }
        "PersistentVolume" => Placed { references: volume_secrets(object), ..Placed::default() },
        "Service" => {
            let goes = if is_linked(object) { Goes::ToNamespace } else { Goes::Nowhere };
            Placed { goes, ..Placed::default() }
        }
        _ => Placed::default(),
    }
}

/// The Secrets that a node needs for this storage: those that Kubernetes' node authorizer lets a kubelet read. What only a
/// controller needs stays with it.
fn volume_secrets(volume: &Object) -> BTreeSet<ObjectRef> {
    let Ok(json) = serde_json::from_slice::<Value>(&volume.json) else { return BTreeSet::new() };
    let spec = &json["spec"];
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    // What names no namespace is in that of the claim.
    let in_namespace = |namespace: &Value| text(namespace).or_else(|| text(&spec["claimRef"]["namespace"]));
    let azure = &spec["azureFile"];
    let named = VOLUME_SECRETS.iter().map(|(source, member)| &spec[source][member]);
    let named = named.map(|secret| (in_namespace(&secret["namespace"]), text(&secret["name"])));
    let all = named.chain([(in_namespace(&azure["secretNamespace"]), text(&azure["secretName"]))]);
    all.filter_map(|(namespace, name)| Some(ObjectRef::secret(namespace?, name?))).collect()
}

/// Whether pods are told of this Service by their environment: one with an address of its own. How they find the Kubernetes
/// API is the node's to say, since the Service of the API leads to it in the cluster only.
fn is_linked(service: &Object) -> bool {
    if (service.reference.namespace(), service.reference.name()) == ("default", "kubernetes") {
        return false;
    }
    let Ok(json) = serde_json::from_slice::<Value>(&service.json) else { return false };
    let spec = &json["spec"];
    let has_address = spec["clusterIP"].as_str().is_some_and(|address| !matches!(address, "" | "None"));
    has_address && spec["type"] != "ExternalName"
}

fn bound(claim: &Object) -> Option<ObjectRef> {
    let json: Value = serde_json::from_slice(&claim.json).ok()?;
    let name = json["spec"]["volumeName"].as_str().filter(|name| !name.is_empty())?;
    Some(ObjectRef::new("v1", "PersistentVolume", "", name))
}

fn place_pod(pod: &Object) -> Placed {
    let Ok(json) = serde_json::from_slice::<Value>(&pod.json) else { return Placed::default() };
    let spec = &json["spec"];
    let node = spec["nodeName"].as_str().and_then(|name| name.parse().ok());
    let (namespace, pod) = (pod.reference.namespace(), pod.reference.name());
    let mut found = Found { namespace, pod, references: BTreeSet::new() };
    found.in_spec(spec);
    let is_apart = spec["enableServiceLinks"] == false;
    Placed { node, references: found.references, is_apart, ..Placed::default() }
}

struct Found<'a> {
    namespace: &'a str,
    pod: &'a str,
    references: BTreeSet<ObjectRef>,
}

/// Members of a PersistentVolume's source that name a Secret which a node needs.
const VOLUME_SECRETS: [(&str, &str); 10] = [
    ("cephfs", "secretRef"),
    ("cinder", "secretRef"),
    ("csi", "nodeExpandSecretRef"),
    ("csi", "nodePublishSecretRef"),
    ("csi", "nodeStageSecretRef"),
    ("flexVolume", "secretRef"),
    ("iscsi", "secretRef"),
    ("rbd", "secretRef"),
    ("scaleIO", "secretRef"),
    ("storageos", "secretRef"),
];

/// Members of a volume source that name a Secret to reach the storage with, as the core v1 API lists them.
const STORAGE_SECRETS: [(&str, &str); 7] = [
    ("cephfs", "secretRef"),
    ("csi", "nodePublishSecretRef"),
    ("flexVolume", "secretRef"),
    ("iscsi", "secretRef"),
    ("rbd", "secretRef"),
    ("scaleIO", "secretRef"),
    ("storageos", "secretRef"),
];

impl Found<'_> {
    fn in_spec(&mut self, spec: &Value) {
        for secret in items(&spec["imagePullSecrets"]) {
            self.secret(&secret["name"]);
        }
        if let Some(class) = spec["runtimeClassName"].as_str().filter(|name| !name.is_empty()) {
            self.references.insert(ObjectRef::new("node.k8s.io/v1", "RuntimeClass", "", class));
        }
        for volume in items(&spec["volumes"]) {
            self.in_volume(volume);
        }
        for containers in ["initContainers", "containers", "ephemeralContainers"] {
            for container in items(&spec[containers]) {
                self.in_container(container);
            }
        }
    }

    fn in_volume(&mut self, volume: &Value) {
        self.claim(&volume["persistentVolumeClaim"]["claimName"]);
        if let (true, Some(name)) = (volume["ephemeral"].is_object(), volume["name"].as_str()) {
            // The API names such a claim after the pod and the volume.
            self.claim(&format!("{}-{name}", self.pod).into());
        }
        self.config_map(&volume["configMap"]["name"]);
        self.secret(&volume["secret"]["secretName"]);
        self.secret(&volume["azureFile"]["secretName"]);
        for (source, member) in STORAGE_SECRETS {
            self.secret(&volume[source][member]["name"]);
        }
        for source in items(&volume["projected"]["sources"]) {
            self.config_map(&source["configMap"]["name"]);
            self.secret(&source["secret"]["name"]);
        }
    }

    fn in_container(&mut self, container: &Value) {
        for variable in items(&container["env"]) {
            let from = &variable["valueFrom"];
            self.config_map(&from["configMapKeyRef"]["name"]);
            self.secret(&from["secretKeyRef"]["name"]);
        }
        for from in items(&container["envFrom"]) {
            self.config_map(&from["configMapRef"]["name"]);
            self.secret(&from["secretRef"]["name"]);
        }
    }

    fn config_map(&mut self, name: &Value) {
        self.add(ObjectRef::config_map, name);
    }

    fn secret(&mut self, name: &Value) {
        self.add(ObjectRef::secret, name);
    }

    fn claim(&mut self, name: &Value) {
        self.add(|namespace, name| ObjectRef::new("v1", "PersistentVolumeClaim", namespace, name), name);
    }

    fn add(&mut self, of: fn(String, String) -> ObjectRef, name: &Value) {
        if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
            self.references.insert(of(self.namespace.to_owned(), name.to_owned()));
        }
    }
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}
