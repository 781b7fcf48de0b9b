//! What Kubernetes' node lifecycle controller does with nodes that are not heard of: it taints them, so that nothing
//! is scheduled there, and evicts the pods whose tolerations have ended. A pod that tolerates without end stays.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use super::{
    Inner,
    delete::{self, Deletion},
    failure::Failure,
    json::{at, items, metadata, object, text},
    resource::Resource,
    scheduler::tolerates,
    store::{self, Txn},
    write::{Target, seconds},
};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// Looks at the nodes from time to time, and never ends.
pub(super) async fn run(inner: &Arc<Inner>) {
    let mut ticks = interval(inner.config.node_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let lasts = inner.config.default_toleration;
    loop {
        ticks.tick().await;
        let looked = async {
            if !is_work(inner, Timestamp::now(), lasts)? {
                return Ok(());
            }
            inner.store.write(false, move |txn| turn(txn, lasts)).await
        };
        let looked: Result<(), Failure> = looked.await;
        if let Err(failure) = looked {
            tracing::warn!(%failure, "the nodes cannot be looked after");
        }
    }
}

/// Whether a turn would change something, by a look that costs no write.
fn is_work(inner: &Inner, now: Timestamp, lasts: Duration) -> Result<bool, Failure> {
    let snapshot = inner.store.read()?;
    let (mut tainted, mut work) = (Vec::new(), false);
    snapshot.scan(&store::prefix(Resource::core("nodes"), Some("")), None, |_, node| {
        let node = store::decode(node)?;
        work |= tainted_anew(&node, now).is_some();
        if taint(&node).is_some() {
            tainted.push(node);
        }
        Ok(true)
    })?;
    if work || tainted.is_empty() {
        return Ok(work);
    }
    snapshot.scan(&store::prefix(Resource::core("pods"), None), None, |_, pod| {
        work |= is_due(&store::decode(pod)?, &tainted, now, lasts);
        Ok(!work)
    })?;
    Ok(work)
}

fn turn(txn: &mut Txn<'_, '_>, lasts: Duration) -> Result<(), Failure> {
    let (nodes, now) = (Resource::core("nodes"), txn.now);
    for node in txn.list(nodes, None)? {
        if let Some(node) = tainted_anew(&node, now) {
            txn.put(nodes, node)?;
        }
    }
    let tainted: Vec<Value> =
        txn.list(nodes, None)?.into_iter().filter(|node| taint(node).is_some()).collect();
    for pod in txn.list(Resource::core("pods"), None)? {
        if is_due(&pod, &tainted, now, lasts) {
            evict(txn, &pod);
        }
    }
    Ok(())
}

/// The node with the taints that its state asks for, if it has not got them.
fn tainted_anew(node: &Value, now: Timestamp) -> Option<Value> {
    let conditions = items(node, &["status", "conditions"]);
    let ready = conditions.iter().find(|condition| text(condition, &["type"]) == "Ready");
    let wanted = match ready.map(|ready| text(ready, &["status"])) {
        Some("Unknown") => Some(UNREACHABLE),
        Some("False") => Some(NOT_READY),
        Some(_) | None => None,
    };
    let taints = items(node, &["spec", "taints"]);
    let is_ours = |taint: &Value| [NOT_READY, UNREACHABLE].contains(&text(taint, &["key"]));
    let has = |key: &str, effect: &str| {
        taints.iter().any(|taint| text(taint, &["key"]) == key && text(taint, &["effect"]) == effect)
    };
    let effects = ["NoSchedule", "NoExecute"];
    let right = match wanted {
        Some(key) => effects.iter().all(|effect| has(key, effect)),
        None => !taints.iter().any(is_ours),
    };
    if right {
        return None;
    }
    let mut taints: Vec<Value> = taints.iter().filter(|taint| !is_ours(taint)).cloned().collect();
    if let Some(key) = wanted {
        taints
            .extend(effects.map(|effect| json!({ "key": key, "effect": effect, "timeAdded": seconds(now) })));
    }
    let mut node = node.clone();
    metadata(&mut node);
    object(node.as_object_mut()?, "spec").insert("taints".into(), taints.into());
    Some(node)
}

/// The taint by which pods are evicted from the node.
fn taint(node: &Value) -> Option<&Value> {
    items(node, &["spec", "taints"]).iter().find(|taint| {
        [NOT_READY, UNREACHABLE].contains(&text(taint, &["key"])) && text(taint, &["effect"]) == "NoExecute"
    })
}

/// Whether the pod is on one of the nodes and tolerates that no longer.
fn is_due(pod: &Value, tainted: &[Value], now: Timestamp, lasts: Duration) -> bool {
    let on = text(pod, &["spec", "nodeName"]);
    let going = !text(pod, &["metadata", "deletionTimestamp"]).is_empty();
    let node = tainted.iter().find(|node| text(node, &["metadata", "name"]) == on);
    let Some(taint) = node.and_then(taint).filter(|_| !going) else { return false };
    let tolerations = items(pod, &["spec", "tolerations"]);
    let mut matching =
        tolerations.iter().filter(|one| tolerates(one, text(taint, &["key"]), "", "NoExecute")).peekable();
    let lasts = match matching.peek() {
        // What a cluster's admission would have given it.
        None => Some(lasts),
        Some(_) => matching
            .filter_map(|one| at(one, &["tolerationSeconds"]).and_then(Value::as_i64))
            .min()
            .map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or_default())),
    };
    let since = text(taint, &["timeAdded"]).parse::<Timestamp>().unwrap_or(now);
    lasts.is_some_and(|lasts| since.checked_add(lasts).is_ok_and(|ends| ends <= now))
}

