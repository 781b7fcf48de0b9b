//! The settings of a device: JSON in a Device object, wrappers of `google.protobuf` over DMI.

use std::collections::BTreeMap;

use prost::Message;
use prost_types::Any;
use serde_json::{Number, Value};

use super::{ConvertError, proto::CustomizedValue};

const PREFIX: &str = "type.googleapis.com/google.protobuf.";

/// The largest whole number up to which a 32-bit float has all: KubeEdge sends every number as one.
const FLOAT_EXACT_MAX: f64 = 16_777_216.0;

/// Wraps settings. The map is there even if it is empty, since KubeEdge's mappers stumble over one that is not.
pub(super) fn wrap(settings: &BTreeMap<String, Value>, path: &str) -> Result<CustomizedValue, ConvertError> {
    let wrapped = settings.iter().map(|(key, value)| Ok((key.clone(), wrap_one(value, path, key)?)));
    Ok(CustomizedValue { data: wrapped.collect::<Result<_, _>>()? })
}

fn wrap_one(value: &Value, path: &str, key: &str) -> Result<Any, ConvertError> {
    let not = |what: &str| {
        let why = format!("{what} cannot be told to a mapper; it takes text, numbers and booleans");
        Err(ConvertError { path: format!("{path}.{key}"), why })
    };
    match value {
        Value::String(text) => Ok(any("StringValue", text)),
        Value::Bool(flag) => Ok(any("BoolValue", flag)),
        Value::Number(number) => Ok(wrap_number(number)),
        Value::Null => not("null"),
        Value::Array(_) => not("a list"),
        Value::Object(_) => not("an object"),
    }
}

/// A 32-bit float, as KubeEdge has it, or a 64-bit integer where that would be another number.
fn wrap_number(number: &Number) -> Any {
    match number.as_i64() {
        Some(whole) if number.as_f64().is_some_and(|float| float.abs() > FLOAT_EXACT_MAX) => {
            any("Int64Value", &whole)
        }
        #[expect(clippy::cast_possible_truncation, reason = "KubeEdge's mappers know no 64-bit float")]
        Some(_) | None => any("FloatValue", &(number.as_f64().unwrap_or_default() as f32)),
    }
}

fn any(name: &str, message: &impl Message) -> Any {
    Any { type_url: format!("{PREFIX}{name}"), value: message.encode_to_vec() }
}

/// Unwraps settings; none are an empty map.
pub(super) fn unwrap(
    settings: Option<&CustomizedValue>,
    path: &str,
) -> Result<serde_json::Map<String, Value>, ConvertError> {
    let data = settings.map(|settings| &settings.data);
    data.into_iter().flatten().map(|(key, any)| Ok((key.clone(), unwrap_one(any, path, key)?))).collect()
}

fn unwrap_one(any: &Any, path: &str, key: &str) -> Result<Value, ConvertError> {
    let wrong = |why: String| ConvertError { path: format!("{path}.{key}"), why };
    let bytes = any.value.as_slice();
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    let value = match name.strip_prefix("google.protobuf.").unwrap_or(name) {
        "StringValue" => String::decode(bytes).map(Value::from),
        "BoolValue" => bool::decode(bytes).map(Value::from),
        "FloatValue" => f32::decode(bytes).map(from_float),
        "DoubleValue" => f64::decode(bytes).map(from_double),
        "Int32Value" => i32::decode(bytes).map(Value::from),
        "Int64Value" => i64::decode(bytes).map(Value::from),
        "UInt32Value" => u32::decode(bytes).map(Value::from),
        "UInt64Value" => u64::decode(bytes).map(Value::from),
        _ => return Err(wrong(format!("{:?} is no type that a setting may have", any.type_url))),
    };
    value.map_err(|error| wrong(format!("it is no {name}: {error}")))
}

/// The number that was written in the Device: 0.1 is not 0.10000000149, and 502 is a whole number.
fn from_float(float: f32) -> Value {
    from_double(float.to_string().parse().unwrap_or_else(|_| f64::from(float)))
}

fn from_double(double: f64) -> Value {
    #[expect(clippy::cast_possible_truncation, reason = "it is whole, and checked to be small")]
    if double.fract() == 0.0 && double.abs() < 9e15 {
        Value::from(double as i64)
    } else {
        Value::from(double)
    }
}
