use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Lane;
use crate::id::{DeviceId, InvalidId, ResourceVersion, Uid};

/// Names an object: what it is, and where. Cluster-scoped objects have an empty namespace.
///
/// It is one shared name, because the same one stands in queues, caches and inventories at once.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "Names<String>", into = "Names<String>")]
pub struct ObjectRef(Arc<Name>);

/// The four parts, one behind the other: a cloud knows some hundred thousand names, and four strings would take thrice
/// the memory.
#[derive(Clone)]
struct Name {
    text: Box<str>,
    /// Where the kind, the group and version, and the namespace end.
    ends: [usize; 3],
}

/// The four parts, in the order in which names are sorted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Names<T> {
    kind: T,
    #[serde(rename = "apiVersion")]
    api_version: T,
    namespace: T,
    name: T,
}

impl Name {
    fn new(names: &Names<&str>) -> Self {
        let Names { kind, api_version, namespace, name } = names;
        let ends =
            [kind.len(), kind.len() + api_version.len(), kind.len() + api_version.len() + namespace.len()];
        Self { text: [*kind, *api_version, *namespace, *name].concat().into(), ends }
    }

    fn names(&self) -> Names<&str> {
        let [kind, api_version, namespace] = self.ends;
        Names {
            kind: &self.text[..kind],
            api_version: &self.text[kind..api_version],
            namespace: &self.text[api_version..namespace],
            name: &self.text[namespace..],
        }
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.ends == other.ends && self.text == other.text
    }
}

impl Eq for Name {}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        self.names().cmp(&other.names())
    }
}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.names().hash(state);
    }
}

impl From<Names<String>> for ObjectRef {
    fn from(names: Names<String>) -> Self {
        Self::new(names.api_version, names.kind, names.namespace, names.name)
    }
}

impl From<ObjectRef> for Names<String> {
    fn from(reference: ObjectRef) -> Self {
        let Names { kind, api_version, namespace, name } = reference.0.names();
        Self {
            kind: kind.to_owned(),
            api_version: api_version.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

impl ObjectRef {
    /// Names an object of any kind, such as `("apps/v1", "Deployment", "default", "web")`.
    pub fn new(
        api_version: impl AsRef<str>,
        kind: impl AsRef<str>,
        namespace: impl AsRef<str>,
        name: impl AsRef<str>,
    ) -> Self {
        Self(Arc::new(Name::new(&Names {
            kind: kind.as_ref(),
            api_version: api_version.as_ref(),
            namespace: namespace.as_ref(),
            name: name.as_ref(),
        })))
    }

    /// Names a Pod.
    pub fn pod(namespace: impl AsRef<str>, name: impl AsRef<str>) -> Self {
        Self::new("v1", "Pod", namespace, name)
    }

    /// Names a ConfigMap.
    pub fn config_map(namespace: impl AsRef<str>, name: impl AsRef<str>) -> Self {
        Self::new("v1", "ConfigMap", namespace, name)
    }

    /// Names a Secret.
    pub fn secret(namespace: impl AsRef<str>, name: impl AsRef<str>) -> Self {
        Self::new("v1", "Secret", namespace, name)
    }

    /// Names a Node.
    pub fn node(name: impl AsRef<str>) -> Self {
        Self::new("v1", "Node", "", name)
    }

    /// Names a Device of KubeEdge's `devices.kubeedge.io/v1beta1`.
    pub fn device(id: &DeviceId) -> Self {
        Self::new(DEVICES_API, "Device", id.namespace(), id.name())
    }

    /// Names a DeviceModel of KubeEdge's `devices.kubeedge.io/v1beta1`.
    pub fn device_model(namespace: impl AsRef<str>, name: impl AsRef<str>) -> Self {
        Self::new(DEVICES_API, "DeviceModel", namespace, name)
    }

    /// Group and version, such as `v1` or `devices.kubeedge.io/v1beta1`.
    pub fn api_version(&self) -> &str {
        self.0.names().api_version
    }

    /// The kind, such as `Pod`.
    pub fn kind(&self) -> &str {
        self.0.names().kind
    }

    /// The namespace; empty for cluster-scoped objects.
    pub fn namespace(&self) -> &str {
        self.0.names().namespace
    }

    /// The name.
    pub fn name(&self) -> &str {
        self.0.names().name
    }

    /// The lane that carries objects of this kind.
    pub fn lane(&self) -> Lane {
        match self.kind() {
            "Pod" | "Service" => Lane::Pods,
            "Device" | "DeviceModel" => Lane::Devices,
            _ => Lane::Config,
        }
    }

    /// Whether it goes before the others of its lane: a pod names no Service and so cannot wait for one, but is told of those
    /// that there are when it starts.
    pub(crate) fn goes_first(&self) -> bool {
        self.kind() == "Service"
    }

    /// The device's identity, if this names a Device.
    ///
    /// # Errors
    /// If its names are not what Kubernetes allows.
    pub fn device_id(&self) -> Result<DeviceId, InvalidId> {
        DeviceId::new(self.namespace(), self.name())
    }
}

/// The API of KubeEdge's devices.
const DEVICES_API: &str = "devices.kubeedge.io/v1beta1";

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace().is_empty() {
            write!(f, "{} {}", self.kind(), self.name())
        } else {
            write!(f, "{} {}/{}", self.kind(), self.namespace(), self.name())
        }
    }
}

impl fmt::Debug for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.api_version(), self)
    }
}

