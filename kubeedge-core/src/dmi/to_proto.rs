//! A Device and its DeviceModel to the messages that a mapper is told.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{ConvertError, proto, value::wrap};
use crate::device::DeviceSpec;

/// What a mapper is told of a device: the Device overlaid on its model's defaults, with the desired values of `spec`.
///
/// # Errors
/// If a setting has a value that DMI cannot carry; the error has its path in the Device.
pub fn device(spec: &DeviceSpec) -> Result<proto::Device, ConvertError> {
    let object: DeviceJson = read("Device", &spec.source.device)?;
    let model: ModelJson = read("DeviceModel", &spec.source.model)?;
    let properties = object.spec.properties.into_iter().enumerate();
    let properties = properties.map(|(index, property)| self::property(spec, &model, index, property));
    let report = object.spec.state_report.unwrap_or(object.status);
    Ok(proto::Device {
        name: spec.device.name().to_owned(),
        namespace: spec.device.namespace().to_owned(),
        spec: Some(proto::DeviceSpec {
            device_model_reference: object.spec.device_model_ref.name,
            protocol: Some(proto::ProtocolConfig {
                protocol_name: spec.protocol.clone(),
                config_data: Some(wrap(&spec.protocol_config, "spec.protocol.configData")?),
            }),
            properties: properties.collect::<Result<_, _>>()?,
            methods: object.spec.methods.into_iter().map(method).collect(),
        }),
        status: Some(proto::DeviceStatus {
            twins: Vec::new(),
            report_to_cloud: report.report_to_cloud,
            report_cycle: report.report_cycle,
        }),
    })
}

/// What a mapper is told of the device's model.
///
/// # Errors
/// If it is no DeviceModel.
pub fn model(spec: &DeviceSpec) -> Result<proto::DeviceModel, ConvertError> {
    let model: ModelJson = read("DeviceModel", &spec.source.model)?;
    let object: DeviceJson = read("Device", &spec.source.device)?;
    let property = |property: ModelPropertyJson| proto::ModelProperty {
        name: property.name,
        description: property.description,
        r#type: property.r#type,
        access_mode: property.access_mode,
        minimum: property.minimum,
        maximum: property.maximum,
        unit: property.unit,
    };
    Ok(proto::DeviceModel {
        name: object.spec.device_model_ref.name,
        namespace: spec.device.namespace().to_owned(),
        spec: Some(proto::DeviceModelSpec {
            properties: model.spec.properties.into_iter().map(property).collect(),
            commands: Vec::new(),
        }),
    })
}

fn read<T: for<'de> Deserialize<'de>>(what: &str, json: &[u8]) -> Result<T, ConvertError> {
    serde_json::from_slice(json)
        .map_err(|error| ConvertError { path: what.to_owned(), why: error.to_string() })
}

fn property(
    spec: &DeviceSpec,
    model: &ModelJson,
    index: usize,
    property: PropertyJson,
) -> Result<proto::DeviceProperty, ConvertError> {
    let path = format!("spec.properties[{index}]");
    let merged = spec.property(&property.name).ok_or_else(|| ConvertError {
        path: path.clone(),
        why: "it is not in the specification".to_owned(),
    })?;
    let defaults = model.spec.properties.iter().find(|model| model.name == property.name);
    let defaults = defaults.and_then(|model| model.visitors.as_ref());
    // The model's name comes first, as KubeEdge has it; mappers take no empty one.
    let names = [defaults.map(|visitor| &visitor.protocol_name), Some(&property.visitors.protocol_name)];
    let protocol_name = names.into_iter().flatten().find(|name| !name.is_empty()).unwrap_or(&spec.protocol);
    let written = property.desired.unwrap_or_default();
    // What is said about a value is not true of another one.
    let metadata =
        if Some(&written.value) == merged.desired.as_ref() { written.metadata } else { BTreeMap::new() };
    let push = property.push_method.map(|push| push_method(push, &format!("{path}.pushMethod")));
    Ok(proto::DeviceProperty {
        desired: Some(proto::TwinProperty { value: merged.desired.clone().unwrap_or_default(), metadata }),
        visitors: Some(proto::VisitorConfig {
            protocol_name: protocol_name.clone(),
            config_data: Some(wrap(&merged.visitor, &format!("{path}.visitors.configData"))?),
        }),
        report_cycle: property.report_cycle,
        collect_cycle: property.collect_cycle,
        report_to_cloud: property.report_to_cloud,
        push_method: push.transpose()?,
        name: property.name,
    })
}

fn method(method: MethodJson) -> proto::DeviceMethod {
    let MethodJson { name, description, property_names } = method;
    proto::DeviceMethod { name, description, property_names }
}

