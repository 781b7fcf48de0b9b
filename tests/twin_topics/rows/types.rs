use super::*;

const D: &str = "t-1";

/// A first value of a type.
fn taken(name: &'static str, key: &'static str, value_type: &str, value: &str) -> Row {
    let twin = typed(None, Some(value), value_type);
    row(
        name,
        update(D, key, json!({key: {"actual": {"value": value}, "metadata": {"type": value_type}}})),
        vec![
            result(D, key, json!({key: twin})),
            document(D, key, json!({key: {"last": null, "current": twin}})),
        ],
    )
}

/// A value that is not taken, with words of the reason.
fn not_taken(name: &'static str, twin: Value, words: &str) -> Row {
    row(name, update(D, "e", twin), vec![refused(&topic(D, "twin/update/result"), "e", 400, words)])
}

/// Types of twins, and types and ranges of the model.
pub(super) fn rows() -> Vec<Row> {
    let model = applied(&json!({
        "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "DeviceModel",
        "metadata": {"namespace": "default", "name": "tank", "uid": "m", "resourceVersion": "1"},
        "spec": {"properties": [
            {"name": "level", "type": "INT", "accessMode": "ReadWrite", "minimum": "0", "maximum": "100"},
        ]},
    }));
    let value = |value: &str| json!({"actual": {"value": value}});
    let of_type =
        |kind: &str, value: &str| json!({"n": {"actual": {"value": value}, "metadata": {"type": kind}}});
    let integer = typed(None, Some("-7"), "int");
    vec![
        row("a device comes", Act::Hear(device(D, 1, None)), vec![added(D)]),
        taken("an integer", "i", "int", "-7"),
        taken("an integer by its other name", "i2", "integer", "9223372036854775807"),
        taken("a number as Go reads it", "f", "float", "1e3"),
        taken("no number is one too", "f2", "float", "NaN"),
        taken("a boolean", "b", "boolean", "true"),
        taken("a text", "s", "string", "any-thing.at/all"),
        not_taken("a word is no integer", json!({"i": value("warm")}), "<...property i|actual|default/t-1>"),
        not_taken("nor is a fraction", json!({"i": value("1.5")}), "<...property i>"),
        not_taken("nor what does not fit", json!({"i": value("9223372036854775808")}), "<...property i>"),
        not_taken("a number has a form", json!({"f": value("1..2")}), "<...property f>"),
        not_taken("and an end", json!({"f": value("1e400")}), "<...property f>"),
        not_taken("a boolean is written small", json!({"b": value("True")}), "<...property b>"),
        not_taken(
            "a wish has the type too",
            json!({"i": {"expected": {"value": "x"}}}),
            "<...property i|expected>",
        ),
        not_taken("no type double", of_type("double", "1"), "<...the value type is not allowed|property n>"),
        not_taken("no type in capitals", of_type("INT", "1"), "<...the value type is not allowed>"),
        not_taken("no invented type", of_type("Updated", "1"), "<...the value type is not allowed>"),
        row(
            "another type of what there is means nothing",
            update(D, "x", json!({"i": {"actual": {"value": "-7"}, "metadata": {"type": "Updated"}}})),
            vec![
                result(D, "x", json!({"i": integer})),
                document(D, "x", json!({"i": {"last": integer, "current": integer}})),
            ],
        ),
        row("the model comes", Act::Hear(model), vec![]),
        not_taken(
            "above the model's range",
            json!({"level": {"expected": {"value": "101"}}}),
            "<...maximum|property level|default/t-1>",
        ),
        not_taken("below it", json!({"level": value("-1")}), "<...minimum|property level>"),
        not_taken("not of the model's type", json!({"level": value("full")}), "<...property level>"),
        not_taken(
            "one bad value and nothing is taken",
            json!({"level": value("50"), "i": value("x")}),
            "<...property i>",
        ),
        row(
            "what the model allows",
            update(D, "y", json!({"level": value("100")})),
            vec![
                result(D, "y", json!({"level": shown(None, Some("100"))})),
                document(D, "y", json!({"level": {"last": null, "current": shown(None, Some("100"))}})),
            ],
        ),
    ]
}
