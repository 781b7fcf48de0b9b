//! `nodeSelector` and the required node affinity.

use super::{Refusal, Room};
use crate::edged::pod::{NodeSelectorTerm, Pod, Requirement};

/// Why the node is not one that the pod wants.
pub(super) fn mismatch(pod: &Pod, room: &Room) -> Option<Refusal> {
    let selected = pod.spec.node_selector.iter().all(|(name, value)| room.labels.get(name) == Some(value));
    let affinity = pod.spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required.as_ref());
    let wanted =
        required.is_none_or(|required| required.node_selector_terms.iter().any(|term| matches(term, room)));
    (!selected || !wanted)
        .then(|| Refusal::predicate("NodeAffinity", "node(s) didn't match Pod's node affinity/selector"))
}

fn matches(term: &NodeSelectorTerm, room: &Room) -> bool {
    // A term without conditions selects nothing.
    let some = !term.match_expressions.is_empty() || !term.match_fields.is_empty();
    let field = |key: &str| (key == "metadata.name").then_some(room.name.as_str());
    some && term.match_expressions.iter().all(|one| holds(one, room.labels.get(&one.key).map(String::as_str)))
        && term.match_fields.iter().all(|one| holds(one, field(&one.key)))
}

/// Whether a label with this value, or an absent one, satisfies the requirement.
fn holds(requirement: &Requirement, label: Option<&str>) -> bool {
    let values = &requirement.values;
    let number = |text: &str| text.parse::<i64>().ok();
    let compare = |test: fn(&i64, &i64) -> bool| match (label.and_then(number), values.as_slice()) {
        (Some(label), [value]) => number(value).is_some_and(|value| test(&label, &value)),
        _ => false,
    };
    match requirement.operator.as_str() {
        "In" => label.is_some_and(|label| values.iter().any(|value| value == label)),
        "NotIn" => label.is_none_or(|label| values.iter().all(|value| value != label)),
        "Exists" => label.is_some(),
        "DoesNotExist" => label.is_none(),
        "Gt" => compare(i64::gt),
        "Lt" => compare(i64::lt),
        _ => false,
    }
}
