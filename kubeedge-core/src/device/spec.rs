use std::{collections::BTreeMap, fmt};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::push::{PushJson, PushMethod, Unsupported};
use crate::id::DeviceId;

/// How a device should be run: a Device object merged with its DeviceModel.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceSpec {
    /// The device.
    pub device: DeviceId,
    /// The protocol's name, which selects the driver.
    pub protocol: String,
    /// The protocol's settings: the model's, overlaid by the device's.
    pub protocol_config: BTreeMap<String, Value>,
    /// The properties, ordered by name.
    pub properties: Vec<PropertySpec>,
    /// Whether, and every how many milliseconds, the connection state goes to the cloud.
    pub state_report_cycle_ms: Option<u64>,
    /// The device's methods, in the order of the Device object.
    pub methods: Vec<MethodSpec>,
    /// What the Device asks for and drivers of this SDK do not do; everything else works all the same.
    pub unsupported: Vec<Unsupported>,
    /// The two objects as they came, for those who need more of them.
    pub source: DeviceSource,
}

/// The JSON of a Device and its DeviceModel; clones share it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct DeviceSource {
    /// The Device.
    pub device: Bytes,
    /// The DeviceModel.
    pub model: Bytes,
}

impl fmt::Debug for DeviceSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceSource({} + {} bytes)", self.device.len(), self.model.len())
    }
}

/// A method of a device: a name for writing some of its properties.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MethodSpec {
    /// Its name.
    pub name: String,
    /// What it is for, for people.
    pub description: String,
    /// The properties that it writes; each is one of the device's.
    pub property_names: Vec<String>,
}

/// A property of a device: what the model says of it, and what the device makes of that.
#[derive(Debug, Clone, PartialEq)]
pub struct PropertySpec {
    /// Its name.
    pub name: String,
    /// Its type; values travel as text in this type's form.
    pub value_type: PropertyType,
    /// Whether it may be written.
    pub access: AccessMode,
    /// The smallest value, if there is one.
    pub minimum: Option<f64>,
    /// The largest value, if there is one.
    pub maximum: Option<f64>,
    /// The unit, for people.
    pub unit: String,
    /// The desired value, if there is one.
    pub desired: Option<String>,
    /// How the driver finds it: the model's visitor, overlaid by the device's.
    pub visitor: BTreeMap<String, Value>,
    /// Every how many milliseconds it is read. 1 s unless the device says otherwise, as mappers have it.
    pub collect_cycle_ms: u64,
    /// Every how many milliseconds it is reported at most. As often as it is read unless the device says otherwise.
    pub report_cycle_ms: u64,
    /// Whether it goes to the cloud at all.
    pub report_to_cloud: bool,
    /// Where each of its values is pushed, besides being reported.
    pub push: Vec<PushMethod>,
}

/// The type of a property, as a DeviceModel names it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
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
    /// A video or data stream; it has no value.
    Stream,
}

/// Whether a property may be written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum AccessMode {
    /// It may be read and written.
    #[default]
    ReadWrite,
    /// It may be read.
    ReadOnly,
}

/// Says why a Device and its DeviceModel make no specification, and where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// The JSON is not a Device or DeviceModel of `devices.kubeedge.io/v1beta1`.
    #[error("{what}: {source}")]
    Json {
        /// Device or DeviceModel.
        what: &'static str,
        /// What is wrong, with line and column.
        source: serde_json::Error,
    },
    /// A field has a value that cannot work.
    #[error("{path}: {why}")]
    Field {
        /// The field's path, such as `spec.properties[2].name`.
        path: String,
        /// What is wrong with it.
        why: String,
    },
}

#[derive(Deserialize)]
struct DeviceJson {
    metadata: Meta,
    #[serde(default)]
    spec: DeviceSpecJson,
}