/// Deletes the pod with its own grace: a node that comes back ends it in peace.
fn evict(txn: &mut Txn<'_, '_>, pod: &Value) {
    let [namespace, name] = ["namespace", "name"].map(|member| text(pod, &["metadata", member]).to_owned());
    let target = Target { resource: Resource::core("pods"), namespace, name, status: false };
    let uid = Some(text(pod, &["metadata", "uid"]).to_owned());
    let (namespace, name) = (target.namespace.clone(), target.name.clone());
    match delete::delete(txn, &target, &Deletion { grace: None, uid, version: None }) {
        Ok(_) => tracing::info!(namespace, name, "a pod is evicted: its node is not heard of"),
        Err(failure) => tracing::warn!(%failure, namespace, name, "a pod cannot be evicted"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: &str, taints: &Value) -> Value {
        json!({
            "metadata": { "name": "edge-1" }, "spec": { "taints": taints },
            "status": { "conditions": [{ "type": "Ready", "status": ready }] },
        })
    }

    fn at_second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_node_has_the_taints_of_its_state_and_keeps_those_of_others() {
        let others = json!([{ "key": "site", "effect": "NoSchedule" }]);
        assert_eq!(tainted_anew(&node("True", &others), at_second(0)), None);
        let away = tainted_anew(&node("Unknown", &others), at_second(0)).unwrap();
        let keys: Vec<_> =
            items(&away, &["spec", "taints"]).iter().map(|taint| text(taint, &["key"])).collect();
        assert_eq!(keys, ["site", UNREACHABLE, UNREACHABLE]);
        assert_eq!(tainted_anew(&away, at_second(9)), None, "since when it is away stays");
        let mut back = away.clone();
        back["status"]["conditions"][0]["status"] = "True".into();
        assert_eq!(tainted_anew(&back, at_second(9)).unwrap()["spec"]["taints"], others);
        assert_eq!(tainted_anew(&json!({ "metadata": { "name": "new" } }), at_second(0)), None);
    }

    #[test]
    fn a_pod_goes_when_its_toleration_ends_and_stays_if_that_has_no_end() {
        let away = [tainted_anew(&node("Unknown", &json!([])), at_second(1000)).unwrap()];
        let lasts = Duration::from_secs(300);
        let due = |tolerations: Value, second| {
            let pod = json!({ "spec": { "nodeName": "edge-1", "tolerations": tolerations } });
            is_due(&pod, &away, at_second(second), lasts)
        };
        let of = |seconds: Option<u64>| match seconds {
            Some(seconds) => {
                json!([{ "key": UNREACHABLE, "operator": "Exists", "tolerationSeconds": seconds }])
            }
            None => json!([{ "key": UNREACHABLE, "operator": "Exists" }]),
        };
        assert_eq!([due(json!([]), 1299), due(json!([]), 1300)], [false, true]);
        assert_eq!([due(of(Some(30)), 1029), due(of(Some(30)), 1030)], [false, true]);
        assert!(!due(of(None), 1_000_000));
        let elsewhere = json!({ "spec": { "nodeName": "edge-2" } });
        assert!(!is_due(&elsewhere, &away, at_second(9999), lasts));
    }
}
