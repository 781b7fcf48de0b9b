//! What a node may do: one pure decision for all parts that act for nodes, and a count of what was refused.
//!
//! A node may read what its pods and devices refer to, and write what is its own: its Node, the status of its pods
//! and devices, events about them, and the pods that stand for its files. The rules are those of Kubernetes' Node
//! authorizer and NodeRestriction admission, applied before the cloud acts with rights of its own. They cannot be
//! switched off, and who asks is always the name in the certificate of the connection.
//!
//! | A node asks | Allowed if | Refused as |
//! |---|---|---|
//! | for a Node | it is its own | `other-node` |
//! | for a Service, or is sent it | pods are told of it, and one of its own is in the namespace and not without links | `not-referenced` |
//! | for any other object, or is sent it | one of its pods or devices is it or refers to it | `not-referenced` |
//! | for a token | for a pod of its own, of this UID, that mounts this token of this account | `other-pod`, `no-such-object`, `token-not-mounted` |
//! | for a serving certificate | CN `system:node:<node>`, O `system:nodes`, signed with its own key; for servers alone; names are the node's own and IP addresses of its Node, the loopback or 169.254.0.0/16 | `certificate-subject`, `certificate-proof`, `certificate-use`, `certificate-names` |
//! | to write a Node | it is its own | `other-node` |
//! | to label or annotate it | as NodeRestriction has it; nobody sets policies for himself | `label`, `annotation` |
//! | to write or end a pod | it is on the node, with this UID | `other-pod`, `no-such-object` |
//! | for a pod to stand for a file | it is on the node, and refers to nothing of the API | `not-a-mirror`, `mirror-elsewhere`, `mirror-wants-more` |
//! | to record an event | it is about the node or a pod of its own, of this UID if it says one | `other-event`, `no-such-object` |
//! | to write a device | the device is on the node, with this UID | `other-device`, `no-such-object` |
//! | anything, and its Node has the annotation `node.kubeedge.io/shut-out` | never | `shut-out` |
//! | to send a message by a rule | the rule begins on the node, or on all | `other-rule` |
//!
//! Leases are renewed by the cloud, for the node that has the session; a node has no words to ask for one. The certificate
//! of the link is asked for before there is a session, and decided by `enrollment`: a node is given its own alone.

#![cfg_attr(
    not(all(feature = "devicecontroller", feature = "edgecontroller", feature = "router")),
    allow(dead_code, reason = "each controller needs a part of it")
)]

mod denial;
mod mirror;
mod node;
#[cfg(feature = "edgecontroller")]
mod serving;
#[cfg(test)]
pub(crate) mod tests;

pub use denial::{Denial, Denials};
#[cfg(feature = "edgecontroller")]
pub(crate) use node::{allowed_members, may_annotate, may_label};
#[cfg(feature = "edgecontroller")]
pub(crate) use serving::Serving;

use kubeedge_core::{
    id::{NodeName, Uid},
    message::{MirrorReport, ObjectRef, TokenRequest},
};
use serde_json::Value;

use crate::controller::Held;

