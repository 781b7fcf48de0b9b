//! `reliablesyncs.kubeedge.io/v1alpha1`: what KubeEdge's own cloud notes of each object that a node has. This
//! cloud keeps no such books, and leaves those of another alone.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// Which object is meant.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "reliablesyncs.kubeedge.io",
    version = "v1alpha1",
    kind = "ObjectSync",
    plural = "objectsyncs",
    namespaced,
    status = "SyncStatus",
    doc = "The version of a namespaced object that a node has."
)]
#[serde(rename_all = "camelCase")]
pub struct ObjectSyncSpec {
    /// The object's group and version.
    #[serde(rename = "objectAPIVersion")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_api_version: Option<String>,
    /// Its kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_kind: Option<String>,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_name: Option<String>,
}

/// Which object is meant.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "reliablesyncs.kubeedge.io",
    version = "v1alpha1",
    kind = "ClusterObjectSync",
    plural = "clusterobjectsyncs",
    status = "SyncStatus",
    doc = "The version of a cluster-scoped object that a node has."
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterObjectSyncSpec {
    /// The object's group and version.
    #[serde(rename = "objectAPIVersion")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_api_version: Option<String>,
    /// Its kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_kind: Option<String>,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_name: Option<String>,
}

/// What the node has.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SyncStatus {
    /// The object's version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_resource_version: Option<String>,
}
