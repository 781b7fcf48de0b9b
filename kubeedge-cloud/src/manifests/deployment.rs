//! cloudcore on a cluster: its configuration, its Deployment and its Service.

use std::net::IpAddr;

use kubeedge_core::message::Fingerprint;
use serde_json::{Value, json};

use super::{Options, StreamAuthority, admission, labels, metadata, outside::Outside};

/// Where replicas ask each other for what only nodes of the other have. It is in no Service: each is meant by its address.
const RELAY: u16 = 10005;

/// The user that cloudcore runs as: it needs none in particular, so it is not root.
const USER: u32 = 65532;

/// What the ConfigMap calls the authority of API servers, and the file as KubeEdge's `tlsStreamCAFile` names it.
const STREAM_CA: &str = "streamCA.crt";

/// The annotation of cloudcore's pods that changes with its configuration, so that another configuration gets other pods.
const CONFIG: &str = "kubeedge.io/config";

/// cloudcore's configuration and its Deployment.
pub fn deployment(options: &Options) -> Vec<Value> {
    let config = config(options);
    let outside = Outside::of(&config);
    let mut data = json!({ "cloudcore.yaml": config });
    if let Some(StreamAuthority::Pem(pem)) = &options.stream {
        data[STREAM_CA] = json!(pem);
    }
    let of_config = fingerprint(&data);
    vec![
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata(options, "cloudcore"),
            "data": data,
        }),
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata(options, "cloudcore"),
            "spec": {
                "replicas": options.replicas,
                "selector": { "matchLabels": selector() },
                // No two replicas share a host, so one has to go before the next can come.
                "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 0, "maxUnavailable": 1 } },
                "template": {
                    "metadata": { "labels": labels(options), "annotations": { CONFIG: of_config } },
                    "spec": pod(options, &outside),
                },
            },
        }),
    ]
}

fn fingerprint(data: &Value) -> String {
    let fingerprint = Fingerprint::of(data.to_string().as_bytes());
    fingerprint.map(|Fingerprint(number)| format!("{number:016x}")).unwrap_or_default()
}

fn selector() -> Value {
    json!({ "kubeedge": "cloudcore" })
}

fn pod(options: &Options, outside: &Outside) -> Value {
    let mut mounts = vec![
        json!({ "name": "config", "mountPath": "/etc/kubeedge/config", "readOnly": true }),
        json!({ "name": "certs", "mountPath": "/etc/kubeedge/certs" }),
    ];
    let mut volumes = vec![
        json!({ "name": "config", "configMap": { "name": "cloudcore" } }),
        json!({ "name": "certs", "emptyDir": { "medium": "Memory" } }),
    ];
    if let Some(authority) = &options.stream {
        mounts.push(json!({ "name": "ca", "mountPath": "/etc/kubeedge/ca", "readOnly": true }));
        volumes.push(json!({ "name": "ca", "configMap": stream_authority(authority) }));
    }
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
                    "labelSelector": { "matchLabels": selector() },
                    "topologyKey": "kubernetes.io/hostname",
                }],
            },
        },
        "tolerations": [{ "key": "node-role.kubernetes.io/control-plane", "operator": "Exists", "effect": "NoSchedule" }],
        "securityContext": { "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "seccompProfile": { "type": "RuntimeDefault" } },
        "terminationGracePeriodSeconds": outside.grace().as_secs(),
        "containers": [container(options, outside, mounts)],
        "volumes": volumes,
    })
}

/// Where the authority is that signs the certificates of API servers: of the cluster's own there is a copy in every namespace.
fn stream_authority(authority: &StreamAuthority) -> Value {
    let (name, key) = match authority {
        StreamAuthority::Cluster => ("kube-root-ca.crt", "ca.crt"),
        StreamAuthority::Pem(_) => ("cloudcore", STREAM_CA),
    };
    json!({ "name": name, "items": [{ "key": key, "path": STREAM_CA }] })
}

fn container(options: &Options, outside: &Outside, mounts: Vec<Value>) -> Value {
    let port = |name: &str, port: u16, protocol: &str| json!({ "name": name, "containerPort": port, "protocol": protocol });
    let mut ports: Vec<_> =
        outside.ports().into_iter().map(|(name, number, protocol, _)| port(name, number, protocol)).collect();
    // It is named so that the scheduler looks for a host where it is free.
    ports.push(port("monitor", outside.monitor_port(), "TCP"));
    if options.admission {
        ports.push(port("admission", admission::PORT, "TCP"));
    }
    if options.replicas > 1 {
        ports.push(port("relay", RELAY, "TCP"));
    }
    let mut container = json!({
        "name": "cloudcore",
        "image": options.image,
        "args": ["--config", "/etc/kubeedge/config/cloudcore.yaml"],
        "ports": ports,
        // Where the other replicas reach this one, and where its Secrets and Leases are.
        "env": [
            { "name": "POD_IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
            { "name": "POD_NAMESPACE", "valueFrom": { "fieldRef": { "fieldPath": "metadata.namespace" } } },
        ],
        "resources": { "requests": { "cpu": "100m", "memory": "64Mi" } },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        },
        "volumeMounts": mounts,
    });
    if let Some(host) = outside.monitor_host(options.host_network) {
        // A minute, since a cloudcore to which thousands of nodes come back at once is busy, and not dead.
        container["livenessProbe"] = probe("/healthz", host, outside.monitor_port(), 10, 6);
        container["readinessProbe"] = probe("/readyz", host, outside.monitor_port(), 5, 3);
    }
    container
}

fn probe(path: &str, host: Option<IpAddr>, port: u16, period: u32, failures: u32) -> Value {
    let mut asked = json!({ "path": path, "port": port });
    if let Some(host) = host {
        asked["host"] = json!(host);
    }
    json!({ "httpGet": asked, "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures })
}

/// The Service by which nodes come in, if cloudcore is not on its host's network; it is of use inside the cluster too.
///
/// It leads to replicas that are not ready as well: while the API is gone none of them is, and they keep their nodes' sessions,
/// which a Service without an endpoint would cut.
pub fn service(options: &Options) -> Value {
    let ports: Vec<_> = Outside::of(&config(options))
        .ports()
        .into_iter()
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
            "selector": selector(),
            "publishNotReadyAddresses": true,
            "ports": ports,
        },
    })
}

/// The text of cloudcore.yaml.
fn config(options: &Options) -> String {
    if !options.config.is_empty() {
        return options.config.clone();
    }
    let (addresses, names): (Vec<_>, Vec<_>) =
        options.advertise_addresses.iter().partition(|address| address.parse::<IpAddr>().is_ok());
    // The kubelet asks how cloudcore is, from the host.
    let monitor = if options.host_network { "127.0.0.1" } else { "0.0.0.0" };
    format!(
        "apiVersion: cloudcore.config.kubeedge.io/v1alpha1\nkind: CloudCore\n\
         commonConfig:\n  monitorServer: {{bindAddress: \"{monitor}:9091\"}}\nmodules:\n  cloudHub:\n    \
         nodeLimit: {}\n    advertiseAddress: {}\n    dnsNames: {}\n    quic: {{enable: true}}\n    websocket: {{enable: true}}\n  \
         cloudStream: {{enable: {}}}\nkubeedgeRs:\n  replicas: {{enable: {}}}\n  admission: {{enable: {}}}\n",
        options.node_limit,
        json!(addresses),
        json!(names),
        options.stream.is_some(),
        options.replicas > 1,
        options.admission
    )
}
