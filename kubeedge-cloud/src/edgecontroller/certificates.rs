//! Certificates by which servers on a node are known: one CertificateSigningRequest for each node that asks.
//!
//! The object has the name that KubeEdge gives it, and belongs to the node: what is there under the name is the node's
//! request, or gives way to it. Whoever has denied a request is not overruled, as long as the object is there.

use kubeedge_core::{
    id::{NodeName, Uid},
    message::Answer,
};
use serde_json::{Value, json};

use super::{requests::node_place, state::CERTIFICATES};
use crate::{
    authorization::{Denials, Serving},
    controller::api::{Api, Error, Place},
};

/// Who signs: kube-controller-manager, for servers on nodes.
const SIGNER: &str = "kubernetes.io/kubelet-serving";

/// How often the object is looked at for one question: three writes and the look after the last, and as many again if
/// others change it meanwhile.
const LOOKS: usize = 8;

/// What to do about the object that there is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing: it is approved, and may be signed.
    Answer,
    /// Say that it was denied, with the reason.
    Refuse(String),
    /// Delete it, since it is another request; then create the node's.
    Replace(Uid),
    /// Approve it by this patch.
    Approve(Value),
}

/// Sees to it that the node's request is in the API and approved, and answers with it.
pub(super) async fn certify(api: &Api, node: &NodeName, serving: &Serving, denials: &Denials) -> Answer {
    match api.value(node_place(node)).await {
        Ok(object) => {
            if let Err(denial) = serving.check_names(node, &object) {
                denials.note(node, "a certificate", denial);
                return Answer::Refused(format!("node {node} may not have a certificate: {denial}"));
            }
        }
        Err(error) => return Answer::Refused(format!("the addresses of node {node} are not known: {error}")),
    }
    let name = name(node);
    let place = Place { kind: CERTIFICATES, namespace: "", name: &name };
    let wanted = wanted(node, serving);
    for _ in 0..LOOKS {
        match attempt(api, place, node, &wanted).await {
            Ok(Some(answer)) => return answer,
            Ok(None) => {}
            // Somebody else was faster.
            Err(error) if error.is_conflict() || error.is_missing() => {}
            Err(error) => return Answer::Refused(error.to_string()),
        }
    }
    Answer::Refused(format!("{name} is changed by others again and again"))
}

/// Makes the next step, and answers if there is none left.
async fn attempt(
    api: &Api,
    place: Place<'_>,
    node: &NodeName,
    wanted: &Value,
) -> Result<Option<Answer>, Error> {
    let found = match api.get(place).await {
        Err(error) if error.is_missing() => {
            api.create(place, wanted).await?;
            return Ok(None);
        }
        found => found?,
    };
    match step(&serde_json::from_slice(&found.json)?, wanted, node) {
        Step::Answer => return Ok(Some(Answer::Object(found))),
        Step::Refuse(why) => return Ok(Some(Answer::Refused(why))),
        Step::Replace(uid) => api.delete(place, &uid).await?,
        Step::Approve(patch) => drop(api.merge(place, "approval", &patch).await?),
    }
    Ok(None)
}

/// The name of the node's object, as KubeEdge's MetaServer calls it.
pub(super) fn name(node: &NodeName) -> String {
    format!("metaserver-csr-{node}")
}

/// The node's object.
pub(super) fn wanted(node: &NodeName, serving: &Serving) -> Value {
    json!({
        "apiVersion": CERTIFICATES.api_version,
        "kind": CERTIFICATES.kind,
        "metadata": { "name": name(node) },
        "spec": {
            "request": serving.encoded(),
            "signerName": SIGNER,
            "usages": serving.usages(),
        },
    })
}

/// Compares what there is with what the node asks for.
pub(super) fn step(found: &Value, wanted: &Value, node: &NodeName) -> Step {
    let conditions = found["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let condition = |of: &str| conditions.iter().find(|condition| condition["type"] == of);
    if let Some(denied) = condition("Denied") {
        let why = denied["message"].as_str().unwrap_or_default();
        return Step::Refuse(format!("the request {} was denied: {why}", name(node)));
    }
    let differs = |member: &str| found["spec"][member] != wanted["spec"][member];
    if ["request", "signerName", "usages"].into_iter().any(differs) {
        return Step::Replace(Uid::new(found["metadata"]["uid"].as_str().unwrap_or_default()));
    }
    if condition("Approved").or_else(|| condition("Failed")).is_some() {
        return Step::Answer;
    }
    let approved = json!({
        "type": "Approved",
        "status": "True",
        "reason": "KubeEdgeNodeServing",
        "message": format!("cloudcore approves it: node {node} has asked over its own link, for its own name and addresses"),
    });
    let conditions: Vec<_> = conditions.iter().chain([&approved]).collect();
    // Approved is what was looked at, and nothing that came in its place.
    let version = &found["metadata"]["resourceVersion"];
    Step::Approve(json!({
        "metadata": { "resourceVersion": version, "uid": found["metadata"]["uid"] },
        "status": { "conditions": conditions },
    }))
}
