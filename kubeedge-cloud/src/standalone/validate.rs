//! Which objects are refused, and why.

use serde_json::Value;

use super::{
    failure::{Cause, Failure},
    resource::Resource,
    write::Validation,
};

/// Checks the object against Kubernetes' types. Returns what the client should be warned of.
pub(crate) fn types(_: &Resource, _: &Value, _: Validation) -> Result<Vec<String>, Failure> {
    Ok(Vec::new())
}

/// Checks the object against the rules of its kind; `old` is what it replaces.
pub(crate) fn check(_: &Resource, _: &Value, _: Option<&Value>) -> Result<(), Failure> {
    let _: Vec<Cause> = Vec::new();
    Ok(())
}
