//! What the API says of itself: groups, versions and resources, in both forms that clients ask for, and just
//! enough OpenAPI that `kubectl` leaves the checking of fields to the server.

use bytes::Bytes;
use http::{HeaderMap, Response, header};
use serde_json::{Map, Value, json};

use super::{
    Body,
    failure::Failure,
    resource::{RESOURCES, Resource},
    respond,
};

/// The media type of the form that says everything at once.
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// The Kubernetes version that is named. Clients choose their behaviour, and one widespread `kubectl` even
/// its own version, by the minor number.
const MINOR: &str = "33";

/// Answers a path that is about the API itself.
pub(crate) fn answer(path: &str, headers: &HeaderMap) -> Result<Response<Body>, Failure> {
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let value = match segments.as_slice() {
        ["version"] => version(),
        ["api"] if wants_aggregated(headers) => return Ok(aggregated(|group| group.is_empty())),
        ["apis"] if wants_aggregated(headers) => return Ok(aggregated(|group| !group.is_empty())),
        ["api"] => json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": "" }],
        }),
        ["apis"] => {
            let groups: Vec<Value> =
                groups().iter().skip(1).map(|(group, version)| api_group(group, version)).collect();
            json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
        }
        ["apis", group] => {
            let groups = groups();
            let (group, version) =
                groups.iter().find(|(g, _)| g == group).ok_or_else(Failure::no_such_path)?;
            let mut group = api_group(group, version);
            (group["kind"], group["apiVersion"]) = ("APIGroup".into(), "v1".into());
            group
        }
        ["api", version] => resource_list("", version)?,
        ["apis", group, version] => resource_list(group, version)?,
        // kubectl asks here about kinds that it does not find in v3, and gives up without an answer.
        ["openapi", "v2"] if accepts_protobuf(headers) => {
            return Ok(respond::bytes(200, OPENAPI_V2_PROTOBUF, Bytes::from_static(b"\x0a\x032.0")));
        }
        ["openapi", "v2"] => json!({
            "swagger": "2.0", "info": { "title": "Kubernetes", "version": format!("v1.{MINOR}.0") }, "paths": {},
        }),
        ["openapi", "v3"] => openapi_index(),
        ["openapi", "v3", "api", version] => openapi("", version)?,
        ["openapi", "v3", "apis", group, version] => openapi(group, version)?,
        _ => return Err(Failure::no_such_path()),
    };
    Ok(respond::json(200, &value))
}

fn version() -> Value {
    json!({
        "major": "1", "minor": MINOR, "gitVersion": format!("v1.{MINOR}.0+kubeedge"), "gitCommit": "",
        "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    })
}

fn wants_aggregated(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    accept.split(',').any(|range| {
        let has = |wanted: &str| range.split(';').any(|part| part.trim() == wanted);
        has("g=apidiscovery.k8s.io") && has("v=v2") && has("as=APIGroupDiscoveryList")
    })
}

/// Groups with their version, the core group first, each once.
fn groups() -> Vec<(&'static str, &'static str)> {
    let mut groups = Vec::new();
    for group in RESOURCES.iter().map(|resource| (resource.group, resource.version)) {
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    groups
}

fn of(group: &str, version: &str) -> impl Iterator<Item = &'static Resource> {
    RESOURCES.iter().filter(move |resource| resource.group == group && resource.version == version)
}

const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// What stands below an object of the resource: name and verbs.
fn subresources(resource: &Resource) -> Vec<(&'static str, &'static [&'static str])> {
    let mut below: Vec<(&str, &[&str])> = Vec::new();
    match resource.kind {
        "Pod" => below.extend([
            ("attach", &["create", "get"][..]),
            ("binding", &["create"][..]),
            ("exec", &["create", "get"][..]),
            ("log", &["get"][..]),
            ("portforward", &["create", "get"][..]),
            ("resize", &["get", "patch", "update"][..]),
        ]),
        "ServiceAccount" => below.push(("token", &["create"])),
        "CertificateSigningRequest" => below.push(("approval", &["get", "patch", "update"])),
        "Node" => below.push(("proxy", &["create", "delete", "get", "patch", "update"])),
        _ => {}
    }
    if resource.status {
        below.push(("status", &["get", "patch", "update"]));
    }
    below
}

fn aggregated(wanted: impl Fn(&str) -> bool) -> Response<Body> {
    let items: Vec<Value> = groups()
        .into_iter()
        .filter(|(group, _)| wanted(group))
        .map(|(group, version)| {
            let resources: Vec<Value> = of(group, version).map(aggregated_resource).collect();
            json!({
                "metadata": { "name": group, "creationTimestamp": null },
                "versions": [{ "version": version, "freshness": "Current", "resources": resources }],
            })
        })
        .collect();
    let list = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items,
    });
    respond::bytes(200, AGGREGATED, list.to_string().into())
}

fn aggregated_resource(resource: &'static Resource) -> Value {
    let kind = json!({ "group": resource.group, "version": resource.version, "kind": resource.kind });
    let below: Vec<Value> = subresources(resource)
        .into_iter()
        .map(|(name, verbs)| json!({ "subresource": name, "responseKind": kind, "verbs": verbs }))
        .collect();
    json!({
        "resource": resource.plural, "singularResource": resource.singular, "responseKind": kind,
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "verbs": VERBS, "shortNames": resource.short, "categories": categories(resource), "subresources": below,
    })
}

fn categories(resource: &Resource) -> &'static [&'static str] {
    if resource.all { &["all"] } else { &[] }
}

