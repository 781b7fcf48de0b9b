//! `operations.kubeedge.io/v1alpha1`: the earlier form of jobs on many nodes, served beside the newer one.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::{nodes_rule, operations::CheckItem, operations::ImagePrePullTemplate};

/// What edgecore is upgraded to, and where.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "operations.kubeedge.io",
    version = "v1alpha1",
    kind = "NodeUpgradeJob",
    plural = "nodeupgradejobs",
    status = "NodeUpgradeJobStatus",
    doc = "An upgrade of edgecore on many nodes."
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = nodes_rule())]
pub struct NodeUpgradeJobSpec {
    /// The version, such as `v1.23.0`.
    #[schemars(length(max = 128))]
    #[x_kube(validation = super::version_rule())]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// What does the upgrade.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upgrade_tool: Option<String>,
    /// The image with the binaries, without its tag.
    #[schemars(length(max = 512))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The digest that the image must have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_digest_gatter: Option<ImageDigest>,
    /// Whether each node waits for a person to confirm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub require_confirmation: Option<bool>,
    /// The nodes by name; or else `labelSelector`.
    #[schemars(length(max = 10000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_names: Option<Vec<String>>,
    /// The nodes by their labels; or else `nodeNames`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_selector: Option<LabelSelector>,
    /// After how many seconds a node that says nothing is given up.
    #[schemars(range(min = 0, max = 4294967295u32))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<i64>,
    /// How many nodes work at once.
    #[schemars(range(min = 0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<i32>,
    /// What of the node is checked before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check_items: Option<Vec<CheckItem>>,
    /// Which part of the nodes may fail, such as `0.1`.
    #[schemars(length(max = 32))]
    #[x_kube(validation = super::tolerance_rule())]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_tolerate: Option<String>,
}

/// The digest that an image must have.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ImageDigest {
    /// The digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The registry to ask instead.
    #[serde(rename = "registryAPI")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry_api: Option<super::operations::RegistryApi>,
}

/// What became of an upgrade.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NodeUpgradeJobStatus {
    /// The state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The version that nodes have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_version: Option<String>,
    /// The version that nodes had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub historic_version: Option<String>,
    /// What happened last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// How it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// For each node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_status: Option<Vec<NodeTask>>,
}

/// What became of a job at a node.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NodeTask {
    /// The node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// The state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// What happened last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// How it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
}

/// Which images are pulled, and where.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "operations.kubeedge.io",
    version = "v1alpha1",
    kind = "ImagePrePullJob",
    plural = "imageprepulljobs",
    status = "ImagePrePullJobStatus",
    doc = "Images that many nodes pull before they need them."
)]
#[serde(rename_all = "camelCase")]
pub struct ImagePrePullJobSpec {
    /// Which images, and where.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_pre_pull_template: Option<ImagePrePullTemplate>,
}

/// What became of the pulls.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ImagePrePullJobStatus {
    /// The state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// What happened last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// How it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// For each node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Vec<PulledNode>>,
}

/// What became of the pulls of a node.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PulledNode {
    /// The node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_status: Option<NodeTask>,
    /// For each image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_status: Option<Vec<PulledImage>>,
}

/// What became of an image's pull.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PulledImage {
    /// The image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
