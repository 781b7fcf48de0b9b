//! What stands in a Device's `status`: written from a report, and read back. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kubeedge_core::{
    message::{DeviceReport, Object, TwinReport, TwinValue},
    pace::Urgency,
};
use serde_json::{Map, Value, json};

/// The names in a value's `metadata` that say what a [`TwinValue`] has beside its own metadata. Metadata are texts in
/// KubeEdge's CRDs, numbers too.
const TIMESTAMP: &str = "timestamp";
const VERSION: &str = "version";

/// The timestamp again, as Kubernetes writes times (RFC 3339, UTC).
const OBSERVED_AT: &str = "observedAt";

/// How many accepted values never stood in the status since it has a version, because newer ones came before their turn.
const PASSED_OVER: &str = "passedOver";

/// What a report makes of the Device: the whole list of twins, because a merge patch replaces lists.
///
/// The status is merged into the object itself: KubeEdge's CRDs have no status subresource.
pub(super) fn patch(report: &DeviceReport) -> Value {
    let mut status = Map::new();
    status.insert("twins".to_owned(), report.twins.iter().map(twin).collect());
    if let Some(state) = &report.state {
        status.insert("state".to_owned(), state.as_str().into());
    }
    if let Some(last_online) = &report.last_online {
        status.insert("lastOnlineTime".to_owned(), last_online.as_str().into());
    }
    json!({ "metadata": { "uid": report.uid.as_str() }, "status": status })
}

/// What a report makes of the DeviceStatus of the device's name, which belongs to the Device: where a Device is deleted, the
/// API's garbage collector deletes it too, and a Device that takes the name over takes it over as well.
///
/// It is whole, so that it can be created, and says nothing that could not be merged into one that is there.
pub(super) fn mirror(report: &DeviceReport, api_version: &str) -> Value {
    let device = &report.device;
    let owner = json!({
        "apiVersion": api_version, "kind": "Device",
        "name": device.name(), "uid": report.uid.as_str(), "controller": true,
    });
    json!({
        "apiVersion": api_version, "kind": "DeviceStatus",
        "metadata": {
            "namespace": device.namespace(), "name": device.name(), "ownerReferences": [owner],
        },
        "spec": {}, "status": patch(report)["status"],
    })
}

fn twin(twin: &TwinReport) -> Value {
    let mut json = Map::new();
    json.insert("propertyName".to_owned(), twin.property.as_str().into());
    if let Some(reported) = &twin.reported {
        json.insert("reported".to_owned(), value(reported));
    }
    if let Some(desired) = &twin.observed_desired {
        json.insert("observedDesired".to_owned(), value(desired));
    }
    json.into()
}

