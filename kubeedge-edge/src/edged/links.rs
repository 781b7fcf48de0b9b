//! How a container is told of the Services of its namespace: by variables, as Kubernetes' documentation has them in
//! "Discovering services: Environment variables". Pure.

use std::collections::BTreeMap;

use kubeedge_core::message::{Object, ObjectRef};
use serde::Deserialize;

use super::{pod::Pod, resolve::Facts};

/// The Service by which pods find the Kubernetes API. The node's configuration says where that is.
const KUBERNETES: &str = "kubernetes";

/// The variables of the Kubernetes API's Service, and unless the pod wants none, those of the Services of its namespace as
/// they are at this moment.
pub(crate) fn variables(pod: &Pod, facts: &Facts<'_>) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut links: BTreeMap<&str, Link> = BTreeMap::new();
    links.extend(kubernetes(facts).map(|link| (KUBERNETES, link)));
    if pod.spec.enable_service_links != Some(false) {
        let namespace = pod.reference.namespace();
        let here =
            services(namespace, facts).filter(|(name, _)| (namespace, *name) != ("default", KUBERNETES));
        links.extend(here.filter_map(|(name, service)| Some((name, Link::read(service)?))));
    }
    for (name, link) in links {
        link.add_to(&mut found, name);
    }
    found
}

fn services<'a>(namespace: &'a str, facts: &Facts<'a>) -> impl Iterator<Item = (&'a str, &'a Object)> {
    let first = ObjectRef::new("v1", "Service", namespace, "");
    let here = facts.objects.range(first..);
    let is_here =
        move |of: &ObjectRef| (of.kind(), of.api_version(), of.namespace()) == ("Service", "v1", namespace);
    here.take_while(move |(of, _)| is_here(of)).map(|(of, service)| (of.name(), service))
}

/// Where the node's configuration says that the Kubernetes API is.
fn kubernetes(facts: &Facts<'_>) -> Option<Link> {
    let (host, port) = facts.kubernetes.rsplit_once(':')?;
    let address = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = Port { name: "https".to_owned(), port: port.to_owned(), protocol: "TCP".to_owned() };
    Some(Link { address, ports: vec![port] })
}

/// What a Service is to those who use it.
struct Link {
    address: String,
    ports: Vec<Port>,
}

struct Port {
    name: String,
    port: String,
    protocol: String,
}

#[derive(Deserialize)]
struct Service {
    spec: ServiceSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceSpec {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default, rename = "clusterIP")]
    cluster_ip: String,
    #[serde(default)]
    ports: Vec<ServicePort>,
}

#[derive(Deserialize)]
struct ServicePort {
    #[serde(default)]
    name: String,
    port: u16,
    #[serde(default)]
    protocol: String,
}

impl Link {
    /// A Service without an address of its own is found by DNS only.
    fn read(service: &Object) -> Option<Self> {
        let Service { spec } = serde_json::from_slice(&service.json).ok()?;
        if matches!(spec.cluster_ip.as_str(), "" | "None") || spec.kind == "ExternalName" {
            return None;
        }
        let ports = spec.ports.into_iter().map(|ServicePort { name, port, protocol }| {
            let protocol = if protocol.is_empty() { "TCP".to_owned() } else { protocol };
            Port { name, port: port.to_string(), protocol }
        });
        Some(Self { address: spec.cluster_ip, ports: ports.collect() })
    }

    fn add_to(&self, variables: &mut BTreeMap<String, String>, name: &str) {
        let prefix = in_capitals(name);
        let mut add = |name: String, value: &str| drop(variables.insert(name, value.to_owned()));
        let host =
            if self.address.contains(':') { format!("[{}]", self.address) } else { self.address.clone() };
        add(format!("{prefix}_SERVICE_HOST"), &self.address);
        for (place, Port { name, port, protocol }) in self.ports.iter().enumerate() {
            let (upper, lower) = (protocol.to_uppercase(), protocol.to_lowercase());
            let url = format!("{lower}://{host}:{port}");
            if place == 0 {
                add(format!("{prefix}_SERVICE_PORT"), port);
                add(format!("{prefix}_PORT"), &url);
            }
            if !name.is_empty() {
                add(format!("{prefix}_SERVICE_PORT_{}", in_capitals(name)), port);
            }
            // As Docker has had them for linked containers.
            let linked = format!("{prefix}_PORT_{port}_{upper}");
            add(format!("{linked}_PROTO"), &lower);
            add(format!("{linked}_PORT"), port);
            add(format!("{linked}_ADDR"), &self.address);
            add(linked, &url);
        }
    }
}

