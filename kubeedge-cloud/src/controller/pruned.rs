//! Objects without what only API servers need of them.

use std::ops::Range;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

/// The text of an object without `metadata.managedFields`: they may take as much as all the rest, and nobody here or at the
/// edge reads them. All other bytes of the object stay as they are; API servers end an answer with a line break, which is none.
pub(crate) fn pruned(text: &str) -> Bytes {
    let text = text.trim_ascii();
    let Some(cut) = managed_fields(text) else { return Bytes::copy_from_slice(text.as_bytes()) };
    let mut bytes = Vec::with_capacity(text.len() - cut.len());
    bytes.extend_from_slice(&text.as_bytes()[..cut.start]);
    bytes.extend_from_slice(&text.as_bytes()[cut.end..]);
    bytes.into()
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    metadata: &'a RawValue,
}

#[derive(Deserialize)]
struct Metadata<'a> {
    #[serde(borrow, rename = "managedFields")]
    managed_fields: &'a RawValue,
}

/// Where the member is, with one of the commas beside it; `None` if there is none, or it is written in an unusual way.
fn managed_fields(text: &str) -> Option<Range<usize>> {
    let head: Head<'_> = serde_json::from_str(text).ok()?;
    let metadata: Metadata<'_> = serde_json::from_str(head.metadata.get()).ok()?;
    let value = metadata.managed_fields.get();
    // The value is a part of the text, because it is borrowed from it.
    let start = value.as_ptr().addr().checked_sub(text.as_ptr().addr())?;
    let end = start + value.len();
    let before = text.get(..start)?.trim_end().strip_suffix(':')?.trim_end();
    let before = before.strip_suffix("\"managedFields\"")?.trim_end();
    if let Some(before) = before.strip_suffix(',') {
        return Some(before.len()..end);
    }
    let after = text.get(end..)?.trim_start();
    let after = after.strip_prefix(',').unwrap_or(after);
    Some(before.len()..text.len() - after.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn managed_fields_are_cut_out_wherever_they_stand_and_all_else_stays_to_the_byte() {
        for (text, expected) in [
            (
                r#"{"metadata":{"name":"a","managedFields":[{"f":{}}],"uid":"u"}}"#,
                r#"{"metadata":{"name":"a","uid":"u"}}"#,
            ),
            (
                r#"{"metadata":{"managedFields":[{"f":{}}],"uid":"u"},"x":1.0}"#,
                r#"{"metadata":{"uid":"u"},"x":1.0}"#,
            ),
            (r#"{"metadata":{ "managedFields" : [] },"x": 1}"#, r#"{"metadata":{},"x": 1}"#),
            (
                "{\"a\":\"ä\",\"metadata\":{\n  \"uid\": \"u\",\n  \"managedFields\": null\n}}",
                "{\"a\":\"ä\",\"metadata\":{\n  \"uid\": \"u\"\n}}",
            ),
            (
                r#"{"metadata":{"name":"a"},"data":{"managedFields":[1]}}"#,
                r#"{"metadata":{"name":"a"},"data":{"managedFields":[1]}}"#,
            ),
            (
                r#"{"metadata":{"annotations":{"managedFields":"x"}}}"#,
                r#"{"metadata":{"annotations":{"managedFields":"x"}}}"#,
            ),
            (r#"{"metadata":{"managed\u0046ields":[1]}}"#, r#"{"metadata":{"managed\u0046ields":[1]}}"#),
            ("{\"metadata\":{\"managedFields\":[],\"uid\":\"u\"}}\n", "{\"metadata\":{\"uid\":\"u\"}}"),
            (" {\"metadata\":{\"uid\": \"u\"}}\r\n", "{\"metadata\":{\"uid\": \"u\"}}"),
            ("[1]", "[1]"),
            ("{\"metadata\":", "{\"metadata\":"),
        ] {
            assert_eq!(pruned(text), expected, "{text}");
        }
    }
}