fn push_method(push: PushMethodJson, path: &str) -> Result<proto::PushMethod, ConvertError> {
    let anomaly = push.anomaly_detection.map(|settings| wrap(&settings, &format!("{path}.anomalyDetection")));
    Ok(proto::PushMethod {
        http: push.http.map(|http| proto::PushMethodHttp {
            hostname: http.host_name,
            port: http.port,
            requestpath: http.request_path,
            timeout: http.timeout,
        }),
        mqtt: push.mqtt.map(|mqtt| proto::PushMethodMqtt {
            address: mqtt.address,
            topic: mqtt.topic,
            qos: mqtt.qos,
            retained: mqtt.retained,
        }),
        otel: push.otel.map(|otel| proto::PushMethodOtel { endpoint_url: otel.endpoint_url }),
        db_method: push.db_method.map(db_method),
        anomaly_detection: anomaly
            .transpose()?
            .map(|settings| proto::AnomalyDetection { data: settings.data }),
    })
}

fn db_method(db: DbMethodJson) -> proto::DbMethod {
    proto::DbMethod {
        influxdb2: db.influxdb2.map(|influx| proto::DbMethodInfluxdb2 {
            influxdb2_client_config: influx.influxdb2_client_config.map(|client| {
                proto::Influxdb2ClientConfig { url: client.url, org: client.org, bucket: client.bucket }
            }),
            influxdb2_data_config: influx.influxdb2_data_config.map(|data| proto::Influxdb2DataConfig {
                measurement: data.measurement,
                tag: data.tag,
                field_key: data.field_key,
            }),
        }),
        redis: db.redis.map(|redis| proto::DbMethodRedis {
            redis_client_config: redis.redis_client_config.map(|client| proto::RedisClientConfig {
                addr: client.addr,
                db: client.db,
                poolsize: client.poolsize,
                min_idle_conns: client.min_idle_conns,
            }),
        }),
        tdengine: db.td_engine.map(|tdengine| proto::DbMethodTdEngine {
            td_engine_client_config: tdengine
                .client
                .map(|client| proto::TdEngineClientConfig { addr: client.addr, dbname: client.db_name }),
        }),
        mysql: db.mysql.map(|mysql| proto::DbMethodMySql {
            mysql_client_config: mysql.mysql_client_config.map(|client| proto::MySqlClientConfig {
                addr: client.addr,
                database: client.database,
                user_name: client.user_name,
            }),
        }),
    }
}

// The objects as their CRDs have them, as far as DMI carries them.

#[derive(Default, Deserialize)]
#[serde(default)]
struct DeviceJson {
    spec: SpecJson,
    /// Where older objects say whether the connection is reported.
    status: StateReportJson,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SpecJson {
    device_model_ref: ModelRefJson,
    properties: Vec<PropertyJson>,
    methods: Vec<MethodJson>,
    state_report: Option<StateReportJson>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ModelRefJson {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct StateReportJson {
    report_to_cloud: bool,
    report_cycle: i64,
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
struct PropertyJson {
    name: String,
    desired: Option<DesiredJson>,
    visitors: VisitorJson,
    report_cycle: i64,
    collect_cycle: i64,
    report_to_cloud: bool,
    push_method: Option<PushMethodJson>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DesiredJson {
    value: String,
    metadata: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct VisitorJson {
    protocol_name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ModelJson {
    spec: ModelSpecJson,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ModelSpecJson {
    properties: Vec<ModelPropertyJson>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ModelPropertyJson {
    name: String,
    description: String,
    r#type: String,
    access_mode: String,
    minimum: String,
    maximum: String,
    unit: String,
    visitors: Option<VisitorJson>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PushMethodJson {
    http: Option<HttpJson>,
    mqtt: Option<MqttJson>,
    otel: Option<OtelJson>,
    db_method: Option<DbMethodJson>,
    anomaly_detection: Option<BTreeMap<String, Value>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct HttpJson {
    host_name: String,
    port: i64,
    request_path: String,
    timeout: i64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct MqttJson {
    address: String,
    topic: String,
    qos: i32,
    retained: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct OtelJson {
    #[serde(rename = "endpointURL")]
    endpoint_url: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DbMethodJson {
    influxdb2: Option<InfluxJson>,
    redis: Option<RedisJson>,
    #[serde(rename = "TDEngine")]
    td_engine: Option<TdEngineJson>,
    mysql: Option<MySqlJson>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct InfluxJson {
    influxdb2_client_config: Option<InfluxClientJson>,
    influxdb2_data_config: Option<InfluxDataJson>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct InfluxClientJson {
    url: String,
    org: String,
    bucket: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct InfluxDataJson {
    measurement: String,
    tag: BTreeMap<String, String>,
    field_key: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RedisJson {
    redis_client_config: Option<RedisClientJson>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RedisClientJson {
    addr: String,
    db: i32,
    poolsize: i32,
    min_idle_conns: i32,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TdEngineJson {
    #[serde(rename = "TDEngineClientConfig")]
    client: Option<TdEngineClientJson>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct TdEngineClientJson {
    addr: String,
    db_name: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MySqlJson {
    mysql_client_config: Option<MySqlClientJson>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MySqlClientJson {
    addr: String,
    database: String,
    user_name: String,
}
