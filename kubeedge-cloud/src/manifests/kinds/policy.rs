//! `policy.kubeedge.io/v1alpha1`: what service accounts of pods on nodes may do.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::free;

/// The service account and what it may do.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "policy.kubeedge.io",
    version = "v1alpha1",
    kind = "ServiceAccountAccess",
    plural = "serviceaccountaccesses",
    shortname = "saaccess",
    namespaced,
    status = "AccessStatus",
    doc = "What the service account of the same name may do, for nodes to decide without a link."
)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountAccessSpec {
    /// The service account, whole.
    #[schemars(schema_with = "free")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<BTreeMap<String, Value>>,
    /// Its UID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account_uid: Option<String>,
    /// What it may do in namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_role_binding: Option<Vec<RoleAccess>>,
    /// What it may do everywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_cluster_role_binding: Option<Vec<ClusterRoleAccess>>,
}

/// A RoleBinding and what comes of it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RoleAccess {
    /// The RoleBinding, whole.
    #[schemars(schema_with = "free")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role_binding: Option<BTreeMap<String, Value>>,
    /// The rules of its role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<Vec<PolicyRule>>,
}

/// A ClusterRoleBinding and what comes of it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRoleAccess {
    /// The ClusterRoleBinding, whole.
    #[schemars(schema_with = "free")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_role_binding: Option<BTreeMap<String, Value>>,
    /// The rules of its role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<Vec<PolicyRule>>,
}

/// A rule of a role.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRule {
    /// What may be done, such as `get`.
    pub verbs: Vec<String>,
    /// In which API groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_groups: Option<Vec<String>>,
    /// With which resources.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Vec<String>>,
    /// With which of their objects; all if it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_names: Option<Vec<String>>,
    /// With which paths that are no resources.
    #[serde(rename = "nonResourceURLs")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub non_resource_urls: Option<Vec<String>>,
}

/// Who was told.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AccessStatus {
    /// The nodes with pods of the service account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_list: Option<Vec<String>>,
}
