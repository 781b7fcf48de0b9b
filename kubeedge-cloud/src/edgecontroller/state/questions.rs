//! What a node may ask for, and which events are its own to record.

use kubeedge_core::{
    id::{NodeName, check_subdomain},
    message::{Answer, CertificateRequest, FromNode, ObjectRef, Query, TokenRequest, UploadedEvent},
};
use serde_json::{Value, json};
use std::fmt::Display;

use super::{NODES, State, WATCHED, fetches::is_name};
use crate::{
    authorization::{Action, Denial, Serving},
    controller::Kind,
};

/// How a question is answered.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::edgecontroller) enum Plan {
    /// Like this.
    Answer(Answer),
    /// With what the API says of this object.
    Ask(Kind, ObjectRef),
    /// With a token from the API.
    Issue(TokenRequest),
    /// With the node's request for a certificate, as it stands in the API then.
    Certify(Box<Serving>),
}

impl State {
    /// Decides how a node's question is answered: a node may read itself, its pods and what they refer to.
    pub(in crate::edgecontroller) fn plan(&self, from: &FromNode<Query>) -> Plan {
        let node = &from.node;
        let reference = match &from.message {
            Query::Get(reference) => reference,
            Query::Token(request) => return self.plan_token(node, request),
            Query::Certificate(request) => return self.plan_certificate(node, request),
        };
        if let Err(denial) = self.judged(node, Action::Read(reference)) {
            return self.refuse(node, reference, denial);
        }
        if *reference == ObjectRef::node(node.as_str()) {
            return Plan::Ask(NODES, reference.clone());
        }
        let known = self.placement.get(reference);
        let kind = WATCHED.into_iter().find(|kind| kind.kind == reference.kind());
        match (known, kind) {
            (Some(object), _) => Plan::Answer(Answer::Object(object)),
            // Whoever wrote the pod, or the volume, chose the names, and nothing has checked them.
            (None, Some(kind)) if is_name(reference) => Plan::Ask(kind, reference.clone()),
            (None, _) => Plan::Answer(Answer::NotFound),
        }
    }

    fn plan_token(&self, node: &NodeName, request: &TokenRequest) -> Plan {
        match self.judged(node, Action::Token(request)) {
            Ok(()) => Plan::Issue(request.clone()),
            Err(denial) => {
                let what = format!("a token of {}/{}", request.namespace, request.service_account);
                self.refuse(node, &what, denial)
            }
        }
    }

    fn plan_certificate(&self, node: &NodeName, request: &CertificateRequest) -> Plan {
        let serving = Serving::read(&request.pkcs10).and_then(|serving| {
            self.judged(node, Action::Certificate(&serving))?;
            Ok(Plan::Certify(Box::new(serving)))
        });
        serving.unwrap_or_else(|denial| self.refuse(node, &"a certificate", denial))
    }

    fn refuse(&self, node: &NodeName, what: &impl Display, denial: Denial) -> Plan {
        self.denials.note(node, what, denial);
        Plan::Answer(Answer::Refused(format!("node {node} may not have {what}: {denial}")))
    }

    /// Reads an event that a node recorded, if it is about the node or one of its pods.
    pub(in crate::edgecontroller) fn read_event(
        &self,
        from: &FromNode<UploadedEvent>,
    ) -> Result<Value, String> {
        let event: Result<Value, _> = serde_json::from_slice(&from.message.json);
        let allowed = match &event {
            Ok(event) => self.judged(&from.node, Action::Record(event)),
            Err(_) => Err(Denial::Unreadable),
        };
        if let Err(denial) = allowed {
            self.denials.note(&from.node, "an event", denial);
            return Err(denial.to_string());
        }
        let mut event = event.map_err(|error| error.to_string())?;
        check_subdomain("event name", event["metadata"]["name"].as_str().unwrap_or_default())
            .map_err(|error| error.to_string())?;
        // Owners and finalizers would bind others to what a node records.
        let kept = |member: &str| event["metadata"][member].clone();
        event["metadata"] = json!({ "name": kept("name"), "namespace": kept("namespace") });
        event["apiVersion"] = "v1".into();
        event["kind"] = "Event".into();
        if !event["source"].is_object() {
            event["source"] = Value::Object(serde_json::Map::new());
        }
        event["source"]["host"] = from.node.as_str().into();
        Ok(event)
    }
}
