//! Strategic merge patch: a merge patch that knows which lists are lists of named items.

use serde_json::{Map, Value};

use super::schema::{self, List};
use crate::standalone::failure::Failure;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";

/// Changes the object as the patch says.
pub(super) fn apply(object: &mut Value, patch: &Value) -> Result<(), Failure> {
    let Value::Object(patch) = patch else {
        return Err(Failure::bad_request("the patch must be a JSON object"));
    };
    merge_object(object, patch)
}

fn merge_object(target: &mut Value, patch: &Map<String, Value>) -> Result<(), Failure> {
    match patch.get(DIRECTIVE).map(|directive| directive.as_str().unwrap_or_default()) {
        Some("replace") => {
            *target = without_directives(patch);
            return Ok(());
        }
        Some("delete") => {
            *target = Value::Object(Map::new());
            return Ok(());
        }
        Some("merge") | None => {}
        Some(other) => return Err(Failure::bad_request(format!("unknown $patch directive {other:?}"))),
    }
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(members) = target.as_object_mut() else { return Ok(()) };
    if let Some(retain) = patch.get(RETAIN_KEYS).and_then(Value::as_array) {
        members.retain(|name, _| retain.iter().any(|kept| kept == name.as_str()));
    }
    for (name, value) in patch.iter().filter(|(name, _)| !name.starts_with('$')) {
        merge_member(members, name, value)?;
    }
    for (directive, values) in patch.iter().filter(|(name, _)| name.starts_with('$')) {
        list_directive(members, directive, values)?;
    }
    Ok(())
}

fn merge_member(members: &mut Map<String, Value>, name: &str, value: &Value) -> Result<(), Failure> {
    match value {
        Value::Null => {
            members.remove(name);
        }
        Value::Object(patch) => {
            let deletes = patch.get(DIRECTIVE).is_some_and(|directive| directive == "delete");
            if deletes {
                members.remove(name);
            } else {
                let target = members.entry(name).or_insert(Value::Null);
                merge_object(target, patch)?;
            }
        }
        Value::Array(patch) => {
            let merged = merge_list(name, members.remove(name), patch)?;
            members.insert(name.to_owned(), Value::Array(merged));
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            members.insert(name.to_owned(), value.clone());
        }
    }
    Ok(())
}

fn merge_list(name: &str, current: Option<Value>, patch: &[Value]) -> Result<Vec<Value>, Failure> {
    let mut current = match current {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    };
    match schema::list(name) {
        List::Atomic => Ok(patch.to_vec()),
        List::Set => {
            for item in patch {
                if !current.contains(item) {
                    current.push(item.clone());
                }
            }
            Ok(current)
        }
        List::Map { merge_key, .. } => {
            merge_items(name, schema::merge_key(name, patch).unwrap_or(merge_key), current, patch)
        }
    }
}

fn merge_items(
    name: &str,
    key: &str,
    mut current: Vec<Value>,
    patch: &[Value],
) -> Result<Vec<Value>, Failure> {
    let directive =
        |item: &Value, wanted: &str| item.get(DIRECTIVE).is_some_and(|directive| directive == wanted);
    // An item that is nothing but `$patch: replace` says that the rest is the whole list.
    let replaces = |item: &Value| directive(item, "replace") && item.get(key).is_none();
    if patch.iter().any(replaces) {
        let rest = patch.iter().filter(|item| !replaces(item));
        return Ok(rest.filter_map(Value::as_object).map(without_directives).collect());
    }
    for item in patch {
        let Value::Object(members) = item else {
            return Err(Failure::bad_request(format!("each item of {name} must be a JSON object")));
        };
        let Some(value) = members.get(key) else {
            return Err(Failure::bad_request(format!(
                "map: {name} does not contain declared merge key: {key}"
            )));
        };
        if directive(item, "delete") {
            current.retain(|other| other.get(key) != Some(value));
        } else if let Some(existing) = current.iter_mut().find(|other| is_same(other, item, name, key)) {
            merge_object(existing, members)?;
        } else {
            let mut added = Value::Object(Map::new());
            merge_object(&mut added, members)?;
            current.push(added);
        }
    }
    Ok(current)
}

