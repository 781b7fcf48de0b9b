//! Whether a value is as expected, and where not.

use serde_json::Value;

/// Where `actual` is not as expected. Members that are not named may be anything; `null` means absent. A text that
/// begins with `~` has to occur, `*` stands for any text but none. Items of a list are found by their `name` or
/// `type`, or else by their place.
pub(crate) fn differences(path: &str, expected: &Value, actual: &Value) -> Vec<String> {
    match (expected, actual) {
        (Value::Object(members), _) => members
            .iter()
            .flat_map(|(name, value)| {
                differences(&format!("{path}.{name}"), value, actual.get(name).unwrap_or(&Value::Null))
            })
            .collect(),
        (Value::Array(items), Value::Array(found)) => items
            .iter()
            .enumerate()
            .flat_map(|(index, item)| {
                let key = ["name", "type"].into_iter().find(|key| item[*key].is_string());
                let one = match key {
                    Some(key) => found.iter().find(|one| one[key] == item[key]),
                    None => found.get(index),
                };
                let place = key.map_or_else(|| index.to_string(), |key| item[key].to_string());
                differences(&format!("{path}[{place}]"), item, one.unwrap_or(&Value::Null))
            })
            .collect(),
        (Value::String(wanted), Value::String(found)) if is_like(wanted, found) => Vec::new(),
        (expected, actual) if expected == actual => Vec::new(),
        (expected, actual) => vec![format!("{path} should be {expected} and is {actual}")],
    }
}

fn is_like(wanted: &str, found: &str) -> bool {
    match wanted.strip_prefix('~') {
        Some(part) => found.contains(part),
        None if wanted == "*" => !found.is_empty(),
        None => wanted == found,
    }
}

/// Whether a log has the line; one that begins with `~` has to occur somewhere, one with `!` must not be there.
pub(crate) fn has_line(log: &str, line: &str) -> bool {
    match line.strip_prefix('!') {
        Some(absent) => !log.lines().any(|one| is_like(absent, one)),
        None => log.lines().any(|one| is_like(line, one) || (line.is_empty() && one.is_empty())),
    }
}

#[test]
fn a_value_is_compared_by_what_is_named() {
    use serde_json::json;
    let actual = json!({ "phase": "Running", "list": [{ "name": "a", "n": 1 }, { "name": "b", "n": 2 }] });
    let same = |expected: &Value| differences("", expected, &actual).is_empty();
    assert!(same(&json!({ "phase": "~Run", "gone": null, "list": [{ "name": "b", "n": 2 }] })));
    assert!(!same(&json!({ "phase": "Failed" })));
    assert!(!same(&json!({ "list": [{ "name": "c" }] })));
    assert!(!same(&json!({ "list": [{ "name": "b", "n": 1 }] })));
    assert!(
        has_line("a=1\nb", "a=1") && !has_line("a=11", "a=1") && has_line("a", "!b") && !has_line("b", "!b")
    );
}
