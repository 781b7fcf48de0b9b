//! The JSON of KubeEdge's device topics: what applications send, and what they are told.
//!
//! Values are JSON strings whatever the property's type. The rules for keys, values and types are those of
//! KubeEdge's DeviceTwin.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// What every message carries. The timestamp of a request means nothing to KubeEdge; its form is checked only.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Request {
    event_id: Option<String>,
    timestamp: Option<i64>,
    #[serde(flatten)]
    _object: ObjectOnly,
}

/// Flattened into a structure, it lets no array stand for it: serde would take one, field by field.
#[derive(Debug, Default, Deserialize)]
struct ObjectOnly {}

impl Request {
    /// Reads the payload of `twin/get` or `membership/get`.
    pub(super) fn parse(payload: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(payload)
            .map_err(|error| format!("Unmarshal request body failed: {}", short(&error)))
    }

    pub(super) fn event_id(&self) -> &str {
        self.event_id.as_deref().unwrap_or_default()
    }
}

/// The payload of `twin/update`, as far as it is the same for all keys.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct UpdateRequest<'a> {
    event_id: Option<String>,
    #[serde(rename = "timestamp")]
    _timestamp: Option<i64>,
    #[serde(borrow)]
    twin: Option<BTreeMap<String, &'a RawValue>>,
}

/// What an application wants of a device's twins.
#[derive(Debug, Default)]
pub(super) struct Update {
    pub(super) event_id: String,
    pub(super) changes: Changes,
}

/// What an application wants of one twin.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TwinChange {
    pub(super) expected: Option<ValueChange>,
    pub(super) actual: Option<ValueChange>,
    pub(super) optional: Option<bool>,
    pub(super) metadata: Option<TypeChange>,
    #[serde(flatten)]
    _object: ObjectOnly,
}

/// A value that an application writes.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ValueChange {
    pub(super) value: Option<String>,
    metadata: Option<TimestampChange>,
    #[serde(flatten)]
    _object: ObjectOnly,
}

/// The type that an application wants a twin to have.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TypeChange {
    pub(super) r#type: Option<String>,
    #[serde(flatten)]
    _object: ObjectOnly,
}

/// When the application wrote the value. Its form is checked; the time of arrival counts.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TimestampChange {
    timestamp: Option<i64>,
    #[serde(flatten)]
    _object: ObjectOnly,
}

/// A twin's type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct TypeMetadata {
    pub(super) r#type: String,
}

/// When a value was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct ValueMetadata {
    timestamp: u64,
}

/// What a twin update wants of each key; `None` deletes it.
pub(super) type Changes = BTreeMap<String, Option<TwinChange>>;

impl Update {
    /// Reads the payload and checks keys and values by KubeEdge's rules.
    ///
    /// # Errors
    /// The reason of the answer with code 400: what KubeEdge says, and then what exactly is wrong.
    pub(super) fn parse(payload: &[u8]) -> Result<Self, String> {
        let unreadable = |what: &str, error: &dyn fmt::Display| {
            format!("Unmarshal update request body failed, please check the request: {what}{}", short(error))
        };
        // Serde would take an array for a structure, field by field.
        if payload.trim_ascii_start().first() == Some(&b'[') {
            return Err(unreadable("", &"it is an array"));
        }
        let request: UpdateRequest<'_> =
            serde_json::from_slice(payload).map_err(|error| unreadable("", &error))?;
        let Some(twins) = request.twin else {
            return Err("Update twin error, key:twin does not exist".to_owned());
        };
        let mut changes = Changes::new();
        for (key, json) in twins {
            if !is_text(&key, 128) {
                let key = short(&format_args!("{key:?}"));
                return Err(format!("The twin key {key} must be 1 to 128 letters, digits or -_.,:/@#"));
            }
            let change: Option<TwinChange> = serde_json::from_str(json.get())
                .map_err(|error| unreadable(&format!("property {key:?}: "), &error))?;
            change.iter().try_for_each(|change| check_values(&key, change))?;
            changes.insert(key, change);
        }
        Ok(Self { event_id: request.event_id.unwrap_or_default(), changes })
    }
}