/// The timestamp is milliseconds since the Unix epoch. The version counts the accepted writes.
fn value(twin: &TwinValue) -> Value {
    let mut metadata: Map<String, Value> =
        twin.metadata.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect();
    metadata.insert(TIMESTAMP.to_owned(), twin.timestamp_ms.to_string().into());
    metadata.insert(VERSION.to_owned(), twin.version.to_string().into());
    let observed = i64::try_from(twin.timestamp_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    if let Some(observed) = observed {
        metadata
            .insert(OBSERVED_AT.to_owned(), observed.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string().into());
    }
    json!({ "value": twin.value, "metadata": metadata })
}

/// Reads what was reported of a device out of its object. What is not in our form is left out.
pub(super) fn told(device: &Object) -> Option<DeviceReport> {
    let json: Value = serde_json::from_slice(&device.json).ok()?;
    let status = json["status"].as_object()?;
    let text = |name: &str| status.get(name).and_then(Value::as_str).map(str::to_owned);
    let twins = status.get("twins").and_then(Value::as_array);
    Some(DeviceReport {
        device: device.reference.device_id().ok()?,
        uid: device.uid.clone(),
        twins: twins.into_iter().flatten().filter_map(read_twin).collect(),
        state: text("state"),
        last_online: text("lastOnlineTime"),
    })
}

fn read_twin(json: &Value) -> Option<TwinReport> {
    Some(TwinReport {
        property: json["propertyName"].as_str()?.to_owned(),
        reported: read_value(&json["reported"]),
        observed_desired: read_value(&json["observedDesired"]),
    })
}

fn read_value(json: &Value) -> Option<TwinValue> {
    let value = json["value"].as_str()?.to_owned();
    let given = json["metadata"].as_object().into_iter().flatten();
    let mut metadata: BTreeMap<String, String> =
        given.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect();
    metadata.remove(OBSERVED_AT);
    let mut number =
        |name: &str| metadata.remove(name).and_then(|text| text.parse().ok()).unwrap_or_default();
    Some(TwinValue { value, timestamp_ms: number(TIMESTAMP), version: number(VERSION), metadata })
}

/// Whether all that is reported is in the Device. Others may have added to it.
pub(super) fn says(device: &Object, report: &DeviceReport) -> bool {
    fn has(all: &Value, told: &Value) -> bool {
        match (all, told) {
            (Value::Object(all), Value::Object(told)) => {
                told.iter().all(|(name, told)| all.get(name).is_some_and(|all| has(all, told)))
            }
            (Value::Array(all), Value::Array(told)) => {
                all.len() == told.len() && all.iter().zip(told).all(|(all, told)| has(all, told))
            }
            (all, told) => all == told,
        }
    }
    let device: Value = serde_json::from_slice(&device.json).unwrap_or_default();
    has(&device["status"], &patch(report)["status"])
}

/// What the device's status should say after `report`, if it says `known`: of each value the newer version.
///
/// A node whose power was cut may report values older than what it reported before; its drivers read newer ones at
/// once.
pub(super) fn merge(mut report: DeviceReport, known: &DeviceReport) -> DeviceReport {
    for twin in &mut report.twins {
        let Some(known) = known.twins.iter().find(|known| known.property == twin.property) else { continue };
        keep_newer(&mut twin.reported, known.reported.as_ref());
        count_passed_over(&mut twin.reported, known.reported.as_ref());
        keep_newer(&mut twin.observed_desired, known.observed_desired.as_ref());
    }
    // What a report leaves out of these two stands in the status as it was.
    report.state = report.state.or_else(|| known.state.clone());
    report.last_online = report.last_online.or_else(|| known.last_online.clone());
    report
}

/// The version decides, and never the time: clocks jump.
fn keep_newer(value: &mut Option<TwinValue>, known: Option<&TwinValue>) {
    if let Some(known) = known.filter(|known| is_older(value.as_ref(), known)) {
        *value = Some(known.clone());
    }
}

/// Brings the count of what was passed over on from what the status says. One without a version was not written here.
fn count_passed_over(value: &mut Option<TwinValue>, known: Option<&TwinValue>) {
    let (Some(value), Some(known)) = (value, known.filter(|known| known.version > 0)) else { return };
    let before: u64 = known.metadata.get(PASSED_OVER).and_then(|text| text.parse().ok()).unwrap_or_default();
    let between = value.version.saturating_sub(known.version).saturating_sub(1);
    match before.saturating_add(between) {
        0 => {}
        all => drop(value.metadata.insert(PASSED_OVER.to_owned(), all.to_string())),
    }
}

fn is_older(reported: Option<&TwinValue>, known: &TwinValue) -> bool {
    reported.is_some_and(|reported| reported.version < known.version)
}

/// Whether the node reports a version that is older than what the status says.
pub(super) fn is_behind(report: &DeviceReport, known: &DeviceReport) -> bool {
    let older = |reported: &Option<TwinValue>, known: &Option<TwinValue>| {
        known.as_ref().is_some_and(|known| is_older(reported.as_ref(), known))
    };
    report.twins.iter().any(|twin| {
        let known = known.twins.iter().find(|known| known.property == twin.property);
        known.is_some_and(|known| {
            older(&twin.reported, &known.reported) || older(&twin.observed_desired, &known.observed_desired)
        })
    })
}

/// Whether people wait for it: the connection came or went, or something that is desired was done.
pub(super) fn urgency(report: &DeviceReport, known: Option<&DeviceReport>, device: &Object) -> Urgency {
    let Some(known) = known else { return Urgency::Ordinary };
    let desired = desired(device);
    let is_answer = |twin: &TwinReport| {
        let before = known.twins.iter().find(|known| known.property == twin.property);
        let observed = |twin: &TwinReport| twin.observed_desired.as_ref().map(|value| value.value.clone());
        let is_as_desired = |twin: &TwinReport| {
            let reported = twin.reported.as_ref().map(|value| &value.value);
            desired.get(&twin.property).is_some_and(|desired| Some(desired) == reported)
        };
        observed(twin) != before.and_then(observed)
            || is_as_desired(twin) != before.is_some_and(is_as_desired)
    };
    if report.state != known.state || report.twins.iter().any(is_answer) {
        Urgency::Urgent
    } else {
        Urgency::Ordinary
    }
}

fn desired(device: &Object) -> BTreeMap<String, String> {
    let json: Value = serde_json::from_slice(&device.json).unwrap_or_default();
    let properties = json["spec"]["properties"].as_array();
    let desired = |property: &Value| {
        Some((property["name"].as_str()?.to_owned(), property["desired"]["value"].as_str()?.to_owned()))
    };
    properties.into_iter().flatten().filter_map(desired).collect()
}

#[cfg(test)]
mod tests {
    use kubeedge_core::{id::Uid, message::ObjectRef};

    use super::*;

    fn reported(version: u64) -> DeviceReport {
        let value = TwinValue {
            value: "20".to_owned(),
            timestamp_ms: 1_767_225_600_250,
            version,
            ..TwinValue::default()
        };
        DeviceReport {
            device: "default/room".parse().unwrap(),
            uid: Uid::new("d1"),
            twins: vec![TwinReport {
                property: "temperature".to_owned(),
                reported: Some(value),
                observed_desired: None,
            }],
            state: None,
            last_online: None,
        }
    }

    fn device(status: &Value) -> Object {
        let json = json!({
            "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device",
            "metadata": { "namespace": "default", "name": "room", "uid": "d1", "resourceVersion": "1" },
            "status": status,
        });
        Object::from_json(json.to_string()).unwrap()
    }

    #[test]
    fn a_status_says_when_a_value_was_observed_and_how_many_were_passed_over_before_it() {
        let mut known = reported(3);
        for (version, passed_over) in
            [(3, None), (4, None), (9, Some("4")), (9, Some("4")), (10, Some("4")), (12, Some("5"))]
        {
            let merged = merge(reported(version), &known);
            let status = patch(&merged)["status"].clone();
            let metadata = &status["twins"][0]["reported"]["metadata"];
            assert_eq!(metadata["observedAt"], "2026-01-01T00:00:00.250Z");
            assert_eq!(metadata["passedOver"].as_str(), passed_over, "version {version}");
            let device = device(&status);
            assert_eq!(device.reference, ObjectRef::device(&merged.device));
            known = told(&device).unwrap();
            assert_eq!(known, merged, "it is read back as it was written");
            assert!(says(&device, &merge(reported(version), &known)), "and is not written again");
        }
    }

    #[test]
    fn a_value_that_another_program_has_written_without_a_version_counts_for_nothing() {
        let status = json!({ "twins": [{ "propertyName": "temperature", "reported": { "value": "1", "metadata": {} } }] });
        let merged = merge(reported(900), &told(&device(&status)).unwrap());
        assert!(patch(&merged)["status"]["twins"][0]["reported"]["metadata"]["passedOver"].is_null());
    }
}
