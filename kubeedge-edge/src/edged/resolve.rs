//! What a Pod refers to: keys of ConfigMaps and Secrets, its own fields, and the environment made of them. Pure.

use std::{
    collections::BTreeMap,
    path::{Component, Path},
};

use kubeedge_core::message::{Object, ObjectRef};
use serde::Deserialize;

use super::{
    host::HostFiles,
    links,
    pod::{Container, FieldReference, Pod, ResourceFieldReference},
    quantity::Quantity,
    tokens::Tokens,
};

/// Everything a Pod may refer to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts<'a> {
    /// ConfigMaps and Secrets, claims and volumes, Services.
    pub(crate) objects: &'a BTreeMap<ObjectRef, Object>,
    pub(crate) tokens: &'a Tokens,
    /// What the node itself has in `/etc`.
    pub(crate) host: &'a HostFiles,
    pub(crate) node_name: &'a str,
    /// The labels that the node gives itself.
    pub(crate) node_labels: &'a BTreeMap<String, String>,
    /// Where pods find the Kubernetes API, as `host:port`; may be empty.
    pub(crate) kubernetes: &'a str,
    pub(crate) host_ip: &'a str,
    /// The pod's addresses; empty until its sandbox runs.
    pub(crate) pod_ips: &'a [String],
    /// What limits default to.
    pub(crate) cpu_milli: i64,
    pub(crate) memory_bytes: i64,
}

/// Says what of a Pod's configuration is not there or cannot work, in words for its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unresolved(pub(crate) String);

/// Whether a path stays below where it begins.
pub(crate) fn is_inside(path: &str) -> bool {
    !path.is_empty()
        && !path.contains('\0')
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

pub(crate) fn not_found(reference: &ObjectRef) -> Unresolved {
    Unresolved(format!("{} \"{}\" not found", reference.kind().to_lowercase(), reference.name()))
}

pub(crate) fn no_key(reference: &ObjectRef, key: &str) -> Unresolved {
    let (kind, namespace, name) = (reference.kind(), reference.namespace(), reference.name());
    Unresolved(format!("couldn't find key {key} in {kind} {namespace}/{name}"))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    #[serde(default)]
    data: Option<BTreeMap<String, String>>,
    #[serde(default)]
    binary_data: Option<BTreeMap<String, String>>,
}

/// The bytes of a ConfigMap's or Secret's keys; `None` if the object is not here.
pub(crate) fn data_of(
    reference: &ObjectRef,
    facts: &Facts<'_>,
) -> Result<Option<BTreeMap<String, Vec<u8>>>, Unresolved> {
    let Some(object) = facts.objects.get(reference) else { return Ok(None) };
    let broken = || Unresolved(format!("{reference} cannot be read"));
    let data: Data = serde_json::from_slice(&object.json).map_err(|_| broken())?;
    let decode = |(key, text): (String, String)| base64(&text).map(|bytes| (key, bytes)).ok_or_else(broken);
    let text = data.data.unwrap_or_default();
    let binary = data.binary_data.unwrap_or_default().into_iter().map(decode);
    if reference.kind() == "Secret" {
        text.into_iter().map(decode).collect::<Result<_, _>>().map(Some)
    } else {
        let text = text.into_iter().map(|(key, text)| Ok((key, text.into_bytes())));
        text.chain(binary).collect::<Result<_, _>>().map(Some)
    }
}

/// Decodes base64 of RFC 4648 §4, which is what the API writes; white space is passed over.
pub(crate) fn base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut held, mut bits) = (0u32, 0u32);
    for c in text.bytes().filter(|c| !c.is_ascii_whitespace() && *c != b'=') {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        held = (held << 6 | u32::from(value)) & 0xffff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits) as u8);
        }
    }
    Some(bytes)
}

