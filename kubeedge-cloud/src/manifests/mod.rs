//! What a cluster is given before cloudcore runs on it: definitions of KubeEdge's kinds, rights, and cloudcore itself.
//!
//! ```
//! use kubeedge_cloud::manifests::{self, Options};
//!
//! let options = Options { image: "registry.example/cloudcore:v1".to_owned(), ..Options::default() };
//! let yaml = manifests::yaml(&manifests::all(&options));
//! assert!(yaml.contains("kind: ServiceAccount"));
//! ```
//!
//! Everything is a JSON value in the form that the API takes, in the order in which it is to be applied.

mod admission;
mod deployment;
#[expect(unreachable_pub, reason = "the derive of KubeSchema repeats each type inside a function")]
pub mod kinds;
mod outside;
mod rbac;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionVersion, CustomResourceValidation, JSONSchemaProps,
};
use kube::{CustomResourceExt, core::crd::merge_crds};
use serde_json::{Value, json};

pub use admission::admission;
pub use deployment::{deployment, service};
pub use rbac::{rights, service_account};

/// What differs from one cluster to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The namespace of cloudcore, which it is told by `POD_NAMESPACE`; KubeEdge's is `kubeedge`.
    pub namespace: String,
    /// The image of cloudcore.
    pub image: String,
    /// How many replicas run.
    pub replicas: u32,
    /// How many nodes one replica takes, if `config` is empty. 500: KubeEdge's nodeLimit.
    pub node_limit: u32,
    /// The addresses and names by which nodes reach cloudcore: they go into its certificate.
    pub advertise_addresses: Vec<String>,
    /// Whether cloudcore listens at its host's own addresses, as KubeEdge's charts have it. Without it nodes come in
    /// by the Service's node ports.
    pub host_network: bool,
    /// Whether cloudcore checks KubeEdge's kinds as a webhook of the API server; `config`, if given, must say so too.
    pub admission: bool,
    /// How cloudcore knows the API servers that it answers for nodes; `None` if it answers none. `config`, if given, must say
    /// so too.
    pub stream: Option<StreamAuthority>,
    /// The text of cloudcore.yaml; the defaults with `advertise_addresses` if it is empty. The kubelet is told to look at
    /// `commonConfig.monitorServer` of it, unless that is the loopback address and cloudcore has a network of its own.
    pub config: String,
    /// Labels for all objects, besides those that select cloudcore's pods.
    pub labels: BTreeMap<String, String>,
}

/// Who signs the certificates that API servers show when they ask a node's kubelet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamAuthority {
    /// The cluster's own authority, as kubeadm has it.
    Cluster,
    /// These certificates, in PEM: clusters that have an authority for clients alone.
    Pem(String),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            namespace: "kubeedge".to_owned(),
            image: concat!("kubeedge/cloudcore:v", env!("CARGO_PKG_VERSION")).to_owned(),
            replicas: 1,
            node_limit: 500,
            advertise_addresses: Vec::new(),
            host_network: true,
            admission: false,
            stream: Some(StreamAuthority::Cluster),
            config: String::new(),
            labels: BTreeMap::new(),
        }
    }
}

/// Everything, in the order in which it is to be applied.
pub fn all(options: &Options) -> Vec<Value> {
    let mut objects = crds();
    objects.push(namespace(options));
    objects.push(service_account(options));
    objects.extend(rights(options));
    objects.extend(admission(options));
    objects.extend(deployment(options));
    objects.push(service(options));
    objects
}

/// The namespace of cloudcore.
pub fn namespace(options: &Options) -> Value {
    let mut namespace = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": { "name": options.namespace },
    });
    namespace["metadata"]["labels"] = labels(options);
    namespace
}

/// The definitions of KubeEdge's kinds.
///
/// # Panics
/// Never: what is merged has one group and one name each.
pub fn crds() -> Vec<Value> {
    use kinds::{apps, devices, operations, operations_v1alpha1, policy, rules, syncs};
    let both = |old, new| merge_crds(vec![old, new], "v1alpha2").expect("both versions are of one kind");
    // KubeEdge writes these statuses together with the object.
    let mut crds: Vec<CustomResourceDefinition> = vec![
        once_stored(with_open_status(without_status_path(devices::Device::crd())), "v1alpha2"),
        once_stored(devices::DeviceModel::crd(), "v1alpha2"),
        once_stored(without_status_path(devices::DeviceStatus::crd()), "v1alpha2"),
        without_status_path(rules::Rule::crd()),
    ];
    crds.extend([
        rules::RuleEndpoint::crd(),
        syncs::ObjectSync::crd(),
        syncs::ClusterObjectSync::crd(),
        both(operations_v1alpha1::NodeUpgradeJob::crd(), operations::NodeUpgradeJob::crd()),
        both(operations_v1alpha1::ImagePrePullJob::crd(), operations::ImagePrePullJob::crd()),
        operations::ConfigUpdateJob::crd(),
        apps::NodeGroup::crd(),
        apps::EdgeApplication::crd(),
        policy::ServiceAccountAccess::crd(),
    ]);
    crds.iter().map(|crd| serde_json::to_value(crd).expect("a definition is JSON")).collect()
}

/// The text of objects, one YAML document each.
///
/// # Panics
/// Never: JSON values are YAML.
pub fn yaml(objects: &[Value]) -> String {
    let documents = objects.iter().map(|object| serde_saphyr::to_string(object).expect("JSON is YAML"));
    documents.map(|document| format!("---\n{}\n", document.trim_end())).collect()
}

fn without_status_path(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut crd.spec.versions {
        version.subresources = None;
    }
    crd
}

/// Keeps members of the status that are not known here: KubeEdge's own definition does, and other software may write there.
fn with_open_status(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut crd.spec.versions {
        let schema = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
        let status = schema.and_then(|schema| schema.properties.as_mut()?.get_mut("status"));
        if let Some(status) = status {
            status.x_kubernetes_preserve_unknown_fields = Some(true);
        }
    }
    crd
}

/// Names an older version, which is not served: its objects mean something else. A cluster that has ever stored it takes no
/// definition without it (Kubernetes, "Versions in CustomResourceDefinitions").
fn once_stored(mut crd: CustomResourceDefinition, name: &str) -> CustomResourceDefinition {
    let free = JSONSchemaProps {
        type_: Some("object".to_owned()),
        x_kubernetes_preserve_unknown_fields: Some(true),
        ..JSONSchemaProps::default()
    };
    crd.spec.versions.push(CustomResourceDefinitionVersion {
        name: name.to_owned(),
        schema: Some(CustomResourceValidation { open_api_v3_schema: Some(free) }),
        ..CustomResourceDefinitionVersion::default()
    });
    crd
}

fn labels(options: &Options) -> Value {
    let mut labels = options.labels.clone();
    labels.insert("kubeedge".to_owned(), "cloudcore".to_owned());
    labels.insert("k8s-app".to_owned(), "kubeedge".to_owned());
    json!(labels)
}

fn metadata(options: &Options, name: &str) -> Value {
    json!({ "name": name, "namespace": options.namespace, "labels": labels(options) })
}
