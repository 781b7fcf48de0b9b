//! Server-side apply.

use jiff::Timestamp;
use serde_json::Value;

use crate::standalone::{failure::Failure, write::Options};

/// Reads what is applied: YAML, of which JSON is a part.
pub(crate) fn parse(body: &[u8]) -> Result<Value, Failure> {
    let text = std::str::from_utf8(body).map_err(|_| Failure::bad_request("the body is not UTF-8"))?;
    let value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(_) => serde_saphyr::from_str(text)
            .map_err(|e| Failure::bad_request(format!("error decoding YAML: {e}")))?,
    };
    if !value.is_object() {
        return Err(Failure::bad_request("error decoding YAML: it must be an object"));
    }
    Ok(value)
}

/// Who applies, and how.
#[derive(Debug)]
pub(crate) struct Applier<'a> {
    pub(crate) options: &'a Options,
    pub(crate) status: bool,
    pub(crate) now: Timestamp,
}

impl Applier<'_> {
    pub(crate) fn create(&self, config: &Value) -> Result<Value, Failure> {
        Ok(config.clone())
    }

    pub(crate) fn apply(&self, old: &Value, config: &Value) -> Result<Value, Failure> {
        let mut new = old.clone();
        json_patch::merge(&mut new, config);
        Ok(new)
    }
}

pub(crate) fn note_update(_old: &Value, new: Value, _: &Options, _: bool, _: Timestamp) -> Value {
    new
}
