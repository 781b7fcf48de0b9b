//! `rules.kubeedge.io/v1`: messages between applications in the cloud and on nodes.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema, core::Rule as Check};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// From where to where messages go.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "rules.kubeedge.io",
    version = "v1",
    kind = "Rule",
    plural = "rules",
    namespaced,
    status = "RuleStatus",
    doc = "A way for messages between applications in the cloud and on nodes.",
    printcolumn = r#"{"name":"Source","type":"string","jsonPath":".spec.source"}"#,
    printcolumn = r#"{"name":"Target","type":"string","jsonPath":".spec.target"}"#,
    printcolumn = r#"{"name":"Succeeded","type":"integer","jsonPath":".status.successMessages"}"#,
    printcolumn = r#"{"name":"Failed","type":"integer","jsonPath":".status.failMessages"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct RuleSpec {
    /// The RuleEndpoint, in the rule's namespace, at which messages begin.
    #[schemars(length(min = 1, max = 253))]
    pub source: String,
    /// Which messages: `path` of a rest endpoint; `topic` and `node_name` of an eventbus; `target_url` and
    /// `node_name` of a servicebus.
    pub source_resource: BTreeMap<String, String>,
    /// The RuleEndpoint, in the rule's namespace, at which messages end.
    #[schemars(length(min = 1, max = 253))]
    pub target: String,
    /// Where to: `resource` of a rest endpoint, a URL; `topic` of an eventbus; `path` of a servicebus.
    pub target_resource: BTreeMap<String, String>,
}

/// What became of a rule's messages.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RuleStatus {
    /// How many messages arrived.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success_messages: Option<i64>,
    /// How many messages were given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fail_messages: Option<i64>,
    /// Why the last ones were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errors: Option<Vec<String>>,
}

/// Where rules begin and end.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "rules.kubeedge.io",
    version = "v1",
    kind = "RuleEndpoint",
    plural = "ruleendpoints",
    shortname = "re",
    namespaced,
    doc = "Where rules begin and end.",
    printcolumn = r#"{"name":"Type","type":"string","jsonPath":".spec.ruleEndpointType"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = service_port_rule())]
pub struct RuleEndpointSpec {
    /// What speaks there.
    pub rule_endpoint_type: EndpointType,
    /// What is to be known of it: `service_port` of a servicebus.
    #[schemars(schema_with = "properties")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub properties: Option<BTreeMap<String, String>>,
}

/// What speaks at an end of a rule.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum EndpointType {
    /// HTTP in the cloud.
    Rest,
    /// MQTT on a node.
    EventBus,
    /// HTTP on a node.
    ServiceBus,
}

/// The values are bounded so that the API server can bound the cost of the rule below.
fn properties(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "nullable": true,
        "maxProperties": 64,
        "additionalProperties": { "type": "string", "maxLength": 1024 },
    })
}

fn service_port_rule() -> Check {
    let is_port =
        "int(self.properties['service_port']) >= 1 && int(self.properties['service_port']) <= 65535";
    Check::new(format!(
        "self.ruleEndpointType != 'servicebus' || (has(self.properties) && 'service_port' in self.properties && \
         self.properties['service_port'].matches('^[0-9]{{1,5}}$') && {is_port})"
    ))
    .message("a servicebus needs properties.service_port, a port from 1 to 65535 on the node's loopback address")
}
