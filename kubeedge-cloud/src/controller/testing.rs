//! Objects for tests.

use kubeedge_core::{id::NodeName, message::Object};
use serde_json::Value;

/// A node's name.
pub(crate) fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

/// An object out of its JSON.
pub(crate) fn object(json: &Value) -> Object {
    Object::from_json(json.to_string()).unwrap()
}
