//! JSON patch, RFC 6902.

use json_patch::PatchOperation;
use serde_json::Value;

use crate::standalone::{failure::Failure, json::is_deeper_than, write::LEVELS_MAX};

/// The most operations that one patch may have; Kubernetes has the same bound.
const OPERATIONS_MAX: usize = 10_000;

/// The most bytes that all copies of one patch may make: a few dozen copies of copies would otherwise fill
/// any memory. Kubernetes has the same bound.
const COPIED_BYTES_MAX: usize = 3 << 20;

/// The most operations of one patch that move or copy: each costs a look at the whole object.
const TRANSPLANTS_MAX: usize = 200;

pub(super) fn parse(body: &[u8]) -> Result<json_patch::Patch, Failure> {
    let patch: json_patch::Patch = serde_json::from_slice(body)
        .map_err(|e| Failure::bad_request(format!("error decoding patch: {e}")))?;
    if patch.0.len() > OPERATIONS_MAX {
        let message = format!("the patch has {} operations, more than {OPERATIONS_MAX}", patch.0.len());
        return Err(Failure::bad_request(message));
    }
    if patch.0.iter().any(|operation| operation.path().tokens().count() > LEVELS_MAX) {
        return Err(Failure::bad_request(format!("a path of the patch has more than {LEVELS_MAX} levels")));
    }
    Ok(patch)
}

pub(super) fn apply(object: &mut Value, patch: &json_patch::Patch) -> Result<(), Failure> {
    let (mut copied, mut transplants) = (0, 0);
    for (index, operation) in patch.0.iter().enumerate() {
        let transplanted = match operation {
            PatchOperation::Copy(copy) => {
                copied += object.pointer(copy.from.as_str()).map_or(0, |value| value.to_string().len());
                true
            }
            PatchOperation::Move(_) => true,
            PatchOperation::Add(_)
            | PatchOperation::Remove(_)
            | PatchOperation::Replace(_)
            | PatchOperation::Test(_) => false,
        };
        transplants += usize::from(transplanted);
        if copied > COPIED_BYTES_MAX || transplants > TRANSPLANTS_MAX {
            return Err(Failure::bad_request("the patch copies or moves too much"));
        }
        json_patch::patch(object, std::slice::from_ref(operation)).map_err(|error| {
            let mut failure = Failure::bad_request(format!(
                "the server rejected our request: operation {index} at {}: {}",
                error.path, error.kind
            ));
            // Kubernetes answers 422 when the patch is well-formed and does not fit the object.
            (failure.code, failure.reason) = (422, "Invalid");
            failure
        })?;
        if transplanted && is_deeper_than(object, LEVELS_MAX) {
            return Err(Failure::bad_request(format!("the patch makes more than {LEVELS_MAX} levels")));
        }
    }
    Ok(())
}
