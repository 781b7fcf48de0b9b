//! What the Lease of a node says of the cloud that has the node's session, when several serve one API. Pure.

use kubeedge_core::id::NodeName;
use serde_json::Value;

use super::{Kind, api::Place};

/// Leases.
pub(crate) const LEASES: Kind =
    Kind { api_version: "coordination.k8s.io/v1", kind: "Lease", plural: "leases", optional: false };

/// Where the Leases of nodes are (KEP-589).
pub(crate) const NAMESPACE: &str = "kube-node-lease";

/// Names the cloud that has the node's session.
pub(crate) const OWNER: &str = "kubeedge.io/cloud";

/// Where other clouds reach that cloud: host and port.
pub(crate) const ADDRESS: &str = "kubeedge.io/cloud-address";

/// Where the node's Lease is.
pub(crate) fn place(node: &NodeName) -> Place<'_> {
    Place { kind: LEASES, namespace: NAMESPACE, name: node.as_str() }
}

/// The cloud that has the node's session; empty if none is named.
pub(crate) fn owner(lease: &Value) -> &str {
    annotation(lease, OWNER)
}

/// Where that cloud is reached; empty if it does not say so.
pub(crate) fn address(lease: &Value) -> &str {
    annotation(lease, ADDRESS)
}

fn annotation<'a>(lease: &'a Value, name: &str) -> &'a str {
    lease["metadata"]["annotations"][name].as_str().unwrap_or_default()
}