#[derive(Deserialize)]
struct Meta {
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DeviceSpecJson {
    properties: Vec<DevicePropertyJson>,
    protocol: Visitor,
    methods: Option<Vec<MethodJson>>,
    state_report: Option<StateReport>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MethodJson {
    name: String,
    description: String,
    property_names: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct StateReport {
    report_to_cloud: bool,
    report_cycle: i64,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DevicePropertyJson {
    name: String,
    desired: Option<Desired>,
    visitors: Visitor,
    report_cycle: i64,
    collect_cycle: i64,
    report_to_cloud: bool,
    push_method: Option<PushJson>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Desired {
    value: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Visitor {
    protocol_name: String,
    config_data: Option<BTreeMap<String, Value>>,
}

#[derive(Deserialize)]
struct ModelJson {
    #[serde(default)]
    spec: ModelSpecJson,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ModelSpecJson {
    properties: Vec<ModelPropertyJson>,
    protocol_config_data: Option<BTreeMap<String, Value>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ModelPropertyJson {
    name: String,
    r#type: PropertyType,
    access_mode: AccessMode,
    minimum: String,
    maximum: String,
    unit: String,
    visitors: Option<Visitor>,
}

/// 1 s: what KubeEdge's mapper framework takes for a cycle of zero.
const DEFAULT_CYCLE_MS: u64 = 1_000;

impl DeviceSpec {
    /// Merges the JSON of a Device with that of its DeviceModel.
    ///
    /// The model's defaults are overlaid by the device's, key by key. A property that the model does not know
    /// is refused.
    ///
    /// # Errors
    /// If one of them is not what its CRD says, naming the field.
    pub fn from_json(device: &[u8], model: &[u8]) -> Result<Self, SpecError> {
        let (device, model) = (Bytes::copy_from_slice(device), Bytes::copy_from_slice(model));
        Self::from_source(DeviceSource { device, model })
    }

    /// As [`DeviceSpec::from_json`], without copying the JSON.
    ///
    /// # Errors
    /// If one of them is not what its CRD says, naming the field.
    pub fn from_source(source: DeviceSource) -> Result<Self, SpecError> {
        let device: DeviceJson = serde_json::from_slice(&source.device)
            .map_err(|source| SpecError::Json { what: "Device", source })?;
        let model: ModelJson = serde_json::from_slice(&source.model)
            .map_err(|source| SpecError::Json { what: "DeviceModel", source })?;
        let id = DeviceId::new(device.metadata.namespace, device.metadata.name)
            .map_err(|error| field("metadata", error.to_string()))?;
        if device.spec.protocol.protocol_name.is_empty() {
            return Err(field("spec.protocol.protocolName", "it is empty, so no driver can be chosen"));
        }
        let mut properties = Vec::with_capacity(device.spec.properties.len());
        let mut unsupported = Vec::new();
        for (index, property) in device.spec.properties.into_iter().enumerate() {
            properties.push(merge_property(index, property, &model.spec.properties, &mut unsupported)?);
        }
        properties.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(twice) = properties.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(field("spec.properties", format!("property {:?} stands there twice", twice[0].name)));
        }
        let methods = methods(device.spec.methods.unwrap_or_default(), &properties)?;
        Ok(Self {
            methods,
            unsupported,
            device: id,
            protocol: device.spec.protocol.protocol_name,
            protocol_config: overlay(model.spec.protocol_config_data, device.spec.protocol.config_data),
            properties,
            state_report_cycle_ms: device
                .spec
                .state_report
                .filter(|report| report.report_to_cloud)
                .map(|report| cycle(report.report_cycle, DEFAULT_CYCLE_MS)),
            source,
        })
    }

    /// The property of this name.
    pub fn property(&self, name: &str) -> Option<&PropertySpec> {
        self.properties.iter().find(|property| property.name == name)
    }
}

fn merge_property(
    index: usize,
    property: DevicePropertyJson,
    models: &[ModelPropertyJson],
    unsupported: &mut Vec<Unsupported>,
) -> Result<PropertySpec, SpecError> {
    let path = |member: &str| format!("spec.properties[{index}].{member}");
    if property.name.is_empty() {
        return Err(field(path("name"), "it is empty"));
    }
    let Some(model) = models.iter().find(|model| model.name == property.name) else {
        return Err(field(path("name"), format!("the device model has no property {:?}", property.name)));
    };
    let bound = |member: &str, text: &str| match text {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| {
            field(format!("model property {:?}: {member}", model.name), format!("{text:?} is no number"))
        }),
    };
    let push = match property.push_method {
        Some(push) => push.read(&path("pushMethod"), unsupported)?,
        None => Vec::new(),
    };
    let collect_cycle_ms = cycle(property.collect_cycle, DEFAULT_CYCLE_MS);
    Ok(PropertySpec {
        push,
        value_type: model.r#type,
        access: model.access_mode,
        minimum: bound("minimum", &model.minimum)?,
        maximum: bound("maximum", &model.maximum)?,
        unit: model.unit.clone(),
        desired: property.desired.map(|desired| desired.value).filter(|value| !value.is_empty()),
        visitor: overlay(
            model.visitors.as_ref().and_then(|visitor| visitor.config_data.clone()),
            property.visitors.config_data,
        ),
        collect_cycle_ms,
        report_cycle_ms: cycle(property.report_cycle, collect_cycle_ms),
        report_to_cloud: property.report_to_cloud,
        name: property.name,
    })
}

fn methods(methods: Vec<MethodJson>, properties: &[PropertySpec]) -> Result<Vec<MethodSpec>, SpecError> {
    let known = |name: &String| properties.iter().any(|property| property.name == *name);
    let method = |(index, method): (usize, MethodJson)| {
        if let Some(unknown) = method.property_names.iter().find(|name| !known(name)) {
            let path = format!("spec.methods[{index}].propertyNames");
            return Err(field(path, format!("the device has no property {unknown:?}")));
        }
        let MethodJson { name, description, property_names } = method;
        Ok(MethodSpec { name, description, property_names })
    };
    methods.into_iter().enumerate().map(method).collect()
}

pub(super) fn field(path: impl Into<String>, why: impl Into<String>) -> SpecError {
    SpecError::Field { path: path.into(), why: why.into() }
}

fn cycle(milliseconds: i64, default: u64) -> u64 {
    u64::try_from(milliseconds).ok().filter(|cycle| *cycle > 0).unwrap_or(default)
}

fn overlay(
    base: Option<BTreeMap<String, Value>>,
    over: Option<BTreeMap<String, Value>>,
) -> BTreeMap<String, Value> {
    let mut merged = base.unwrap_or_default();
    merged.extend(over.unwrap_or_default());
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: &str = r#"{"spec":{"protocolConfigData":{"baud":9600},"properties":[
        {"name":"temperature","type":"DOUBLE","accessMode":"ReadOnly","visitors":{"protocolName":"x","configData":{"register":1}}},
        {"name":"limit","type":"INT","minimum":"0","maximum":"100"}]}}"#;

    fn device(properties: &str) -> String {
        format!(
            r#"{{"metadata":{{"namespace":"default","name":"t-1"}},"spec":{{"protocol":{{"protocolName":"x","configData":{{"port":1}}}},"properties":{properties}}}}}"#
        )
    }

    #[test]
    fn the_devices_settings_lie_over_the_models() {
        let device = device(
            r#"[{"name":"temperature","visitors":{"configData":{"register":7}},"reportToCloud":true}]"#,
        );
        let spec = DeviceSpec::from_json(device.as_bytes(), MODEL.as_bytes()).unwrap();
        assert_eq!(spec.protocol_config.len(), 2);
        let temperature = spec.property("temperature").unwrap();
        assert_eq!(temperature.visitor["register"], 7);
        assert_eq!(temperature.access, AccessMode::ReadOnly);
        assert_eq!(temperature.collect_cycle_ms, 1_000);
    }

    #[test]
    fn a_property_that_the_model_does_not_know_is_named() {
        let device = device(r#"[{"name":"pressure"}]"#);
        let error = DeviceSpec::from_json(device.as_bytes(), MODEL.as_bytes()).unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"spec.properties[0].name: the device model has no property "pressure""#
        );
    }

    #[test]
    fn methods_name_properties_of_the_device() {
        let with = |names: &str| {
            device(r#"[{"name":"limit"}]"#).replace(
                r#""properties""#,
                &format!(r#""methods":[{{"name":"set","propertyNames":{names}}}],"properties""#),
            )
        };
        let good = DeviceSpec::from_json(with(r#"["limit"]"#).as_bytes(), MODEL.as_bytes()).unwrap();
        assert_eq!(good.methods[0].property_names, ["limit"]);
        let error = DeviceSpec::from_json(with(r#"["speed"]"#).as_bytes(), MODEL.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), r#"spec.methods[0].propertyNames: the device has no property "speed""#);
    }

    #[test]
    fn a_property_is_reported_as_often_as_it_is_read_unless_it_says_otherwise() {
        let device = device(
            r#"[{"name":"limit","collectCycle":100},{"name":"temperature","collectCycle":100,"reportCycle":5000}]"#,
        );
        let spec = DeviceSpec::from_json(device.as_bytes(), MODEL.as_bytes()).unwrap();
        assert_eq!(spec.property("limit").unwrap().report_cycle_ms, 100);
        assert_eq!(spec.property("temperature").unwrap().report_cycle_ms, 5_000);
    }
}
