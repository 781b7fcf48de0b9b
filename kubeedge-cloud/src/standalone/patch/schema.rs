//! Which lists of Kubernetes' own kinds are lists of named items.
//!
//! The name of the member decides, because among the kinds that are served here no two members of one name
//! differ, but for `ports`: see [`merge_key`]. The facts are those of `x-kubernetes-patch-merge-key` and `x-kubernetes-list-map-keys` in
//! Kubernetes' OpenAPI document.

use serde_json::Value;

/// How a list is merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum List {
    /// As one value.
    Atomic,
    /// As a set of plain values.
    Set,
    /// Item by item.
    Map {
        /// The member that a strategic merge patch compares.
        merge_key: &'static str,
        /// The members that together name an item in a server-side apply, each with what an absent one means.
        keys: &'static [(&'static str, Option<&'static str>)],
    },
}

/// How the list in the member of this name is merged.
pub(super) fn list(member: &str) -> List {
    let map = |merge_key, keys| List::Map { merge_key, keys };
    match member {
        "finalizers" => List::Set,
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "volumes"
        | "env"
        | "imagePullSecrets"
        | "resourceClaims"
        | "schedulingGates"
        | "secrets" => map("name", &[("name", None)]),
        "ports" => map("containerPort", &[("containerPort", None), ("protocol", Some("TCP"))]),
        "volumeMounts" => map("mountPath", &[("mountPath", None)]),
        "volumeDevices" => map("devicePath", &[("devicePath", None)]),
        "conditions" | "addresses" => map("type", &[("type", None)]),
        "taints" => map("key", &[("key", None), ("effect", None)]),
        "ownerReferences" => map("uid", &[("uid", None)]),
        "hostAliases" | "podIPs" => map("ip", &[("ip", None)]),
        "topologySpreadConstraints" => {
            map("topologyKey", &[("topologyKey", None), ("whenUnsatisfiable", None)])
        }
        _ => List::Atomic,
    }
}

/// The member that a strategic merge patch compares in this list, if it is a list of named items. The ports of a Service have
/// another than those of a container, and are told by having it.
pub(super) fn merge_key(member: &str, items: &[Value]) -> Option<&'static str> {
    match list(member) {
        List::Map { .. } if member == "ports" && items.iter().any(|item| item.get("port").is_some()) => {
            Some("port")
        }
        List::Map { merge_key, .. } => Some(merge_key),
        List::Set | List::Atomic => None,
    }
}
