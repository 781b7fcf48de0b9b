//! What a cluster is given for cloudcore's admission webhook.

use serde_json::{Value, json};

use super::{Options, labels, metadata};

/// The port that cloudcore serves the webhook at.
pub(super) const PORT: u16 = 10443;

/// The webhooks' configurations, under the names that KubeEdge gives them.
const VALIDATING: [&str; 1] = ["kubeedge-crds-validate-webhook-configuration"];
const MUTATING: [&str; 2] = ["kubeedge-mutating-webhook", "mutate-offlinemigration"];

/// The Service by which the API server asks cloudcore, and the configurations of its webhooks, without any: cloudcore
/// fills them in when it serves. Nothing if [`Options::admission`] is off.
///
/// A right to create configurations could not be bound to names, and who has it can look at everything that is written
/// in the cluster.
pub fn admission(options: &Options) -> Vec<Value> {
    if !options.admission {
        return Vec::new();
    }
    let empty = |kind: &str, name: &&str| {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": kind,
            "metadata": { "name": name, "labels": labels(options) },
        })
    };
    let mut objects: Vec<Value> =
        VALIDATING.iter().map(|name| empty("ValidatingWebhookConfiguration", name)).collect();
    objects.extend(MUTATING.iter().map(|name| empty("MutatingWebhookConfiguration", name)));
    objects.push(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(options, "kubeedge-admission-service"),
        "spec": {
            "selector": { "kubeedge": "cloudcore" },
            "ports": [{ "name": "https", "port": 443, "targetPort": PORT, "protocol": "TCP" }],
        },
    }));
    objects
}

/// The right to fill in those configurations, and no others.
pub(super) fn rules() -> Vec<Value> {
    let rule = |resource: &str, names: &[&str]| {
        json!({
            "apiGroups": ["admissionregistration.k8s.io"],
            "resources": [resource],
            "resourceNames": names,
            "verbs": ["patch"],
        })
    };
    vec![
        rule("validatingwebhookconfigurations", &VALIDATING),
        rule("mutatingwebhookconfigurations", &MUTATING),
    ]
}
