//! What a node may ask for, and which events are its own to record.

use kubeedge_core::{
    id::check_subdomain,
    message::{Answer, FromNode, ObjectRef, Query, UploadedEvent},
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
}

impl State {
    /// Decides how a node's question is answered: a node may read itself, its pods and what they refer to.
    pub(in crate::edgecontroller) fn plan(&self, from: &FromNode<Query>) -> Plan {
        let (node, Query::Get(reference)) = (&from.node, &from.message);
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
