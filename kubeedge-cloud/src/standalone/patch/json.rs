//! JSON patch, RFC 6902.

use serde_json::Value;

use crate::standalone::failure::Failure;

/// The most operations that one patch may have; Kubernetes has the same bound.
const OPERATIONS_MAX: usize = 10_000;

pub(super) fn parse(body: &[u8]) -> Result<json_patch::Patch, Failure> {
    let patch: json_patch::Patch = serde_json::from_slice(body)
        .map_err(|e| Failure::bad_request(format!("error decoding patch: {e}")))?;
    if patch.0.len() > OPERATIONS_MAX {
        let message = format!("the patch has {} operations, more than {OPERATIONS_MAX}", patch.0.len());
        return Err(Failure::bad_request(message));
    }
    Ok(patch)
}

pub(super) fn apply(object: &mut Value, patch: &json_patch::Patch) -> Result<(), Failure> {
    json_patch::patch(object, &patch.0).map_err(|error| {
        let mut failure = Failure::bad_request(format!("the server rejected our request: {error}"));
        // Kubernetes answers 422 when the patch is well-formed and does not fit the object.
        (failure.code, failure.reason) = (422, "Invalid");
        failure
    })
}