/// Whether two items have the same name. Two ports may share a number, one for TCP and one for UDP: they are
/// told apart as far as the patch tells.
fn is_same(existing: &Value, patch: &Value, list: &str, key: &str) -> bool {
    let protocol = |item: &Value| item.get("protocol").cloned().unwrap_or_else(|| "TCP".into());
    existing.get(key) == patch.get(key) && (list != "ports" || protocol(existing) == protocol(patch))
}

fn list_directive(members: &mut Map<String, Value>, directive: &str, values: &Value) -> Result<(), Failure> {
    if directive == DIRECTIVE || directive == RETAIN_KEYS {
        return Ok(());
    }
    let Some(values) = values.as_array() else {
        return Err(Failure::bad_request(format!("{directive} must be a list")));
    };
    if let Some(name) = directive.strip_prefix(DELETE_PRIMITIVES) {
        if let Some(list) = members.get_mut(name).and_then(Value::as_array_mut) {
            list.retain(|item| !values.contains(item));
        }
    } else if let Some(name) = directive.strip_prefix(SET_ORDER) {
        if let Some(list) = members.get_mut(name).and_then(Value::as_array_mut) {
            set_order(name, list, values);
        }
    } else {
        return Err(Failure::bad_request(format!("unknown directive {directive:?}")));
    }
    Ok(())
}

/// Puts the items that the order names in that order. Others keep their place behind the item that they
/// followed, so that what someone else added does not move to another end.
fn set_order(name: &str, list: &mut Vec<Value>, order: &[Value]) {
    let key = schema::merge_key(name, order);
    let place = |item: &Value| {
        order.iter().position(|wanted| match key {
            Some(key) => {
                let key_of = |value: &Value| value.get(key).cloned();
                key_of(item).is_some() && key_of(item) == key_of(wanted)
            }
            None => item == wanted,
        })
    };
    let mut last = 0;
    let mut placed: Vec<(usize, Value)> = std::mem::take(list)
        .into_iter()
        .map(|item| {
            last = place(&item).unwrap_or(last);
            (last, item)
        })
        .collect();
    placed.sort_by_key(|(place, _)| *place);
    list.extend(placed.into_iter().map(|(_, item)| item));
}

