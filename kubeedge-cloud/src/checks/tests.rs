use serde_json::{Value, json};

use super::*;

fn fields(faults: Vec<Fault>) -> Vec<String> {
    faults.into_iter().map(|fault| fault.field).collect()
}

#[test]
fn a_device_is_of_a_model_and_its_properties_have_names_of_their_own() {
    let of = |properties: Value| json!({ "spec": { "deviceModelRef": { "name": "m" }, "properties": properties } });
    assert_eq!(device(&of(json!([{ "name": "a" }, { "name": "b" }]))), []);
    assert_eq!(fields(device(&of(json!([{ "name": "a" }, { "name": "a" }])))), ["spec.properties[1].name"]);
    assert_eq!(fields(device(&of(json!([{}])))), ["spec.properties[0].name"]);
    assert_eq!(fields(device(&of(json!([{ "name": "a b" }])))), ["spec.properties[0].name"]);
    assert_eq!(fields(device(&of(json!("none")))), ["spec.properties"]);
    assert_eq!(fields(device(&json!({ "spec": {} }))), ["spec.deviceModelRef.name"]);
    assert_eq!(fields(device(&Value::Null)), ["spec.deviceModelRef.name"]);
    assert_eq!(device_model(&json!({ "spec": { "properties": [{ "name": "a" }] } })), []);
}

fn endpoint_of(name: &str, kind: &str) -> Value {
    json!({ "metadata": { "name": name }, "spec": { "ruleEndpointType": kind } })
}

fn rule_of(name: &str, source: &str, target: &str, from: Value, to: Value) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": { "source": source, "target": target, "sourceResource": from, "targetResource": to },
    })
}

#[test]
fn a_rule_leads_between_endpoints_that_exist_and_has_a_source_of_its_own() {
    let endpoints =
        [endpoint_of("rest", "rest"), endpoint_of("bus", "eventbus"), endpoint_of("web", "servicebus")];
    let down = |name: &str| rule_of(name, "rest", "bus", json!({ "path": "/a" }), json!({ "topic": "t" }));
    assert_eq!(rule(&down("a"), &endpoints, &[down("a")]), [], "a rule is not its own rival");
    assert_eq!(fields(rule(&down("a"), &endpoints, &[down("b")])), ["spec.sourceResource"]);
    assert_eq!(fields(rule(&down("a"), &endpoints[..1], &[])), ["spec.target"]);
    let back = rule_of("c", "bus", "rest", json!({ "topic": "t" }), json!({}));
    assert_eq!(
        fields(rule(&back, &endpoints, &[])),
        ["spec.sourceResource.node_name", "spec.targetResource.resource"]
    );
    let odd = rule_of("d", "web", "rest", json!({}), json!({}));
    assert_eq!(fields(rule(&odd, &endpoints, &[])), ["spec.target"]);
    assert_eq!(fields(rule(&Value::Null, &endpoints, &[])), ["spec.source", "spec.target"]);
}

#[test]
fn a_server_on_a_node_has_a_port() {
    let of = |port: &str| json!({ "spec": { "ruleEndpointType": "servicebus", "properties": { "service_port": port } } });
    assert_eq!(endpoint(&of("8080")), []);
    for wrong in ["", "0", "65536", "http"] {
        assert_eq!(fields(endpoint(&of(wrong))), ["spec.properties.service_port"], "{wrong}");
    }
    assert_eq!(fields(endpoint(&Value::Null)), ["spec.ruleEndpointType"]);
}

fn job(version: &str, image: &str) -> Value {
    json!({ "spec": { "version": version, "image": image, "nodeNames": ["edge-1"] } })
}

#[test]
fn cve_2026_62371_an_upgrade_names_a_version_and_an_image_and_nothing_that_a_shell_would_read() {
    for (version, image) in [
        ("v1.23.1", "kubeedge/installation-package"),
        ("v1.24.0-beta.1", "registry.local:5000/kubeedge/installation-package:v1.24.0"),
        ("v1.24.0-a_b-c.1", ""),
    ] {
        assert_eq!(upgrade_job(&job(version, image), None), [], "{version} {image}");
    }
    for version in
        ["1.23.1", "v1.23", "v1.23.1; reboot", "v1.23.1-$(id)", "v1.23.1-", "v1.2.3\n", "v1.2.3-a b", "v1..3"]
    {
        assert_eq!(fields(upgrade_job(&job(version, ""), None)), ["spec.version"], "{version:?}");
    }
    for image in [
        "a/b;reboot",
        "a/b`id`",
        "a/b $(id)",
        "a/$IMAGE",
        "alone",
        "a//b",
        "-a/b",
        "a/-b",
        "a/b@sha256:12",
        "a/b:c/d:e:f",
        "a/b\n",
    ] {
        assert_eq!(fields(upgrade_job(&job("v1.23.1", image), None)), ["spec.image"], "{image:?}");
    }
}

#[test]
fn an_upgrade_says_which_nodes_one_way_and_is_not_changed() {
    let job = job("v1.23.1", "");
    let mut other = job.clone();
    other["spec"]["version"] = json!("v1.24.0");
    assert_eq!(fields(upgrade_job(&other, Some(&job))), ["spec"]);
    other = job.clone();
    other["spec"]["labelSelector"] = json!({});
    assert_eq!(fields(upgrade_job(&other, None)), ["spec.labelSelector"]);
    assert_eq!(fields(upgrade_job(&json!({ "spec": {} }), None)), ["spec.nodeNames"]);
}
