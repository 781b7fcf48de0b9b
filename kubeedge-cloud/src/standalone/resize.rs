//! `pods/resize`: other resources for the containers of a pod that exists. Its node decides whether it gets them.

use serde_json::Value;

use super::{
    failure::Failure,
    json::{at, items, metadata, text},
    store::Txn,
    write::{Target, Written},
};

/// Gives the pod the resources that it has after `change`, and nothing else of it.
pub(super) fn resize(
    txn: &mut Txn<'_, '_>,
    target: &Target,
    change: impl FnOnce(&Value) -> Result<Value, Failure>,
) -> Result<Written, Failure> {
    let old = target.read(txn)?;
    let wanted = change(&old)?;
    let version = text(&wanted, &["metadata", "resourceVersion"]);
    if !version.is_empty() && version != text(&old, &["metadata", "resourceVersion"]) {
        return Err(target.conflict(
            "the object has been modified; please apply your changes to the latest version and try again",
        ));
    }
    let mut new = old.clone();
    for list in ["initContainers", "containers"] {
        let containers = new["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let mut all = items(&wanted, &["spec", list]).iter();
            let Some(wanted) = all.find(|wanted| wanted["name"] == container["name"]) else { continue };
            for member in ["resources", "resizePolicy"] {
                if let Some(value) = wanted.get(member) {
                    container[member] = value.clone();
                }
            }
        }
    }
    if new == old {
        return Ok(Written { object: old, created: false, warnings: Vec::new() });
    }
    let generation = at(&old, &["metadata", "generation"]).and_then(Value::as_i64).unwrap_or_default();
    metadata(&mut new).insert("generation".into(), (generation + 1).into());
    let object = txn.put(target.resource, new)?;
    Ok(Written { object, created: false, warnings: Vec::new() })
}
