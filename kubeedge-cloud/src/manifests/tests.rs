use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;

fn crd<'a>(crds: &'a [Value], plural: &str) -> &'a Value {
    crds.iter().find(|crd| crd["spec"]["names"]["plural"] == plural).unwrap_or_else(|| panic!("no {plural}"))
}

#[test]
fn every_kind_of_kubeedge_is_defined_under_its_own_names() {
    let crds = crds();
    let names: BTreeSet<_> = crds
        .iter()
        .flat_map(|crd| {
            let spec = &crd["spec"];
            let versions = spec["versions"].as_array().unwrap().iter();
            versions.map(move |version| {
                let (group, version) = (spec["group"].as_str().unwrap(), version["name"].as_str().unwrap());
                let (plural, scope) =
                    (spec["names"]["plural"].as_str().unwrap(), spec["scope"].as_str().unwrap());
                format!("{group}/{version} {plural} {scope}")
            })
        })
        .collect();
    let expected = [
        "apps.kubeedge.io/v1alpha1 edgeapplications Namespaced",
        "apps.kubeedge.io/v1alpha1 nodegroups Cluster",
        "devices.kubeedge.io/v1beta1 devicemodels Namespaced",
        "devices.kubeedge.io/v1beta1 devices Namespaced",
        "devices.kubeedge.io/v1beta1 devicestatuses Namespaced",
        "operations.kubeedge.io/v1alpha1 imageprepulljobs Cluster",
        "operations.kubeedge.io/v1alpha1 nodeupgradejobs Cluster",
        "operations.kubeedge.io/v1alpha2 configupdatejobs Cluster",
        "operations.kubeedge.io/v1alpha2 imageprepulljobs Cluster",
        "operations.kubeedge.io/v1alpha2 nodeupgradejobs Cluster",
        "policy.kubeedge.io/v1alpha1 serviceaccountaccesses Namespaced",
        "reliablesyncs.kubeedge.io/v1alpha1 clusterobjectsyncs Cluster",
        "reliablesyncs.kubeedge.io/v1alpha1 objectsyncs Namespaced",
        "rules.kubeedge.io/v1 ruleendpoints Namespaced",
        "rules.kubeedge.io/v1 rules Namespaced",
    ];
    assert_eq!(names, expected.map(str::to_owned).into());
}

#[test]
fn one_version_of_each_kind_is_stored_and_all_are_served() {
    for crd in crds() {
        let versions = crd["spec"]["versions"].as_array().unwrap();
        let stored: Vec<_> = versions.iter().filter(|version| version["storage"] == true).collect();
        assert_eq!(stored.len(), 1, "{}", crd["metadata"]["name"]);
        assert!(versions.iter().all(|version| version["served"] == true));
        if versions.len() == 2 {
            assert_eq!(stored[0]["name"], "v1alpha2");
        }
    }
}

#[test]
fn statuses_that_kubeedge_writes_with_the_object_have_no_path_of_their_own() {
    let crds = crds();
    for plural in ["devices", "devicemodels", "devicestatuses", "rules", "ruleendpoints"] {
        assert_eq!(crd(&crds, plural)["spec"]["versions"][0].get("subresources"), None, "{plural}");
    }
    for plural in ["nodegroups", "edgeapplications", "configupdatejobs", "objectsyncs"] {
        let subresources = &crd(&crds, plural)["spec"]["versions"][0]["subresources"];
        assert_eq!(subresources, &json!({ "status": {} }), "{plural}");
    }
}

/// A schema is structural if each member has a type, and none stands below `anyOf` and its kin (Kubernetes,
/// "Specifying a structural schema").
fn check_structural(at: &str, schema: &Value) {
    let known = schema["x-kubernetes-int-or-string"] == true
        || schema["x-kubernetes-preserve-unknown-fields"] == true;
    assert!(schema["type"].is_string() || known, "{at} has no type: {schema}");
    for group in ["anyOf", "allOf", "oneOf"] {
        assert!(schema.get(group).is_none() || known, "{at} has {group}: {schema}");
    }
    for (name, member) in schema["properties"].as_object().into_iter().flatten() {
        check_structural(&format!("{at}.{name}"), member);
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get(inner).filter(|inner| inner.is_object()) {
            check_structural(&format!("{at}[]"), inner);
        }
    }
}