/// The environment of a container: first `envFrom`, then `env`, whose entries may use earlier ones, then how to
/// reach the Kubernetes API and the Services of its namespace unless the container says otherwise.
pub(crate) fn environment(
    container: &Container,
    pod: &Pod,
    facts: &Facts<'_>,
) -> Result<Vec<(String, String)>, Unresolved> {
    let mut env: Vec<(String, String)> = Vec::new();
    for (_, variables) in from_objects(container, pod, facts)? {
        for (name, value) in variables.into_iter().filter(|(name, _)| is_variable(name)) {
            set(&mut env, name, value);
        }
    }
    let links = links::variables(pod, facts);
    for var in &container.env {
        let value = match &var.value_from {
            None => Some(expand_by(&var.value, |name| value_of(&env, name).or_else(|| links.get(name)))),
            Some(from) => {
                let namespace = pod.reference.namespace();
                let map = from
                    .config_map_key_ref
                    .iter()
                    .map(|key| (ObjectRef::config_map(namespace, &key.name), key));
                let secret =
                    from.secret_key_ref.iter().map(|key| (ObjectRef::secret(namespace, &key.name), key));
                if let Some((reference, key)) = map.chain(secret).next() {
                    match text_of(&reference, facts)?.map(|mut data| data.remove(&key.key)) {
                        Some(Some(value)) => Some(value),
                        None | Some(None) if key.optional => None,
                        None => return Err(not_found(&reference)),
                        Some(None) => return Err(no_key(&reference, &key.key)),
                    }
                } else if let Some(field) = &from.field_ref {
                    Some(field_value(field, pod, facts)?)
                } else if let Some(resource) = &from.resource_field_ref {
                    Some(resource_value(resource, Some(container), pod, facts)?)
                } else {
                    None
                }
            }
        };
        if let Some(value) = value {
            set(&mut env, var.name.clone(), value);
        }
    }
    let added: Vec<_> = links.into_iter().filter(|(name, _)| value_of(&env, name).is_none()).collect();
    env.extend(added);
    Ok(env)
}

/// What `envFrom` leaves out because it cannot name a variable, in words for an event; `None` if that is nothing.
pub(crate) fn skipped_variables(container: &Container, pod: &Pod, facts: &Facts<'_>) -> Option<String> {
    let sources = from_objects(container, pod, facts).ok()?;
    let skipped = sources.into_iter().filter_map(|(reference, variables)| {
        let names: Vec<String> =
            variables.into_keys().filter(|name| !is_variable(name)).collect();
        let kind = if reference.kind() == "Secret" { "secret" } else { "configMap" };
        let (namespace, name) = (reference.namespace(), reference.name());
        (!names.is_empty()).then(|| {
            format!(
                "Keys [{}] from the EnvFrom {kind} {namespace}/{name} were skipped since they are considered invalid \
                 environment variable names.",
                names.join(", ")
            )
        })
    });
    let skipped: Vec<String> = skipped.collect();
    (!skipped.is_empty()).then(|| skipped.join(" "))
}

/// An object that `envFrom` names, and its variables.
type FromObject = (ObjectRef, BTreeMap<String, String>);

/// What `envFrom` names, in its order.
fn from_objects(container: &Container, pod: &Pod, facts: &Facts<'_>) -> Result<Vec<FromObject>, Unresolved> {
    let namespace = pod.reference.namespace();
    let mut found = Vec::new();
    for from in &container.env_from {
        let map = from.config_map_ref.iter().map(|map| (ObjectRef::config_map(namespace, &map.name), map));
        let secret =
            from.secret_ref.iter().map(|secret| (ObjectRef::secret(namespace, &secret.name), secret));
        for (reference, source) in map.chain(secret) {
            match text_of(&reference, facts)? {
                None if source.optional => {}
                None => return Err(not_found(&reference)),
                Some(data) => {
                    let named = data.into_iter().map(|(key, value)| (format!("{}{key}", from.prefix), value));
                    found.push((reference, named.collect()));
                }
            }
        }
    }
    Ok(found)
}

/// Whether Kubernetes takes this for the name of a variable: letters, digits, `-`, `_` and `.`, no digit first.
fn is_variable(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty()
        && name.chars().all(plain)
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name != "."
        && !name.starts_with("..")
}

/// The keys of a Secret or ConfigMap that can be variables: a ConfigMap's `binaryData` cannot.
fn text_of(reference: &ObjectRef, facts: &Facts<'_>) -> Result<Option<BTreeMap<String, String>>, Unresolved> {
    if reference.kind() == "Secret" {
        let data = data_of(reference, facts)?;
        return Ok(data.map(|data| data.into_iter().map(|(key, bytes)| (key, lossy(bytes))).collect()));
    }
    let Some(object) = facts.objects.get(reference) else { return Ok(None) };
    let data: Data = serde_json::from_slice(&object.json)
        .map_err(|_| Unresolved(format!("{reference} cannot be read")))?;
    Ok(Some(data.data.unwrap_or_default()))
}

fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