/// Says of an object's content all that matters to the edge: equal fingerprints need no sending.
///
/// The cloud computes it once, over the object without `status`, `managedFields`, `resourceVersion`, `apiVersion` and
/// `kind`, and it travels with the object. So a status that the edge itself reported does not come back to it. Of a
/// pod with readiness gates, the conditions that they name count, since others set them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(pub u64);

impl Fingerprint {
    /// Computes the fingerprint of an object's JSON.
    ///
    /// Keys are read into sorted maps, so two texts that differ only in order or white space are equal.
    ///
    /// # Errors
    /// If the text is not a JSON object.
    pub fn of(json: &[u8]) -> Result<Self, serde_json::Error> {
        let mut object: BTreeMap<String, serde_json::Value> = serde_json::from_slice(json)?;
        let status = object.remove("status");
        // Others set the conditions that a pod's readiness gates name, and its node decides by them.
        if let Some(gates) = gates(&object, status.as_ref()) {
            object.insert("status".to_owned(), gates);
        }
        // A watch sends these two and the items of a list may lack them; the reference has them in any case.
        object.remove("apiVersion");
        object.remove("kind");
        if let Some(serde_json::Value::Object(metadata)) = object.get_mut("metadata") {
            metadata.remove("managedFields");
            metadata.remove("resourceVersion");
        }
        let mut hash = Sha256::new();
        serde_json::to_writer(HashWriter(&mut hash), &object)?;
        let digest = hash.finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        Ok(Self(u64::from_be_bytes(first)))
    }
}

/// The conditions of a pod's status that its readiness gates name, if it has such gates.
fn gates(
    object: &BTreeMap<String, serde_json::Value>,
    status: Option<&serde_json::Value>,
) -> Option<serde_json::Value> {
    let gates = object.get("spec")?.get("readinessGates")?.as_array().filter(|gates| !gates.is_empty())?;
    let conditions = status.and_then(|status| status["conditions"].as_array()).map_or(&[][..], Vec::as_slice);
    let condition = |gate: &serde_json::Value| {
        let found = conditions.iter().find(|condition| condition["type"] == gate["conditionType"]);
        found.map_or(serde_json::Value::Null, |condition| condition["status"].clone())
    };
    Some(gates.iter().map(condition).collect())
}

struct HashWriter<'a>(&'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// An object as the API server has it: its JSON bytes unchanged, and what was read out of them once.
#[derive(Clone, PartialEq, Eq)]
pub struct Object {
    /// What the object is called.
    pub reference: ObjectRef,
    /// The UID that tells it from an earlier object of the same name.
    pub uid: Uid,
    /// The version of it that this is.
    pub resource_version: ResourceVersion,
    /// What matters of its content, see [`Fingerprint`].
    pub fingerprint: Fingerprint,
    /// The object's JSON. A list item of the API server may lack `apiVersion` and `kind`: `reference` has them.
    pub json: Bytes,
}

/// Says why a text could not be taken as an object.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectError {
    /// The text is not JSON, or a member of `metadata` has another type than it should.
    #[error("the object is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A member that every object has is absent.
    #[error("the object has no {0}")]
    Missing(&'static str),
}

#[derive(Deserialize)]
struct Head {
    #[serde(default, rename = "apiVersion")]
    api_version: String,
    #[serde(default)]
    kind: String,
    metadata: HeadMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HeadMeta {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    uid: Uid,
    #[serde(default)]
    resource_version: String,
}

impl Object {
    /// Takes an object's JSON that carries its own `apiVersion` and `kind`.
    ///
    /// # Errors
    /// If it is no JSON object, or has no kind or name.
    pub fn from_json(json: impl Into<Bytes>) -> Result<Self, ObjectError> {
        let json = json.into();
        let head: Head = serde_json::from_slice(&json)?;
        if head.kind.is_empty() || head.api_version.is_empty() {
            return Err(ObjectError::Missing("apiVersion and kind"));
        }
        let (api_version, kind) = (head.api_version.clone(), head.kind.clone());
        Self::build(&api_version, &kind, head, json)
    }

