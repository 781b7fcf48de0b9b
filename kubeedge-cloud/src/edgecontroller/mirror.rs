//! Pods that a node runs from files of its own: each has a Pod in the API that stands for it, which the cloud
//! creates in the node's place.
//!
//! A node may create no other pods than these, and none that could be given what is not the node's: the rules are
//! those of the NodeRestriction admission.

use bytes::Bytes;
use kubeedge_core::{
    id::{NodeName, Uid, check_subdomain},
    message::{MirrorReport, Object, ObjectRef},
};
use serde_json::{Map, Value, json};

use super::{
    references,
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

/// Reads what a node reports, and takes of it what it may ask for.
pub(super) fn check(node: &NodeName, report: &MirrorReport) -> Result<Mirror, &'static str> {
    let MirrorReport { reference, pod } = report;
    let own = reference.name().strip_suffix(node.as_str()).is_some_and(|name| name.ends_with('-'));
    if reference.kind() != "Pod" || !own {
        return Err("only a pod whose name ends with the node's may stand for one of its files");
    }
    let names = [("namespace", reference.namespace()), ("pod name", reference.name())];
    if names.iter().any(|(what, name)| check_subdomain(what, name).is_err()) {
        return Err("its name is none that Kubernetes takes");
    }
    let pod = pod.as_ref().map(|json| check_pod(node, reference, json)).transpose()?;
    Ok(Mirror { reference: reference.clone(), pod })
}

fn check_pod(node: &NodeName, reference: &ObjectRef, json: &Bytes) -> Result<Value, &'static str> {
    let pod: Value = serde_json::from_slice(json).map_err(|_| "it is not JSON")?;
    let metadata = &pod["metadata"];
    if metadata["name"] != reference.name() || metadata["namespace"] != reference.namespace() {
        return Err("it has another name than it is reported under");
    }
    if metadata["annotations"][MIRROR].as_str().is_none_or(str::is_empty) {
        return Err("it lacks the annotation kubernetes.io/config.mirror");
    }
    let spec = &pod["spec"];
    if spec["nodeName"] != node.as_str() {
        return Err("it is not on the node that reports it");
    }
    if ["serviceAccountName", "serviceAccount"]
        .iter()
        .any(|member| spec[member].as_str().is_some_and(|s| !s.is_empty()))
    {
        return Err("a pod of a file cannot have a service account");
    }
    let object = Object::from_json(json.clone()).map_err(|_| "it is no Pod")?;
    if !references::place(&object).references.is_empty() || wants_more(spec) {
        return Err("a pod of a file cannot refer to Secrets, ConfigMaps, claims or tokens");
    }
    let kept = ["name", "namespace", "labels", "annotations"];
    let kept = kept.iter().filter(|member| !metadata[**member].is_null());
    let kept: Map<_, _> = kept.map(|member| ((*member).to_owned(), metadata[*member].clone())).collect();
    Ok(json!({ "apiVersion": "v1", "kind": "Pod", "metadata": kept, "spec": spec }))
}

/// Whether a volume is made of an object of the API, or of a token.
fn wants_more(spec: &Value) -> bool {
    let items = |list: &Value| list.as_array().cloned().unwrap_or_default();
    let claims = !items(&spec["resourceClaims"]).is_empty();
    claims
        || items(&spec["volumes"]).iter().any(|volume| {
            let token = |source: &Value| {
                !source["serviceAccountToken"].is_null() || !source["clusterTrustBundle"].is_null()
            };
            !volume["persistentVolumeClaim"].is_null()
                || !volume["ephemeral"].is_null()
                || items(&volume["projected"]["sources"]).iter().any(token)
        })
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

    fn report(name: &str, pod: &Value) -> MirrorReport {
        let pod = Some(Bytes::from(pod.to_string()));
        MirrorReport { reference: ObjectRef::pod("default", name), pod }
    }

    fn pod(change: impl FnOnce(&mut Value)) -> Value {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "web-edge-1", "namespace": "default", "uid": "forged", "labels": { "app": "web" },
                "annotations": { MIRROR: "abc" }, "ownerReferences": [{ "name": "forged" }] },
            "spec": { "nodeName": "edge-1", "containers": [{ "name": "app", "image": "app:1" }] },
            "status": { "phase": "Running" },
        });
        change(&mut pod);
        pod
    }

    #[test]
    fn a_node_may_ask_for_what_stands_for_its_own_pods_and_nothing_is_believed_besides() {
        let node: NodeName = "edge-1".parse().unwrap();
        let mirror = check(&node, &report("web-edge-1", &pod(|_| {}))).unwrap();
        let expected = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "web-edge-1", "namespace": "default", "labels": { "app": "web" },
                "annotations": { MIRROR: "abc" } },
            "spec": { "nodeName": "edge-1", "containers": [{ "name": "app", "image": "app:1" }] },
        });
        assert_eq!(mirror.pod, Some(expected));
        let gone = MirrorReport { reference: ObjectRef::pod("default", "web-edge-1"), pod: None };
        assert_eq!(check(&node, &gone).unwrap().pod, None);
    }

    #[test]
    fn a_node_cannot_create_pods_that_are_not_its_own_or_could_be_given_what_is_not() {
        let node: NodeName = "edge-1".parse().unwrap();
        for (name, pod) in [
            ("web", pod(|_| {})),
            ("web-edge-2", pod(|_| {})),
            ("-edge-1", pod(|_| {})),
            ("other-edge-1", pod(|_| {})),
            ("web-edge-1", pod(|pod| pod["metadata"]["annotations"] = json!({}))),
            ("web-edge-1", pod(|pod| pod["metadata"]["namespace"] = json!("kube-system"))),
            ("web-edge-1", pod(|pod| pod["spec"]["nodeName"] = json!("edge-2"))),
            ("web-edge-1", pod(|pod| pod["spec"]["serviceAccountName"] = json!("admin"))),
            (
                "web-edge-1",
                pod(|pod| pod["spec"]["volumes"] = json!([{ "secret": { "secretName": "keys" } }])),
            ),
            (
                "web-edge-1",
                pod(|pod| {
                    pod["spec"]["volumes"] = json!([{ "persistentVolumeClaim": { "claimName": "c" } }])
                }),
            ),
            (
                "web-edge-1",
                pod(|pod| {
                    pod["spec"]["volumes"] =
                        json!([{ "projected": { "sources": [{ "serviceAccountToken": {} }] } }])
                }),
            ),
            (
                "web-edge-1",
                pod(|pod| {
                    pod["spec"]["containers"][0]["envFrom"] = json!([{ "configMapRef": { "name": "c" } }])
                }),
            ),
        ] {
            assert!(check(&node, &report(name, &pod)).is_err(), "{name} {pod}");
        }
        let mut other = report("web-edge-1", &json!("no object"));
        assert!(check(&node, &other).is_err());
        other.pod = Some("{".into());
        assert!(check(&node, &other).is_err());
    }
}
