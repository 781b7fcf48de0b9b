use super::*;

const D: &str = "c-1";

/// What the cloud desires and drivers read, among what applications write.
pub(super) fn rows() -> Vec<Row> {
    let wants = |version, level| Act::Hear(device(D, version, level));
    let writes = |event, twin: Value| update(D, event, json!({"level": twin}));
    let (first, reached) = (shown(Some("20"), None), shown(Some("20"), Some("20")));
    let (again, overridden) = (shown(Some("25"), Some("20")), shown(Some("30"), Some("20")));
    vec![
        row(
            "a device comes with a wish of the cloud",
            wants(1, Some("20")),
            vec![
                added(D),
                document(D, "", json!({"level": {"last": null, "current": first}})),
                delta(D, json!({"level": first}), json!({"level": "20"})),
            ],
        ),
        row(
            "an application fulfils it",
            writes("1", json!({"actual": {"value": "20"}})),
            vec![
                result(D, "1", json!({"level": shown(None, Some("20"))})),
                document(D, "1", json!({"level": {"last": first, "current": reached}})),
            ],
        ),
        row(
            "the cloud wants something else",
            wants(5, Some("25")),
            vec![
                document(D, "", json!({"level": {"last": reached, "current": again}})),
                delta(D, json!({"level": again}), json!({"level": "25"})),
            ],
        ),
        row("a replay changes nothing", wants(5, Some("25")), vec![]),
        row("an older version neither, whenever it comes", wants(3, Some("99")), vec![]),
        row(
            "an application wants something else",
            writes("2", json!({"expected": {"value": "30"}})),
            vec![
                result(D, "2", json!({"level": shown(Some("30"), None)})),
                document(D, "2", json!({"level": {"last": again, "current": overridden}})),
                delta(D, json!({"level": overridden}), json!({"level": "30"})),
            ],
        ),
        row("the cloud's old wish is none anew", wants(6, Some("25")), vec![]),
        row("the cloud takes back only what it gave", wants(7, None), vec![]),
        row(
            "a new wish of the cloud is the last",
            wants(8, Some("40")),
            vec![
                document(
                    D,
                    "",
                    json!({"level": {"last": overridden, "current": shown(Some("40"), Some("20"))}}),
                ),
                delta(D, json!({"level": shown(Some("40"), Some("20"))}), json!({"level": "40"})),
            ],
        ),
        row(
            "a driver has done it",
            read(D, "level", "40"),
            vec![
                result(D, "", json!({"level": shown(Some("40"), Some("40"))})),
                document(
                    D,
                    "",
                    json!({"level": {
                        "last": shown(Some("40"), Some("20")), "current": shown(Some("40"), Some("40")),
                    }}),
                ),
            ],
        ),
        row("a driver that reads the same says nothing", read(D, "level", "40"), vec![]),
        row(
            "a driver reads something else",
            read(D, "level", "41"),
            vec![
                result(D, "", json!({"level": shown(Some("40"), Some("41"))})),
                document(
                    D,
                    "",
                    json!({"level": {
                        "last": shown(Some("40"), Some("40")), "current": shown(Some("40"), Some("41")),
                    }}),
                ),
                delta(D, json!({"level": shown(Some("40"), Some("41"))}), json!({"level": "40"})),
            ],
        ),
        row(
            "the device goes",
            Act::Hear(deleted(D)),
            vec![changed(Value::Null, json!([{"id": "default/c-1", "name": "c-1"}]))],
        ),
        row("one of its name begins anew", wants(20, None), vec![added(D)]),
        row(
            "and has nothing",
            publish(D, "twin/get", r#"{"event_id":"3"}"#),
            vec![(topic(D, "twin/get/result"), json!({"event_id": "3", "timestamp": "<now>", "twin": {}}))],
        ),
    ]
}
