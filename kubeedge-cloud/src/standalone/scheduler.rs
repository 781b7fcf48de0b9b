//! Chooses a node for each pod that has none.

use std::collections::BTreeMap;

use serde_json::Value;

use super::json::{at, items, text};

/// Chooses among `nodes` the one with the fewest pods that may run `pod`. `pods` counts the pods of each node.
///
/// # Errors
/// Why no node may, in the words of Kubernetes' scheduler.
pub(crate) fn choose<'a>(
    pod: &Value,
    nodes: &'a [Value],
    pods: &BTreeMap<String, usize>,
) -> Result<&'a str, String> {
    let count = |node: &Value| pods.get(text(node, &["metadata", "name"])).copied().unwrap_or_default();
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut best: Option<(usize, &str)> = None;
    for node in nodes {
        match fits(pod, node, count(node)) {
            Ok(()) => {
                let candidate = (count(node), text(node, &["metadata", "name"]));
                best = Some(best.map_or(candidate, |best| best.min(candidate)));
            }
            Err(reason) => *reasons.entry(reason).or_default() += 1,
        }
    }
    best.map(|(_, name)| name).ok_or_else(|| {
        if nodes.is_empty() {
            return "no nodes available to schedule pods".to_owned();
        }
        let reasons: Vec<String> =
            reasons.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        format!("0/{} nodes are available: {}.", nodes.len(), reasons.join(", "))
    })
}

fn fits(pod: &Value, node: &Value, pods: usize) -> Result<(), String> {
    let ready = items(node, &["status", "conditions"])
        .iter()
        .any(|condition| text(condition, &["type"]) == "Ready" && text(condition, &["status"]) == "True");
    if !ready {
        return Err("node(s) were not ready".into());
    }
    if !text(node, &["metadata", "deletionTimestamp"]).is_empty() {
        return Err("node(s) were being deleted".into());
    }
    let tolerations = items(pod, &["spec", "tolerations"]);
    if at(node, &["spec", "unschedulable"]).and_then(Value::as_bool) == Some(true)
        && !tolerations.iter().any(|t| tolerates(t, "node.kubernetes.io/unschedulable", "", "NoSchedule"))
    {
        return Err("node(s) were unschedulable".into());
    }
    for taint in items(node, &["spec", "taints"]) {
        let (key, value, effect) = (text(taint, &["key"]), text(taint, &["value"]), text(taint, &["effect"]));
        let keeps_away = ["NoSchedule", "NoExecute"].contains(&effect);
        if keeps_away && !tolerations.iter().any(|toleration| tolerates(toleration, key, value, effect)) {
            return Err(format!("node(s) had untolerated taint {{{key}: {value}}}"));
        }
    }
    if !selected(pod, node) {
        return Err("node(s) didn't match Pod's node affinity/selector".into());
    }
    let room = match at(node, &["status", "allocatable", "pods"]) {
        Some(Value::String(text)) => text.parse().ok(),
        Some(number) => number.as_u64(),
        None => None,
    };
    if room.is_some_and(|room: u64| pods as u64 >= room) {
        return Err("Too many pods".into());
    }
    Ok(())
}

/// Whether the toleration is of a taint like this.
pub(crate) fn tolerates(toleration: &Value, key: &str, value: &str, effect: &str) -> bool {
    let of = |member| text(toleration, &[member]);
    let same_effect = of("effect").is_empty() || of("effect") == effect;
    let exists = of("operator") == "Exists";
    let same_key = of("key") == key || (of("key").is_empty() && exists);
    same_effect && same_key && (exists || of("value") == value)
}

fn selected(pod: &Value, node: &Value) -> bool {
    let label = |name: &str| at(node, &["metadata", "labels", name]).and_then(Value::as_str);
    let selector = at(pod, &["spec", "nodeSelector"]).and_then(Value::as_object).into_iter().flatten();
    if !selector.into_iter().all(|(name, value)| label(name) == value.as_str()) {
        return false;
    }
    let required = ["spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"];
    let Some(required) = at(pod, &required) else { return true };
    items(required, &["nodeSelectorTerms"]).iter().any(|term| {
        let (labels, fields) = (items(term, &["matchExpressions"]), items(term, &["matchFields"]));
        // A term without conditions selects nothing.
        let some = !labels.is_empty() || !fields.is_empty();
        let name = text(node, &["metadata", "name"]);
        let field = |key: &str| (key == "metadata.name").then_some(name);
        some && labels.iter().all(|e| holds(e, label(text(e, &["key"]))))
            && fields.iter().all(|e| holds(e, field(text(e, &["key"]))))
    })
}

