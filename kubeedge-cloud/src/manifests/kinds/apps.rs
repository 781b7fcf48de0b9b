//! `apps.kubeedge.io/v1alpha1`: groups of nodes, and applications that differ from group to group.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{EnvVar, ResourceRequirements},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Which nodes are in the group.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "apps.kubeedge.io",
    version = "v1alpha1",
    kind = "NodeGroup",
    plural = "nodegroups",
    shortname = "ng",
    status = "NodeGroupStatus",
    doc = "Nodes that belong together, such as those of one site."
)]
#[serde(rename_all = "camelCase")]
pub struct NodeGroupSpec {
    /// Nodes by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Vec<String>>,
    /// Nodes by their labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub match_labels: Option<BTreeMap<String, String>>,
    /// Whether nodes get the group's name as their zone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology_enabled: Option<bool>,
}

/// What became of the choice of nodes.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NodeGroupStatus {
    /// For each node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_statuses: Option<Vec<GroupedNode>>,
}

/// A node that was chosen.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GroupedNode {
    /// Its name.
    pub node_name: String,
    /// Whether it is ready: Ready, NotReady or Unknown.
    pub ready_status: String,
    /// Whether it could be put into the group: Succeeded or Failed.
    pub selection_status: String,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selection_status_reason: Option<String>,
}

/// What runs, and where.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "apps.kubeedge.io",
    version = "v1alpha1",
    kind = "EdgeApplication",
    plural = "edgeapplications",
    shortname = "eapp",
    namespaced,
    status = "EdgeApplicationStatus",
    doc = "An application that differs from one group of nodes to another."
)]
#[serde(rename_all = "camelCase")]
pub struct EdgeApplicationSpec {
    /// What it is made of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_template: Option<WorkloadTemplate>,
    /// Where it runs.
    pub workload_scope: WorkloadScope,
}

/// What an application is made of.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadTemplate {
    /// Objects, whole.
    #[schemars(schema_with = "objects")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifests: Option<Vec<Value>>,
}

/// Where an application runs.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadScope {
    /// On groups of nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_node_groups: Option<Vec<TargetGroup>>,
    /// On nodes with labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_node_labels: Option<Vec<TargetLabels>>,
}

/// A group of nodes, and what is different there.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TargetGroup {
    /// The NodeGroup.
    pub name: String,
    /// What is different.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overriders: Option<Overriders>,
}

/// Nodes with labels, and what is different there.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TargetLabels {
    /// The labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_selector: Option<LabelSelector>,
    /// What is different.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overriders: Option<Overriders>,
}

/// What is different.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Overriders {
    /// How many replicas there are.
    #[schemars(range(min = 0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i64>,
    /// Parts of images' names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_overriders: Option<Vec<ImageOverrider>>,
    /// Variables of containers' environments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env_overriders: Option<Vec<EnvOverrider>>,
    /// Containers' commands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command_overriders: Option<Vec<WordsOverrider>>,
    /// Containers' arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args_overriders: Option<Vec<WordsOverrider>>,
    /// Containers' resources.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources_overriders: Option<Vec<ResourcesOverrider>>,
}

/// A part of an image's name.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ImageOverrider {
    /// Which image; the first of the workload if it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicate: Option<ImagePredicate>,
    /// Which part.
    pub component: ImageComponent,
    /// What is done to it.
    pub operator: Operator,
    /// The value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// Where an image is named.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ImagePredicate {
    /// The path in the object, with slashes.
    pub path: String,
}

/// A part of an image's name.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageComponent {
    /// The registry.
    Registry,
    /// The repository.
    Repository,
    /// The tag, or the digest.
    Tag,
}

/// What is done to a value.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Operator {
    /// It is added.
    Add,
    /// It is taken away.
    Remove,
    /// It takes the place of another.
    Replace,
}

/// Variables of a container's environment.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EnvOverrider {
    /// The container.
    pub container_name: String,
    /// What is done.
    pub operator: Operator,
    /// The variables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Vec<EnvVar>>,
}

/// Words of a container's command or arguments.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WordsOverrider {
    /// The container.
    pub container_name: String,
    /// What is done: add or remove.
    pub operator: Operator,
    /// The words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Vec<String>>,
}

/// Resources of a container.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ResourcesOverrider {
    /// The container.
    pub container_name: String,
    /// The resources.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<ResourceRequirements>,
}

/// What became of the application.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EdgeApplicationStatus {
    /// For each object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_status: Option<Vec<WorkloadStatus>>,
}

/// What became of an object of the application.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadStatus {
    /// Which one.
    pub identifier: Identifier,
    /// Processing or Available.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conditions: Option<String>,
}

/// Which object of the application.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Identifier {
    /// Its place among the manifests.
    pub ordinal: i64,
    /// Its API group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Its kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// Its namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

fn objects(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "nullable": true,
        "items": {
            "type": "object",
            "x-kubernetes-embedded-resource": true,
            "x-kubernetes-preserve-unknown-fields": true,
        },
    })
}
