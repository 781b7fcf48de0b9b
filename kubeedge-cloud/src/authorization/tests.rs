mod graph;
mod mirror;
#[cfg(all(feature = "edgecontroller", feature = "pki"))]
pub(crate) mod serving;

use kubeedge_core::{id::NodeName, message::ObjectRef};
use serde_json::json;

use super::{Denial, Denials, allowed_members, may_annotate, may_label};

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

#[test]
fn a_node_labels_itself_as_the_node_restriction_admission_lets_it() {
    for allowed in [
        "site",
        "example.com/site",
        "kubernetes.io/arch",
        "kubernetes.io/hostname",
        "node-role.kubernetes.io/edge",
        "topology.kubernetes.io/zone",
        "node.kubernetes.io/instance-type",
        "feature.node.kubernetes.io/cpu",
        "kubelet.kubernetes.io/x",
    ] {
        assert!(may_label(allowed), "{allowed}");
    }
    for forbidden in [
        "node-restriction.kubernetes.io/secure",
        "sub.node-restriction.kubernetes.io/secure",
        "node-role.kubernetes.io/control-plane",
        "kubernetes.io/made-up",
        "x.kubernetes.io/y",
        "k8s.io/x",
        "x.k8s.io/y",
        "apps.kubeedge.io/belonging-to",
    ] {
        assert!(!may_label(forbidden), "{forbidden}");
    }
    assert!(may_annotate("example.com/note") && may_annotate("note"));
    assert!(!may_annotate("node.kubeedge.io/autonomy"), "what becomes of its pods is not a node's to say");
}

#[test]
fn a_label_that_a_node_may_not_set_is_left_out_and_counted_and_the_others_stay() {
    let denials = Denials::default();
    let given = json!({ "site": "north", "node-restriction.kubernetes.io/secure": "yes" });
    let kept = allowed_members(&node("edge-1"), &given, may_label, Denial::Label, &denials);
    assert_eq!(kept.into_iter().collect::<Vec<_>>(), [("site".to_owned(), json!("north"))]);
    assert_eq!(denials.of(Denial::Label), 1);
}

#[test]
fn each_denial_has_a_word_and_a_count_of_its_own_and_no_more_memory_than_that() {
    let denials = Denials::default();
    for _ in 0..100_000 {
        denials.note(&node("edge-1"), ObjectRef::node("edge-2"), Denial::OtherNode);
    }
    let counts: Vec<_> = denials.counts().filter(|(_, count)| *count > 0).collect();
    assert_eq!(counts, [(Denial::OtherNode, 100_000)]);
    let mut words: Vec<_> = Denial::ALL.iter().map(|denial| denial.reason()).collect();
    words.sort_unstable();
    words.dedup();
    assert_eq!(words.len(), Denial::ALL.len());
    for (place, denial) in Denial::ALL.into_iter().enumerate() {
        assert_eq!(denial as usize, place, "{denial:?} is counted in its own place");
    }
}
