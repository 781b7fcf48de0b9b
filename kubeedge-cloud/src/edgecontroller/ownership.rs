//! Whose a node is, when several clouds serve one API.
//!
//! The Lease of a node says it: an annotation names the cloud that has the node's session, another says where that cloud is
//! reached, and `spec.leaseTransitions` grows whenever another takes it. That is the fencing token. A cloud writes it when a session begins, which is the write
//! that renews the Lease anyway, and from then on renews at the version that it wrote last. So it learns at the next
//! renewal that the node has gone to another cloud, and from then on writes nothing of that node.

use jiff::Timestamp;
use kubeedge_core::id::NodeName;
use serde_json::{Value, json};

use super::{Config, requests::node_place, status};
use crate::controller::{
    Outcome,
    api::{Api, Error},
    lease::{ADDRESS, LEASES, NAMESPACE, OWNER, owner, place},
};

/// A node is this cloud's, as of this version of its Lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    version: String,
}

/// What became of a renewal.
#[derive(Debug)]
pub(super) enum Renewed {
    /// The node is this cloud's.
    Held(Claim),
    /// The node is the cloud's of this name, because it has a newer session.
    Lost(String),
    /// The API has not taken it.
    Failed(Outcome),
    /// The session for which it was to be done has ended.
    Superseded,
}

/// Renews the node's Lease, or creates it; takes it if `claim` says that it was not this cloud's before.
pub(super) async fn renew(api: &Api, node: &NodeName, config: &Config, claim: Option<&Claim>) -> Renewed {
    match try_renew(api, node, config, claim).await {
        Ok(renewed) => renewed,
        // The Node, or the namespace, will exist later.
        Err(error) if error.is_missing() => Renewed::Failed(Outcome::Retry(error.to_string())),
        Err(error) => Renewed::Failed(error.into()),
    }
}

async fn try_renew(
    api: &Api,
    node: &NodeName,
    config: &Config,
    claim: Option<&Claim>,
) -> Result<Renewed, Error> {
    let now = status::micros(Timestamp::now());
    let spec = json!({
        "holderIdentity": node.as_str(),
        "leaseDurationSeconds": config.lease_duration.as_secs(),
        "renewTime": now,
    });
    if let Some(Claim { version }) = claim {
        let patch = json!({ "metadata": { "resourceVersion": version }, "spec": spec });
        match api.merge(place(node), "", &patch).await {
            Ok(lease) => return Ok(held(&lease.value()?)),
            Err(error) if error.is_conflict() || error.is_missing() => {}
            Err(error) => return Err(error),
        }
    }
    let lease = match api.value(place(node)).await {
        Err(error) if error.is_missing() => {
            return create(api, node, config, spec, &now).await.map(|lease| held(&lease));
        }
        other => other?,
    };
    if claim.is_some() && is_of_another(&lease, config) {
        return Ok(Renewed::Lost(owner(&lease).to_owned()));
    }
    let patch = take(&lease, spec, config, &now);
    Ok(held(&api.merge(place(node), "", &patch).await?.value()?))
}

/// What to merge into the Lease to make the node this cloud's: at the version that was read, so that of two clouds which
/// take it at once one has to look again.
fn take(lease: &Value, mut spec: Value, config: &Config, now: &str) -> Value {
    if owner(lease) != config.identity {
        let transitions = lease["spec"]["leaseTransitions"].as_i64().unwrap_or(0);
        spec["leaseTransitions"] = transitions.saturating_add(1).into();
        spec["acquireTime"] = now.into();
    }
    json!({
        "metadata": {
            "resourceVersion": lease["metadata"]["resourceVersion"],
            "annotations": annotations(config),
        },
        "spec": spec,
    })
}

/// A cloud that is not reached by others says so by a null, which takes away in a merge what another has left there.
fn annotations(config: &Config) -> Value {
    let address = (!config.address.is_empty()).then_some(&config.address);
    json!({ OWNER: config.identity, ADDRESS: address })
}

async fn create(
    api: &Api,
    node: &NodeName,
    config: &Config,
    mut spec: Value,
    now: &str,
) -> Result<Value, Error> {
    let owner = api.get(node_place(node)).await?;
    spec["acquireTime"] = now.into();
    spec["leaseTransitions"] = 0.into();
    let mut annotations = annotations(config);
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.retain(|_, value| !value.is_null());
    }
    let lease = json!({
        "apiVersion": LEASES.api_version,
        "kind": LEASES.kind,
        "metadata": {
            "name": node.as_str(),
            "namespace": NAMESPACE,
            "annotations": annotations,
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Node", "name": node.as_str(), "uid": owner.uid.as_str(),
            }],
        },
        "spec": spec,
    });
    api.create(place(node), &lease).await
}

/// The version of the node's Lease, if somebody else has the node, or has had it: another cloud, or whoever renews a Lease that
/// names no cloud, such as the kubelet of a node that only looks like one of the edge's, or KubeEdge's own cloudcore.
pub(super) async fn elsewhere(api: &Api, node: &NodeName, config: &Config) -> Result<Option<String>, Error> {
    match api.value(place(node)).await {
        Ok(lease) => Ok((owner(&lease) != config.identity).then(|| version_of(&lease))),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_of_another(lease: &Value, config: &Config) -> bool {
    let owner = owner(lease);
    !owner.is_empty() && owner != config.identity
}

fn version_of(lease: &Value) -> String {
    lease["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned()
}

fn held(lease: &Value) -> Renewed {
    Renewed::Held(Claim { version: version_of(lease) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(identity: &str) -> Config {
        Config { identity: identity.to_owned(), ..Config::default() }
    }

    fn lease(owner: &str, renewed: &str) -> Value {
        json!({
            "metadata": { "resourceVersion": "7", "annotations": { OWNER: owner } },
            "spec": { "leaseTransitions": 3, "renewTime": renewed },
        })
    }

    #[test]
    fn taking_a_node_from_another_cloud_counts_up_and_renewing_ones_own_does_not() {
        let lease = lease("a", "2026-01-01T00:00:00.000000Z");
        let taken = take(&lease, json!({}), &config("b"), "now");
        assert_eq!(taken["spec"], json!({ "leaseTransitions": 4, "acquireTime": "now" }));
        let annotations = json!({ OWNER: "b", ADDRESS: null });
        assert_eq!(taken["metadata"], json!({ "resourceVersion": "7", "annotations": annotations }));
        assert_eq!(take(&lease, json!({}), &config("a"), "now")["spec"], json!({}));
    }

    #[test]
    fn whoever_takes_a_node_says_where_it_is_reached() {
        let reached = Config { address: "192.0.2.7:10005".to_owned(), ..config("b") };
        let taken = take(&lease("a", "2026-01-01T00:00:00.000000Z"), json!({}), &reached, "now");
        assert_eq!(taken["metadata"]["annotations"][ADDRESS], "192.0.2.7:10005");
    }

    #[test]
    fn a_node_is_lost_if_its_lease_names_another_cloud() {
        let of = |owner: &str| is_of_another(&lease(owner, "2026-01-01T00:00:30.000000Z"), &config("a"));
        assert!(of("b"));
        assert!(!of("a"), "it is this cloud's own");
        assert!(!of(""), "it names none: this one puts its name there again");
    }
}
