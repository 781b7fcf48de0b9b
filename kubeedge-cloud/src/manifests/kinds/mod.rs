//! KubeEdge's kinds as types: for `kube::Api`, and for the schemas of their definitions.
//!
//! The parts of this crate do without them, since a type drops each field that it does not know.

pub mod apps;
pub mod devices;
pub mod operations;
pub mod operations_v1alpha1;
pub mod policy;
pub mod rules;
pub mod syncs;

use kube::core::Rule;

/// An object whose fields are somebody else's matter.
fn free(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "nullable": true,
        "x-kubernetes-preserve-unknown-fields": true,
    })
}

fn number_rule() -> Rule {
    Rule::new(r"self == '' || self.matches('^[-+]?([0-9]+\\.?[0-9]*|\\.[0-9]+)([eE][-+]?[0-9]+)?$')")
        .message("must be a number in text, such as \"-40\" or \"0.5\"")
}

fn version_rule() -> Rule {
    Rule::new(
        r"self == '' || self.matches('^v[0-9]+\\.[0-9]+\\.[0-9]+(-[a-zA-Z0-9_.]+(-[a-zA-Z0-9_.]+)*)?$')",
    )
    .message("must be a version such as v1.23.0")
}

fn tolerance_rule() -> Rule {
    Rule::new(r"self == '' || self.matches('^(0(\\.[0-9]+)?|1(\\.0+)?)$')")
        .message("must be a part from 0 to 1 in text, such as \"0.1\"")
}

fn nodes_rule() -> Rule {
    Rule::new("(has(self.nodeNames) && size(self.nodeNames) > 0) != has(self.labelSelector)")
        .message("exactly one of nodeNames and labelSelector says which nodes are meant")
}
