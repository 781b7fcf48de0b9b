//! Reading the free maps of Devices: protocol settings and visitors.

use std::collections::BTreeMap;

use serde_json::Value;

/// The settings of a device or a property, read key by key. Messages name the key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings<'a>(pub(super) &'a BTreeMap<String, Value>);

impl<'a> Settings<'a> {
    fn get(self, keys: &[&'static str]) -> Option<(&'static str, &'a Value)> {
        keys.iter().find_map(|key| Some((*key, self.0.get(*key).filter(|value| !value.is_null())?)))
    }

    /// The text under the first of the keys that is there.
    pub(super) fn text(self, keys: &[&'static str]) -> Result<Option<&'a str>, String> {
        match self.get(keys) {
            None => Ok(None),
            Some((_, Value::String(text))) if text.is_empty() => Ok(None),
            Some((_, Value::String(text))) => Ok(Some(text)),
            Some((key, other)) => Err(format!("{key} is {other}, and no text")),
        }
    }

    /// The number under the first of the keys that is there; numbers in quotes are numbers too, as users write them.
    pub(super) fn number(self, keys: &[&'static str]) -> Result<Option<f64>, String> {
        let Some((key, value)) = self.get(keys) else { return Ok(None) };
        let number = value.as_str().map_or_else(|| value.as_f64(), |text| text.parse().ok());
        let number = number.filter(|number: &f64| number.is_finite());
        number.map(Some).ok_or_else(|| format!("{key} is {value}, and no number"))
    }

    /// The whole number under the first of the keys that is there, from `min` to `max`.
    pub(super) fn whole(self, keys: &[&'static str], min: u32, max: u32) -> Result<Option<u32>, String> {
        let Some(number) = self.number(keys)? else { return Ok(None) };
        if number.fract() != 0.0 || number < f64::from(min) || number > f64::from(max) {
            return Err(format!("{} is {number}, and not from {min} to {max}", keys[0]));
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
        Ok(Some(number as u32))
    }

    /// Whether the first of the keys that is there is true; false if none is.
    #[cfg(feature = "modbus")]
    pub(super) fn flag(self, keys: &[&'static str]) -> Result<bool, String> {
        match self.get(keys) {
            None => Ok(false),
            Some((_, Value::Bool(flag))) => Ok(*flag),
            Some((_, Value::String(text))) if text == "true" || text == "false" => Ok(text == "true"),
            Some((key, other)) => Err(format!("{key} is {other}, and neither true nor false")),
        }
    }
}
