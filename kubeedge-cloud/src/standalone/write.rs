//! What a write does to an object, decided alone in the store's turn.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{
    defaults,
    delete::{is_finished, remove},
    failure::{Cause, Failure},
    json::{at, is_deeper_than, metadata, text},
    patch::{self, Patch},
    resource::Resource,
    store::Txn,
    validate,
};

/// The object that a write is about.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) resource: &'static Resource,
    /// Empty for cluster-scoped objects.
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Whether only `status` is written.
    pub(crate) status: bool,
}

/// What the query says of how to write.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    /// Who writes.
    pub(crate) manager: String,
    /// Take over what others own.
    pub(crate) force: bool,
    /// What to do with fields that Kubernetes does not know.
    pub(crate) validation: Validation,
}

/// What to do with fields that Kubernetes does not know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Validation {
    /// Keep silent.
    Ignore,
    /// Say so in a `Warning` header: what the API server does when it is not told.
    #[default]
    Warn,
    /// Refuse the request.
    Strict,
}

/// What became of a write.
#[derive(Debug)]
pub(crate) struct Written {
    /// The object as it is now stored.
    pub(crate) object: Value,
    /// Whether it was created.
    pub(crate) created: bool,
    /// What the client should hear, one `Warning` header each.
    pub(crate) warnings: Vec<String>,
}

impl Target {
    fn not_found(&self) -> Failure {
        Failure::not_found(self.resource.plural, self.resource.group, &self.name)
    }

    /// The object is another than the client thinks.
    pub(crate) fn conflict(&self, why: &str) -> Failure {
        Failure::conflict(self.resource.plural, self.resource.group, &self.name, why)
    }

    /// Reads the object.
    pub(crate) fn read(&self, txn: &Txn<'_, '_>) -> Result<Value, Failure> {
        txn.get(self.resource, &self.namespace, &self.name)?.ok_or_else(|| self.not_found())
    }
}

/// Creates the object. `target.name` may be empty: the object says its name, or how it begins.
pub(crate) fn create(
    txn: &mut Txn<'_, '_>,
    target: Target,
    mut object: Value,
    options: &Options,
) -> Result<Written, Failure> {
    // Who manages what is for the server to say.
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("managedFields");
    }
    insert(txn, target, object, options)
}

