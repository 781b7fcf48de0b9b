//! Messages as KubeEdge's own edgecore and a mapper exchanged them, and what drivers are made for.

use prost::Message;

use super::super::{device, model, proto, spec};
use crate::device::{DeviceSpec, PropertyType};

/// The objects from which edgecore made the recorded messages.
const DEVICE: &str = r#"{"metadata":{"namespace":"default","name":"dev1"},"spec":{
    "deviceModelRef":{"name":"sensor-model"},"nodeName":"edge-1",
    "protocol":{"protocolName":"rig","configData":{"addr":"x"}},
    "properties":[
        {"name":"temperature","desired":{"value":"20"},"visitors":{"protocolName":"rig","configData":{"reg":1}},
         "collectCycle":1000,"reportCycle":1000,"reportToCloud":true},
        {"name":"humidity","visitors":{"protocolName":"rig","configData":{"reg":2}},"reportToCloud":true}],
    "methods":[{"name":"setT","description":"set","propertyNames":["temperature"]}]}}"#;
const MODEL: &str = r#"{"metadata":{"namespace":"default","name":"sensor-model"},"spec":{"protocol":"rig","properties":[
    {"name":"temperature","description":"t","type":"INT","accessMode":"ReadWrite","minimum":"0","maximum":"1000000",
     "unit":"degree"},
    {"name":"humidity","type":"STRING","accessMode":"ReadOnly"}]}}"#;

fn of(device: &str, model: &str) -> DeviceSpec {
    DeviceSpec::from_json(device.as_bytes(), model.as_bytes()).unwrap()
}

#[test]
fn a_registration_is_read_and_answered_byte_for_byte_as_kubeedge_does() {
    let bytes: &[u8] = include_bytes!("golden/mapper_register.request.bin");
    let request = proto::MapperRegisterRequest::decode(bytes).unwrap();
    assert_eq!(request.encode_to_vec(), bytes);
    let mapper = request.mapper.unwrap();
    assert_eq!((mapper.name.as_str(), mapper.protocol.as_str()), ("rigmapper", "rig"));
    assert_eq!(mapper.address, b"/opt/ke-edge1/mapper.sock");
    let spec = of(DEVICE, MODEL);
    let answer = proto::MapperRegisterResponse {
        model_list: vec![model(&spec).unwrap()],
        device_list: vec![device(&spec).unwrap()],
    };
    let golden: &[u8] = include_bytes!("golden/mapper_register.response.bin");
    assert_eq!(answer, proto::MapperRegisterResponse::decode(golden).unwrap());
    assert_eq!(answer.encode_to_vec(), golden);
}

#[test]
fn a_desired_value_is_told_byte_for_byte_as_kubeedge_does() {
    let mut spec = of(DEVICE, MODEL);
    let temperature = spec.properties.iter_mut().find(|property| property.name == "temperature");
    temperature.unwrap().desired = Some("25".to_owned());
    let request = proto::UpdateDeviceRequest { device: Some(device(&spec).unwrap()) };
    let golden: &[u8] = include_bytes!("golden/update_device.request.bin");
    assert_eq!(request.encode_to_vec(), golden);
}

#[test]
fn reports_of_a_mapper_are_read() {
    let bytes: &[u8] = include_bytes!("golden/report_device_status.request.bin");
    let report = proto::ReportDeviceStatusRequest::decode(bytes).unwrap();
    let twins = report.reported_device.unwrap().twins;
    let (reported, observed) =
        (twins[0].reported.clone().unwrap(), twins[0].observed_desired.clone().unwrap());
    assert_eq!((reported.value.as_str(), observed.value.as_str()), ("0", "20"));
    assert_eq!(reported.metadata["type"], "INT");
    let bytes: &[u8] = include_bytes!("golden/report_device_states.request.bin");
    let report = proto::ReportDeviceStatesRequest::decode(bytes).unwrap();
    assert_eq!((report.device_namespace.as_str(), report.state.as_str()), ("default", "online"));
}

