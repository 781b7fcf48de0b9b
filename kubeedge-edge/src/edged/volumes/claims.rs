//! Storage that outlives pods: claims, and the volumes of this node that they are bound to.

use std::path::PathBuf;

use kubeedge_core::message::ObjectRef;
use serde::Deserialize;
use serde_json::Value;

use super::Made;
use crate::edged::{
    pod::{Pod, Volume},
    resolve::{Facts, Unresolved},
};

#[derive(Deserialize)]
struct Claim {
    spec: ClaimSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClaimSpec {
    #[serde(default)]
    volume_name: String,
}

#[derive(Deserialize)]
struct Storage {
    spec: StorageSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StorageSpec {
    #[serde(default)]
    volume_mode: String,
    claim_ref: Option<ClaimRef>,
    host_path: Option<Path>,
    local: Option<Path>,
    node_affinity: Option<Affinity>,
}

#[derive(Deserialize)]
struct ClaimRef {
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct Path {
    path: String,
    #[serde(default, rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Affinity {
    required: Option<Selector>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Selector {
    node_selector_terms: Vec<Term>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Term {
    #[serde(default)]
    match_expressions: Vec<Requirement>,
    #[serde(default)]
    match_fields: Vec<Requirement>,
}

#[derive(Deserialize)]
struct Requirement {
    key: String,
    operator: String,
    #[serde(default)]
    values: Vec<String>,
}

/// The claim that a volume stands for, and whether it is mounted for reading only.
pub(super) fn claim_of(volume: &Volume, pod: &Pod) -> Option<(ObjectRef, bool)> {
    let namespace = pod.reference.namespace();
    let claim = |name: String| ObjectRef::new("v1", "PersistentVolumeClaim", namespace, name);
    if let Some(source) = &volume.persistent_volume_claim {
        return Some((claim(source.claim_name.clone()), source.read_only));
    }
    // The API names such a claim after the pod and the volume.
    let ephemeral = || claim(format!("{}-{}", pod.reference.name(), volume.name));
    volume.ephemeral.as_ref().map(|_| (ephemeral(), false))
}

/// The storage that a claim is bound to.
pub(super) fn storage(claim: &ObjectRef, facts: &Facts<'_>) -> Result<Made, Unresolved> {
    let bound: Claim = read(claim, facts)
        .ok_or_else(|| Unresolved(format!("persistentvolumeclaim {:?} not found", claim.name())))?;
    let name = bound.spec.volume_name;
    if name.is_empty() {
        return Err(Unresolved(format!("PersistentVolumeClaim is not bound: {:?}", claim.name())));
    }
    let reference = ObjectRef::new("v1", "PersistentVolume", "", name.as_str());
    let storage: Storage =
        read(&reference, facts).ok_or_else(|| Unresolved(format!("persistentvolume {name:?} not found")))?;
    let spec = storage.spec;
    let owner = spec.claim_ref.as_ref();
    if !owner.is_some_and(|owner| owner.name == claim.name() && owner.namespace == claim.namespace()) {
        return Err(Unresolved(format!(
            "persistentvolume {name:?} is not bound to claim {:?}",
            claim.name()
        )));
    }
    if spec.volume_mode == "Block" {
        return Err(Unresolved(format!(
            "persistentvolume {name:?} is a raw block device, which is not mounted"
        )));
    }
    if spec.node_affinity.and_then(|affinity| affinity.required).is_some_and(|of| !of.may_match(facts)) {
        return Err(Unresolved(format!("persistentvolume {name:?} is on another node, by its nodeAffinity")));
    }
    match (spec.host_path, spec.local) {
        (Some(path), _) => {
            Ok(Made::Host { path: PathBuf::from(path.path), kind: path.kind.unwrap_or_default() })
        }
        (None, Some(path)) => Ok(Made::Local { path: PathBuf::from(path.path) }),
        (None, None) => Err(Unresolved(format!(
            "persistentvolume {name:?} is neither hostPath nor local, and nothing else is here"
        ))),
    }
}

fn read<T: for<'de> Deserialize<'de>>(reference: &ObjectRef, facts: &Facts<'_>) -> Option<T> {
    let object = facts.objects.get(reference)?;
    // Members that are `null` are as good as absent.
    let mut json: Value = serde_json::from_slice(&object.json).ok()?;
    json["spec"].as_object_mut()?.retain(|_, value| !value.is_null());
    serde_json::from_value(json).ok()
}

impl Selector {
    /// Whether the node may be one of those that are meant. The scheduler has looked already, and knows labels
    /// that others gave to the node; so only what the node knows of itself speaks against it.
    fn may_match(&self, facts: &Facts<'_>) -> bool {
        self.node_selector_terms.iter().any(|term| {
            let label = |of: &Requirement| match of.key.as_str() {
                "kubernetes.io/hostname" => of.admits(facts.node_name),
                key => of.may_match(facts.node_labels.get(key)),
            };
            let field = |of: &Requirement| of.key != "metadata.name" || of.admits(facts.node_name);
            term.match_expressions.iter().all(label) && term.match_fields.iter().all(field)
        })
    }
}

impl Requirement {
    fn may_match(&self, value: Option<&String>) -> bool {
        value.is_none_or(|value| self.admits(value))
    }

    fn admits(&self, value: &str) -> bool {
        let listed = || self.values.iter().any(|listed| listed == value);
        let number = |text: &str| text.parse::<i64>().ok();
        let than = || Some((number(value)?, number(self.values.first()?)?));
        match self.operator.as_str() {
            "In" => listed(),
            "NotIn" => !listed(),
            "DoesNotExist" => false,
            "Gt" => than().is_some_and(|(own, than)| own > than),
            "Lt" => than().is_some_and(|(own, than)| own < than),
            _ => true,
        }
    }
}