/// A name as a part of a variable's.
fn in_capitals(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::edged::{
        resolve::environment,
        testing::{Scene, pod},
    };

    fn env_of(scene: &Scene, spec: Value, container: Value) -> Vec<String> {
        let pod = pod(spec, container);
        let env = environment(&pod.spec.containers[0], &pod, &scene.facts()).unwrap();
        let mut env: Vec<_> = env.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        env.sort();
        env
    }

    fn put(scene: &mut Scene, name: &str, spec: Value) {
        scene.put("v1", "Service", name, json!({ "spec": spec }));
    }

    #[test]
    fn a_service_is_told_by_the_variables_that_the_documentation_lists() {
        let mut scene = Scene::new();
        let ports = json!([{ "protocol": "TCP", "port": 6379, "targetPort": 6379 }]);
        put(
            &mut scene,
            "redis-primary",
            json!({ "type": "ClusterIP", "clusterIP": "10.0.0.11", "ports": ports }),
        );
        assert_eq!(
            env_of(&scene, json!({ "enableServiceLinks": true }), json!({})),
            [
                "REDIS_PRIMARY_PORT=tcp://10.0.0.11:6379",
                "REDIS_PRIMARY_PORT_6379_TCP=tcp://10.0.0.11:6379",
                "REDIS_PRIMARY_PORT_6379_TCP_ADDR=10.0.0.11",
                "REDIS_PRIMARY_PORT_6379_TCP_PORT=6379",
                "REDIS_PRIMARY_PORT_6379_TCP_PROTO=tcp",
                "REDIS_PRIMARY_SERVICE_HOST=10.0.0.11",
                "REDIS_PRIMARY_SERVICE_PORT=6379",
            ]
        );
    }

    #[test]
    fn each_port_is_told_and_the_first_is_that_of_the_service() {
        let mut scene = Scene::new();
        let ports = json!([
            { "name": "web-ui", "port": 80 }, { "name": "dns", "port": 53, "protocol": "UDP" },
        ]);
        put(&mut scene, "all", json!({ "clusterIP": "fd00::a", "type": "LoadBalancer", "ports": ports }));
        assert_eq!(
            env_of(&scene, json!({}), json!({})),
            [
                "ALL_PORT=tcp://[fd00::a]:80",
                "ALL_PORT_53_UDP=udp://[fd00::a]:53",
                "ALL_PORT_53_UDP_ADDR=fd00::a",
                "ALL_PORT_53_UDP_PORT=53",
                "ALL_PORT_53_UDP_PROTO=udp",
                "ALL_PORT_80_TCP=tcp://[fd00::a]:80",
                "ALL_PORT_80_TCP_ADDR=fd00::a",
                "ALL_PORT_80_TCP_PORT=80",
                "ALL_PORT_80_TCP_PROTO=tcp",
                "ALL_SERVICE_HOST=fd00::a",
                "ALL_SERVICE_PORT=80",
                "ALL_SERVICE_PORT_DNS=53",
                "ALL_SERVICE_PORT_WEB_UI=80",
            ]
        );
    }

    #[test]
    fn services_without_an_address_and_those_of_other_namespaces_are_not_told() {
        let mut scene = Scene::new();
        let ports = json!([{ "port": 80 }]);
        put(&mut scene, "headless", json!({ "clusterIP": "None", "ports": ports }));
        put(&mut scene, "pending", json!({ "ports": ports }));
        let elsewhere =
            json!({ "type": "ExternalName", "clusterIP": "10.0.0.9", "externalName": "db.example" });
        put(&mut scene, "elsewhere", elsewhere);
        put(&mut scene, "broken", json!({ "clusterIP": 7 }));
        for namespace in ["defaul", "default2", "other"] {
            let metadata = json!({ "name": "far", "namespace": namespace, "uid": "u" });
            let spec = json!({ "clusterIP": "10.0.0.2", "ports": ports });
            scene.put("v1", "Service", "far", json!({ "metadata": metadata, "spec": spec }));
        }
        assert_eq!(env_of(&scene, json!({}), json!({})), Vec::<String>::new());
    }

    #[test]
    fn a_pod_may_want_none_and_finds_the_kubernetes_api_all_the_same() {
        let mut scene = Scene::new();
        scene.kubernetes = "192.0.2.1:6443".to_owned();
        let spec = json!({ "clusterIP": "10.0.0.11", "ports": [{ "port": 80 }] });
        put(&mut scene, "web", spec.clone());
        // That of the cluster's API leads to the cluster.
        put(&mut scene, "kubernetes", spec);
        let names = |spec: Value| {
            let env = env_of(&scene, spec, json!({}));
            let host = "KUBERNETES_SERVICE_HOST=192.0.2.1".to_owned();
            assert!(env.contains(&host), "{env:?}");
            env.iter().filter(|one| one.starts_with("WEB_")).count()
        };
        assert_eq!(names(json!({})), 7);
        assert_eq!(names(json!({ "enableServiceLinks": false })), 0);
    }

    #[test]
    fn what_the_pod_names_itself_wins_and_may_be_made_of_them() {
        let mut scene = Scene::new();
        scene.config_map("m", json!({ "WEB_PORT": "of the map" }));
        put(&mut scene, "web", json!({ "clusterIP": "10.0.0.11", "ports": [{ "port": 80 }] }));
        let own = json!({
            "envFrom": [{ "configMapRef": { "name": "m" } }],
            "env": [
                { "name": "BEFORE", "value": "$(WEB_SERVICE_PORT)" },
                { "name": "WEB_SERVICE_PORT", "value": "8080" },
                { "name": "URL", "value": "http://$(WEB_SERVICE_HOST):$(WEB_SERVICE_PORT)/" },
            ],
        });
        let env = env_of(&scene, json!({}), own);
        for expected in
            ["BEFORE=80", "WEB_SERVICE_PORT=8080", "URL=http://10.0.0.11:8080/", "WEB_PORT=of the map"]
        {
            assert!(env.iter().any(|one| one == expected), "{expected} in {env:?}");
        }
        assert_eq!(env.iter().filter(|one| one.starts_with("WEB_SERVICE_PORT=")).count(), 1);
    }
}