/// A device with everything that DMI carries.
const RICH: &str = r#"{"metadata":{"namespace":"plant","name":"d"},"spec":{"deviceModelRef":{"name":"m"},
    "protocol":{"protocolName":"rig","configData":{"text":"a","yes":true,"rate":0.1,"port":502,"big":4294967295}},
    "stateReport":{"reportToCloud":true,"reportCycle":5000},
    "properties":[{"name":"p","reportToCloud":true,"desired":{"value":"3","metadata":{"type":"int"}},"pushMethod":{
        "http":{"hostName":"h","port":8080,"requestPath":"/x","timeout":5},
        "mqtt":{"address":"tcp://b:1883","topic":"t","qos":1,"retained":true},
        "otel":{"endpointURL":"http://o"},
        "anomalyDetection":{"limit":7},
        "dbMethod":{
            "influxdb2":{"influxdb2ClientConfig":{"url":"u","org":"o","bucket":"b"},
                "influxdb2DataConfig":{"measurement":"m","tag":{"a":"b"},"fieldKey":"f"}},
            "redis":{"redisClientConfig":{"addr":"r","db":1,"poolsize":2,"minIdleConns":3}},
            "TDEngine":{"TDEngineClientConfig":{"addr":"t","dbName":"n"}},
            "mysql":{"mysqlClientConfig":{"addr":"a","database":"d","userName":"u"}}}}}],
    "methods":[{"name":"set","description":"d","propertyNames":["p"]}]}}"#;
const RICH_MODEL: &str = r#"{"metadata":{"namespace":"plant","name":"m"},"spec":{"protocolConfigData":{"text":"z","slave":1},
    "properties":[{"name":"p","type":"INT","maximum":"9","visitors":{"protocolName":"rig","configData":{"register":7}}}]}}"#;

#[test]
fn a_driver_over_dmi_sees_the_device_as_one_in_the_process_does() {
    let inside = of(RICH, RICH_MODEL);
    let told = device(&inside).unwrap();
    let outside = spec(&told, &model(&inside).unwrap()).unwrap();
    assert_eq!(outside.protocol_config, inside.protocol_config);
    assert_eq!(outside.protocol_config["rate"], 0.1);
    assert_eq!(outside.protocol_config["big"], 4_294_967_295u64, "beyond what a 32-bit float has");
    assert_eq!(outside.properties, inside.properties);
    assert_eq!(outside.properties[0].value_type, PropertyType::Int);
    assert_eq!(outside.state_report_cycle_ms, Some(5_000));
    // Nothing is lost on a second way round either.
    assert_eq!(device(&outside).unwrap(), told);
}

#[test]
fn settings_that_dmi_cannot_carry_are_named() {
    for (value, why) in [("null", "null"), ("[1]", "a list"), (r#"{"a":1}"#, "an object")] {
        let text = DEVICE.replace(r#"{"reg":2}"#, &format!(r#"{{"reg":{value}}}"#));
        let error = device(&of(&text, MODEL)).unwrap_err().to_string();
        let place = format!("spec.properties[1].visitors.configData.reg: {why} cannot be told to a mapper");
        assert!(error.starts_with(&place), "{error}");
    }
}

#[test]
fn what_cannot_be_understood_is_named() {
    let good = of(DEVICE, MODEL);
    let (told, told_model) = (device(&good).unwrap(), model(&good).unwrap());
    let mut bad = told.clone();
    let settings = bad.spec.as_mut().unwrap().protocol.as_mut().unwrap().config_data.as_mut().unwrap();
    settings.data.get_mut("addr").unwrap().type_url = "type.googleapis.com/google.protobuf.Duration".into();
    let error = spec(&bad, &told_model).unwrap_err().to_string();
    assert!(error.contains("spec.protocol.configData.addr") && error.contains("Duration"), "{error}");
    let error = spec(&told, &proto::DeviceModel::default()).unwrap_err().to_string();
    assert!(error.contains("default/dev1") && error.contains("\"temperature\""), "{error}");
    assert!(spec(&proto::Device::default(), &told_model).unwrap_err().to_string().contains("spec"));
}
