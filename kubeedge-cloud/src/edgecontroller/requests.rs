//! How each write is made to the API.

use jiff::Timestamp;
use kubeedge_core::{
    id::{NodeName, Uid},
    message::{Answer, Object, ObjectRef, Token, TokenRequest},
};
use serde_json::{Value, json};

use super::{
    Config, mirror, ownership,
    state::{Job, NODES, PODS, SERVICE_ACCOUNTS, Write, Written},
    status,
};
use crate::{
    authorization::Denials,
    controller::{
        Kind, Outcome,
        api::{Api, Error, Place},
    },
};

/// Makes a write about a node.
pub(super) async fn write(api: &Api, job: &Job, denials: &Denials, config: &Config) -> Written {
    if !job.is_offline {
        return Written::Tried(make(api, &job.key.0, &job.write, denials, config).await);
    }
    let stale = match &job.write {
        Write::Away { stale, .. } => stale.as_deref(),
        // However long ago the other cloud has had the node: it was told newer things.
        Write::Node(..) | Write::PodStatus { .. } | Write::PodGone { .. } | Write::Mirror(_) => None,
    };
    match ownership::elsewhere(api, &job.key.0, config).await {
        Ok(Some(version)) if stale != Some(&version) => Written::Elsewhere(version),
        Ok(_) => Written::Tried(make(api, &job.key.0, &job.write, denials, config).await),
        Err(error) => Written::Tried(error.into()),
    }
}

async fn make(api: &Api, node: &NodeName, write: &Write, denials: &Denials, config: &Config) -> Outcome {
    let written = match write {
        Write::Node(report, clock) => match status::read_node(&report.json, node, denials) {
            Ok(mut report) => {
                if let Some(port) = config.kubelet_port {
                    report["status"]["daemonEndpoints"] = json!({ "kubeletEndpoint": { "Port": port } });
                }
                let seen = config.bounds().conditions(*clock, &report);
                write_node(api, node, &report, &seen).await
            }
            Err(why) => return Outcome::Refused(why),
        },
        Write::Away { since, .. } => write_away(api, node, *since).await,
        Write::PodStatus { pod, report, status } => {
            let existing: Value = serde_json::from_slice(&pod.json).unwrap_or_default();
            match status::pod_status(&existing, &report.uid, status, Timestamp::now()) {
                Ok(patch) => api.merge(place(PODS, &report.reference), "status", &patch).await.map(drop),
                Err(why) => return Outcome::Refused(why),
            }
        }
        Write::Mirror(mirror) => return mirror::write(api, node, mirror).await,
        Write::PodGone { pod, uid, known_deleting } => delete_pod(api, pod, uid, *known_deleting).await,
    };
    match (written, write) {
        (Ok(()), _) => Outcome::Done,
        // What is gone needs no status and no deleting; a Node that is missing is created at the next attempt.
        (Err(error), Write::Away { .. } | Write::PodStatus { .. } | Write::PodGone { .. })
            if error.is_missing() =>
        {
            Outcome::Done
        }
        (Err(error), Write::Node(..)) if error.is_missing() => Outcome::Retry(error.to_string()),
        (Err(error), _) => error.into(),
    }
}

/// How often a Node is compared again at once that somebody else has changed meanwhile: a new one is changed several times by
/// the controllers of a cluster.
const CONFLICTS: u32 = 3;

async fn write_node(api: &Api, node: &NodeName, report: &Value, seen: &[Value]) -> Result<(), Error> {
    for _ in 0..CONFLICTS {
        match try_write_node(api, node, report, seen).await {
            Err(error) if error.is_conflict() => {}
            other => return other,
        }
    }
    try_write_node(api, node, report, seen).await
}

async fn try_write_node(api: &Api, node: &NodeName, report: &Value, seen: &[Value]) -> Result<(), Error> {
    let place = node_place(node);
    let mut existing = match api.value(place).await {
        Err(error) if error.is_missing() => {
            tracing::info!(%node, "registering the node");
            api.create(place, &status::node_to_create(report, node)).await?
        }
        other => other?,
    };
    if let Some(patch) = status::node_metadata(&existing, report) {
        existing = api.merge(place, "", &patch).await?.value()?;
    }
    if let Some(patch) = status::node_status(&existing, report, seen, Timestamp::now()) {
        api.merge(place, "status", &patch).await?;
    }
    Ok(())
}