    /// Takes an object's JSON that is known to be of `kind`, as items of a list are.
    ///
    /// # Errors
    /// If it is no JSON object, or has no name.
    pub fn from_item(api_version: &str, kind: &str, json: impl Into<Bytes>) -> Result<Self, ObjectError> {
        let json = json.into();
        let head: Head = serde_json::from_slice(&json)?;
        Self::build(api_version, kind, head, json)
    }

    fn build(api_version: &str, kind: &str, head: Head, json: Bytes) -> Result<Self, ObjectError> {
        if head.metadata.name.is_empty() {
            return Err(ObjectError::Missing("metadata.name"));
        }
        Ok(Self {
            reference: ObjectRef::new(api_version, kind, head.metadata.namespace, head.metadata.name),
            uid: head.metadata.uid,
            resource_version: ResourceVersion::parse_lossy(&head.metadata.resource_version),
            fingerprint: Fingerprint::of(&json)?,
            json,
        })
    }

    /// What an inventory says of this object.
    pub fn entry(&self) -> InventoryEntry {
        InventoryEntry {
            reference: self.reference.clone(),
            uid: self.uid.clone(),
            resource_version: self.resource_version,
            fingerprint: self.fingerprint,
        }
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The JSON stays out: it may hold a Secret, and it is long.
        f.debug_struct("Object")
            .field("reference", &self.reference)
            .field("uid", &self.uid)
            .field("resource_version", &self.resource_version)
            .field("fingerprint", &self.fingerprint)
            .field("bytes", &self.json.len())
            .finish()
    }
}

/// What a controller has for a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Everything that is known and is for the node: what it holds besides is taken from it.
    pub objects: Vec<Object>,
    /// What the node needs, and of which it is not known how it is, nor whether it exists: the node keeps what it has of it.
    pub unknown: BTreeSet<ObjectRef>,
}

impl From<Vec<Object>> for Snapshot {
    fn from(objects: Vec<Object>) -> Self {
        Self { objects, unknown: BTreeSet::new() }
    }
}

impl FromIterator<Self> for Snapshot {
    /// Joins what several controllers have.
    fn from_iter<I: IntoIterator<Item = Self>>(parts: I) -> Self {
        parts.into_iter().fold(Self::default(), |mut whole, part| {
            whole.objects.extend(part.objects);
            whole.unknown.extend(part.unknown);
            whole
        })
    }
}

/// What became of an object: a state, whole, for the key [`ObjectEvent::key`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectEvent {
    /// The object exists, like this.
    Applied(Object),
    /// The object with this UID is gone from the API. One of the same name and another UID is not meant.
    ///
    /// From a controller to CloudHub the UID may be empty: of an object that a [`Snapshot`] has left open it is known by now
    /// that the node should have none. On the link it never is.
    Deleted {
        /// What the object was called.
        reference: ObjectRef,
        /// Which of that name it was.
        uid: Uid,
    },
}

impl ObjectEvent {
    /// The object that the event is about.
    pub fn key(&self) -> &ObjectRef {
        match self {
            Self::Applied(object) => &object.reference,
            Self::Deleted { reference, .. } => reference,
        }
    }

    /// The UID of the object that the event is about.
    pub fn uid(&self) -> &Uid {
        match self {
            Self::Applied(object) => &object.uid,
            Self::Deleted { uid, .. } => uid,
        }
    }
}

/// One line of an inventory: an object that the edge holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InventoryEntry {
    /// What the object is called.
    pub reference: ObjectRef,
    /// Which of that name it is.
    pub uid: Uid,
    /// The version held.
    pub resource_version: ResourceVersion,
    /// The content held.
    pub fingerprint: Fingerprint,
}

/// All objects that an edge holds, or should hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    entries: BTreeMap<ObjectRef, InventoryEntry>,
}

impl Inventory {
    /// Adds an entry, or replaces the one of the same name.
    pub fn insert(&mut self, entry: InventoryEntry) {
        self.entries.insert(entry.reference.clone(), entry);
    }

    /// Removes the entry of this name.
    pub fn remove(&mut self, reference: &ObjectRef) -> Option<InventoryEntry> {
        self.entries.remove(reference)
    }