fn api_group(group: &str, version: &str) -> Value {
    let version = json!({ "groupVersion": format!("{group}/{version}"), "version": version });
    json!({ "name": group, "versions": [version], "preferredVersion": version })
}

fn resource_list(group: &str, version: &str) -> Result<Value, Failure> {
    let mut resources = Vec::new();
    for resource in of(group, version) {
        resources.push(json!({
            "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
            "kind": resource.kind, "verbs": VERBS, "shortNames": resource.short,
            "categories": categories(resource),
        }));
        resources.extend(subresources(resource).into_iter().map(|(name, verbs)| {
            json!({
                "name": format!("{}/{name}", resource.plural), "singularName": "",
                "namespaced": resource.namespaced, "kind": resource.kind, "verbs": verbs,
            })
        }));
    }
    if resources.is_empty() {
        return Err(Failure::no_such_path());
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    Ok(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources,
    }))
}

/// Where the API of a group begins, without the leading slash.
fn root(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// How a document of OpenAPI 2 in protobuf is called. Ours has its version and no kind.
const OPENAPI_V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

fn accepts_protobuf(headers: &HeaderMap) -> bool {
    headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("+protobuf"))
}

fn openapi_index() -> Value {
    let path = |(group, version): (&str, &str)| {
        let root = root(group, version);
        // The hash lets clients cache the document; it changes with the program's version.
        let url = format!("/openapi/v3/{root}?hash={}", env!("CARGO_PKG_VERSION"));
        (root, json!({ "serverRelativeURL": url }))
    };
    json!({ "paths": groups().into_iter().map(path).collect::<Map<String, Value>>() })
}

/// A document that says of each kind: it exists, any field may stand in it, and the server validates fields.
fn openapi(group: &str, version: &str) -> Result<Value, Failure> {
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    for resource in of(group, version) {
        let kind = json!({ "group": group, "version": version, "kind": resource.kind });
        let scope = if resource.namespaced { "namespaces/{namespace}/" } else { "" };
        let path = format!("/{}/{scope}{}/{{name}}", root(group, version), resource.plural);
        let query = |name: &str| json!({ "name": name, "in": "query", "schema": { "type": "string" } });
        let patch = json!({
            "operationId": format!("patch{}", resource.kind),
            "parameters": [query("dryRun"), query("fieldManager"), query("fieldValidation"), query("force")],
            "responses": { "200": { "description": "OK" } },
            "x-kubernetes-action": "patch", "x-kubernetes-group-version-kind": kind,
        });
        paths.insert(path, json!({ "patch": patch }));
        let group_name = if group.is_empty() { "core" } else { group };
        let schema = json!({
            "type": "object", "x-kubernetes-preserve-unknown-fields": true,
            "x-kubernetes-group-version-kind": [kind],
        });
        schemas.insert(format!("{group_name}.{version}.{}", resource.kind), schema);
    }
    if paths.is_empty() {
        return Err(Failure::no_such_path());
    }
    Ok(json!({
        "openapi": "3.0.0", "info": { "title": "Kubernetes", "version": format!("v1.{MINOR}.0") },
        "paths": paths, "components": { "schemas": schemas },
    }))
}
