//! Pods that a node runs from files of its own: each has a Pod in the API that stands for it, which the cloud
//! creates in the node's place. What a node may ask for here is said in [`crate::authorization`].

use bytes::Bytes;
use kubeedge_core::{
    id::{NodeName, Uid},
    message::{MirrorReport, ObjectRef},
};
use serde_json::{Map, Value, json};

use super::{
    requests::{node_place, place},
    state::PODS,
};
use crate::controller::{
    Outcome,
    api::{Api, Error},
};

/// The annotation that makes a Pod one that stands for another; its value is the other's hash.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What should be in the API under this name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mirror {
    reference: ObjectRef,
    pod: Option<Value>,
}

/// Takes of what a node reports and may ask for what it has to say: nothing is believed besides.
pub(super) fn read(report: &MirrorReport) -> Mirror {
    Mirror { reference: report.reference.clone(), pod: report.pod.as_ref().map(read_pod) }
}

fn read_pod(json: &Bytes) -> Value {
    let pod: Value = serde_json::from_slice(json).unwrap_or_default();
    let metadata = &pod["metadata"];
    let kept = ["name", "namespace", "labels", "annotations"];
    let kept = kept.iter().filter(|member| !metadata[**member].is_null());
    let kept: Map<_, _> = kept.map(|member| ((*member).to_owned(), metadata[*member].clone())).collect();
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": kept, "spec": pod["spec"] })
}

/// Brings the API to what it should have.
pub(super) async fn write(api: &Api, node: &NodeName, mirror: &Mirror) -> Outcome {
    match bring(api, node, mirror).await {
        Ok(outcome) => outcome,
        // The Node, or the namespace, will exist later.
        Err(error) if error.is_missing() => Outcome::Retry(error.to_string()),
        Err(error) => error.into(),
    }
}

async fn bring(api: &Api, node: &NodeName, mirror: &Mirror) -> Result<Outcome, Error> {
    let at = place(PODS, &mirror.reference);
    let existing = match api.value(at).await {
        Err(error) if error.is_missing() => None,
        other => Some(other?),
    };
    if let Some(existing) = &existing {
        let annotation = &existing["metadata"]["annotations"][MIRROR];
        if existing["spec"]["nodeName"] != node.as_str() || !annotation.is_string() {
            let why = format!("{} exists, and does not stand for a pod of this node", mirror.reference);
            return Ok(Outcome::Refused(why));
        }
        let wanted = mirror.pod.as_ref().map(|pod| &pod["metadata"]["annotations"][MIRROR]);
        if wanted == Some(annotation) && existing["metadata"]["deletionTimestamp"].is_null() {
            return Ok(Outcome::Done);
        }
        let uid = Uid::new(existing["metadata"]["uid"].as_str().unwrap_or_default());
        match api.delete(at, &uid).await {
            Err(error) if error.is_missing() => {}
            other => other?,
        }
    }
    let Some(pod) = &mirror.pod else { return Ok(Outcome::Done) };
    let owner = api.get(node_place(node)).await?;
    let mut pod = pod.clone();
    // With its Node it goes too.
    pod["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "v1", "kind": "Node", "name": node.as_str(), "uid": owner.uid.as_str(), "controller": true,
    }]);
    api.create(at, &pod).await?;
    tracing::info!(%node, pod = %mirror.reference, "a pod of a file of the node stands in the API");
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_reported_pod_is_believed_but_what_it_is_made_of() {
        let spec = json!({ "nodeName": "edge-1", "containers": [{ "name": "app", "image": "app:1" }] });
        let metadata = json!({
            "name": "web-edge-1", "namespace": "default", "labels": { "app": "web" }, "annotations": { MIRROR: "abc" },
        });
        let mut reported = json!({ "metadata": metadata, "spec": spec, "status": { "phase": "Running" } });
        reported["metadata"]["uid"] = json!("forged");
        reported["metadata"]["ownerReferences"] = json!([{ "name": "forged" }]);
        let reference = ObjectRef::pod("default", "web-edge-1");
        let report = MirrorReport { reference: reference.clone(), pod: Some(reported.to_string().into()) };
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec });
        assert_eq!(read(&report), Mirror { reference, pod: Some(pod) });
    }
}
