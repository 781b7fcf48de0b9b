use super::*;

const D: &str = "u-1";

fn get(event_id: &str, twin: Value) -> Row {
    row(
        "all twins can be asked for",
        publish(D, "twin/get", json!({"event_id": event_id})),
        vec![(
            topic(D, "twin/get/result"),
            json!({"event_id": event_id, "timestamp": "<now>", "twin": twin}),
        )],
    )
}

/// Values that are written, written again, desired and reached, and deleted.
pub(super) fn rows() -> Vec<Row> {
    let (was, is) = (shown(None, Some("1")), shown(None, Some("2")));
    let wanted = shown(Some("5"), Some("2"));
    let reached = shown(Some("5"), Some("5"));
    let both = shown(Some("7"), Some("6"));
    let not_optional = json!({
        "actual": {"value": "1", "metadata": {"timestamp": "<now>"}}, "optional": false, "metadata": {"type": "string"},
    });
    vec![
        row("a device comes", Act::Hear(device(D, 1, None)), vec![added(D)]),
        get("0", json!({})),
        row(
            "a first value",
            update(D, "1", json!({"a": {"actual": {"value": "1"}}})),
            vec![
                result(D, "1", json!({"a": was})),
                document(D, "1", json!({"a": {"last": null, "current": was}})),
            ],
        ),
        row(
            "another value",
            update(D, "2", json!({"a": {"actual": {"value": "2"}}})),
            vec![
                result(D, "2", json!({"a": is})),
                document(D, "2", json!({"a": {"last": was, "current": is}})),
            ],
        ),
        row(
            "the same value counts",
            update(D, "3", json!({"a": {"actual": {"value": "2"}}})),
            vec![
                result(D, "3", json!({"a": is})),
                document(D, "3", json!({"a": {"last": is, "current": is}})),
            ],
        ),
        row(
            "a desired value",
            update(D, "4", json!({"a": {"expected": {"value": "5"}}})),
            vec![
                result(D, "4", json!({"a": shown(Some("5"), None)})),
                document(D, "4", json!({"a": {"last": is, "current": wanted}})),
                delta(D, json!({"a": wanted}), json!({"a": "5"})),
            ],
        ),
        row(
            "a desired value that is reached",
            update(D, "5", json!({"a": {"actual": {"value": "5"}}})),
            vec![
                result(D, "5", json!({"a": shown(None, Some("5"))})),
                document(D, "5", json!({"a": {"last": wanted, "current": reached}})),
            ],
        ),
        row(
            "both at once, and the sender's time means nothing",
            update(
                D,
                "6",
                json!({"a": {"expected": {"value": "7", "metadata": {"timestamp": 1}}, "actual": {"value": "6"}}}),
            ),
            vec![
                result(D, "6", json!({"a": both})),
                document(D, "6", json!({"a": {"last": reached, "current": both}})),
                delta(D, json!({"a": both}), json!({"a": "7"})),
            ],
        ),
        row(
            "an empty wish is none",
            update(D, "7", json!({"a": {"expected": {"value": ""}}})),
            vec![
                result(D, "7", json!({"a": shown(Some(""), None)})),
                document(D, "7", json!({"a": {"last": both, "current": shown(Some(""), Some("6"))}})),
            ],
        ),
        row(
            "several keys at once",
            update(D, "8", json!({"b": {"actual": {"value": "1"}}, "c": {"actual": {"value": "2"}}})),
            vec![
                result(D, "8", json!({"b": was, "c": is})),
                document(
                    D,
                    "8",
                    json!({"b": {"last": null, "current": was}, "c": {"last": null, "current": is}}),
                ),
            ],
        ),
        get("9", json!({"a": shown(Some(""), Some("6")), "b": was, "c": is})),
        row(
            "a twin is deleted",
            update(D, "10", json!({"c": null})),
            vec![
                result(D, "10", json!({"c": null})),
                document(D, "10", json!({"c": {"last": is, "current": null}})),
            ],
        ),
        row("twice is once", update(D, "11", json!({"c": null})), vec![result(D, "11", json!({}))]),
        row(
            "what never was is not deleted",
            update(D, "12", json!({"d": null})),
            vec![
                result(D, "12", json!({})),
                document(D, "12", json!({"d": {"last": null, "current": null}})),
            ],
        ),
        row(
            "a deleted twin begins again",
            update(D, "13", json!({"c": {"actual": {"value": "1"}}})),
            vec![
                result(D, "13", json!({"c": was})),
                document(D, "13", json!({"c": {"last": null, "current": was}})),
            ],
        ),
        row(
            "a twin need not be optional",
            update(D, "14", json!({"b": {"actual": {"value": "1"}, "optional": false}})),
            vec![
                result(D, "14", json!({"b": not_optional})),
                document(D, "14", json!({"b": {"last": was, "current": not_optional}})),
            ],
        ),
        row("then it is not deleted", update(D, "15", json!({"b": null})), vec![result(D, "15", json!({}))]),
        row(
            "nor made optional again",
            update(D, "16", json!({"b": {"actual": {"value": "1"}, "optional": true}})),
            vec![
                result(D, "16", json!({"b": not_optional})),
                document(D, "16", json!({"b": {"last": not_optional, "current": not_optional}})),
            ],
        ),
        get("17", json!({"a": shown(Some(""), Some("6")), "b": not_optional, "c": was})),
    ]
}