/// Whether a label with this value, or an absent one, satisfies the expression.
fn holds(expression: &Value, label: Option<&str>) -> bool {
    let values: Vec<&str> = items(expression, &["values"]).iter().filter_map(Value::as_str).collect();
    let number = |text: &str| text.parse::<i64>().ok();
    let compare = |test: fn(i64, i64) -> bool| match (label.and_then(number), values.as_slice()) {
        (Some(label), [value]) => number(value).is_some_and(|value| test(label, value)),
        _ => false,
    };
    match text(expression, &["operator"]) {
        "In" => label.is_some_and(|label| values.contains(&label)),
        "NotIn" => label.is_none_or(|label| !values.contains(&label)),
        "Exists" => label.is_some(),
        "DoesNotExist" => label.is_none(),
        "Gt" => compare(|label, value| label > value),
        "Lt" => compare(|label, value| label < value),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, spec: Value) -> Value {
        json!({
            "metadata": { "name": name, "labels": { "zone": name, "cores": "4" } }, "spec": spec,
            "status": { "conditions": [{ "type": "Ready", "status": "True" }], "allocatable": { "pods": "10" } },
        })
    }

    fn chosen(spec: Value, nodes: &[Value], counts: &[(&str, usize)]) -> Result<String, String> {
        let counts = counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        choose(&json!({ "spec": spec }), nodes, &counts).map(str::to_owned)
    }

    #[test]
    fn the_node_with_the_fewest_pods_is_chosen() {
        let nodes = [node("a", json!({})), node("b", json!({})), node("c", json!({}))];
        assert_eq!(chosen(json!({}), &nodes, &[("a", 2), ("b", 1), ("c", 1)]).unwrap(), "b");
        assert_eq!(chosen(json!({}), &nodes, &[("a", 10), ("b", 10), ("c", 9)]).unwrap(), "c");
    }

    #[test]
    fn selectors_and_affinity_narrow_the_choice() {
        let nodes = [node("a", json!({})), node("b", json!({}))];
        assert_eq!(chosen(json!({ "nodeSelector": { "zone": "b" } }), &nodes, &[]).unwrap(), "b");
        let affine = |key: &str, operator: &str, values: Value| {
            let term =
                json!({ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] });
            json!({ "affinity": { "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [term] },
            }}})
        };
        assert_eq!(chosen(affine("zone", "NotIn", json!(["a"])), &nodes, &[]).unwrap(), "b");
        assert_eq!(chosen(affine("cores", "Gt", json!(["3"])), &nodes, &[]).unwrap(), "a");
        assert!(chosen(affine("cores", "Lt", json!(["3"])), &nodes, &[]).is_err());
        assert!(chosen(affine("gpu", "Exists", json!(null)), &nodes, &[]).is_err());
    }

    #[test]
    fn taints_keep_pods_away_that_do_not_tolerate_them() {
        let taint = json!({ "taints": [{ "key": "edge", "value": "x", "effect": "NoSchedule" }] });
        let nodes = [node("a", taint), node("b", json!({ "unschedulable": true }))];
        assert_eq!(
            chosen(json!({}), &nodes, &[]).unwrap_err(),
            "0/2 nodes are available: 1 node(s) had untolerated taint {edge: x}, 1 node(s) were unschedulable."
        );
        for toleration in [json!({ "key": "edge", "value": "x" }), json!({ "operator": "Exists" })] {
            assert!(chosen(json!({ "tolerations": [toleration] }), &nodes, &[]).is_ok());
        }
        let other = json!({ "tolerations": [{ "key": "edge", "value": "y" }] });
        assert!(chosen(other, &nodes, &[]).is_err());
    }

    #[test]
    fn a_node_that_is_not_ready_is_not_chosen() {
        let mut silent = node("a", json!({}));
        silent["status"]["conditions"][0]["status"] = "Unknown".into();
        assert!(chosen(json!({}), &[silent], &[]).is_err());
        assert_eq!(chosen(json!({}), &[], &[]).unwrap_err(), "no nodes available to schedule pods");
    }
}