fn insert(
    txn: &mut Txn<'_, '_>,
    mut target: Target,
    mut object: Value,
    options: &Options,
) -> Result<Written, Failure> {
    let resource = target.resource;
    if !text(&object, &["metadata", "resourceVersion"]).is_empty() {
        return Err(Failure::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let warnings = check_shape(&target, &mut object, options)?;
    target.name = name_of(txn, &target, &mut object)?;
    if resource.namespaced {
        check_namespace(txn, &target)?;
    }
    if txn.get(resource, &target.namespace, &target.name)?.is_some() {
        return Err(Failure::already_exists(resource.plural, resource.group, &target.name));
    }
    let meta = metadata(&mut object);
    for written_by_server in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"] {
        meta.remove(written_by_server);
    }
    if resource.namespaced {
        meta.insert("namespace".into(), target.namespace.clone().into());
    } else {
        meta.remove("namespace");
    }
    meta.insert("uid".into(), uid()?.into());
    meta.insert("creationTimestamp".into(), seconds(txn.now).into());
    if resource.generation {
        meta.insert("generation".into(), 1.into());
    }
    defaults::on_create(resource, &mut object);
    if resource.kind == "Pod" {
        add_pull_secrets(txn, &target.namespace, &mut object)?;
    }
    validate::check(resource, &object, None)?;
    validate::check_around(txn, resource, &object)?;
    let object = txn.put(resource, object)?;
    if resource.kind == "Namespace" {
        txn.put(Resource::core("serviceaccounts"), default_account(&target.name, txn.now)?)?;
    }
    Ok(Written { object, created: true, warnings })
}

/// Gives a pod without credentials for its images those of its account, as Kubernetes' ServiceAccount admission does. A pod
/// that stands for a node's file has no account.
fn add_pull_secrets(txn: &Txn<'_, '_>, namespace: &str, pod: &mut Value) -> Result<(), Failure> {
    let has_own = pod["spec"]["imagePullSecrets"].as_array().is_some_and(|own| !own.is_empty());
    if has_own || !text(pod, &["metadata", "annotations", "kubernetes.io/config.mirror"]).is_empty() {
        return Ok(());
    }
    let account = text(pod, &["spec", "serviceAccountName"]);
    let account = txn.get(Resource::core("serviceaccounts"), namespace, account)?;
    if let Some(secrets) = account.and_then(|account| account.get("imagePullSecrets").cloned()) {
        pod["spec"]["imagePullSecrets"] = secrets;
    }
    Ok(())
}

/// Replaces the object by what `change` makes of it. `change` gets the object as it is stored.
pub(crate) fn update(
    txn: &mut Txn<'_, '_>,
    target: &Target,
    options: &Options,
    change: impl FnOnce(&Value) -> Result<Value, Failure>,
) -> Result<Written, Failure> {
    let old = target.read(txn)?;
    let mut new = change(&old)?;
    let warnings = check_shape(target, &mut new, options)?;
    let meta = |member| text(&new, &["metadata", member]);
    if meta("name") != target.name {
        let message = format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            meta("name"),
            target.name
        );
        return Err(Failure::bad_request(message));
    }
    let version = meta("resourceVersion");
    if !version.is_empty() && version != text(&old, &["metadata", "resourceVersion"]) {
        return Err(target.conflict(
            "the object has been modified; please apply your changes to the latest version and try again",
        ));
    }
    let (uid, current) = (meta("uid"), text(&old, &["metadata", "uid"]));
    if !uid.is_empty() && uid != current {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {current}");
        return Err(target.conflict(&why));
    }
    keep_what_is_not_written(target, &old, &mut new);
    defaults::on_update(target.resource, &mut new);
    validate::check(target.resource, &new, Some(&old))?;
    if content(&old) != content(&new) {
        validate::check_around(txn, target.resource, &new)?;
    }
    if target.resource.generation && content(&old) != content(&new) {
        let generation = at(&old, &["metadata", "generation"]).and_then(Value::as_i64).unwrap_or_default();
        metadata(&mut new).insert("generation".into(), (generation + 1).into());
    }
    if old == new {
        return Ok(Written { object: old, created: false, warnings });
    }
    if is_finished(&new) {
        let object = remove(txn, target.resource, new, true)?;
        return Ok(Written { object, created: false, warnings });
    }
    let object = txn.put(target.resource, new)?;
    Ok(Written { object, created: false, warnings })
}

/// Replaces the object by one that the client has sent whole.
pub(crate) fn replace(
    txn: &mut Txn<'_, '_>,
    target: &Target,
    object: Value,
    options: &Options,
) -> Result<Written, Failure> {
    // Kubernetes lets clients overwrite its own kinds blindly, and custom resources not.
    if !target.resource.built_in() && text(&object, &["metadata", "resourceVersion"]).is_empty() {
        let cause = Cause::invalid("metadata.resourceVersion", &json!(0), "must be specified for an update");
        return Err(Failure::invalid(target.resource.kind, target.resource.group, &target.name, &[cause]));
    }
    let writer = applier(target, options, txn.now);
    update(txn, target, options, |old| Ok(patch::apply::note_update(old, object, &writer)))
}

/// Patches the object; a server-side apply creates it if it is absent.
pub(crate) fn patch(
    txn: &mut Txn<'_, '_>,
    target: &Target,
    patch: &Patch,
    options: &Options,
) -> Result<Written, Failure> {
    let applier = applier(target, options, txn.now);
    let Patch::Apply(config) = patch else {
        return update(txn, target, options, |old| {
            let new = patch.apply_to(old.clone())?;
            Ok(patch::apply::note_update(old, new, &applier))
        });
    };
    if !target.status && txn.get(target.resource, &target.namespace, &target.name)?.is_none() {
        let mut object = applier.create(config)?;
        metadata(&mut object).insert("name".into(), target.name.clone().into());
        return insert(txn, target.clone(), object, options);
    }
    update(txn, target, options, |old| applier.apply(old, config))
}

