//! What becomes of the pods of a node that is away: they stay, unless its policy says otherwise. Pure.
//!
//! When a node's state is Unknown, Kubernetes' node lifecycle controller taints it, and evicts its pods when their
//! tolerations end: after the 300 seconds that the API's admission gives every pod. A node at the edge may be away for
//! weeks and run all the same, so that these two tolerations are made endless, once for each pod, as KubeEdge's label
//! `app-offline.kubeedge.io=autonomy` does for single pods. Other seconds were chosen by somebody, and stay.

use serde_json::{Value, json};

/// The annotation of a Node that has its policy, and of a pod that was changed by it.
pub(super) const ANNOTATION: &str = "node.kubeedge.io/autonomy";

/// The taints that the node lifecycle controller gives to a node that is not heard of.
const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// What the API's admission plugin DefaultTolerationSeconds gives.
const DEFAULT_SECONDS: u64 = 300;

/// What becomes of the pods of a node while it is away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Policy {
    /// They stay.
    #[default]
    Keep,
    /// They are evicted as Kubernetes does it.
    Evict,
}

impl Policy {
    /// The policy in a Node's annotation; what is not known there is as if it were not there.
    pub(super) fn of(node: &Value) -> Self {
        match node["metadata"]["annotations"][ANNOTATION].as_str() {
            Some("evict") => Self::Evict,
            Some(_) | None => Self::Keep,
        }
    }
}

/// What to merge into a pod so that it is as the policy has it; `None` if it is.
///
/// The API lets nothing be changed of a pod's tolerations but their seconds, and more of them be added.
pub(super) fn patch(pod: &[u8], policy: Policy) -> Option<Value> {
    let pod: Value = serde_json::from_slice(pod).ok()?;
    let metadata = &pod["metadata"];
    let annotations = &metadata["annotations"];
    // Nobody evicts what is going, nor a pod that stands for a file of the node.
    if metadata["deletionTimestamp"].is_string() || annotations["kubernetes.io/config.mirror"].is_string() {
        return None;
    }
    let mut tolerations = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    let (is_kept, mut changed) = (annotations[ANNOTATION] == "keep", false);
    for taint in TAINTS {
        let of_taint = |toleration: &&mut Value| tolerates(toleration, taint);
        let Some(toleration) = tolerations.iter_mut().find(of_taint) else {
            if policy == Policy::Keep {
                tolerations.push(json!({ "key": taint, "operator": "Exists", "effect": "NoExecute" }));
                changed = true;
            }
            continue;
        };
        let seconds = &toleration["tolerationSeconds"];
        if policy == Policy::Keep && *seconds == DEFAULT_SECONDS {
            toleration.as_object_mut()?.remove("tolerationSeconds");
            changed = true;
        } else if policy == Policy::Evict && is_kept && seconds.is_null() {
            toleration["tolerationSeconds"] = DEFAULT_SECONDS.into();
            changed = true;
        }
    }
    let mark = if policy == Policy::Keep { json!("keep") } else { Value::Null };
    changed.then(|| {
        json!({
            "metadata": {
                "uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"],
                "annotations": { ANNOTATION: mark },
            },
            "spec": { "tolerations": tolerations },
        })
    })
}

fn tolerates(toleration: &Value, taint: &str) -> bool {
    let effect = toleration["effect"].as_str().unwrap_or_default();
    let exists = toleration["operator"] == "Exists";
    let key = toleration["key"].as_str().unwrap_or_default();
    // No key and Exists tolerate everything, and taints of this kind have no value.
    matches!(effect, "" | "NoExecute") && (key == taint || (key.is_empty() && exists))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(tolerations: &Value, annotations: &Value) -> Vec<u8> {
        let json = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "default", "name": "web", "uid": "p1", "resourceVersion": "7",
                "annotations": annotations },
            "spec": { "nodeName": "edge-1", "tolerations": tolerations },
        });
        json.to_string().into_bytes()
    }

    fn toleration(taint: &str, seconds: Option<u64>) -> Value {
        let mut toleration = json!({ "key": taint, "operator": "Exists", "effect": "NoExecute" });
        if let Some(seconds) = seconds {
            toleration["tolerationSeconds"] = seconds.into();
        }
        toleration
    }

    fn both(seconds: Option<u64>) -> Value {
        TAINTS.map(|taint| toleration(taint, seconds)).to_vec().into()
    }

    #[test]
    fn the_seconds_that_every_pod_is_given_are_taken_away_and_given_back_when_the_policy_says_so() {
        let given = pod(&both(Some(300)), &json!({}));
        let kept = patch(&given, Policy::Keep).unwrap();
        assert_eq!(kept["spec"]["tolerations"], both(None));
        assert_eq!(kept["metadata"]["uid"], "p1");
        assert_eq!(patch(&given, Policy::Evict), None);
        let kept = pod(&both(None), &json!({ ANNOTATION: "keep" }));
        assert_eq!(patch(&kept, Policy::Keep), None, "once is enough");
        let evicted = patch(&kept, Policy::Evict).unwrap();
        assert_eq!(evicted["spec"]["tolerations"], both(Some(300)));
        assert_eq!(evicted["metadata"]["annotations"], json!({ ANNOTATION: null }));
    }

    #[test]
    fn a_pod_without_tolerations_is_given_endless_ones() {
        assert_eq!(
            patch(&pod(&json!([]), &json!({})), Policy::Keep).unwrap()["spec"]["tolerations"],
            both(None)
        );
        assert_eq!(patch(&pod(&json!([]), &json!({})), Policy::Evict), None);
    }

    #[test]
    fn what_somebody_chose_stays() {
        for chosen in [both(Some(30)), both(None), json!([{ "operator": "Exists" }])] {
            for policy in [Policy::Keep, Policy::Evict] {
                assert_eq!(patch(&pod(&chosen, &json!({})), policy), None, "{chosen} {policy:?}");
            }
        }
        let mirror = json!({ "kubernetes.io/config.mirror": "abc" });
        assert_eq!(patch(&pod(&json!([]), &mirror), Policy::Keep), None);
    }

    #[test]
    fn a_node_keeps_its_pods_unless_its_annotation_says_otherwise() {
        let of = |value: &str| Policy::of(&json!({ "metadata": { "annotations": { ANNOTATION: value } } }));
        assert_eq!(Policy::of(&json!({})), Policy::Keep);
        assert_eq!(of("keep"), Policy::Keep);
        assert_eq!(of("evict"), Policy::Evict);
    }
}
