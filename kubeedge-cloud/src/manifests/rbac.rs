//! The least rights that cloudcore does its work with.

use serde_json::{Value, json};

use super::{Options, admission, labels, metadata};

/// The name of the service account, and of what binds it.
const NAME: &str = "cloudcore";

/// Where the Leases of nodes are (KEP-589).
const LEASES: &str = "kube-node-lease";

/// The account that cloudcore runs as.
pub fn service_account(options: &Options) -> Value {
    json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(options, NAME) })
}

/// The roles of that account, each with its binding.
///
/// Everything in the cluster that nodes may need is readable; written is only what nodes report.
pub fn rights(options: &Options) -> Vec<Value> {
    let mut objects = cluster_wide(options);
    objects.extend(in_namespace(options, LEASES, &lease_rules()));
    objects.extend(in_namespace(options, &options.namespace, &own_rules()));
    objects
}

fn cluster_wide(options: &Options) -> Vec<Value> {
    let metadata = json!({ "name": NAME, "labels": labels(options) });
    let mut rules = cluster_rules();
    if options.admission {
        rules.extend(admission::rules());
    }
    vec![
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": metadata,
            "rules": rules,
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": metadata,
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": NAME },
            "subjects": [subject(options)],
        }),
    ]
}

fn in_namespace(options: &Options, namespace: &str, rules: &[Value]) -> Vec<Value> {
    let metadata = json!({ "name": NAME, "namespace": namespace, "labels": labels(options) });
    vec![
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": metadata,
            "rules": rules,
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": NAME },
            "subjects": [subject(options)],
        }),
    ]
}

fn subject(options: &Options) -> Value {
    json!({ "kind": "ServiceAccount", "name": NAME, "namespace": options.namespace })
}

fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> Value {
    json!({ "apiGroups": [group], "resources": resources, "verbs": verbs })
}

fn cluster_rules() -> Vec<Value> {
    let read = ["get", "list", "watch"];
    vec![
        // What pods on nodes are made of.
        rule("", &["pods", "configmaps", "secrets", "persistentvolumeclaims", "persistentvolumes"], &read),
        rule("node.k8s.io", &["runtimeclasses"], &read),
        // What pods are told of by their environment. Nodes are given what is watched, and no more is read.
        rule("", &["services"], &["list", "watch"]),
        // What nodes report of pods; pods that stand for files of nodes; pods that have ended; and the tolerations of
        // pods whose nodes may be away for long.
        rule("", &["pods"], &["create", "delete", "patch"]),
        rule("", &["pods/status"], &["patch"]),
        // The nodes themselves.
        rule("", &["nodes"], &["get", "list", "watch", "create", "patch"]),
        rule("", &["nodes/status"], &["patch"]),
        rule("", &["events"], &["get", "create", "patch"]),
        // Tokens that pods mount. Each is bound to a pod on the node that asks.
        rule("", &["serviceaccounts/token"], &["create"]),
        // Certificates for servers on nodes, which the cluster signs. Each is for the node that asks.
        rule("certificates.k8s.io", &["certificatesigningrequests"], &["get", "create", "delete"]),
        rule("certificates.k8s.io", &["certificatesigningrequests/approval"], &["patch"]),
        json!({
            "apiGroups": ["certificates.k8s.io"],
            "resources": ["signers"],
            "resourceNames": ["kubernetes.io/kubelet-serving"],
            "verbs": ["approve"],
        }),
        // Devices, and what is reported of them, which stands in the Device and in its DeviceStatus.
        rule("devices.kubeedge.io", &["devices", "devicemodels"], &read),
        rule("devices.kubeedge.io", &["devices"], &["patch"]),
        rule("devices.kubeedge.io", &["devicestatuses"], &["create", "patch"]),
        // Rules, and how often they served, which stands in the Rule.
        rule("rules.kubeedge.io", &["rules", "ruleendpoints"], &read),
        rule("rules.kubeedge.io", &["rules"], &["patch"]),
    ]
}

fn lease_rules() -> Vec<Value> {
    vec![rule("coordination.k8s.io", &["leases"], &["get", "create", "patch"])]
}

/// The Secrets by which replicas share one authority, and nodes join; and what replicas agree on.
fn own_rules() -> Vec<Value> {
    let secrets = ["casecret", "tokensecret"];
    let named = json!({
        "apiGroups": [""],
        "resources": ["secrets"],
        "resourceNames": secrets,
        "verbs": ["get", "update"],
    });
    vec![
        named,
        // A right to create cannot be bound to a name.
        rule("", &["secrets"], &["create"]),
        rule("coordination.k8s.io", &["leases"], &["get", "create", "patch"]),
    ]
}