fn applier<'a>(target: &Target, options: &'a Options, now: Timestamp) -> patch::apply::Applier<'a> {
    patch::apply::Applier { options, status: target.status, built_in: target.resource.built_in(), now }
}

/// The most levels of objects and lists in an object: what has more cannot be read again as JSON.
pub(crate) const LEVELS_MAX: usize = 100;

/// Checks that the body is an object of the kind that the path names, and what its types say.
fn check_shape(target: &Target, object: &mut Value, options: &Options) -> Result<Vec<String>, Failure> {
    let resource = target.resource;
    if is_deeper_than(object, LEVELS_MAX) {
        return Err(Failure::bad_request(format!("the object has more than {LEVELS_MAX} levels")));
    }
    let Some(members) = object.as_object_mut() else {
        return Err(Failure::bad_request("the object must be a JSON object"));
    };
    for (member, expected) in [("apiVersion", resource.api_version()), ("kind", resource.kind.to_owned())] {
        match members.get(member).and_then(Value::as_str).unwrap_or_default() {
            "" => {
                members.insert(member.into(), expected.into());
            }
            found if found != expected => {
                let message = format!(
                    "the {member} in the data ({found}) does not match the expected {member} ({expected})"
                );
                return Err(Failure::bad_request(message));
            }
            _ => {}
        }
    }
    super::json::drop_nulls(object);
    if !at(object, &["metadata"]).is_none_or(Value::is_object) {
        return Err(Failure::bad_request("metadata must be a JSON object"));
    }
    let namespace = text(object, &["metadata", "namespace"]);
    if !namespace.is_empty() && namespace != target.namespace {
        return Err(Failure::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    validate::types(resource, object, options.validation)
}

fn name_of(txn: &Txn<'_, '_>, target: &Target, object: &mut Value) -> Result<String, Failure> {
    let name = text(object, &["metadata", "name"]).to_owned();
    if !name.is_empty() {
        return Ok(name);
    }
    let base = text(object, &["metadata", "generateName"]).to_owned();
    if base.is_empty() {
        let cause = Cause::required("metadata.name", "name or generateName is required");
        return Err(Failure::invalid(target.resource.kind, target.resource.group, "", &[cause]));
    }
    // Five of 27 letters: a second try is all that a collision needs.
    for _ in 0..8 {
        let name = format!("{base}{}", suffix()?);
        if txn.get(target.resource, &target.namespace, &name)?.is_none() {
            metadata(object).insert("name".into(), name.clone().into());
            return Ok(name);
        }
    }
    Err(Failure::already_exists(target.resource.plural, target.resource.group, &base))
}

fn check_namespace(txn: &Txn<'_, '_>, target: &Target) -> Result<(), Failure> {
    let name = &target.namespace;
    let namespace = txn.get(Resource::core("namespaces"), "", name)?;
    let namespace = namespace.ok_or_else(|| Failure::not_found("namespaces", "", name))?;
    if text(&namespace, &["metadata", "deletionTimestamp"]).is_empty() {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {name} because it is being terminated");
    Err(Failure::forbidden(target.resource.plural, target.resource.group, &target.name, &why))
}

/// A write of the object leaves its status alone and the other way round, and no write touches what the
/// server itself keeps in the metadata.
fn keep_what_is_not_written(target: &Target, old: &Value, new: &mut Value) {
    let keep = |name: &str, new: &mut Map<String, Value>, old: &Map<String, Value>| match old.get(name) {
        Some(value) => {
            new.insert(name.into(), value.clone());
        }
        None => {
            new.remove(name);
        }
    };
    let (Some(old), Some(members)) = (old.as_object(), new.as_object_mut()) else { return };
    if target.status {
        members.retain(|name, _| name == "status" || name == "metadata");
        for name in old.keys().filter(|name| *name != "status" && *name != "metadata") {
            keep(name, members, old);
        }
    } else if target.resource.status {
        keep("status", members, old);
    }
    let Some(old) = old.get("metadata").and_then(Value::as_object) else { return };
    let meta = metadata(new);
    for name in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "namespace",
        "resourceVersion",
        "generateName",
        "selfLink",
    ] {
        keep(name, meta, old);
    }
}

/// What `generation` counts the changes of.
fn content(object: &Value) -> impl PartialEq {
    let members = object.as_object().into_iter().flatten();
    members.filter(|(name, _)| *name != "metadata" && *name != "status").collect::<Vec<_>>()
}

/// Gives a pod its node.
pub(crate) fn bind(pod: &mut Value, node: &str, now: Timestamp) {
    pod["spec"]["nodeName"] = node.into();
    set_condition(pod, json!({ "type": "PodScheduled", "status": "True" }), now);
}

/// Sets the condition of its type. The time of transition moves only if the condition's status does.
pub(crate) fn set_condition(pod: &mut Value, mut condition: Value, now: Timestamp) {
    let Some(members) = pod.as_object_mut() else { return };
    let status = super::json::object(members, "status");
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    let Some(conditions) = conditions.as_array_mut() else { return };
    condition["lastTransitionTime"] = seconds(now).into();
    match conditions.iter_mut().find(|other| other.get("type") == condition.get("type")) {
        Some(other) => {
            if other.get("status") == condition.get("status") {
                condition["lastTransitionTime"] = other["lastTransitionTime"].clone();
            }
            *other = condition;
        }
        None => conditions.push(condition),
    }
}

/// Does what the scheduler does for a pod, at the request of another: `pods/binding`.
pub(crate) fn binding(txn: &mut Txn<'_, '_>, target: &Target, binding: &Value) -> Result<(), Failure> {
    let mut pod = target.read(txn)?;
    let node = text(binding, &["target", "name"]);
    if node.is_empty() {
        return Err(Failure::bad_request("target.name: Required value: a binding names a node"));
    }
    if !text(&pod, &["spec", "nodeName"]).is_empty() {
        let why = format!("pod {} is already assigned to node {:?}", target.name, pod["spec"]["nodeName"]);
        return Err(target.conflict(&why));
    }
    bind(&mut pod, node, txn.now);
    txn.put(target.resource, pod).map(|_| ())
}

/// The namespaces that exist from the start, and their accounts.
pub(crate) fn ensure_namespaces(txn: &mut Txn<'_, '_>) -> Result<(), Failure> {
    for name in ["default", "kube-node-lease", "kube-public", "kube-system", "kubeedge"] {
        let namespaces = Resource::core("namespaces");
        if txn.get(namespaces, "", name)?.is_some() {
            continue;
        }
        let target =
            Target { resource: namespaces, namespace: String::new(), name: name.into(), status: false };
        create(txn, target, json!({ "metadata": { "name": name } }), &Options::default())?;
    }
    Ok(())
}

fn default_account(namespace: &str, now: Timestamp) -> Result<Value, Failure> {
    Ok(json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {
            "name": "default", "namespace": namespace, "uid": uid()?, "creationTimestamp": seconds(now),
        },
    }))
}

/// The time in RFC 3339 with whole seconds, as Kubernetes writes it.
pub(crate) fn seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

fn random<const N: usize>() -> Result<[u8; N], Failure> {
    let random = ring::rand::generate::<[u8; N]>(&ring::rand::SystemRandom::new());
    Ok(random.map_err(|_| Failure::internal("no randomness from the operating system"))?.expose())
}

/// A random UUID, RFC 9562 version 4.
fn uid() -> Result<String, Failure> {
    let mut bytes: [u8; 16] = random()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
}

/// Five letters without vowels, so that no word comes out.
fn suffix() -> Result<String, Failure> {
    const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let bytes: [u8; 5] = random()?;
    Ok(bytes.iter().map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])).collect())
}
