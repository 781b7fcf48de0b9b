//! What KubeEdge's admission checks of its own kinds. Pure; used by the webhook and by the standalone API.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use serde_json::Value;

/// One thing that is wrong with an object: where, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Kubernetes' word for it, such as `FieldValueInvalid`.
    pub(crate) reason: &'static str,
    /// The field's path.
    pub(crate) field: String,
    /// What is wrong with it.
    pub(crate) message: String,
}

impl Fault {
    fn invalid(field: impl Into<String>, value: &Value, rule: &str) -> Self {
        let value: String = value.to_string().chars().take(200).collect();
        let message = format!("Invalid value: {value}: {rule}");
        Self { reason: "FieldValueInvalid", field: field.into(), message }
    }

    fn required(field: impl Into<String>, rule: &str) -> Self {
        let rule = if rule.is_empty() { String::new() } else { format!(": {rule}") };
        let message = format!("Required value{rule}");
        Self { reason: "FieldValueRequired", field: field.into(), message }
    }

    fn forbidden(field: impl Into<String>, rule: &str) -> Self {
        let message = format!("Forbidden: {rule}");
        Self { reason: "FieldValueForbidden", field: field.into(), message }
    }

    fn duplicate(field: impl Into<String>, value: &str) -> Self {
        let message = format!("Duplicate value: {value:?}");
        Self { reason: "FieldValueDuplicate", field: field.into(), message }
    }

    fn not_found(field: impl Into<String>, value: &str) -> Self {
        let message = format!("Not found: {value:?}");
        Self { reason: "FieldValueNotFound", field: field.into(), message }
    }
}

/// Checks a Device: it is of a model, and its properties have names, each its own.
pub(crate) fn device(device: &Value) -> Vec<Fault> {
    let mut faults = Vec::new();
    if text(&device["spec"]["deviceModelRef"]["name"]).is_empty() {
        faults.push(Fault::required("spec.deviceModelRef.name", "a device is of a model"));
    }
    properties(device, &mut faults);
    faults
}

/// Checks a DeviceModel: its properties have names, each its own.
pub(crate) fn device_model(model: &Value) -> Vec<Fault> {
    let mut faults = Vec::new();
    properties(model, &mut faults);
    faults
}

fn properties(object: &Value, faults: &mut Vec<Fault>) {
    let spec = &object["spec"];
    for (path, value, fits, rule) in [
        ("spec", spec, spec.is_object(), "must be an object"),
        ("spec.properties", &spec["properties"], spec["properties"].is_array(), "must be a list"),
        (
            "spec.deviceModelRef",
            &spec["deviceModelRef"],
            spec["deviceModelRef"].is_object(),
            "must be an object",
        ),
    ] {
        if !value.is_null() && !fits {
            faults.push(Fault::invalid(path, value, rule));
            return;
        }
    }
    let mut seen = BTreeSet::new();
    for (index, property) in items(&spec["properties"]).iter().enumerate() {
        let (name, field) = (text(&property["name"]), format!("spec.properties[{index}].name"));
        if name.is_empty() {
            faults.push(Fault::required(field, ""));
        } else if !seen.insert(name) {
            faults.push(Fault::duplicate(field, name));
        } else if !is_name(name) {
            let rule = "must consist of alphanumeric characters, '-', '_' or '.', at most 63 characters";
            faults.push(Fault::invalid(field, &property["name"], rule));
        }
    }
}

