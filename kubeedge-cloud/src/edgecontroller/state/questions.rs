//! What a node may ask for, and which events are its own to record.

use kubeedge_core::{
    id::{NodeName, check_subdomain},
    message::{Answer, FromNode, ObjectRef, Query, TokenRequest, UploadedEvent},
};
use serde_json::Value;

use super::{NODES, State, WATCHED};
use crate::controller::Kind;

/// How a question is answered.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::edgecontroller) enum Plan {
    /// Like this.
    Answer(Answer),
    /// With what the API says of this object.
    Ask(Kind, ObjectRef),
    /// With a token from the API.
    Issue(TokenRequest),
}

impl State {
    /// Decides how a node's question is answered: a node may read itself, its pods and what they refer to.
    pub(in crate::edgecontroller) fn plan(&self, from: &FromNode<Query>) -> Plan {
        let node = &from.node;
        let reference = match &from.message {
            Query::Get(reference) => reference,
            Query::Token(request) => return self.plan_token(node, request),
        };
        if *reference == ObjectRef::node(node.as_str()) {
            return Plan::Ask(NODES, reference.clone());
        }
        if !self.placement.belongs(node, reference) {
            let why = format!("node {node} has no pod that refers to {reference}");
            return Plan::Answer(Answer::Refused(why));
        }
        let known = self.placement.get(reference).cloned();
        let kind = WATCHED.into_iter().find(|kind| kind.kind == reference.kind());
        match (known, kind) {
            (Some(object), _) => Plan::Answer(Answer::Object(object)),
            // Whoever wrote the pod chose the name, and nothing has checked it.
            (None, Some(kind)) if check_subdomain("object name", reference.name()).is_ok() => {
                Plan::Ask(kind, reference.clone())
            }
            (None, _) => Plan::Answer(Answer::NotFound),
        }
    }

    /// A node gets tokens for the pods that are on it, and only such as those pods mount (the API server's
    /// NodeRestriction has the same rule).
    fn plan_token(&self, node: &NodeName, request: &TokenRequest) -> Plan {
        let refused = |why: String| Plan::Answer(Answer::Refused(why));
        let reference = ObjectRef::pod(request.namespace.as_str(), request.pod.as_str());
        let placed = self.placement.root(&reference);
        let Some((pod, _)) = placed.filter(|(pod, on)| *on == node && pod.uid == request.pod_uid) else {
            return refused(format!("node {node} has no {reference} with UID {}", request.pod_uid));
        };
        let json: Value = serde_json::from_slice(&pod.json).unwrap_or_default();
        if mounts_token(&json["spec"], request) {
            Plan::Issue(request.clone())
        } else {
            refused(format!("{reference} mounts no such token of {:?}", request.service_account))
        }
    }

    /// Reads an event that a node recorded, if it is about the node or one of its pods.
    pub(in crate::edgecontroller) fn read_event(
        &self,
        from: &FromNode<UploadedEvent>,
    ) -> Result<Value, String> {
        let mut event: Value =
            serde_json::from_slice(&from.message.json).map_err(|error| format!("it is not JSON: {error}"))?;
        let about = &event["involvedObject"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, namespace, name) = (text(&about["kind"]), text(&about["namespace"]), text(&about["name"]));
        let own = match kind.as_str() {
            "Pod" => {
                let pod = self.placement.root(&ObjectRef::pod(namespace.as_str(), name.as_str()));
                pod.is_some_and(|(_, node)| *node == from.node)
                    && event["metadata"]["namespace"] == *namespace
            }
            "Node" => name == from.node.as_str() && event["metadata"]["namespace"] == "default",
            _ => false,
        };
        if !own {
            return Err(format!("it is about {kind} {namespace}/{name}, which is not of this node"));
        }
        check_subdomain("event name", event["metadata"]["name"].as_str().unwrap_or_default())
            .map_err(|error| error.to_string())?;
        event["apiVersion"] = "v1".into();
        event["kind"] = "Event".into();
        if !event["source"].is_object() {
            event["source"] = Value::Object(serde_json::Map::new());
        }
        event["source"]["host"] = from.node.as_str().into();
        Ok(event)
    }
}

/// Whether a volume of the pod asks for this token.
fn mounts_token(spec: &Value, request: &TokenRequest) -> bool {
    let text = |value: &Value, default: &str| match value.as_str() {
        None | Some("") => default.to_owned(),
        Some(text) => text.to_owned(),
    };
    let items = |list: &Value| list.as_array().cloned().unwrap_or_default();
    let sources =
        items(&spec["volumes"]).into_iter().flat_map(|volume| items(&volume["projected"]["sources"]));
    let mut tokens = sources.map(|mut source| source["serviceAccountToken"].take());
    text(&spec["serviceAccountName"], "default") == request.service_account
        && tokens.any(|token| {
            // An hour is the API's default.
            let seconds = token["expirationSeconds"].as_u64().unwrap_or(3600);
            token.is_object()
                && text(&token["audience"], "") == request.audience
                && seconds == request.expiration_seconds
        })
}
