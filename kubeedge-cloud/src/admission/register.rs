//! What the API server is told of the webhook.

use std::time::Duration;

use k8s_openapi::ByteString;
use kube::{
    Client,
    core::{
        Request,
        params::{Patch, PatchParams},
    },
};
use serde_json::{Value, json};
use tokio::sync::watch;

/// Where the API server reaches the webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// `https://host:port`, for a webhook outside the cluster; otherwise the Service `kubeedge-admission-service` in
    /// `namespace`.
    pub url: Option<String>,
    /// The namespace of that Service; KubeEdge's is `kubeedge`.
    pub namespace: String,
    /// The authorities that may have signed the serving certificate, PEM.
    pub ca_pem: String,
}

/// How often it is tried again to tell the API server.
const AGAIN: Duration = Duration::from_secs(10);

/// The configurations of the webhooks, under the names that KubeEdge gives them.
///
/// What cannot be asked is let through where nothing can break by it, and refused for rules and upgrades.
pub fn configurations(address: &Address) -> Vec<Value> {
    let validating = [
        ("validatedevice", "/devices", "devices.kubeedge.io", "v1beta1", "devices", "Ignore"),
        ("validatedevicemodel", "/devicemodels", "devices.kubeedge.io", "v1beta1", "devicemodels", "Ignore"),
        ("validaterule", "/rules", "rules.kubeedge.io", "v1", "rules", "Fail"),
        ("validateruleendpoint", "/ruleendpoints", "rules.kubeedge.io", "v1", "ruleendpoints", "Fail"),
        (
            "validatenodeupgradejob",
            "/nodeupgradejobs",
            "operations.kubeedge.io",
            "*",
            "nodeupgradejobs",
            "Fail",
        ),
    ];
    let validating: Vec<Value> = validating.iter().map(|of| hook(address, *of)).collect();
    let path = "/mutating/nodeupgradejobs";
    let defaults = hook(
        address,
        ("mutatenodeupgradejob", path, "operations.kubeedge.io", "*", "nodeupgradejobs", "Ignore"),
    );
    let mut offline =
        hook(address, ("mutateofflinemigration", "/offlinemigration", "", "v1", "pods", "Ignore"));
    offline["objectSelector"] = json!({ "matchLabels": { "app-offline.kubeedge.io": "autonomy" } });
    let object = |kind: &str, name: &str, hooks: Vec<Value>| {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": { "name": name },
            "webhooks": hooks,
        })
    };
    vec![
        object("ValidatingWebhookConfiguration", "kubeedge-crds-validate-webhook-configuration", validating),
        object("MutatingWebhookConfiguration", "kubeedge-mutating-webhook", vec![defaults]),
        object("MutatingWebhookConfiguration", "mutate-offlinemigration", vec![offline]),
    ]
}

fn hook(
    address: &Address,
    (name, path, group, version, resource, failure): (&str, &str, &str, &str, &str, &str),
) -> Value {
    let mut client = json!({ "caBundle": ByteString(address.ca_pem.clone().into_bytes()) });
    match &address.url {
        Some(url) => client["url"] = format!("{}{path}", url.trim_end_matches('/')).into(),
        None => {
            client["service"] = json!({ "name": "kubeedge-admission-service", "namespace": address.namespace, "path": path, "port": 443 });
        }
    }
    json!({
        "name": format!("{name}.kubeedge.io"),
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "timeoutSeconds": 10,
        "failurePolicy": failure,
        "clientConfig": client,
        "rules": [{
            "apiGroups": [group], "apiVersions": [version], "resources": [resource],
            "operations": ["CREATE", "UPDATE"], "scope": "*",
        }],
    })
}

/// Tells the API server, again whenever the authorities change, and never ends; without an address there is nothing to tell.
pub(super) async fn run(
    client: Client,
    address: Option<Address>,
    mut authorities: Option<watch::Receiver<String>>,
) {
    let Some(mut address) = address else { return std::future::pending().await };
    loop {
        if let Some(authorities) = &mut authorities {
            address.ca_pem.clone_from(&authorities.borrow_and_update());
        }
        if let Err(error) = apply_all(&client, &address).await {
            tracing::warn!(%error, retry_in = ?AGAIN, "the API server cannot be told of the admission webhook");
            tokio::time::sleep(AGAIN).await;
            continue;
        }
        let Some(followed) = &mut authorities else { return std::future::pending().await };
        if followed.changed().await.is_err() {
            // They do not change any more when nobody is there to change them.
            authorities = None;
        }
    }
}

async fn apply_all(client: &Client, address: &Address) -> Result<(), kube::Error> {
    for configuration in configurations(address) {
        apply(client, &configuration).await?;
    }
    Ok(())
}

async fn apply(client: &Client, configuration: &Value) -> Result<(), kube::Error> {
    let plural = match configuration["kind"].as_str() {
        Some("ValidatingWebhookConfiguration") => "validatingwebhookconfigurations",
        _ => "mutatingwebhookconfigurations",
    };
    let params = PatchParams::apply("kubeedge").force();
    let name = configuration["metadata"]["name"].as_str().unwrap_or_default();
    let request = Request::new(format!("/apis/admissionregistration.k8s.io/v1/{plural}"))
        .patch(name, &params, &Patch::Apply(configuration))
        .map_err(kube::Error::BuildRequest)?;
    client.request_text(request).await.map(drop)
}
