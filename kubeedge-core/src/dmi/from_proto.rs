//! What a mapper is told, back to the objects that drivers are made for.

use serde_json::{Map, Value, json};

use super::{ConvertError, proto, value::unwrap};
use crate::{
    device::{DeviceSource, DeviceSpec},
    id::DeviceId,
};

/// How a device should be run, from what edgecore says of it and of its model.
///
/// # Errors
/// If a field has a value that cannot work; the error has its path in the Device.
pub fn spec(device: &proto::Device, model: &proto::DeviceModel) -> Result<DeviceSpec, ConvertError> {
    let source = DeviceSource {
        device: device_json(device)?.to_string().into_bytes().into(),
        model: model_json(model).to_string().into_bytes().into(),
    };
    DeviceSpec::from_source(source).map_err(|error| ConvertError {
        path: format!("device {}/{}", device.namespace, device.name),
        why: error.to_string(),
    })
}

/// The identity of a device in a message.
///
/// # Errors
/// If its names are none that Kubernetes would give.
pub fn device_id(namespace: &str, name: &str) -> Result<DeviceId, ConvertError> {
    // Mappers of KubeEdge's first versions know no namespaces.
    let namespace = if namespace.is_empty() { "default" } else { namespace };
    DeviceId::new(namespace, name)
        .map_err(|error| ConvertError { path: "deviceName".to_owned(), why: error.to_string() })
}

fn device_json(device: &proto::Device) -> Result<Value, ConvertError> {
    let lacks = |what: &str| ConvertError { path: what.to_owned(), why: "it is absent".to_owned() };
    let spec = device.spec.as_ref().ok_or_else(|| lacks("spec"))?;
    let protocol = spec.protocol.as_ref().ok_or_else(|| lacks("spec.protocol"))?;
    let config = unwrap(protocol.config_data.as_ref(), "spec.protocol.configData")?;
    let properties =
        spec.properties.iter().enumerate().map(|(index, property)| property_json(index, property));
    let method = |method: &proto::DeviceMethod| {
        json!({
            "name": method.name, "description": method.description, "propertyNames": method.property_names,
        })
    };
    let mut object = json!({
        "apiVersion": "devices.kubeedge.io/v1beta1",
        "kind": "Device",
        "metadata": {"namespace": device.namespace, "name": device.name},
        "spec": {
            "deviceModelRef": {"name": spec.device_model_reference},
            "protocol": {"protocolName": protocol.protocol_name, "configData": config},
            "properties": properties.collect::<Result<Vec<_>, _>>()?,
            "methods": spec.methods.iter().map(method).collect::<Vec<_>>(),
        },
    });
    if let Some(status) = device.status.as_ref().filter(|status| status.report_to_cloud) {
        object["spec"]["stateReport"] = json!({"reportToCloud": true, "reportCycle": status.report_cycle});
    }
    Ok(object)
}

fn property_json(index: usize, property: &proto::DeviceProperty) -> Result<Value, ConvertError> {
    let path = format!("spec.properties[{index}]");
    let visitors = property.visitors.as_ref();
    let settings = unwrap(
        visitors.and_then(|visitors| visitors.config_data.as_ref()),
        &format!("{path}.visitors.configData"),
    )?;
    let mut object = json!({
        "name": property.name,
        "visitors": {
            "protocolName": visitors.map(|visitors| visitors.protocol_name.as_str()).unwrap_or_default(),
            "configData": settings,
        },
        "reportCycle": property.report_cycle,
        "collectCycle": property.collect_cycle,
        "reportToCloud": property.report_to_cloud,
    });
    if let Some(desired) = property.desired.as_ref().filter(|desired| !desired.value.is_empty()) {
        object["desired"] = json!({"value": desired.value, "metadata": desired.metadata});
    }
    if let Some(push) = &property.push_method {
        object["pushMethod"] = push_method_json(push, &format!("{path}.pushMethod"))?;
    }
    Ok(object)
}

fn push_method_json(push: &proto::PushMethod, path: &str) -> Result<Value, ConvertError> {
    let mut object = Map::new();
    if let Some(http) = &push.http {
        let http = json!({
            "hostName": http.hostname, "port": http.port, "requestPath": http.requestpath, "timeout": http.timeout,
        });
        object.insert("http".to_owned(), http);
    }
    if let Some(mqtt) = &push.mqtt {
        let mqtt = json!({
            "address": mqtt.address, "topic": mqtt.topic, "qos": mqtt.qos, "retained": mqtt.retained,
        });
        object.insert("mqtt".to_owned(), mqtt);
    }
    if let Some(otel) = &push.otel {
        object.insert("otel".to_owned(), json!({"endpointURL": otel.endpoint_url}));
    }
    if let Some(db) = &push.db_method {
        object.insert("dbMethod".to_owned(), db_method_json(db));
    }
    if let Some(anomaly) = &push.anomaly_detection {
        let settings = proto::CustomizedValue { data: anomaly.data.clone() };
        let settings = unwrap(Some(&settings), &format!("{path}.anomalyDetection"))?;
        object.insert("anomalyDetection".to_owned(), settings.into());
    }
    Ok(object.into())
}

fn db_method_json(db: &proto::DbMethod) -> Value {
    let mut object = Map::new();
    if let Some(influx) = &db.influxdb2 {
        let client = influx.influxdb2_client_config.clone().unwrap_or_default();
        let data = influx.influxdb2_data_config.clone().unwrap_or_default();
        let influx = json!({
            "influxdb2ClientConfig": {"url": client.url, "org": client.org, "bucket": client.bucket},
            "influxdb2DataConfig": {
                "measurement": data.measurement, "tag": data.tag, "fieldKey": data.field_key,
            },
        });
        object.insert("influxdb2".to_owned(), influx);
    }
    if let Some(redis) = &db.redis {
        let client = redis.redis_client_config.clone().unwrap_or_default();
        let client = json!({
            "addr": client.addr, "db": client.db, "poolsize": client.poolsize,
            "minIdleConns": client.min_idle_conns,
        });
        object.insert("redis".to_owned(), json!({"redisClientConfig": client}));
    }
    if let Some(tdengine) = &db.tdengine {
        let client = tdengine.td_engine_client_config.clone().unwrap_or_default();
        let client = json!({"addr": client.addr, "dbName": client.dbname});
        object.insert("TDEngine".to_owned(), json!({"TDEngineClientConfig": client}));
    }
    if let Some(mysql) = &db.mysql {
        let client = mysql.mysql_client_config.clone().unwrap_or_default();
        let client = json!({"addr": client.addr, "database": client.database, "userName": client.user_name});
        object.insert("mysql".to_owned(), json!({"mysqlClientConfig": client}));
    }
    object.into()
}

fn model_json(model: &proto::DeviceModel) -> Value {
    let properties = model.spec.as_ref().map(|spec| spec.properties.as_slice()).unwrap_or_default();
    let property = |property: &proto::ModelProperty| {
        let mut object = json!({
            "name": property.name, "description": property.description, "minimum": property.minimum,
            "maximum": property.maximum, "unit": property.unit,
        });
        if !property.r#type.is_empty() {
            object["type"] = property.r#type.to_ascii_uppercase().into();
        }
        if !property.access_mode.is_empty() {
            object["accessMode"] = property.access_mode.clone().into();
        }
        object
    };
    json!({
        "apiVersion": "devices.kubeedge.io/v1beta1",
        "kind": "DeviceModel",
        "metadata": {"namespace": model.namespace, "name": model.name},
        "spec": {"properties": properties.iter().map(property).collect::<Vec<_>>()},
    })
}