async fn write_away(api: &Api, node: &NodeName, since: Timestamp) -> Result<(), Error> {
    let place = node_place(node);
    let existing = api.value(place).await?;
    if let Some(patch) = status::node_away(&existing, since, Timestamp::now()) {
        tracing::info!(%node, %since, "the node is away: its state is set to Unknown, its pods stay");
        api.merge(place, "status", &patch).await?;
    }
    Ok(())
}

/// Merges a patch into a pod. Who may not change pods does without.
pub(super) async fn merge_pod(api: &Api, pod: &ObjectRef, patch: &Value) -> Outcome {
    match api.merge(place(PODS, pod), "", patch).await {
        Err(error) if error.code() == Some(403) => Outcome::Refused(error.to_string()),
        Err(error) if error.is_missing() => Outcome::Done,
        other => other.map_or_else(Outcome::from, |_| Outcome::Done),
    }
}

async fn delete_pod(api: &Api, pod: &ObjectRef, uid: &Uid, known_deleting: bool) -> Result<(), Error> {
    if known_deleting || is_deleting(api, pod, uid.as_str()).await? {
        api.delete(place(PODS, pod), uid).await?;
    }
    Ok(())
}

/// Asks the API itself whether the pod is to be deleted: the watch may be behind. An edge that says a pod is gone
/// of which nobody asked the deletion must not delete it.
async fn is_deleting(api: &Api, pod: &ObjectRef, uid: &str) -> Result<bool, Error> {
    let existing = api.value(place(PODS, pod)).await?;
    let (same, deleting) =
        (existing["metadata"]["uid"] == uid, existing["metadata"]["deletionTimestamp"].is_string());
    if same && !deleting {
        tracing::warn!(%pod, "the edge says that the pod is gone, but nobody asked to delete it; it stays");
    }
    Ok(same && deleting)
}

/// Reads an object that pods refer to. `Err` says why it is not known how it is: whatever the API refuses or garbles may be
/// there all the same.
pub(super) async fn fetch(api: &Api, kind: Kind, reference: &ObjectRef) -> Result<Option<Object>, String> {
    match api.get(place(kind, reference)).await {
        Ok(object) => Ok(Some(object)),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// Answers a node's question from the API.
pub(super) async fn answer(api: &Api, kind: Kind, reference: &ObjectRef) -> Answer {
    match api.get(place(kind, reference)).await {
        Ok(object) => Answer::Object(object),
        Err(error) if error.is_missing() => Answer::NotFound,
        Err(error) => Answer::Refused(error.to_string()),
    }
}

/// Asks the API for a token that ends with its pod.
pub(super) async fn issue(api: &Api, request: &TokenRequest) -> Answer {
    let place =
        Place { kind: SERVICE_ACCOUNTS, namespace: &request.namespace, name: &request.service_account };
    let audiences = if request.audience.is_empty() { Vec::new() } else { vec![request.audience.as_str()] };
    let asked = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {
            "audiences": audiences,
            "expirationSeconds": request.expiration_seconds,
            "boundObjectRef": {
                "apiVersion": "v1", "kind": "Pod", "name": request.pod, "uid": request.pod_uid.as_str(),
            },
        },
    });
    match api.create_sub(place, "token", &asked).await {
        Ok(given) => read_token(&given, request)
            .map_or_else(|| Answer::Refused("the API's answer has no token".to_owned()), Answer::Token),
        Err(error) if error.is_missing() => Answer::NotFound,
        Err(error) => Answer::Refused(error.to_string()),
    }
}

fn read_token(given: &Value, request: &TokenRequest) -> Option<Token> {
    let status = &given["status"];
    let ends: Timestamp = status["expirationTimestamp"].as_str()?.parse().ok()?;
    // The API may give it another life than was asked for.
    let seconds = given["spec"]["expirationSeconds"].as_u64().unwrap_or(request.expiration_seconds);
    Some(Token {
        token: status["token"].as_str().filter(|token| !token.is_empty())?.to_owned(),
        expires_at_ms: u64::try_from(ends.as_millisecond()).ok()?,
        lifetime_ms: seconds.saturating_mul(1000),
    })
}

/// The names of all edge nodes.
pub(super) async fn edge_nodes(api: &Api) -> Result<Vec<NodeName>, Error> {
    let names = api.names(NODES, status::EDGE_LABEL).await?;
    Ok(names.into_iter().filter_map(|name| name.parse().ok()).collect())
}

pub(super) fn node_place(node: &NodeName) -> Place<'_> {
    Place { kind: NODES, namespace: "", name: node.as_str() }
}

pub(super) fn place(kind: Kind, reference: &ObjectRef) -> Place<'_> {
    Place { kind, namespace: reference.namespace(), name: reference.name() }
}
