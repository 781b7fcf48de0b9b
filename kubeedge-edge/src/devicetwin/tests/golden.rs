//! Payloads as KubeEdge's DeviceTwin gives them, to the byte: `T` stands for a time in milliseconds, `D` for one as
//! text, and `U` for an id that nobody asked for. The facts were seen on a running KubeEdge.

use super::*;

/// Topic and payload of each message that comes.
type Answers = &'static [(&'static str, &'static str)];

/// What is published or happens, and what KubeEdge answers to it.
const EXCHANGES: [(&str, &str, Answers); 7] = [
    (
        "state/update",
        r#"{"event_id":"e4","timestamp":1700000000000,"state":"online"}"#,
        &[(
            "state/update/result",
            r#"{"event_id":"U","timestamp":T,"device":{"name":"t-1","state":"online","lastOnlineTime":"D"}}"#,
        )],
    ),
    (
        "twin/update",
        r#"{"event_id":"","timestamp":1,"twin":{"x":{"expected":{"value":"20"},"actual":{"value":"0"}}}}"#,
        &[
            (
                "twin/update/result",
                r#"{"event_id":"","timestamp":T,"twin":{"x":{"expected":{"value":"20","metadata":{"timestamp":T}},"actual":{"value":"0","metadata":{"timestamp":T}},"optional":true,"metadata":{"type":"string"}}}}"#,
            ),
            (
                "twin/update/document",
                r#"{"event_id":"","timestamp":T,"twin":{"x":{"last":null,"current":{"expected":{"value":"20","metadata":{"timestamp":T}},"actual":{"value":"0","metadata":{"timestamp":T}},"optional":true,"metadata":{"type":"string"}}}}}"#,
            ),
            (
                "twin/update/delta",
                r#"{"event_id":"U","timestamp":T,"twin":{"x":{"expected":{"value":"20","metadata":{"timestamp":T}},"actual":{"value":"0","metadata":{"timestamp":T}},"optional":true,"metadata":{"type":"string"}}},"delta":{"x":"20"}}"#,
            ),
        ],
    ),
    (
        "twin/get",
        r#"{"event_id":"e2","timestamp":1}"#,
        &[(
            "twin/get/result",
            r#"{"event_id":"e2","timestamp":T,"twin":{"x":{"expected":{"value":"20","metadata":{"timestamp":T}},"actual":{"value":"0","metadata":{"timestamp":T}},"optional":true,"metadata":{"type":"string"}}}}"#,
        )],
    ),
    (
        "twin/update",
        r#"{"event_id":"e3","timestamp":1700000000000,"twin":{"x":{"actual":{"value":"31","metadata":{"timestamp":1700000000000}},"metadata":{"type":"Updated"}}}}"#,
        &[
            (
                "twin/update/result",
                r#"{"event_id":"e3","timestamp":T,"twin":{"x":{"actual":{"value":"31","metadata":{"timestamp":T}},"optional":true,"metadata":{"type":"string"}}}}"#,
            ),
            (
                "twin/update/document",
                r#"{"event_id":"e3","timestamp":T,"twin":{"x":{"last":{"expected":{"value":"20","metadata":{"timestamp":T}},"actual":{"value":"0","metadata":{"timestamp":T}},"optional":true,"metadata":{"type":"string"}},"current":{"expected":{"value":"20","metadata":{"timestamp":T}},"actual":{"value":"31","metadata":{"timestamp":T}},"optional":true,"metadata":{"type":"string"}}}}}"#,
            ),
            (
                "twin/update/delta",
                r#"{"event_id":"U","timestamp":T,"twin":{"x":{"expected":{"value":"20","metadata":{"timestamp":T}},"actual":{"value":"31","metadata":{"timestamp":T}},"optional":true,"metadata":{"type":"string"}}},"delta":{"x":"20"}}"#,
            ),
        ],
    ),
    (
        "twin/update",
        r#"{"event_id":"e5","twin":{"y":{"actual":{"value":"1"},"metadata":{"type":"Updated"}}}}"#,
        &[(
            "twin/update/result",
            r#"{"event_id":"e5","timestamp":T,"code":400,"reason":"the value type is not allowed (property y, actual) (device default/t-1)"}"#,
        )],
    ),
    (
        "$hw/events/node/edge-1/membership/get",
        r#"{"event_id":"e1","timestamp":1}"#,
        &[(
            "$hw/events/node/edge-1/membership/get/result",
            r#"{"event_id":"e1","timestamp":T,"devices":[{"id":"default/t-1","name":"t-1","state":"online","last_online":"D"}]}"#,
        )],
    ),
    ("twin/cloud_updated", r#"{"event_id":"e6","twin":{"x":{"actual":{"value":"32"}}}}"#, &[]),
];

#[test]
fn payloads_are_kubeedges_to_the_byte() {
    let mut twin = Twin::new();
    twin.hear(&model(1));
    let added = texts(twin.hear(&thermometer("u", 1, None)));
    let wanted = r#"{"event_id":"U","timestamp":T,"added_devices":[{"id":"default/t-1","name":"t-1"}],"removed_devices":null}"#;
    assert_eq!(added, [("$hw/events/node/edge-1/membership/updated".to_owned(), wanted.to_owned())]);
    for (at, payload, answers) in EXCHANGES {
        let topic = if at.starts_with('$') { at.to_owned() } else { topic(at) };
        let came = texts(twin.publish(&Publish { topic, payload: payload.into() }));
        let wanted: Vec<_> =
            answers.iter().map(|(topic, text)| ((*topic).to_owned(), (*text).to_owned())).collect();
        assert_eq!(came, wanted, "{at} {payload}");
    }
    let removed = texts(twin.hear(&deleted("u")));
    let wanted = r#"{"event_id":"U","timestamp":T,"added_devices":null,"removed_devices":[{"id":"default/t-1","name":"t-1"}]}"#;
    assert_eq!(removed, [("$hw/events/node/edge-1/membership/updated".to_owned(), wanted.to_owned())]);
}

/// Payloads as texts, with what differs each time replaced.
fn texts(told: Told) -> Vec<(String, String)> {
    let text = |publish: &Publish| {
        let (topic, json) = show(publish);
        let mut text = String::from_utf8(publish.payload.to_vec()).unwrap();
        let event = json["event_id"].as_str().unwrap();
        if event.len() == 36 {
            text = text.replace(event, "U");
        }
        text = text.replace(&MIDNIGHT_MS.to_string(), "T").replace("2026-11-23T00:50:48Z", "D");
        (topic, text)
    };
    told.publishes.iter().map(text).collect()
}
