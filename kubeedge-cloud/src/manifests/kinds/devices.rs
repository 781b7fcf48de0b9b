//! `devices.kubeedge.io/v1beta1`: devices, their models, and what was reported of them.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::free;

/// What a device is, where it is, and which values its properties should have.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "devices.kubeedge.io",
    version = "v1beta1",
    kind = "Device",
    plural = "devices",
    namespaced,
    status = "Reported",
    doc = "A device at the edge.",
    printcolumn = r#"{"name":"Node","type":"string","jsonPath":".spec.nodeName"}"#,
    printcolumn = r#"{"name":"Protocol","type":"string","jsonPath":".spec.protocol.protocolName"}"#,
    printcolumn = r#"{"name":"State","type":"string","jsonPath":".status.state"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct DeviceSpec {
    /// The DeviceModel, in the device's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_model_ref: Option<Reference>,
    /// The edge node that the device is connected to; without one it goes to no node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// The properties, of those that the model has. Each stands there once.
    #[schemars(length(max = 4096))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["name".to_owned()]))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub properties: Option<Vec<DeviceProperty>>,
    /// How the device is spoken to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Names for writing some of the properties.
    #[schemars(length(max = 4096))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub methods: Option<Vec<Method>>,
    /// Whether, and how often, the connection's state is reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_report: Option<StateReport>,
}

/// The name of an object in the same namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Reference {
    /// The name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A property of a device.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DeviceProperty {
    /// The name of the model's property.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// The value that it should have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired: Option<TwinValue>,
    /// How the driver finds it; overlays what the model says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub visitors: Option<Visitor>,
    /// Every how many milliseconds it is reported at most.
    #[schemars(range(min = 0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report_cycle: Option<i64>,
    /// Every how many milliseconds it is read.
    #[schemars(range(min = 0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collect_cycle: Option<i64>,
    /// Whether it is reported to the cloud.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report_to_cloud: Option<bool>,
    /// Where each of its values is pushed, besides being reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub push_method: Option<PushMethod>,
}

/// A value, in the text form of the property's type.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TwinValue {
    /// The value.
    pub value: String,
    /// What is said about it, such as its time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
}

/// How a driver finds a property.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Visitor {
    /// The protocol that it is meant for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol_name: Option<String>,
    /// What the protocol's driver needs, by its own names.
    #[schemars(schema_with = "free")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_data: Option<BTreeMap<String, Value>>,
}

/// How a device is spoken to.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Protocol {
    /// The protocol, which chooses the driver.
    #[schemars(length(max = 253))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol_name: Option<String>,
    /// What the protocol's driver needs, by its own names.
    #[schemars(schema_with = "free")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_data: Option<BTreeMap<String, Value>>,
}

/// A name for writing some of a device's properties.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Method {
    /// The name.
    #[schemars(length(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it is for, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The properties that it writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub property_names: Option<Vec<String>>,
}

/// Whether, and how often, the connection's state is reported.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StateReport {
    /// Whether it is reported to the cloud.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report_to_cloud: Option<bool>,
    /// Every how many milliseconds.
    #[schemars(range(min = 0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report_cycle: Option<i64>,
}

/// Where values are pushed.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PushMethod {
    /// To an HTTP server, a POST for each value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<PushHttp>,
    /// To an MQTT broker, a publish for each value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mqtt: Option<PushMqtt>,
    /// To an OpenTelemetry collector.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otel: Option<PushOtel>,
    /// To a database.
    #[schemars(schema_with = "free")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub db_method: Option<BTreeMap<String, Value>>,
    /// To whatever looks for anomalies.
    #[schemars(schema_with = "free")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anomaly_detection: Option<BTreeMap<String, Value>>,
}

/// An HTTP server that takes values.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PushHttp {
    /// The server's name or address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_name: Option<String>,
    /// Its port; 80 if it is left out.
    #[schemars(range(min = 0, max = 65535))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<i64>,
    /// The path with its query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_path: Option<String>,
    /// How many seconds an answer may take.
    #[schemars(range(min = 0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
}

/// An MQTT broker that takes values.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PushMqtt {
    /// The broker's address, such as `tcp://127.0.0.1:1883`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// The quality of service.
    #[schemars(range(min = 0, max = 2))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qos: Option<i32>,
    /// Whether the broker keeps the newest value for later subscribers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retained: Option<bool>,
}

/// An OpenTelemetry collector that takes values.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PushOtel {
    /// Its URL.
    #[serde(rename = "endpointURL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_url: Option<String>,
}

/// What was reported of a device.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Reported {
    /// The properties' values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub twins: Option<Vec<Twin>>,
    /// The state of the connection to the device: online, offline, ok, unknown or unhealthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// When it was online last (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_online_time: Option<String>,
    /// As `spec.stateReport.reportToCloud`, for objects of earlier versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report_to_cloud: Option<bool>,
    /// As `spec.stateReport.reportCycle`, for objects of earlier versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report_cycle: Option<i64>,
    /// What else drivers have to say.
    #[schemars(schema_with = "free")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extensions: Option<BTreeMap<String, Value>>,
}

/// Desired and reported, of one property.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Twin {
    /// The property.
    pub property_name: String,
    /// The value that was reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reported: Option<TwinValue>,
    /// The desired value that the edge has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_desired: Option<TwinValue>,
}

/// The properties that devices of one make have.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "devices.kubeedge.io",
    version = "v1beta1",
    kind = "DeviceModel",
    plural = "devicemodels",
    namespaced,
    doc = "What devices of one make have in common.",
    printcolumn = r#"{"name":"Protocol","type":"string","jsonPath":".spec.protocol"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct DeviceModelSpec {
    /// The properties. Each stands there once.
    #[schemars(length(max = 4096))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["name".to_owned()]))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub properties: Option<Vec<ModelProperty>>,
    /// The protocol that these devices speak.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// What the protocol's driver needs, by its own names.
    #[schemars(schema_with = "free")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol_config_data: Option<BTreeMap<String, Value>>,
}

/// A property that devices of one make have.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ModelProperty {
    /// Its name.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// What it is, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The type of its values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<PropertyType>,
    /// Whether it may be written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_mode: Option<AccessMode>,
    /// The smallest value, in text.
    #[schemars(length(max = 64))]
    #[x_kube(validation = super::number_rule())]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum: Option<String>,
    /// The largest value, in text.
    #[schemars(length(max = 64))]
    #[x_kube(validation = super::number_rule())]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maximum: Option<String>,
    /// The unit, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// How the driver finds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub visitors: Option<Visitor>,
}

/// The type of a property's values.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "UPPERCASE")]
pub enum PropertyType {
    /// A decimal 64-bit integer.
    Int,
    /// A 32-bit floating point number.
    Float,
    /// A 64-bit floating point number.
    Double,
    /// Any text.
    #[default]
    String,
    /// `true` or `false`.
    Boolean,
    /// Bytes, in base64.
    Bytes,
    /// A video or data stream.
    Stream,
}

/// Whether a property may be written.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessMode {
    /// It may be read and written.
    #[default]
    ReadWrite,
    /// It may be read.
    ReadOnly,
}

/// Nothing: all of a DeviceStatus is in its status.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "devices.kubeedge.io",
    version = "v1beta1",
    kind = "DeviceStatus",
    plural = "devicestatuses",
    namespaced,
    status = "Reported",
    doc = "What was reported of the device of the same name.",
    printcolumn = r#"{"name":"State","type":"string","jsonPath":".status.state"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
pub struct DeviceStatusSpec {}