    /// The entry of this name.
    pub fn get(&self, reference: &ObjectRef) -> Option<&InventoryEntry> {
        self.entries.get(reference)
    }

    /// The entries, ordered by reference.
    pub fn iter(&self) -> impl Iterator<Item = &InventoryEntry> {
        self.entries.values()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A digest of name, UID and fingerprint of every entry: equal digests mean nothing has to be sent.
    ///
    /// The resource version is left out, because a status write moves it and changes nothing for the edge.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for entry in self.iter() {
            let r = &entry.reference;
            for text in [r.api_version(), r.kind(), r.namespace(), r.name(), entry.uid.as_str()] {
                hash.update((text.len() as u64).to_be_bytes());
                hash.update(text.as_bytes());
            }
            hash.update(entry.fingerprint.0.to_be_bytes());
        }
        hash.finalize().into()
    }
}

impl FromIterator<InventoryEntry> for Inventory {
    fn from_iter<I: IntoIterator<Item = InventoryEntry>>(entries: I) -> Self {
        let mut inventory = Self::default();
        for entry in entries {
            inventory.insert(entry);
        }
        inventory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_survive_because_the_json_is_kept_as_it_came() {
        let json = br#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","newer":1},"spec":{"x":[]}}"#;
        let object = Object::from_json(&json[..]).unwrap();
        assert_eq!(&object.json[..], &json[..]);
    }

    #[test]
    fn a_status_write_does_not_change_the_fingerprint_and_a_label_does() {
        let of = |text: &str| Fingerprint::of(text.as_bytes()).unwrap();
        let base = of(r#"{"metadata":{"name":"a","resourceVersion":"1"},"spec":{"b":1,"a":2}}"#);
        let status = of(
            r#"{"spec":{"a":2,"b":1},"status":{"phase":"Running"},"metadata":{"name":"a","resourceVersion":"9","managedFields":[{}]}}"#,
        );
        let label = of(r#"{"metadata":{"name":"a","labels":{"x":"y"}},"spec":{"b":1,"a":2}}"#);
        assert_eq!(base, status);
        assert_ne!(base, label);
    }

    #[test]
    fn a_condition_that_a_readiness_gate_names_changes_the_fingerprint_and_others_do_not() {
        let of = |conditions: &str| {
            let json = format!(
                r#"{{"metadata":{{"name":"a"}},"spec":{{"readinessGates":[{{"conditionType":"lb"}}]}},
                     "status":{{"phase":"Running","conditions":[{conditions}]}}}}"#
            );
            Fingerprint::of(json.as_bytes()).unwrap()
        };
        let closed = of(r#"{"type":"Ready","status":"False"}"#);
        assert_eq!(closed, of(r#"{"type":"Ready","status":"True"},{"type":"other","status":"True"}"#));
        assert_ne!(closed, of(r#"{"type":"lb","status":"False"}"#));
        assert_ne!(
            of(r#"{"type":"lb","status":"False"}"#),
            of(r#"{"type":"lb","status":"True","reason":"r"}"#)
        );
    }

    #[test]
    fn an_item_of_a_list_and_the_same_object_by_a_watch_have_one_fingerprint() {
        let of = |text: &str| Fingerprint::of(text.as_bytes()).unwrap();
        let item = of(r#"{"metadata":{"name":"a"}}"#);
        assert_eq!(item, of(r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a"}}"#));
    }

    #[test]
    fn a_broken_object_is_refused_with_what_is_wrong() {
        assert!(Object::from_json(&b"{\"kind\":"[..]).is_err());
        assert!(Object::from_json(&b"[]"[..]).is_err());
        let missing = Object::from_json(&br#"{"metadata":{"name":"a"}}"#[..]).unwrap_err();
        assert_eq!(missing.to_string(), "the object has no apiVersion and kind");
    }

    #[test]
    fn the_digest_depends_on_content_and_not_on_order_or_resource_version() {
        let entry = |name: &str, version, fingerprint| InventoryEntry {
            reference: ObjectRef::pod("default", name),
            uid: Uid::new(name),
            resource_version: ResourceVersion(version),
            fingerprint: Fingerprint(fingerprint),
        };
        let one: Inventory = [entry("a", 1, 1), entry("b", 2, 2)].into_iter().collect();
        let two: Inventory = [entry("b", 9, 2), entry("a", 1, 1)].into_iter().collect();
        let three: Inventory = [entry("a", 1, 1), entry("b", 2, 3)].into_iter().collect();
        assert_eq!(one.digest(), two.digest());
        assert_ne!(one.digest(), three.digest());
    }
}