#[test]
fn schemas_are_structural() {
    for crd in crds() {
        for version in crd["spec"]["versions"].as_array().unwrap() {
            let name = format!("{}/{}", crd["metadata"]["name"], version["name"]);
            check_structural(&name, &version["schema"]["openAPIV3Schema"]);
        }
    }
}

#[test]
fn names_of_properties_are_keys_so_that_none_stands_there_twice() {
    let crds = crds();
    for plural in ["devices", "devicemodels"] {
        let schema = &crd(&crds, plural)["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let properties = &schema["properties"]["spec"]["properties"]["properties"];
        assert_eq!(properties["x-kubernetes-list-type"], "map", "{plural}: {properties}");
        assert_eq!(properties["x-kubernetes-list-map-keys"], json!(["name"]));
    }
}

#[test]
fn what_a_driver_needs_is_kept_whatever_it_is() {
    let crds = crds();
    let schema = &crd(&crds, "devices")["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let spec = &schema["properties"]["spec"]["properties"];
    assert_eq!(spec["protocol"]["properties"]["configData"]["x-kubernetes-preserve-unknown-fields"], true);
}

#[test]
fn only_what_makes_an_object_what_it_is_has_to_be_there() {
    let crds = crds();
    let spec = |plural| {
        crd(&crds, plural)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].clone()
    };
    let required = |schema: &Value| schema["required"].clone();
    let device = spec("devices");
    assert_eq!(required(&device), Value::Null);
    assert_eq!(required(&device["properties"]["protocol"]), Value::Null);
    assert_eq!(required(&device["properties"]["properties"]["items"]), json!(["name"]));
    assert_eq!(required(&spec("devicemodels")), Value::Null);
    assert_eq!(required(&spec("ruleendpoints")), json!(["ruleEndpointType"]));
    assert_eq!(required(&spec("rules")), json!(["source", "sourceResource", "target", "targetResource"]));
    assert_eq!(required(&spec("edgeapplications")["properties"]["workloadTemplate"]), Value::Null);
}

#[test]
fn nothing_but_what_nodes_report_may_be_written() {
    let rights = rights(&Options::default());
    let role = rights.iter().find(|object| object["kind"] == "ClusterRole").unwrap();
    let text = role["rules"].to_string();
    for too_much in ["\"*\"", "impersonate", "escalate", "bind", "deletecollection", "update"] {
        assert!(!text.contains(too_much), "{too_much} in {text}");
    }
}

#[test]
fn everything_is_bound_to_the_account_in_its_namespace() {
    let options = Options { namespace: "edge".to_owned(), ..Options::default() };
    let objects = all(&options);
    let bindings: Vec<_> =
        objects.iter().filter(|object| object["kind"].as_str().unwrap().ends_with("RoleBinding")).collect();
    assert_eq!(bindings.len(), 3);
    for binding in bindings {
        assert_eq!(
            binding["subjects"],
            json!([{ "kind": "ServiceAccount", "name": "cloudcore", "namespace": "edge" }])
        );
    }
    let deployment = objects.iter().find(|object| object["kind"] == "Deployment").unwrap();
    assert_eq!(deployment["spec"]["template"]["spec"]["serviceAccountName"], "cloudcore");
}

#[test]
fn replicas_are_told_their_addresses_and_are_let_in_where_they_ask_each_other() {
    let ports = |replicas: u32| {
        let objects = all(&Options { replicas, ..Options::default() });
        let deployment = objects.iter().find(|object| object["kind"] == "Deployment").unwrap();
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["env"][0]["valueFrom"]["fieldRef"]["fieldPath"], "status.podIP");
        container["ports"].as_array().unwrap().iter().filter(|port| port["name"] == "relay").count()
    };
    assert_eq!((ports(1), ports(2)), (0, 1));
}

#[test]
fn yaml_says_what_the_values_say() {
    let objects = all(&Options { advertise_addresses: vec!["203.0.113.7".to_owned()], ..Options::default() });
    let text = yaml(&objects);
    let read: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    assert_eq!(read, objects);
    let config = objects.iter().find(|object| object["kind"] == "ConfigMap").unwrap();
    assert!(
        config["data"]["cloudcore.yaml"].as_str().unwrap().contains(r#"advertiseAddress: ["203.0.113.7"]"#)
    );
}