fn set(env: &mut Vec<(String, String)>, name: String, value: String) {
    env.retain(|(old, _)| *old != name);
    env.push((name, value));
}

/// Puts the environment's values in place of `$(NAME)`; `$$` is a dollar, and what is not defined stays.
pub(crate) fn expand(text: &str, env: &[(String, String)]) -> String {
    expand_by(text, |name| value_of(env, name))
}

fn value_of<'a>(env: &'a [(String, String)], name: &str) -> Option<&'a String> {
    env.iter().find(|(known, _)| known == name).map(|(_, value)| value)
}

fn expand_by<'a>(text: &str, value_of: impl Fn(&str) -> Option<&'a String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match value_of(name) {
                Some(value) => out.push_str(value),
                None => out.extend(["$(", name, ")"]),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

pub(crate) fn field_value(
    field: &FieldReference,
    pod: &Pod,
    facts: &Facts<'_>,
) -> Result<String, Unresolved> {
    let path = field.field_path.as_str();
    let keyed = |of: &str| {
        let inner = path.strip_prefix(of)?.strip_prefix("['")?.strip_suffix("']")?;
        Some(inner.to_owned())
    };
    if let Some(key) = keyed("metadata.labels") {
        return Ok(pod.metadata.labels.get(&key).cloned().unwrap_or_default());
    }
    if let Some(key) = keyed("metadata.annotations") {
        return Ok(pod.metadata.annotations.get(&key).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => pod.reference.name().to_owned(),
        "metadata.namespace" => pod.reference.namespace().to_owned(),
        "metadata.uid" => pod.uid.to_string(),
        "metadata.labels" => lines(&pod.metadata.labels),
        "metadata.annotations" => lines(&pod.metadata.annotations),
        "spec.nodeName" => facts.node_name.to_owned(),
        "spec.serviceAccountName" => pod.spec.service_account_name.clone(),
        "status.hostIP" | "status.hostIPs" => facts.host_ip.to_owned(),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => return Err(Unresolved(format!("unsupported fieldPath: {path}"))),
    })
}

/// A map as the downward API writes it: one `key="value"` a line, sorted.
fn lines(map: &BTreeMap<String, String>) -> String {
    let lines: Vec<String> = map.iter().map(|(key, value)| format!("{key}={value:?}")).collect();
    lines.join("\n")
}

pub(crate) fn resource_value(
    field: &ResourceFieldReference,
    own: Option<&Container>,
    pod: &Pod,
    facts: &Facts<'_>,
) -> Result<String, Unresolved> {
    let containers = || pod.spec.containers.iter().chain(&pod.spec.init_containers);
    let container = match (field.container_name.as_str(), own) {
        ("", Some(own)) => own,
        (name, _) => containers()
            .find(|container| container.name == name)
            .ok_or_else(|| Unresolved(format!("container {name:?} of resourceFieldRef not found")))?,
    };
    let (kind, resource) = field.resource.split_once('.').unwrap_or(("", ""));
    let set = match kind {
        "limits" => container.resources.limits.get(resource),
        "requests" => container.resources.requests.get(resource),
        _ => return Err(Unresolved(format!("unsupported container resource: {}", field.resource))),
    };
    let divisor = field.divisor.map_or(1000, |divisor| divisor.milli().max(0));
    let divisor = if divisor == 0 { 1000 } else { divisor };
    let milli = match (set.copied().map(Quantity::milli), resource, kind) {
        (Some(milli), _, _) => milli,
        (None, "cpu", "limits") => facts.cpu_milli,
        (None, "memory", "limits") => facts.memory_bytes.saturating_mul(1000),
        (None, "ephemeral-storage", "limits") => facts.host.disk_bytes.saturating_mul(1000),
        (None, _, _) => 0,
    };
    Ok(milli.div_euclid(divisor).saturating_add(i64::from(milli % divisor != 0)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_expand_as_the_api_says() {
        let env = [("A".to_owned(), "1".to_owned())];
        assert_eq!(expand("$(A)-$$(A)-$(B)-$A-$", &env), "1-$(A)-$(B)-$A-$");
    }

    #[test]
    fn base64_reads_what_the_api_writes() {
        assert_eq!(base64("aGVsbG8=").unwrap(), b"hello");
        assert_eq!(base64("").unwrap(), b"");
        assert_eq!(base64("/+8=").unwrap(), [0xff, 0xef]);
        assert!(base64("a-b").is_none());
    }
}