fn check_values(key: &str, change: &TwinChange) -> Result<(), String> {
    let slots = [&change.expected, &change.actual].into_iter().flatten();
    for value in slots.filter_map(|slot| slot.value.as_deref()) {
        if !value.is_empty() && !is_text(value, 512) {
            return Err(format!("A value of {key:?} must be at most 512 letters, digits or -_.,:/@#"));
        }
    }
    Ok(())
}

/// A text that repeats what came from outside, cut to a length that suits an answer.
pub(super) fn short(text: &dyn fmt::Display) -> String {
    const LIMIT: usize = 200;
    let text = text.to_string();
    match text.char_indices().nth(LIMIT) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

/// Whether `text` is what KubeEdge takes for keys and values: `^[a-zA-Z0-9-_.,:/@#]{1,limit}$`.
fn is_text(text: &str, limit: usize) -> bool {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b"-_.,:/@#".contains(&c);
    (1..=limit).contains(&text.len()) && text.bytes().all(allowed)
}

/// Checks a value by the type of its twin.
///
/// # Errors
/// The reason of the answer with code 400.
pub(super) fn check_type(value_type: &str, value: &str) -> Result<(), String> {
    let valid = match value_type {
        "" | "string" | "deleted" => true,
        "int" | "integer" => value.parse::<i64>().is_ok(),
        "float" => is_go_float(value),
        "boolean" => matches!(value, "true" | "false"),
        _ => return Err("the value type is not allowed".to_owned()),
    };
    if valid {
        Ok(())
    } else {
        Err(format!("the value {} is not of type {value_type}", short(&format_args!("{value:?}"))))
    }
}

/// Whether Go's `strconv.ParseFloat` takes the text: as Rust's, but numbers out of range are errors, and hexadecimal
/// ones with an exponent are not.
fn is_go_float(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if let Some(hex) = unsigned.strip_prefix("0x").or_else(|| unsigned.strip_prefix("0X")) {
        return is_hex_float(hex);
    }
    match text.parse::<f64>() {
        Ok(number) => !number.is_infinite() || unsigned.to_ascii_lowercase().starts_with("inf"),
        Err(_) => false,
    }
}

fn is_hex_float(text: &str) -> bool {
    let Some((mantissa, exponent)) = text.split_once(['p', 'P']) else { return false };
    let digits = mantissa.bytes().filter(|c| *c != b'.');
    digits.clone().count() > 0
        && digits.clone().all(|c| c.is_ascii_hexdigit())
        && mantissa.bytes().filter(|c| *c == b'.').count() <= 1
        && exponent.parse::<i16>().is_ok_and(|exponent| exponent < 1024)
}

/// The states that KubeEdge takes, in any case.
pub(super) fn is_device_state(state: &str) -> bool {
    ["online", "offline", "ok", "unknown", "unhealthy"].iter().any(|known| state.eq_ignore_ascii_case(known))
}

/// Whether the state says that the device is connected.
pub(super) fn is_connected(state: &str) -> bool {
    ["online", "ok"].iter().any(|known| state.eq_ignore_ascii_case(known))
}

/// The payload of `state/update`.
#[derive(Debug, Deserialize)]
pub(super) struct StateRequest {
    pub(super) state: String,
    #[serde(flatten)]
    _object: ObjectOnly,
}

impl StateRequest {
    /// Reads the payload.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(payload: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(payload).map_err(|error| short(&error))
    }
}

// --------------------------------------------------------------------------------------------------- answers

/// What every answer carries.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Base {
    pub(super) event_id: String,
    pub(super) timestamp: u64,
}

/// Says that a request was not done.
#[derive(Debug, Serialize)]
pub(super) struct Refusal {
    #[serde(flatten)]
    pub(super) base: Base,
    pub(super) code: u16,
    pub(super) reason: String,
}