/// What a node asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Action<'a> {
    /// To read the object of this name.
    Read(&'a ObjectRef),
    /// A token of an account.
    Token(&'a TokenRequest),
    /// A certificate for servers on the node; whether its names are the node's own, the Node tells.
    #[cfg(feature = "edgecontroller")]
    Certificate(&'a Serving),
    /// To register, or to write the status of, the Node of this name.
    WriteNode(&'a str),
    /// To write the status of a pod, or to say that it is gone.
    WritePod { pod: &'a ObjectRef, uid: &'a Uid },
    /// That a pod stand in the API, or no longer, for a file of the node.
    Mirror(&'a MirrorReport),
    /// To record this event.
    Record(&'a Value),
    /// To send a message by a rule that begins on this node; without a node it begins on all.
    Send { from: Option<&'a str> },
    /// To write the status of a device.
    WriteDevice { device: &'a ObjectRef, uid: &'a Uid },
}

/// What is on which node, and what it refers to.
pub(crate) trait Graph {
    /// The pod or device of this name, and the node that it is on.
    fn root(&self, reference: &ObjectRef) -> Option<(&Held, &NodeName)>;
    /// Whether something on the node is of this name or refers to it, existing or not; or is told of it, as pods are of
    /// Services.
    fn belongs(&self, node: &NodeName, reference: &ObjectRef) -> bool;
}

/// A graph of nothing, for what is decided without it.
pub(crate) struct Nothing;

impl Graph for Nothing {
    fn root(&self, _: &ObjectRef) -> Option<(&Held, &NodeName)> {
        None
    }

    fn belongs(&self, _: &NodeName, _: &ObjectRef) -> bool {
        false
    }
}

/// Says whether `node` may do this.
pub(crate) fn allows(node: &NodeName, action: Action<'_>, graph: &impl Graph) -> Result<(), Denial> {
    match action {
        Action::Read(reference) if reference.kind() == "Node" && reference.api_version() == "v1" => {
            own_node(node, reference.name())
        }
        Action::Read(reference) if graph.belongs(node, reference) => Ok(()),
        Action::Read(_) => Err(Denial::NotReferenced),
        Action::Token(request) => token(node, request, graph),
        #[cfg(feature = "edgecontroller")]
        Action::Certificate(serving) => serving.check(node),
        Action::WriteNode(name) => own_node(node, name),
        Action::WritePod { pod, uid } => own(node, pod, uid, graph, Denial::OtherPod).map(drop),
        Action::Mirror(report) => mirror::check(node, report),
        Action::Record(event) => record(node, event, graph),
        Action::Send { from } if from.is_none_or(|from| from == node.as_str()) => Ok(()),
        Action::Send { .. } => Err(Denial::OtherRule),
        Action::WriteDevice { device, uid } => own(node, device, uid, graph, Denial::OtherDevice).map(drop),
    }
}

fn own_node(node: &NodeName, name: &str) -> Result<(), Denial> {
    if name == node.as_str() { Ok(()) } else { Err(Denial::OtherNode) }
}

/// The pod or device, if it is the one that is meant and on the node. Whose it is comes first: what another node has
/// is not to be learnt by guessing UIDs.
fn own<'a>(
    node: &NodeName,
    reference: &ObjectRef,
    uid: &Uid,
    graph: &'a impl Graph,
    other: Denial,
) -> Result<&'a Held, Denial> {
    let (object, on) = graph.root(reference).ok_or(Denial::NoSuchObject)?;
    match object {
        _ if on != node => Err(other),
        object if object.uid != *uid => Err(Denial::NoSuchObject),
        object => Ok(object),
    }
}

fn token(node: &NodeName, request: &TokenRequest, graph: &impl Graph) -> Result<(), Denial> {
    let reference = ObjectRef::pod(request.namespace.as_str(), request.pod.as_str());
    let pod = own(node, &reference, &request.pod_uid, graph, Denial::OtherPod)?;
    let json: Value = serde_json::from_slice(&pod.json()).unwrap_or_default();
    if mounts_token(&json["spec"], request) { Ok(()) } else { Err(Denial::TokenNotMounted) }
}

/// Whether a volume of the pod asks for this token.
fn mounts_token(spec: &Value, request: &TokenRequest) -> bool {
    let text = |value: &Value, default: &str| match value.as_str() {
        None | Some("") => default.to_owned(),
        Some(text) => text.to_owned(),
    };
    let mut tokens = items(&spec["volumes"])
        .iter()
        .flat_map(|volume| items(&volume["projected"]["sources"]))
        .map(|source| &source["serviceAccountToken"]);
    text(&spec["serviceAccountName"], "default") == request.service_account
        && tokens.any(|token| {
            // An hour is the API's default.
            let seconds = token["expirationSeconds"].as_u64().unwrap_or(3600);
            token.is_object()
                && text(&token["audience"], "") == request.audience
                && seconds == request.expiration_seconds
        })
}

fn record(node: &NodeName, event: &Value, graph: &impl Graph) -> Result<(), Denial> {
    let about = &event["involvedObject"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (kind, namespace, name) = (text(&about["kind"]), text(&about["namespace"]), text(&about["name"]));
    match kind.as_str() {
        "Pod" => match graph.root(&ObjectRef::pod(namespace.as_str(), name.as_str())) {
            Some((pod, on)) if on == node && event["metadata"]["namespace"] == *namespace => {
                if is_about(pod, &text(&about["uid"])) { Ok(()) } else { Err(Denial::NoSuchObject) }
            }
            Some(_) | None => Err(Denial::OtherEvent),
        },
        "Node" if name == node.as_str() && event["metadata"]["namespace"] == "default" => Ok(()),
        _ => Err(Denial::OtherEvent),
    }
}

/// Whether an event that says this UID is about the pod. A pod that is gone is nobody's, also if another has its name. Events
/// about the pods of a node's files say the UID that these have at the node, as `kubectl describe` looks for them.
fn is_about(pod: &Held, uid: &str) -> bool {
    uid.is_empty() || uid == pod.uid.as_str() || {
        let json: Value = serde_json::from_slice(&pod.json()).unwrap_or_default();
        json["metadata"]["annotations"][mirror::MIRROR] == *uid
    }
}

fn items(list: &Value) -> &[Value] {
    list.as_array().map(Vec::as_slice).unwrap_or_default()
}
