//! Values in what devices send as text or JSON.

use kubeedge_core::device::{PropertySpec, PropertyType};
use serde_json::{Value, json};

use super::settings::Settings;

/// The value in an answer: at the visitor's `pointer` if it has one, otherwise the whole text without the white space
/// around it; a number is multiplied by the visitor's `scale`.
pub(super) fn value(
    property: &PropertySpec,
    settings: Settings<'_>,
    answer: &[u8],
) -> Result<String, String> {
    let found = match settings.text(&["pointer"])? {
        Some(pointer) => {
            let answer: Value =
                serde_json::from_slice(answer).map_err(|error| format!("the answer is no JSON: {error}"))?;
            match answer.pointer(pointer) {
                Some(Value::String(text)) => text.clone(),
                Some(value @ (Value::Number(_) | Value::Bool(_))) => value.to_string(),
                Some(_) => return Err(format!("the answer has no single value at {pointer}")),
                None => return Err(format!("the answer has nothing at {pointer}")),
            }
        }
        None => {
            let text =
                std::str::from_utf8(answer).map_err(|_| "the answer is no text in UTF-8".to_owned())?;
            text.trim().to_owned()
        }
    };
    scaled(property, settings, found)
}

/// A number multiplied by the visitor's `scale`; anything else as it is.
pub(super) fn scaled(
    property: &PropertySpec,
    settings: Settings<'_>,
    found: String,
) -> Result<String, String> {
    match settings.number(&["scale"])? {
        None => Ok(found),
        Some(scale) => {
            let number = found.parse().map_err(|_| {
                format!("{:?} is no number to scale", found.chars().take(80).collect::<String>())
            })?;
            property.value_of(number, scale)
        }
    }
}

/// What is sent for a value: in its JSON form, under the visitor's `writeKey` if it has one.
pub(super) fn payload(
    property: &PropertySpec,
    settings: Settings<'_>,
    value: &str,
) -> Result<String, String> {
    let value = match settings.number(&["scale"])? {
        None => value.to_owned(),
        Some(scale) => property.number_of(value, scale)?.to_string(),
    };
    let text =
        matches!(property.value_type, PropertyType::String | PropertyType::Bytes | PropertyType::Stream);
    match settings.text(&["writeKey"])? {
        None => Ok(value),
        Some(key) if text => Ok(json!({ key: value }).to_string()),
        Some(key) => {
            let value: Value = serde_json::from_str(&value).map_err(|error| error.to_string())?;
            Ok(json!({ key: value }).to_string())
        }
    }
}
