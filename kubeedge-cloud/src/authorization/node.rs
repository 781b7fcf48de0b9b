//! What a node may say of its own Node.

use serde_json::{Map, Value};

use super::{Denial, Denials};
use kubeedge_core::id::NodeName;

/// The members of labels or annotations that the node may set; the others are counted and left out, since a node must
/// not lose its status over one of them.
pub(crate) fn allowed_members(
    node: &NodeName,
    members: &Value,
    may: fn(&str) -> bool,
    denial: Denial,
    denials: &Denials,
) -> Map<String, Value> {
    let mut members = members.as_object().cloned().unwrap_or_default();
    members.retain(|name, _| {
        let allowed = may(name);
        if !allowed {
            denials.note(node, name, denial);
        }
        allowed
    });
    members
}

/// Whether a node may set this label on itself: as the NodeRestriction admission has it, so that a node cannot
/// draw pods to itself that were meant for others; besides them KubeEdge's own roles.
pub(crate) fn may_label(label: &str) -> bool {
    let (prefix, name) = label.split_once('/').unwrap_or(("", label));
    let of = |domain: &str| prefix == domain || prefix.strip_suffix(domain).is_some_and(|p| p.ends_with('.'));
    match prefix {
        "node-role.kubernetes.io" => matches!(name, "edge" | "agent"),
        "kubernetes.io" | "beta.kubernetes.io" => {
            matches!(name, "hostname" | "arch" | "os" | "instance-type")
        }
        "topology.kubernetes.io" | "failure-domain.beta.kubernetes.io" => matches!(name, "region" | "zone"),
        _ if of("node.kubernetes.io") || of("kubelet.kubernetes.io") => true,
        // A group of nodes is chosen in the cloud, by KubeEdge's NodeGroup.
        _ => !of("kubernetes.io") && !of("k8s.io") && !of("apps.kubeedge.io"),
    }
}

/// Whether a node may set this annotation on itself. What becomes of its pods is decided in the cloud.
pub(crate) fn may_annotate(annotation: &str) -> bool {
    annotation.split_once('/').is_none_or(|(prefix, _)| prefix != "node.kubeedge.io")
}
