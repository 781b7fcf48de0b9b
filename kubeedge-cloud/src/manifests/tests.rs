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
        "devices.kubeedge.io/v1alpha2 devicemodels Namespaced",
        "devices.kubeedge.io/v1alpha2 devices Namespaced",
        "devices.kubeedge.io/v1alpha2 devicestatuses Namespaced",
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
fn one_version_of_each_kind_is_stored_and_those_whose_objects_are_understood_are_served() {
    for crd in crds() {
        let versions = crd["spec"]["versions"].as_array().unwrap();
        let stored: Vec<_> = versions.iter().filter(|version| version["storage"] == true).collect();
        assert_eq!(stored.len(), 1, "{}", crd["metadata"]["name"]);
        let of_devices = crd["spec"]["group"] == "devices.kubeedge.io";
        for version in versions {
            let is_old = of_devices && version["name"] == "v1alpha2";
            assert_eq!(version["served"], !is_old, "{}", crd["metadata"]["name"]);
        }
        if versions.len() == 2 {
            assert_eq!(stored[0]["name"], if of_devices { "v1beta1" } else { "v1alpha2" });
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
fn in_its_own_namespace_cloudcore_may_do_what_enrollment_and_election_do() {
    let rights = rights(&Options::default());
    let own = rights.iter().find(|object| {
        object["kind"] == "Role" && object["metadata"]["namespace"] == Options::default().namespace
    });
    let expected = json!([
        { "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["casecret", "tokensecret"],
          "verbs": ["get", "update"] },
        { "apiGroups": [""], "resources": ["secrets"], "verbs": ["create"] },
        { "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "patch"] },
    ]);
    assert_eq!(own.unwrap()["rules"], expected);
}

#[test]
fn cloudcore_is_told_its_namespace_and_for_how_many_nodes_it_is() {
    let options = Options { namespace: "edge".to_owned(), node_limit: 3000, ..Options::default() };
    let container = pod_of(&options)["containers"][0].clone();
    assert_eq!(container["env"][1]["name"], "POD_NAMESPACE");
    assert_eq!(container["env"][1]["valueFrom"]["fieldRef"]["fieldPath"], "metadata.namespace");
    let objects = deployment(&options);
    let config = found(&objects, "ConfigMap")["data"]["cloudcore.yaml"].as_str().unwrap();
    assert!(config.contains("nodeLimit: 3000"), "{config}");
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

fn found<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    objects.iter().find(|object| object["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

fn pod_of(options: &Options) -> Value {
    found(&deployment(options), "Deployment")["spec"]["template"]["spec"].clone()
}

#[test]
fn the_kubelet_asks_where_cloudcore_answers() {
    let asked = |options: &Options, probe: &str| pod_of(options)["containers"][0][probe]["httpGet"].clone();
    let on_host = Options::default();
    assert_eq!(
        asked(&on_host, "livenessProbe"),
        json!({ "path": "/healthz", "port": 9091, "host": "127.0.0.1" })
    );
    assert_eq!(
        asked(&on_host, "readinessProbe"),
        json!({ "path": "/readyz", "port": 9091, "host": "127.0.0.1" })
    );
    // The loopback address of a pod is not the kubelet's.
    let apart = Options { host_network: false, ..Options::default() };
    assert_eq!(asked(&apart, "readinessProbe"), json!({ "path": "/readyz", "port": 9091 }));
    let objects = deployment(&apart);
    let config = &found(&objects, "ConfigMap")["data"]["cloudcore.yaml"];
    assert!(config.as_str().unwrap().contains("bindAddress: \"0.0.0.0:9091\""), "{config}");

    let own = |address: &str, host_network| Options {
        config: format!("commonConfig: {{monitorServer: {{bindAddress: \"{address}\"}}}}"),
        host_network,
        ..Options::default()
    };
    assert_eq!(asked(&own("0.0.0.0:19091", true), "livenessProbe")["host"], "127.0.0.1");
    assert_eq!(asked(&own("192.0.2.7:19091", true), "livenessProbe")["host"], "192.0.2.7");
    assert_eq!(asked(&own("0.0.0.0:19091", false), "livenessProbe")["port"], 19091);
    assert_eq!(asked(&own("127.0.0.1:19091", false), "livenessProbe"), Value::Null);
}

#[test]
fn a_pod_has_the_time_that_its_nodes_are_given_to_leave() {
    let grace = |config: &str| {
        let options = Options { config: config.to_owned(), ..Options::default() };
        pod_of(&options)["terminationGracePeriodSeconds"].as_u64().unwrap()
    };
    assert_eq!(grace(""), 30);
    assert_eq!(grace("kubeedgeRs: {cloudHub: {drain: 1m30s}}"), 110);
    assert_eq!(grace("kubeedgeRs: {cloudHub: {drain: soon}}"), 30);
    assert_eq!(grace("[1, 2"), 30);
}

#[test]
fn addresses_and_names_stand_where_cloudcore_looks_for_them() {
    let advertised = ["192.0.2.1", "cloud.example", "2001:db8::1"].map(str::to_owned);
    let options = Options { advertise_addresses: advertised.into(), ..Options::default() };
    let objects = deployment(&options);
    let config = found(&objects, "ConfigMap")["data"]["cloudcore.yaml"].as_str().unwrap();
    assert!(config.contains("advertiseAddress: [\"192.0.2.1\",\"2001:db8::1\"]"), "{config}");
    assert!(config.contains("dnsNames: [\"cloud.example\"]"), "{config}");
}

#[test]
fn who_signs_for_api_servers_is_mounted_where_kubeedge_looks_for_it() {
    let volume = |options: &Options| {
        let pod = pod_of(options);
        let volumes = pod["volumes"].as_array().unwrap().clone();
        volumes.into_iter().find(|volume| volume["name"] == "ca").map(|volume| volume["configMap"].clone())
    };
    let cluster = Options::default();
    let from =
        |name: &str, key: &str| json!({ "name": name, "items": [{ "key": key, "path": "streamCA.crt" }] });
    assert_eq!(volume(&cluster), Some(from("kube-root-ca.crt", "ca.crt")));
    let pem = "-----BEGIN CERTIFICATE-----".to_owned();
    let own = Options { stream: Some(StreamAuthority::Pem(pem.clone())), ..Options::default() };
    assert_eq!(volume(&own), Some(from("cloudcore", "streamCA.crt")));
    assert_eq!(found(&deployment(&own), "ConfigMap")["data"]["streamCA.crt"], pem);
    let none = Options { stream: None, ..Options::default() };
    assert_eq!(volume(&none), None);
    let numbers = |options: &Options| {
        let service = service(options);
        let ports = service["spec"]["ports"].as_array().unwrap();
        ports.iter().map(|port| port["port"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(numbers(&cluster), [10000, 10001, 10002, 10003]);
    assert_eq!(numbers(&none), [10000, 10001, 10002]);
}

#[test]
fn ports_are_those_of_the_configuration() {
    let config = "modules: {cloudHub: {quic: {port: 20001}}, cloudStream: {enable: true, streamPort: 20003}}";
    let options = Options { config: config.to_owned(), ..Options::default() };
    let service = service(&options);
    let targets: Vec<_> =
        service["spec"]["ports"].as_array().unwrap().iter().map(|port| &port["targetPort"]).collect();
    assert_eq!(targets, [10000, 20001, 10002, 20003]);
    let pod = pod_of(&options);
    let named: Vec<_> =
        pod["containers"][0]["ports"].as_array().unwrap().iter().map(|port| &port["containerPort"]).collect();
    assert_eq!(named, [10000, 20001, 10002, 20003, 9091]);
}

#[test]
fn another_configuration_gets_other_pods() {
    let annotations = |addresses: &[&str]| {
        let advertise_addresses = addresses.iter().map(|&address| address.to_owned()).collect();
        let objects = deployment(&Options { advertise_addresses, ..Options::default() });
        found(&objects, "Deployment")["spec"]["template"]["metadata"]["annotations"].clone()
    };
    assert!(annotations(&[])["kubeedge.io/config"].is_string());
    assert_eq!(annotations(&["192.0.2.1"]), annotations(&["192.0.2.1"]));
    assert_ne!(annotations(&["192.0.2.1"]), annotations(&["192.0.2.2"]));
}
