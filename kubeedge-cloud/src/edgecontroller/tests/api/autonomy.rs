//! What becomes of the pods of nodes that are away, against an API that evicts as a cluster does.

use super::*;

fn condition<'a>(node: &'a Value, kind: &str) -> &'a Value {
    let conditions = node["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().find(|condition| condition["type"] == kind).unwrap_or(&Value::Null)
}

#[tokio::test]
async fn the_pods_of_a_node_that_is_away_stay_unless_its_policy_is_to_evict_them() {
    let cluster = Cluster::evicting_after(Duration::from_millis(200)).await;
    let mut running = run(cluster.client(), quick());
    for (number, name) in (1..).zip(["edge-1", "edge-2"]) {
        running.session(name, SessionState::Online);
        running.report(name, number, node_report(name));
        running.acked(number).await;
        assert_eq!(
            condition(&cluster.get(NODES, "", name).await.unwrap(), "EdgeLinkReady")["status"],
            "True"
        );
    }
    let evict = json!({ "metadata": { "annotations": { "node.kubeedge.io/autonomy": "evict" } } });
    cluster.merge(NODES, "", "edge-2", &evict).await;
    for name in ["edge-1", "edge-2"] {
        cluster.create(PODS, &pod(name, name, None)).await;
    }
    // The policy is read again with each renewal of the Lease, so that the second pod's tolerations come and go.
    let tolerations =
        async |name: &str| cluster.get(PODS, "default", name).await.unwrap()["spec"]["tolerations"].clone();
    let seconds = |all: &Value| {
        all.as_array().map(|all| all.iter().map(|one| one["tolerationSeconds"].clone()).collect::<Vec<_>>())
    };
    eventually("the first pod is to stay", async || {
        (seconds(&tolerations("edge-1").await) == Some(vec![Value::Null; 2])).then_some(())
    })
    .await;
    eventually("the second pod is not", async || {
        (seconds(&tolerations("edge-2").await) != Some(vec![Value::Null; 2])).then_some(())
    })
    .await;

    for name in ["edge-1", "edge-2"] {
        running.session(name, SessionState::Offline);
        let away = async || {
            let node = cluster.get(NODES, "", name).await.unwrap();
            let taints = node["spec"]["taints"].to_string();
            (condition(&node, "EdgeLinkReady")["status"] == "False" && taints.contains("unreachable"))
                .then_some(node)
        };
        let node = eventually("the node is away and tainted", away).await;
        let link = condition(&node, "EdgeLinkReady");
        let since = link["lastTransitionTime"].as_str().unwrap();
        assert!(link["message"].as_str().unwrap().contains(since), "it says since when: {link}");
    }
    // Seconds that were given back are Kubernetes' 300; here they are shortened to end within the test.
    if seconds(&tolerations("edge-2").await).is_some_and(|all| all.contains(&json!(300))) {
        let short = json!([{ "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": 0 }]);
        cluster.merge(PODS, "default", "edge-2", &json!({ "spec": { "tolerations": short } })).await;
    }
    eventually("the second pod is evicted", async || {
        let pod = cluster.get(PODS, "default", "edge-2").await;
        pod.is_none_or(|pod| pod["metadata"]["deletionTimestamp"].is_string()).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    let stays = cluster.get(PODS, "default", "edge-1").await.unwrap();
    assert!(stays["metadata"]["deletionTimestamp"].is_null(), "{stays}");

    running.session("edge-1", SessionState::Online);
    running.report("edge-1", 3, node_report("edge-1"));
    eventually("the node is back", async || {
        let node = cluster.get(NODES, "", "edge-1").await.unwrap();
        let taints = node["spec"]["taints"].to_string();
        (condition(&node, "EdgeLinkReady")["status"] == "True" && !taints.contains("unreachable"))
            .then_some(())
    })
    .await;
}
