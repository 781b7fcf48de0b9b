//! Small things about JSON values, and the few facts about objects that every file here needs.

use serde_json::{Map, Value};

/// The text at a path of member names; empty if there is none.
pub(crate) fn text<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    at(value, path).and_then(Value::as_str).unwrap_or_default()
}

/// The value at a path of member names.
pub(crate) fn at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, name| value.get(name))
}

/// The items of the list at a path; empty if there is none.
pub(crate) fn items<'a>(value: &'a Value, path: &[&str]) -> &'a [Value] {
    at(value, path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The object at `name`, which is created, or put in place of what is no object.
pub(crate) fn object<'a>(parent: &'a mut Map<String, Value>, name: &str) -> &'a mut Map<String, Value> {
    let value = parent.entry(name).or_insert_with(|| Value::Object(Map::new()));
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("it was made an object one line above")
}

/// The members of an object's `metadata`, which is created if there is none.
///
/// A value that is no object is made one: callers check that before.
pub(crate) fn metadata(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    let members = value.as_object_mut().expect("it was made an object two lines above");
    object(members, "metadata")
}

/// Sets `name` to `value` unless it has one.
pub(crate) fn default(members: &mut Map<String, Value>, name: &str, value: impl Into<Value>) {
    members.entry(name).or_insert_with(|| value.into());
}

/// Drops members that are null, as decoding into Kubernetes' types and encoding again would.
pub(crate) fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Whether the value has more than `levels` levels of objects and lists.
pub(crate) fn is_deeper_than(value: &Value, levels: usize) -> bool {
    let below = |value: &Value| levels == 0 || is_deeper_than(value, levels - 1);
    match value {
        Value::Object(members) => levels == 0 || members.values().any(below),
        Value::Array(items) => levels == 0 || items.iter().any(below),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// The text, cut to about `length` bytes.
pub(crate) fn shorten(text: &str, length: usize) -> String {
    if text.len() <= length {
        return text.to_owned();
    }
    let mut end = length;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}...", &text[..end])
}
