use super::*;

const D: &str = "e-1";

/// An update that cannot be read: it is answered where no device is.
fn unreadable(name: &'static str, payload: impl Into<Vec<u8>>, words: &str) -> Row {
    let act = Act::Publish(topic(D, "twin/update"), payload.into());
    row(name, act, vec![refused(NOWHERE, "", 400, words)])
}

/// What is no request, or none of a device that there is.
pub(super) fn rows() -> Vec<Row> {
    const FORM: &str = "<...Unmarshal update request body failed, please check the request|default/e-1>";
    const KEY: &str = "<...key|default/e-1>";
    const VALUE: &str = "<...value|\"k\"|default/e-1>";
    const NO_TWIN: &str = "<...Update twin error, key:twin does not exist|default/e-1>";
    let of_key = |key: &str| json!({"event_id": "k", "twin": {key: {"actual": {"value": "1"}}}}).to_string();
    let of_value =
        |value: &str| json!({"event_id": "v", "twin": {"k": {"actual": {"value": value}}}}).to_string();
    let without = |name: &'static str, twin: Value| {
        let answer =
            refused(&topic(D, "twin/update/result"), "w", 400, "<...key:k|has no value|default/e-1>");
        row(name, update(D, "w", twin), vec![answer])
    };
    let unknown = "update rejected due to the device is not existed";
    let (longest_key, longest_value) = ("k".repeat(128), "v".repeat(512));
    let taken = |name: &'static str, key: &str, value: &str| {
        let twin = shown(None, Some(value));
        row(
            name,
            update(D, "l", json!({key: {"actual": {"value": value}}})),
            vec![
                result(D, "l", json!({key: twin})),
                document(D, "l", json!({key: {"last": null, "current": twin}})),
            ],
        )
    };
    let on = |topic: &str, payload: &str| Act::Publish(topic.to_owned(), payload.as_bytes().to_vec());
    vec![
        row("a device comes", Act::Hear(device(D, 1, None)), vec![added(D)]),
        unreadable("nothing", "", FORM),
        unreadable("no JSON", "{", FORM),
        unreadable("no UTF-8", b"{\"twin\":{\"\xff\xfe\":null}}".to_vec(), FORM),
        unreadable("a list", r#"["1",2,{}]"#, FORM),
        unreadable("null", "null", FORM),
        unreadable("an id that is a number", r#"{"event_id":7,"twin":{}}"#, FORM),
        unreadable("a time that is no number", r#"{"timestamp":1e400,"twin":{}}"#, FORM),
        unreadable("twins that are a list", r#"{"twin":[]}"#, FORM),
        unreadable(
            "a twin that is a number",
            r#"{"twin":{"k":7}}"#,
            "<...Unmarshal|property \"k\"|default/e-1>",
        ),
        unreadable(
            "a value that is a number",
            r#"{"twin":{"k":{"actual":{"value":20}}}}"#,
            "<...Unmarshal|property \"k\"|default/e-1>",
        ),
        unreadable("no twins", r#"{"event_id":"1"}"#, NO_TWIN),
        unreadable("twins that are null", r#"{"twin":null}"#, NO_TWIN),
        unreadable("a key of nothing", of_key(""), KEY),
        unreadable("a key with a space", of_key("a b"), KEY),
        unreadable("a key with a wildcard", of_key("a+b"), KEY),
        unreadable("a key that is too long", of_key(&"k".repeat(129)), KEY),
        unreadable("a value with a space", of_value("a b"), VALUE),
        unreadable("a value with a brace", of_value("{"), VALUE),
        unreadable("a value beyond ASCII", of_value("20°"), VALUE),
        unreadable("a value that is too long", of_value(&"v".repeat(513)), VALUE),
        taken("the longest key", &longest_key, "1"),
        taken("the longest value", "longest", &longest_value),
        without("an actual without a value", json!({"k": {"actual": {}}})),
        without("an expected without a value", json!({"k": {"expected": {"metadata": {"timestamp": 1}}}})),
        without("a value that is null", json!({"k": {"actual": {"value": null}}})),
        row(
            "an update of no device",
            update("nobody", "n", json!({})),
            vec![refused(&topic("nobody", "twin/update/result"), "n", 404, unknown)],
        ),
        row(
            "an update of no device that cannot be read",
            publish("nobody", "twin/update", "{"),
            vec![refused(NOWHERE, "", 400, "<...Unmarshal|default/nobody>")],
        ),
        row(
            "a question that is no JSON",
            publish(D, "twin/get", "?"),
            vec![refused(&topic(D, "twin/get/result"), "", 400, "<...Unmarshal>")],
        ),
        row(
            "a question of no device",
            publish("nobody", "twin/get", r#"{"event_id":"q"}"#),
            vec![refused(
                &topic("nobody", "twin/get/result"),
                "q",
                404,
                "Device default/nobody not found while getting twin",
            )],
        ),
        row(
            "a name that leads elsewhere",
            on("$hw/events/device/default/../twin/update", r#"{"twin":{}}"#),
            vec![refused(NOWHERE, "", 400, "<...\"..\">")],
        ),
        row(
            "a namespace in capitals",
            on("$hw/events/device/Default/e-1/twin/update", r#"{"twin":{}}"#),
            vec![refused(NOWHERE, "", 400, "<...\"Default\">")],
        ),
        row(
            "nobody speaks in the cloud's name",
            publish(D, "twin/cloud_updated", r#"{"twin":{"k":null}}"#),
            vec![],
        ),
        row("a question that KubeEdge does not answer", publish(D, "state/get", "{}"), vec![]),
    ]
}
