//! The rules of each kind.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{LABEL, is_label, members, unique_names};
use crate::checks::{self, Fault};
use crate::standalone::{
    failure::Cause,
    json::{at, items, text},
    resource::Resource,
};

/// The most bytes that a ConfigMap or Secret may hold.
const DATA_MAX: usize = 1 << 20;

pub(super) fn check(resource: &Resource, object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    match (resource.kind, old) {
        ("Pod", None) => pod(object, causes),
        ("Pod", Some(old)) => pod_change(object, old, causes),
        ("ConfigMap" | "Secret", old) => data(object, old, causes),
        ("Device", _) => extend(causes, checks::device(object)),
        ("DeviceModel", _) => extend(causes, checks::device_model(object)),
        ("RuleEndpoint", _) => extend(causes, checks::endpoint(object)),
        _ => {}
    }
}

fn pod(pod: &Value, causes: &mut Vec<Cause>) {
    if items(pod, &["spec", "containers"]).is_empty() {
        causes.push(Cause::required("spec.containers", ""));
    }
    let volumes: BTreeSet<&str> =
        items(pod, &["spec", "volumes"]).iter().map(|volume| text(volume, &["name"])).collect();
    unique_names(pod, &["spec", "volumes"], causes);
    let mut names = BTreeSet::new();
    for list in ["initContainers", "containers"] {
        for (index, container) in items(pod, &["spec", list]).iter().enumerate() {
            let field = format!("spec.{list}[{index}]");
            let name = text(container, &["name"]);
            if !names.insert(name) {
                causes.push(Cause::duplicate(format!("{field}.name"), name));
            }
            self::container(container, &field, &volumes, causes);
        }
    }
    let policy = text(pod, &["spec", "restartPolicy"]);
    one_of("spec.restartPolicy", policy, &["Always", "OnFailure", "Never"], causes);
    let dns = text(pod, &["spec", "dnsPolicy"]);
    one_of("spec.dnsPolicy", dns, &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"], causes);
    let grace = at(pod, &["spec", "terminationGracePeriodSeconds"]);
    if let Some(grace) = grace.filter(|grace| grace.as_i64().is_some_and(|grace| grace < 0)) {
        let rule = "must be greater than or equal to 0";
        causes.push(Cause::invalid("spec.terminationGracePeriodSeconds", grace, rule));
    }
}

fn container(container: &Value, field: &str, volumes: &BTreeSet<&str>, causes: &mut Vec<Cause>) {
    let name = text(container, &["name"]);
    if name.is_empty() {
        causes.push(Cause::required(format!("{field}.name"), ""));
    } else if !is_label(name) {
        causes.push(Cause::invalid(format!("{field}.name"), &name.into(), LABEL));
    }
    let image = text(container, &["image"]);
    if image.is_empty() {
        causes.push(Cause::required(format!("{field}.image"), ""));
    } else if image.trim() != image {
        let rule = "must not have leading or trailing whitespace";
        causes.push(Cause::invalid(format!("{field}.image"), &image.into(), rule));
    }
    let policy = text(container, &["imagePullPolicy"]);
    one_of(&format!("{field}.imagePullPolicy"), policy, &["Always", "IfNotPresent", "Never"], causes);
    for (index, mount) in items(container, &["volumeMounts"]).iter().enumerate() {
        let volume = text(mount, &["name"]);
        if !volumes.contains(volume) {
            causes.push(Cause {
                reason: "FieldValueNotFound",
                field: format!("{field}.volumeMounts[{index}].name"),
                message: format!("Not found: {volume:?}"),
            });
        }
        if text(mount, &["mountPath"]).is_empty() {
            causes.push(Cause::required(format!("{field}.volumeMounts[{index}].mountPath"), ""));
        }
    }
    for (index, port) in items(container, &["ports"]).iter().enumerate() {
        let field = format!("{field}.ports[{index}]");
        let number = at(port, &["containerPort"]).cloned().unwrap_or_default();
        if !number.as_i64().is_some_and(|number| (1..=65535).contains(&number)) {
            causes.push(Cause::invalid(
                format!("{field}.containerPort"),
                &number,
                "must be between 1 and 65535, inclusive",
            ));
        }
        one_of(&format!("{field}.protocol"), text(port, &["protocol"]), &["SCTP", "TCP", "UDP"], causes);
    }
    for (index, variable) in items(container, &["env"]).iter().enumerate() {
        if text(variable, &["name"]).is_empty() {
            causes.push(Cause::required(format!("{field}.env[{index}].name"), ""));
        }
    }
}

fn one_of(field: &str, value: &str, allowed: &[&str], causes: &mut Vec<Cause>) {
    if !allowed.contains(&value) {
        causes.push(Cause::unsupported(field, value, allowed));
    }
}

/// A pod that exists may get another image, a deadline, more tolerations, and its node once. The rest is
/// what its containers were made from.
fn pod_change(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    let unbound = text(old, &["spec", "nodeName"]).is_empty();
    let comparable = |pod: &Value| {
        let mut spec = at(pod, &["spec"]).cloned().unwrap_or_default();
        for list in ["containers", "initContainers"] {
            for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(container) = container.as_object_mut() {
                    container.remove("image");
                    // It was derived from the image's tag, and is derived anew when a client leaves it out.
                    container.remove("imagePullPolicy");
                }
            }
        }
        if let Some(spec) = spec.as_object_mut() {
            for free in ["activeDeadlineSeconds", "tolerations", "schedulingGates", "ephemeralContainers"] {
                spec.remove(free);
            }
            if unbound {
                spec.remove("nodeName");
            }
        }
        spec
    };
    if comparable(new) != comparable(old) {
        let rule = "pod updates may not change fields other than `spec.containers[*].image`,\
                    `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` \
                    (only additions to existing tolerations)";
        causes.push(Cause::forbidden("spec", rule));
    }
    for (index, container) in items(new, &["spec", "containers"]).iter().enumerate() {
        if text(container, &["image"]).is_empty() {
            causes.push(Cause::required(format!("spec.containers[{index}].image"), ""));
        }
    }
}

fn data(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let mut size = 0;
    for part in ["data", "binaryData"] {
        for (key, value) in members(object, &[part]) {
            size += key.len() + value.as_str().map_or(0, str::len);
            let valid = !key.is_empty()
                && key.len() <= 253
                && ![".", ".."].contains(&key.as_str())
                && key.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c));
            if !valid {
                let rule = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
                causes.push(Cause::invalid(format!("{part}[{key}]"), &key.as_str().into(), rule));
            }
        }
    }
    if size > DATA_MAX {
        causes.push(Cause {
            reason: "FieldValueTooLong",
            field: "data".into(),
            message: format!("Too long: may not be more than {DATA_MAX} bytes"),
        });
    }
    let Some(old) = old else { return };
    if at(old, &["immutable"]).and_then(Value::as_bool) == Some(true) {
        for part in ["data", "binaryData", "immutable"] {
            if object.get(part) != old.get(part) {
                causes.push(Cause::forbidden(part, "field is immutable when `immutable` is set"));
            }
        }
    }
    if object.get("type") != old.get("type") {
        let kind = object.get("type").cloned().unwrap_or_default();
        causes.push(Cause::invalid("type", &kind, "field is immutable"));
    }
}

/// Takes what the checks say that KubeEdge's admission makes too.
fn extend(causes: &mut Vec<Cause>, faults: Vec<Fault>) {
    causes.extend(faults.into_iter().map(Cause::from));
}
