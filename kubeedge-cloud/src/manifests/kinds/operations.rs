//! `operations.kubeedge.io/v1alpha2`: jobs on many nodes.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{nodes_rule, tolerance_rule};

/// What edgecore is upgraded to, and where.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "operations.kubeedge.io",
    version = "v1alpha2",
    kind = "NodeUpgradeJob",
    plural = "nodeupgradejobs",
    status = "NodeUpgradeJobStatus",
    doc = "An upgrade of edgecore on many nodes.",
    printcolumn = r#"{"name":"Version","type":"string","jsonPath":".spec.version"}"#,
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = nodes_rule())]
pub struct NodeUpgradeJobSpec {
    /// The version, such as `v1.23.0`.
    #[schemars(length(max = 128))]
    #[x_kube(validation = super::version_rule())]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The image with the binaries, without its tag.
    #[schemars(length(max = 512))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The digests that the image must have.
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
    #[x_kube(validation = tolerance_rule())]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_tolerate: Option<String>,
}

/// What of a node is checked before a job.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum CheckItem {
    /// The processors' load.
    Cpu,
    /// The free memory.
    Mem,
    /// The free space on the disk.
    Disk,
}

/// The digests that an image must have.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ImageDigest {
    /// For arm64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arm64: Option<String>,
    /// For amd64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub amd64: Option<String>,
    /// The registry to ask instead.
    #[serde(rename = "registryAPI")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry_api: Option<RegistryApi>,
}

/// A registry to ask for digests.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RegistryApi {
    /// Its host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The token to show it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// What became of an upgrade.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NodeUpgradeJobStatus {
    /// Init, InProgress, Completed or Failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// For each node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_status: Option<Vec<UpgradedNode>>,
    /// As v1alpha1 has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// As v1alpha1 has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_version: Option<String>,
    /// As v1alpha1 has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub historic_version: Option<String>,
    /// As v1alpha1 has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// As v1alpha1 has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// As v1alpha1 has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
}

/// What became of the upgrade of a node.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct UpgradedNode {
    /// The node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// Pending, InProgress, Successful, Failure or Unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action_flow: Option<Vec<Action>>,
    /// The version that it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_version: Option<String>,
    /// The version that it had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub historic_version: Option<String>,
    /// As v1alpha1 has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// As v1alpha1 has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// As v1alpha1 has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// As v1alpha1 has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
}

/// A step of a job on a node.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Action {
    /// Which one, such as `Check`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// `True` or `False`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
}

/// Which images are pulled, and where.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "operations.kubeedge.io",
    version = "v1alpha2",
    kind = "ImagePrePullJob",
    plural = "imageprepulljobs",
    status = "ImagePrePullJobStatus",
    doc = "Images that many nodes pull before they need them.",
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct ImagePrePullJobSpec {
    /// Which images, and where.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_pre_pull_template: Option<ImagePrePullTemplate>,
}

/// Which images are pulled, and where.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = nodes_rule())]
pub struct ImagePrePullTemplate {
    /// The images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<Vec<String>>,
    /// The nodes by name; or else `labelSelector`.
    #[schemars(length(max = 10000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_names: Option<Vec<String>>,
    /// The nodes by their labels; or else `nodeNames`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_selector: Option<LabelSelector>,
    /// What of the node is checked before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check_items: Option<Vec<CheckItem>>,
    /// Which part of the nodes may fail, such as `0.1`.
    #[schemars(length(max = 32))]
    #[x_kube(validation = tolerance_rule())]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_tolerate: Option<String>,
    /// How many nodes work at once.
    #[schemars(range(min = 0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<i32>,
    /// After how many seconds a node that says nothing is given up.
    #[schemars(range(min = 0, max = 4294967295u32))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<i64>,
    /// The Secret to pull with, `namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_secrets: Option<String>,
    /// How often a pull is tried again.
    #[schemars(range(min = 0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_times: Option<i32>,
}

/// What became of the pulls.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ImagePrePullJobStatus {
    /// Init, InProgress, Completed or Failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// For each node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_status: Option<Vec<PulledNode>>,
    /// As v1alpha1 has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// As v1alpha1 has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// As v1alpha1 has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// As v1alpha1 has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// As v1alpha1 has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Vec<super::operations_v1alpha1::PulledNode>>,
}

/// What became of the pulls of a node.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PulledNode {
    /// The node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// Pending, InProgress, Successful, Failure or Unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action_flow: Option<Vec<Action>>,
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
    /// `True` or `False`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// As v1alpha1 has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// What of edgecore's configuration is changed, and where.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "operations.kubeedge.io",
    version = "v1alpha2",
    kind = "ConfigUpdateJob",
    plural = "configupdatejobs",
    status = "ConfigUpdateJobStatus",
    doc = "A change of edgecore's configuration on many nodes.",
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = nodes_rule())]
pub struct ConfigUpdateJobSpec {
    /// Values by their paths in the configuration, such as `modules.edgeHub.heartbeat`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_fields: Option<BTreeMap<String, String>>,
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
    /// Which part of the nodes may fail, such as `0.1`.
    #[schemars(length(max = 32))]
    #[x_kube(validation = tolerance_rule())]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_tolerate: Option<String>,
}

/// What became of a change of the configuration.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ConfigUpdateJobStatus {
    /// Init, InProgress, Completed or Failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// For each node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_status: Option<Vec<UpdatedNode>>,
}

/// What became of the change at a node.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct UpdatedNode {
    /// The node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// Pending, InProgress, Successful, Failure or Unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action_flow: Option<Vec<Action>>,
}
