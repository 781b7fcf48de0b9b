//! Which objects are refused, and why: the path of the field and the rule that it breaks.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{
    failure::{Cause, Failure},
    json::{at, items, text},
    resource::Resource,
    store::Txn,
    write::Validation,
};
use crate::checks;

mod kinds;
mod types;

/// Checks the object against Kubernetes' types. Returns what the client should be warned of.
///
/// # Errors
/// 400 if a value has another type than its field, or if a field is unknown and the client wants to be told.
pub(crate) fn types(
    resource: &Resource,
    object: &Value,
    validation: Validation,
) -> Result<Vec<String>, Failure> {
    let Some(retype) = resource.retype else { return Ok(Vec::new()) };
    let typed = retype(object).map_err(|error| {
        let place = types::misplaced(object, retype).unwrap_or_default();
        let kind = resource.kind;
        Failure::bad_request(format!(
            "{kind} in version {:?} cannot be handled as a {kind}: {place}: {error}",
            resource.api_version()
        ))
    })?;
    let unknown = types::unknown(object, &typed);
    match validation {
        Validation::Strict if !unknown.is_empty() => {
            let unknown: Vec<String> =
                unknown.iter().map(|field| format!("unknown field {field:?}")).collect();
            Err(Failure::bad_request(format!("strict decoding error: {}", unknown.join(", "))))
        }
        Validation::Warn => Ok(unknown.iter().map(|field| format!("unknown field {field:?}")).collect()),
        Validation::Strict | Validation::Ignore => Ok(Vec::new()),
    }
}

/// Checks the object against the rules of its kind; `old` is what it replaces.
///
/// # Errors
/// 422 with everything that is wrong.
pub(crate) fn check(resource: &Resource, object: &Value, old: Option<&Value>) -> Result<(), Failure> {
    let mut causes = Vec::new();
    metadata(resource, object, &mut causes);
    kinds::check(resource, object, old, &mut causes);
    if causes.is_empty() {
        return Ok(());
    }
    let name = text(object, &["metadata", "name"]);
    Err(Failure::invalid(resource.kind, resource.group, name, &causes))
}

/// Checks the object against what else is there; see [`check`] for the rest.
///
/// # Errors
/// 422 with everything that is wrong.
pub(crate) fn check_around(txn: &Txn<'_, '_>, resource: &Resource, object: &Value) -> Result<(), Failure> {
    if resource.kind != "Rule" {
        return Ok(());
    }
    let namespace = text(object, &["metadata", "namespace"]);
    let endpoints = Resource::find(resource.group, resource.version, "ruleendpoints");
    let endpoints = endpoints.map(|endpoints| txn.list(endpoints, Some(namespace))).transpose()?;
    let rules = txn.list(resource, Some(namespace))?;
    let faults = checks::rule(object, &endpoints.unwrap_or_default(), &rules);
    if faults.is_empty() {
        return Ok(());
    }
    let causes: Vec<Cause> = faults.into_iter().map(Cause::from).collect();
    Err(Failure::invalid(resource.kind, resource.group, text(object, &["metadata", "name"]), &causes))
}

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
                         and must start and end with an alphanumeric character, at most 253 characters";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                     start and end with an alphanumeric character, at most 63 characters";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end \
                         with an alphanumeric character, at most 63 characters, optionally after a DNS subdomain and '/'";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
                           '.', and must start and end with an alphanumeric character, at most 63 characters";

/// The most bytes that all annotations of an object may have.
const ANNOTATIONS_MAX: usize = 256 << 10;

fn metadata(resource: &Resource, object: &Value, causes: &mut Vec<Cause>) {
    let name = text(object, &["metadata", "name"]);
    let (valid, rule) = match resource.kind {
        "Namespace" => (is_label(name), LABEL),
        _ => (is_subdomain(name), SUBDOMAIN),
    };
    if !valid {
        causes.push(Cause::invalid("metadata.name", &name.into(), rule));
    }
    for (label, value) in members(object, &["metadata", "labels"]) {
        if !is_qualified(label) {
            causes.push(Cause::invalid("metadata.labels", &label.as_str().into(), QUALIFIED));
        }
        if !value.as_str().is_some_and(is_label_value) {
            causes.push(Cause::invalid("metadata.labels", value, LABEL_VALUE));
        }
    }
    let mut size = 0;
    for (name, value) in members(object, &["metadata", "annotations"]) {
        size += name.len() + value.as_str().map_or(0, str::len);
        if !is_qualified(&name.to_lowercase()) {
            causes.push(Cause::invalid("metadata.annotations", &name.as_str().into(), QUALIFIED));
        }
        if !value.is_string() {
            causes.push(Cause::invalid("metadata.annotations", value, "must be a string"));
        }
    }
    if size > ANNOTATIONS_MAX {
        causes.push(Cause {
            reason: "FieldValueTooLong",
            field: "metadata.annotations".into(),
            message: format!("Too long: may not be more than {ANNOTATIONS_MAX} bytes"),
        });
    }
}

fn members<'a>(object: &'a Value, path: &[&str]) -> impl Iterator<Item = (&'a String, &'a Value)> {
    at(object, path).and_then(Value::as_object).into_iter().flat_map(Map::iter)
}

fn is_alphanumeric(c: Option<u8>) -> bool {
    c.is_some_and(|c| c.is_ascii_alphanumeric())
}

fn is_made_of(text: &str, length_max: usize, allowed: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    text.len() <= length_max
        && is_alphanumeric(bytes.first().copied())
        && is_alphanumeric(bytes.last().copied())
        && bytes.iter().all(|byte| allowed(*byte))
}

fn is_label(text: &str) -> bool {
    is_made_of(text, 63, |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
}

fn is_subdomain(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|label| {
            is_made_of(label, 253, |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
        })
}

fn is_name_part(text: &str) -> bool {
    is_made_of(text, 63, |c| c.is_ascii_alphanumeric() || b"-_.".contains(&c))
}

fn is_qualified(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && is_name_part(name),
        None => is_name_part(text),
    }
}

fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_name_part(text)
}

/// Complains of each name that stands twice in a list, or is empty.
fn unique_names(object: &Value, list: &[&str], causes: &mut Vec<Cause>) {
    let mut seen = BTreeSet::new();
    for (index, item) in items(object, list).iter().enumerate() {
        let (name, field) = (text(item, &["name"]), format!("{}[{index}].name", list.join(".")));
        if name.is_empty() {
            causes.push(Cause::required(field, ""));
        } else if !seen.insert(name) {
            causes.push(Cause::duplicate(field, name));
        }
    }
}
