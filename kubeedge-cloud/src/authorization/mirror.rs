//! Pods that a node runs from files of its own: each has a Pod in the API that stands for it, which the cloud creates
//! in the node's place. A node may create no other pods than these, and none that could be given what is not the
//! node's: the rules are those of the NodeRestriction admission.

use bytes::Bytes;
use kubeedge_core::{
    id::{NodeName, check_subdomain},
    message::{MirrorReport, Object, ObjectRef},
};
use serde_json::Value;

use super::{Denial, items};
use crate::controller::references;

/// The annotation that makes a Pod one that stands for another; its value is the other's hash.
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";

pub(super) fn check(node: &NodeName, report: &MirrorReport) -> Result<(), Denial> {
    let MirrorReport { reference, pod } = report;
    let own = reference.name().strip_suffix(node.as_str()).is_some_and(|name| name.ends_with('-'));
    if reference.kind() != "Pod" || !own {
        return Err(Denial::NotAMirror);
    }
    let names = [("namespace", reference.namespace()), ("pod name", reference.name())];
    if names.iter().any(|(what, name)| check_subdomain(what, name).is_err()) {
        return Err(Denial::Unreadable);
    }
    pod.as_ref().map_or(Ok(()), |json| check_pod(node, reference, json))
}

fn check_pod(node: &NodeName, reference: &ObjectRef, json: &Bytes) -> Result<(), Denial> {
    let pod: Value = serde_json::from_slice(json).map_err(|_| Denial::Unreadable)?;
    let metadata = &pod["metadata"];
    if metadata["name"] != reference.name() || metadata["namespace"] != reference.namespace() {
        return Err(Denial::Unreadable);
    }
    if metadata["annotations"][MIRROR].as_str().is_none_or(str::is_empty) {
        return Err(Denial::NotAMirror);
    }
    let spec = &pod["spec"];
    if spec["nodeName"] != node.as_str() {
        return Err(Denial::MirrorElsewhere);
    }
    let object = Object::from_json(json.clone()).map_err(|_| Denial::Unreadable)?;
    if has_account(spec) || !references::place(&object).references.is_empty() || wants_more(spec) {
        return Err(Denial::MirrorWantsMore);
    }
    Ok(())
}

fn has_account(spec: &Value) -> bool {
    ["serviceAccountName", "serviceAccount"]
        .iter()
        .any(|member| spec[*member].as_str().is_some_and(|name| !name.is_empty()))
}

/// Whether a volume is made of an object of the API, or of a token.
fn wants_more(spec: &Value) -> bool {
    let of_api = |source: &Value| {
        !source["serviceAccountToken"].is_null()
            || !source["clusterTrustBundle"].is_null()
            || !source["podCertificate"].is_null()
    };
    !items(&spec["resourceClaims"]).is_empty()
        || items(&spec["volumes"]).iter().any(|volume| {
            !volume["persistentVolumeClaim"].is_null()
                || !volume["ephemeral"].is_null()
                || items(&volume["projected"]["sources"]).iter().any(of_api)
        })
}