/// The members that are content, at every depth.
fn without_directives(members: &Map<String, Value>) -> Value {
    let clean = |value: &Value| match value {
        Value::Object(members) => without_directives(members),
        Value::Array(items) => items
            .iter()
            .map(|item| item.as_object().map_or_else(|| item.clone(), without_directives))
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    };
    let content = members.iter().filter(|(name, value)| !name.starts_with('$') && !value.is_null());
    Value::Object(content.map(|(name, value)| (name.clone(), clean(value))).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn merged(mut object: Value, patch: Value) -> Value {
        apply(&mut object, &patch).unwrap();
        object
    }

    #[test]
    fn every_kind_of_list_is_merged_in_its_own_way() {
        let table = [
            (
                "a member that is null goes",
                json!({ "a": 1, "b": 2 }),
                json!({ "a": null }),
                json!({ "b": 2 }),
            ),
            (
                "containers are merged by name and a new one comes last",
                json!({ "containers": [{ "name": "a", "image": "x", "tty": true }] }),
                json!({ "containers": [{ "name": "a", "image": "y" }, { "name": "b" }] }),
                json!({ "containers": [{ "name": "a", "image": "y", "tty": true }, { "name": "b" }] }),
            ),
            (
                "an item is deleted by its name",
                json!({ "env": [{ "name": "A", "value": "1" }, { "name": "B" }] }),
                json!({ "env": [{ "name": "A", "$patch": "delete" }] }),
                json!({ "env": [{ "name": "B" }] }),
            ),
            (
                "a list is replaced",
                json!({ "env": [{ "name": "A" }] }),
                json!({ "env": [{ "$patch": "replace" }, { "name": "B" }] }),
                json!({ "env": [{ "name": "B" }] }),
            ),
            (
                "two ports of one number differ by protocol",
                json!({ "ports": [{ "containerPort": 53, "protocol": "TCP" }] }),
                json!({ "ports": [{ "containerPort": 53, "protocol": "UDP" }, { "containerPort": 53, "name": "dns" }] }),
                json!({ "ports": [
                    { "containerPort": 53, "protocol": "TCP", "name": "dns" },
                    { "containerPort": 53, "protocol": "UDP" },
                ] }),
            ),
            (
                "ports of a Service are told apart by the port that it has",
                json!({ "ports": [{ "port": 80, "protocol": "TCP", "targetPort": 80 }, { "port": 81 }] }),
                json!({
                    "$setElementOrder/ports": [{ "port": 82 }, { "port": 80 }],
                    "ports": [
                        { "port": 80, "targetPort": 8080 }, { "port": 82 }, { "port": 81, "$patch": "delete" },
                    ],
                }),
                json!({ "ports": [{ "port": 82 }, { "port": 80, "protocol": "TCP", "targetPort": 8080 }] }),
            ),
            (
                "tolerations and arguments are one value",
                json!({ "tolerations": [{ "key": "a" }], "args": ["1", "2"] }),
                json!({ "tolerations": [{ "key": "b" }], "args": ["3"] }),
                json!({ "tolerations": [{ "key": "b" }], "args": ["3"] }),
            ),
            (
                "finalizers are a set",
                json!({ "finalizers": ["a", "b"] }),
                json!({ "finalizers": ["b", "c"], "$deleteFromPrimitiveList/finalizers": ["a"] }),
                json!({ "finalizers": ["b", "c"] }),
            ),
            (
                "the order is as told",
                json!({ "containers": [{ "name": "a" }, { "name": "b" }] }),
                json!({
                    "$setElementOrder/containers": [{ "name": "c" }, { "name": "b" }, { "name": "a" }],
                    "containers": [{ "name": "c" }],
                }),
                json!({ "containers": [{ "name": "c" }, { "name": "b" }, { "name": "a" }] }),
            ),
            (
                "only the retained members stay",
                json!({ "strategy": { "type": "A", "rolling": { "max": 1 } } }),
                json!({ "strategy": { "$retainKeys": ["type"], "type": "B" } }),
                json!({ "strategy": { "type": "B" } }),
            ),
            (
                "an object is replaced or deleted",
                json!({ "a": { "x": 1 }, "b": { "x": 1 } }),
                json!({ "a": { "$patch": "replace", "y": 2 }, "b": { "$patch": "delete" } }),
                json!({ "a": { "y": 2 } }),
            ),
            (
                "conditions are merged by type",
                json!({ "conditions": [{ "type": "Ready", "status": "False", "reason": "x" }] }),
                json!({ "conditions": [{ "type": "Ready", "status": "True" }, { "type": "Disk", "status": "False" }] }),
                json!({ "conditions": [
                    { "type": "Ready", "status": "True", "reason": "x" },
                    { "type": "Disk", "status": "False" },
                ] }),
            ),
        ];
        for (what, object, patch, expected) in table {
            assert_eq!(merged(object, patch), expected, "{what}");
        }
    }

    #[test]
    fn a_patch_that_names_no_item_is_refused() {
        let mut object = json!({ "containers": [] });
        assert!(apply(&mut object, &json!({ "containers": [{ "image": "x" }] })).is_err());
        assert!(apply(&mut object, &json!({ "containers": ["x"] })).is_err());
        assert!(apply(&mut object, &json!({ "a": { "$patch": "explode" } })).is_err());
        assert!(apply(&mut object, &json!({ "$unknown/a": [] })).is_err());
    }
}