fn is_name(name: &str) -> bool {
    let ends = [name.bytes().next(), name.bytes().last()];
    name.len() <= 63
        && ends.iter().all(|end| end.is_some_and(|byte| byte.is_ascii_alphanumeric()))
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// Checks a RuleEndpoint: its type, and the port of a server on a node.
pub(crate) fn endpoint(endpoint: &Value) -> Vec<Fault> {
    let kind = &endpoint["spec"]["ruleEndpointType"];
    let mut faults = Vec::new();
    match text(kind) {
        "rest" | "eventbus" => {}
        "servicebus" => {
            let port = &endpoint["spec"]["properties"]["service_port"];
            if !text(port).parse::<u16>().is_ok_and(|port| port > 0) {
                let rule = "must be a port between 1 and 65535, as a text";
                faults.push(Fault::invalid("spec.properties.service_port", port, rule));
            }
        }
        _ => {
            let rule = "must be rest, eventbus or servicebus";
            faults.push(Fault::invalid("spec.ruleEndpointType", kind, rule));
        }
    }
    faults
}

/// Checks a Rule, among the endpoints and the rules of its namespace.
pub(crate) fn rule(rule: &Value, endpoints: &[Value], rules: &[Value]) -> Vec<Fault> {
    let spec = &rule["spec"];
    let mut faults = Vec::new();
    let mut end = |member: &str| {
        let (name, field) = (text(&spec[member]), format!("spec.{member}"));
        let endpoint = endpoints.iter().find(|endpoint| text(&endpoint["metadata"]["name"]) == name);
        if name.is_empty() {
            faults.push(Fault::required(field, ""));
        } else if endpoint.is_none() {
            faults.push(Fault::not_found(field, name));
        }
        endpoint.map(|endpoint| text(&endpoint["spec"]["ruleEndpointType"]))
    };
    let (Some(source), Some(target)) = (end("source"), end("target")) else { return faults };
    let (needed, wanted): (&[&str], _) = match (source, target) {
        ("rest", "eventbus") => (&["path"], "topic"),
        ("rest", "servicebus") => (&["path"], "path"),
        ("eventbus", "rest") => (&["topic", "node_name"], "resource"),
        _ => {
            let why =
                format!("from {source} to {target}: rest to eventbus or servicebus, and eventbus to rest");
            faults.push(Fault::invalid("spec.target", &spec["target"], &why));
            return faults;
        }
    };
    for (member, keys) in [("sourceResource", needed), ("targetResource", &[wanted])] {
        for key in keys.iter().filter(|key| text(&spec[member][**key]).is_empty()) {
            faults.push(Fault::required(format!("spec.{member}.{key}"), ""));
        }
    }
    let same = |other: &&Value| {
        other["metadata"]["name"] != rule["metadata"]["name"]
            && needed.iter().all(|key| other["spec"]["sourceResource"][*key] == spec["sourceResource"][*key])
            && of_type(&other["spec"]["source"], endpoints) == Some(source)
    };
    if let Some(other) = rules.iter().find(same).filter(|_| faults.is_empty()) {
        let why = format!("Rule {} has the same source", text(&other["metadata"]["name"]));
        faults.push(Fault::invalid("spec.sourceResource", &spec["sourceResource"], &why));
    }
    faults
}

fn of_type<'a>(name: &Value, endpoints: &'a [Value]) -> Option<&'a str> {
    let endpoint = endpoints.iter().find(|endpoint| endpoint["metadata"]["name"] == *name)?;
    Some(text(&endpoint["spec"]["ruleEndpointType"]))
}

/// Checks a NodeUpgradeJob; `old` is what it replaces. What it names becomes part of what a node runs, so that
/// nothing but a version and an image may stand there.
#[cfg_attr(not(feature = "admission"), allow(dead_code, reason = "the standalone API has no jobs"))]
pub(crate) fn upgrade_job(job: &Value, old: Option<&Value>) -> Vec<Fault> {
    let spec = &job["spec"];
    let mut faults = Vec::new();
    if let Some(old) = old
        && old["spec"] != *spec
    {
        faults.push(Fault::forbidden("spec", "a job cannot be changed; delete it and create another"));
    }
    let version = &spec["version"];
    if !version.is_null() && !is_version(text(version)) {
        faults.push(Fault::invalid("spec.version", version, "must be like v1.23.1 or v1.24.0-beta.1"));
    }
    let image = &spec["image"];
    if !matches!(image, Value::Null) && !text(image).is_empty() && !is_image(text(image)) {
        faults.push(Fault::invalid(
            "spec.image",
            image,
            "must be an image such as kubeedge/installation-package",
        ));
    }
    match (items(&spec["nodeNames"]).is_empty(), spec["labelSelector"].is_null()) {
        (true, true) => faults.push(Fault::required("spec.nodeNames", "or spec.labelSelector")),
        (false, false) => {
            faults.push(Fault::forbidden("spec.labelSelector", "either nodeNames or labelSelector"));
        }
        _ => {}
    }
    faults
}

/// `v`, three numbers, and words of letters, digits, `_` and `.` behind dashes.
fn is_version(version: &str) -> bool {
    let Some(rest) = version.strip_prefix('v') else { return false };
    let (numbers, words) =
        rest.split_once('-').map_or((rest, None), |(numbers, words)| (numbers, Some(words)));
    let is_number =
        |part: &str| !part.is_empty() && part.len() < 10 && part.bytes().all(|c| c.is_ascii_digit());
    let is_word = |word: &str| {
        !word.is_empty() && word.bytes().all(|c| c.is_ascii_alphanumeric() || b"_.".contains(&c))
    };
    version.len() <= 128
        && numbers.split('.').count() == 3
        && numbers.split('.').all(is_number)
        && words.is_none_or(|words| words.split('-').all(is_word))
}

/// A repository with at least one slash, optionally with a registry's port, a tag or a digest.
fn is_image(image: &str) -> bool {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let is_digest = |digest: &str| {
        digest
            .strip_prefix("sha256:")
            .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|c| c.is_ascii_hexdigit()))
    };
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    let parts: Vec<&str> = name.split('/').collect();
    let is_part = |(index, part): (usize, &&str)| {
        // A colon begins a port in the first part, and a tag in the last.
        let colon = index == 0 || index + 1 == parts.len();
        let (part, behind) =
            part.split_once(':').map_or((*part, None), |(part, behind)| (part, Some(behind)));
        let fits = |text: &str| {
            text.bytes().all(allowed) && text.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric())
        };
        fits(part) && behind.is_none_or(|behind| colon && fits(behind))
    };
    image.len() <= 512
        && parts.len() >= 2
        && parts.iter().enumerate().all(is_part)
        && digest.is_none_or(is_digest)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn items(list: &Value) -> &[Value] {
    list.as_array().map(Vec::as_slice).unwrap_or_default()
}
