use super::*;

fn get(payload: &str) -> Act {
    Act::Publish("$hw/events/node/edge-1/membership/get".to_owned(), payload.as_bytes().to_vec())
}

const RESULT: &str = "$hw/events/node/edge-1/membership/get/result";

fn members(event_id: &str, devices: Value) -> Vec<(String, Value)> {
    vec![(RESULT.to_owned(), json!({"event_id": event_id, "timestamp": "<now>", "devices": devices}))]
}

/// Devices that come and go, and the question which there are.
pub(super) fn rows() -> Vec<Row> {
    let one = json!({"id": "default/m-1", "name": "m-1"});
    let two = json!({"id": "default/m-2", "name": "m-2", "description": "the old pump"});
    let mut described = device("m-2", 1, None);
    if let ObjectEvent::Applied(object) = &described {
        let mut json: Value = serde_json::from_slice(&object.json).expect("it is JSON");
        json["metadata"]["labels"] = json!({"description": "the old pump"});
        described = applied(&json);
    }
    vec![
        row("a node without devices says so", get(r#"{"event_id":"1"}"#), members("1", json!([]))),
        row("a device that comes is told", Act::Hear(device("m-1", 1, None)), vec![added("m-1")]),
        row("a device that is heard of again is not", Act::Hear(device("m-1", 1, None)), vec![]),
        row("a newer object of a device neither", Act::Hear(device("m-1", 2, None)), vec![]),
        row("a device has its description", Act::Hear(described), vec![changed(json!([two]), Value::Null)]),
        row(
            "all devices can be asked for",
            get(r#"{"event_id":"2","timestamp":1}"#),
            members("2", json!([one, two])),
        ),
        row("an id need not be given", get("{}"), members("", json!([one, two]))),
        row("nor be more than null", get(r#"{"event_id":null}"#), members("", json!([one, two]))),
        row(
            "a question that is no JSON",
            get("what?"),
            vec![refused(RESULT, "", 400, "<...Unmarshal|line 1>")],
        ),
        row("a question that is a list", get("[]"), vec![refused(RESULT, "", 400, "<...Unmarshal>")]),
        row(
            "another node's question is not ours",
            Act::Publish("$hw/events/node/edge-2/membership/get".to_owned(), b"{}".to_vec()),
            vec![],
        ),
        row(
            "a device that goes is told",
            Act::Hear(deleted("m-2")),
            vec![changed(Value::Null, json!([two]))],
        ),
        row("and gone is gone", Act::Hear(deleted("m-2")), vec![]),
        row(
            "what is gone is not found",
            publish("m-2", "twin/get", r#"{"event_id":"3"}"#),
            vec![refused(
                &topic("m-2", "twin/get/result"),
                "3",
                404,
                "Device default/m-2 not found while getting twin",
            )],
        ),
        row(
            "a device of any namespace is read by its levels",
            Act::Hear(device_in("device", "m-3", 1, None)),
            vec![changed(json!([{"id": "device/m-3", "name": "m-3"}]), Value::Null)],
        ),
        row(
            "its twins can be asked for",
            Act::Publish("$hw/events/device/device/m-3/twin/get".to_owned(), br#"{"event_id":"4"}"#.to_vec()),
            vec![(
                "$hw/events/device/device/m-3/twin/get/result".to_owned(),
                json!({"event_id": "4", "timestamp": "<now>", "twin": {}}),
            )],
        ),
    ]
}
