//! cloudcore on a cluster: its configuration, its Deployment and its Service.

use serde_json::{Value, json};

use super::{Options, admission, labels, metadata};

/// The ports of cloudcore: name, port, protocol, and the Service's port on nodes, as KubeEdge's charts have them.
const PORTS: [(&str, u16, &str, u16); 3] = [
    ("cloudhub", 10000, "TCP", 30000),
    ("cloudhub-quic", 10001, "UDP", 30001),
    ("cloudhub-https", 10002, "TCP", 30002),
];

/// Where replicas ask each other for what only nodes of the other have. It is in no Service: each is meant by its address.
const RELAY: u16 = 10005;

/// The user that cloudcore runs as: it needs none in particular, so it is not root.
const USER: u32 = 65532;

/// cloudcore's configuration and its Deployment.
pub fn deployment(options: &Options) -> Vec<Value> {
    let config = if options.config.is_empty() { default_config(options) } else { options.config.clone() };
    let port = |name: &str, port: u16, protocol: &str| json!({ "name": name, "containerPort": port, "protocol": protocol });
    let mut ports: Vec<_> =
        PORTS.iter().map(|(name, number, protocol, _)| port(name, *number, protocol)).collect();
    if options.admission {
        ports.push(port("admission", admission::PORT, "TCP"));
    }
    if options.replicas > 1 {
        ports.push(port("relay", RELAY, "TCP"));
    }
    let selector = json!({ "kubeedge": "cloudcore" });
    vec![
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata(options, "cloudcore"),
            "data": { "cloudcore.yaml": config },
        }),
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata(options, "cloudcore"),
            "spec": {
                "replicas": options.replicas,
                "selector": { "matchLabels": selector },
                "template": {
                    "metadata": { "labels": labels(options) },
                    "spec": pod(options, &ports, &selector),
                },
            },
        }),
    ]
}

fn pod(options: &Options, ports: &[Value], selector: &Value) -> Value {
    json!({
        "serviceAccountName": "cloudcore",
        "hostNetwork": options.host_network,
        "dnsPolicy": if options.host_network { "ClusterFirstWithHostNet" } else { "ClusterFirst" },
        // cloudcore is what makes edge nodes ready, so it cannot run on one.
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{
                        "matchExpressions": [{ "key": "node-role.kubernetes.io/edge", "operator": "DoesNotExist" }],
                    }],
                },
            },
            "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [{
                    "labelSelector": { "matchLabels": selector },
                    "topologyKey": "kubernetes.io/hostname",
                }],
            },
        },
        "tolerations": [{ "key": "node-role.kubernetes.io/control-plane", "operator": "Exists", "effect": "NoSchedule" }],
        "securityContext": { "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "seccompProfile": { "type": "RuntimeDefault" } },
        "containers": [{
            "name": "cloudcore",
            "image": options.image,
            "args": ["--config", "/etc/kubeedge/config/cloudcore.yaml"],
            "ports": ports,
            // Where the other replicas reach this one.
            "env": [{ "name": "POD_IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } }],
            "resources": { "requests": { "cpu": "100m", "memory": "64Mi" } },
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": { "drop": ["ALL"] },
            },
            "volumeMounts": [
                { "name": "config", "mountPath": "/etc/kubeedge/config", "readOnly": true },
                { "name": "certs", "mountPath": "/etc/kubeedge/certs" },
                { "name": "ca", "mountPath": "/etc/kubeedge/ca" },
            ],
        }],
        "volumes": [
            { "name": "config", "configMap": { "name": "cloudcore" } },
            { "name": "certs", "emptyDir": { "medium": "Memory" } },
            { "name": "ca", "emptyDir": { "medium": "Memory" } },
        ],
    })
}

/// The Service by which nodes come in, if cloudcore is not on its host's network; it is of use inside the cluster too.
pub fn service(options: &Options) -> Value {
    let ports: Vec<_> = PORTS
        .iter()
        .map(|(name, port, protocol, node_port)| {
            let mut entry = json!({ "name": name, "port": port, "targetPort": port, "protocol": protocol });
            if !options.host_network {
                entry["nodePort"] = json!(node_port);
            }
            entry
        })
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(options, "cloudcore"),
        "spec": {
            "type": if options.host_network { "ClusterIP" } else { "NodePort" },
            "selector": { "kubeedge": "cloudcore" },
            "ports": ports,
        },
    })
}

fn default_config(options: &Options) -> String {
    let addresses: Vec<&str> = options.advertise_addresses.iter().map(String::as_str).collect();
    format!(
        "apiVersion: cloudcore.config.kubeedge.io/v1alpha1\nkind: CloudCore\nmodules:\n  cloudHub:\n    \
         advertiseAddress: {}\n    quic: {{enable: true}}\n    websocket: {{enable: true}}\nkubeedgeRs:\n  \
         replicas: {{enable: {}}}\n  admission: {{enable: {}}}\n",
        json!(addresses),
        options.replicas > 1,
        options.admission
    )
}
