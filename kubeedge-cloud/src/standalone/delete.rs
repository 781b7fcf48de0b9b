//! How objects end: at once, when their node or a finalizer lets them, or with their namespace.

use jiff::SignedDuration;
use serde_json::Value;

use super::{
    failure::Failure,
    json::{at, items, metadata, text},
    resource::{RESOURCES, Resource},
    store::Txn,
    write::{Target, seconds},
};

/// What a client asks of a deletion.
#[derive(Debug, Clone, Default)]
pub(crate) struct Deletion {
    /// Seconds that a pod has to end; `None` means as its spec says.
    pub(crate) grace: Option<i64>,
    /// Delete only the object of this UID.
    pub(crate) uid: Option<String>,
    /// Delete only this version of the object.
    pub(crate) version: Option<String>,
}

/// Deletes the object, or marks it as being deleted. Returns it, and whether it is gone.
pub(crate) fn delete(
    txn: &mut Txn<'_, '_>,
    target: &Target,
    deletion: &Deletion,
) -> Result<(Value, bool), Failure> {
    let object = target.read(txn)?;
    let conditions =
        [(&deletion.uid, "uid", "UID"), (&deletion.version, "resourceVersion", "ResourceVersion")];
    for (wanted, member, what) in conditions {
        let current = text(&object, &["metadata", member]);
        if let Some(wanted) = wanted
            && wanted != current
        {
            let why =
                format!("Precondition failed: {what} in precondition: {wanted}, in object meta: {current}");
            return Err(target.conflict(&why));
        }
    }
    if target.resource.kind == "Namespace" {
        return delete_namespace(txn, target, object);
    }
    delete_object(txn, target.resource, object, deletion, true)
}

fn delete_object(
    txn: &mut Txn<'_, '_>,
    resource: &'static Resource,
    mut object: Value,
    deletion: &Deletion,
    finish_namespace: bool,
) -> Result<(Value, bool), Failure> {
    let grace = if resource.kind == "Pod" { pod_grace(&object, deletion.grace) } else { 0 };
    if grace == 0 && items(&object, &["metadata", "finalizers"]).is_empty() {
        return Ok((remove(txn, resource, object, finish_namespace)?, true));
    }
    let under_way = at(&object, &["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64);
    let deleted = !text(&object, &["metadata", "deletionTimestamp"]).is_empty();
    // A later request may shorten the time that a pod has left, never lengthen it.
    if deleted && under_way.unwrap_or_default() <= grace {
        return Ok((object, false));
    }
    let end = txn.now.checked_add(SignedDuration::from_secs(grace)).unwrap_or(txn.now);
    let meta = metadata(&mut object);
    meta.insert("deletionTimestamp".into(), seconds(end).into());
    meta.insert("deletionGracePeriodSeconds".into(), grace.into());
    Ok((txn.put(resource, object)?, false))
}

/// How long a pod may take to end: not at all if no node runs it.
fn pod_grace(pod: &Value, asked: Option<i64>) -> i64 {
    let ended = ["Succeeded", "Failed"].contains(&text(pod, &["status", "phase"]));
    if text(pod, &["spec", "nodeName"]).is_empty() || ended {
        return 0;
    }
    let own = at(pod, &["spec", "terminationGracePeriodSeconds"]).and_then(Value::as_i64);
    asked.or(own).unwrap_or(30).max(0)
}

fn delete_namespace(
    txn: &mut Txn<'_, '_>,
    target: &Target,
    mut object: Value,
) -> Result<(Value, bool), Failure> {
    if ["default", "kube-system", "kube-public"].contains(&target.name.as_str()) {
        let why = "this namespace may not be deleted";
        return Err(Failure::forbidden("namespaces", "", &target.name, why));
    }
    if text(&object, &["metadata", "deletionTimestamp"]).is_empty() {
        metadata(&mut object).insert("deletionTimestamp".into(), seconds(txn.now).into());
        object["status"]["phase"] = "Terminating".into();
        object = txn.put(target.resource, object)?;
    }
    for resource in RESOURCES.iter().filter(|resource| resource.namespaced) {
        for content in txn.list(resource, Some(&target.name))? {
            delete_object(txn, resource, content, &Deletion::default(), false)?;
        }
    }
    match finish_namespace(txn, &target.name)? {
        Some(object) => Ok((object, true)),
        None => Ok((object, false)),
    }
}

/// Removes a namespace that is being deleted and has become empty.
fn finish_namespace(txn: &mut Txn<'_, '_>, name: &str) -> Result<Option<Value>, Failure> {
    let namespaces = Resource::core("namespaces");
    let Some(namespace) = txn.get(namespaces, "", name)? else { return Ok(None) };
    if text(&namespace, &["metadata", "deletionTimestamp"]).is_empty()
        || !items(&namespace, &["metadata", "finalizers"]).is_empty()
    {
        return Ok(None);
    }
    for resource in RESOURCES.iter().filter(|resource| resource.namespaced) {
        if !txn.list(resource, Some(name))?.is_empty() {
            return Ok(None);
        }
    }
    txn.remove(namespaces, namespace).map(Some)
}

/// Removes the object, and with it the namespace that has waited for its end.
pub(crate) fn remove(
    txn: &mut Txn<'_, '_>,
    resource: &'static Resource,
    object: Value,
    and_finish_namespace: bool,
) -> Result<Value, Failure> {
    let object = txn.remove(resource, object)?;
    if resource.kind == "Device" {
        remove_status_of(txn, &object)?;
    }
    if resource.namespaced && and_finish_namespace {
        finish_namespace(txn, text(&object, &["metadata", "namespace"]))?;
    }
    Ok(object)
}

/// Removes the DeviceStatus that belongs to a Device, as the garbage collector of a cluster does.
fn remove_status_of(txn: &mut Txn<'_, '_>, device: &Value) -> Result<(), Failure> {
    let Some(statuses) = RESOURCES.iter().find(|resource| resource.kind == "DeviceStatus") else {
        return Ok(());
    };
    let name = |member| text(device, &["metadata", member]);
    let Some(status) = txn.get(statuses, name("namespace"), name("name"))? else { return Ok(()) };
    let owners = items(&status, &["metadata", "ownerReferences"]);
    if owners.iter().any(|owner| text(owner, &["uid"]) == name("uid")) {
        delete_object(txn, statuses, status, &Deletion::default(), false)?;
    }
    Ok(())
}

/// Whether nothing holds up the end of an object that is being deleted: for a pod, its node still does.
pub(crate) fn is_finished(object: &Value) -> bool {
    let grace = at(object, &["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64);
    !text(object, &["metadata", "deletionTimestamp"]).is_empty()
        && items(object, &["metadata", "finalizers"]).is_empty()
        && grace.unwrap_or_default() == 0
        && text(object, &["kind"]) != "Namespace"
}