/// The payload of `twin/update/result` and `twin/get/result`.
#[derive(Debug, Serialize)]
pub(super) struct TwinResult {
    #[serde(flatten)]
    pub(super) base: Base,
    pub(super) twin: BTreeMap<String, Option<TwinShown>>,
}

/// The payload of `twin/update/document`.
#[derive(Debug, Serialize)]
pub(super) struct Document {
    #[serde(flatten)]
    pub(super) base: Base,
    pub(super) twin: BTreeMap<String, BeforeAndAfter>,
}

/// A twin before and after a change.
#[derive(Debug, Serialize)]
pub(super) struct BeforeAndAfter {
    pub(super) last: Option<TwinShown>,
    pub(super) current: Option<TwinShown>,
}

/// The payload of `twin/update/delta`.
#[derive(Debug, Serialize)]
pub(super) struct Delta {
    #[serde(flatten)]
    pub(super) base: Base,
    pub(super) twin: BTreeMap<String, TwinShown>,
    pub(super) delta: BTreeMap<String, String>,
}

/// A twin as applications see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct TwinShown {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) expected: Option<ValueShown>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) actual: Option<ValueShown>,
    pub(super) optional: bool,
    pub(super) metadata: TypeMetadata,
}

/// A value as applications see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct ValueShown {
    value: String,
    metadata: ValueMetadata,
}

impl ValueShown {
    pub(super) fn new(value: &str, timestamp_ms: u64) -> Self {
        Self { value: value.to_owned(), metadata: ValueMetadata { timestamp: timestamp_ms } }
    }
}

/// The payload of `state/update/result`.
#[derive(Debug, Serialize)]
pub(super) struct StateResult {
    #[serde(flatten)]
    pub(super) base: Base,
    pub(super) device: DeviceState,
}

/// A device's connection state.
#[derive(Debug, Serialize)]
pub(super) struct DeviceState {
    pub(super) name: String,
    pub(super) state: String,
    #[serde(rename = "lastOnlineTime", skip_serializing_if = "Option::is_none")]
    pub(super) last_online: Option<String>,
}

/// The payload of `membership/get/result`.
#[derive(Debug, Serialize)]
pub(super) struct Members {
    #[serde(flatten)]
    pub(super) base: Base,
    pub(super) devices: Vec<Member>,
}

/// The payload of `membership/updated`: one of the two is `null`.
#[derive(Debug, Serialize)]
pub(super) struct MembershipUpdate {
    #[serde(flatten)]
    pub(super) base: Base,
    pub(super) added_devices: Option<Vec<Member>>,
    pub(super) removed_devices: Option<Vec<Member>>,
}

/// A device of the node.
#[derive(Debug, Serialize)]
pub(super) struct Member {
    pub(super) id: String,
    pub(super) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) state: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_online: Option<String>,
}

/// Milliseconds since the Unix epoch as RFC 3339 in UTC, to the second.
pub(super) fn rfc3339(timestamp_ms: u64) -> String {
    let seconds = timestamp_ms / 1_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March here, so that the leap day is a year's last; 400 years have 146 097 days.
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (second / 3_600, second % 3_600 / 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}Z", second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_795_395_055_603), "2026-11-23T00:50:55Z");
        assert_eq!(rfc3339(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(4_107_542_399_000), "2100-02-28T23:59:59Z");
    }

    #[test]
    fn values_are_checked_as_go_checks_them() {
        for good in ["1e3", "inf", "-Infinity", "NaN", "0x1p-2", "0x.8P3", ".5", "1."] {
            assert!(check_type("float", good).is_ok(), "{good}");
        }
        for bad in ["", "1e400", "warm", "0x1", "0x.p1", "0xgp1"] {
            assert!(check_type("float", bad).is_err(), "{bad}");
        }
        assert!(check_type("integer", "9223372036854775807").is_ok());
        assert!(check_type("int", "9223372036854775808").is_err());
        assert!(check_type("boolean", "True").is_err());
        assert!(check_type("string", "").is_ok());
        assert_eq!(check_type("DOUBLE", "1").unwrap_err(), "the value type is not allowed");
    }
}
