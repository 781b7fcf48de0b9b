//! Values: text in the form of a property's type, and the numbers that devices have for it.

use super::{PropertySpec, PropertyType};

impl PropertySpec {
    /// Checks that `value` has the form of the property's type and lies between its bounds.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn check(&self, value: &str) -> Result<(), String> {
        let number = match self.value_type {
            PropertyType::String | PropertyType::Stream => return Ok(()),
            PropertyType::Bytes if is_base64(value) => return Ok(()),
            PropertyType::Bytes => return Err(format!("{:?} is no base64", cut(value))),
            PropertyType::Boolean if matches!(value, "true" | "false") => return Ok(()),
            PropertyType::Boolean => return Err(format!("{:?} is neither true nor false", cut(value))),
            PropertyType::Int =>
            {
                #[expect(clippy::cast_precision_loss, reason = "bounds are compared, not stored")]
                value
                    .parse::<i64>()
                    .map(|n| n as f64)
                    .map_err(|_| format!("{:?} is no integer of 64 bits", cut(value)))?
            }
            PropertyType::Float | PropertyType::Double => value
                .parse::<f64>()
                .ok()
                .filter(|number| number.is_finite())
                .ok_or_else(|| format!("{:?} is no finite number", cut(value)))?,
        };
        if let Some(minimum) = self.minimum.filter(|minimum| number < *minimum) {
            return Err(format!("{} is below the minimum of {minimum}{}", cut(value), self.unit_after()));
        }
        if let Some(maximum) = self.maximum.filter(|maximum| number > *maximum) {
            return Err(format!("{} is above the maximum of {maximum}{}", cut(value), self.unit_after()));
        }
        Ok(())
    }

    /// The text of a number that the device has, multiplied by `scale`: whole for integers (rounded), `true` for
    /// anything but zero for booleans, and the shortest text that gives the number back for the others.
    ///
    /// # Errors
    /// If the result is no number that the property's type has.
    pub fn value_of(&self, raw: f64, scale: f64) -> Result<String, String> {
        let number = raw * scale;
        if !number.is_finite() {
            return Err(format!("the device has {raw}, which is no finite number"));
        }
        // What a factor such as 0.1 adds behind the fifteenth digit nobody has measured.
        let number = if scale == 1.0 { number } else { shorten(number) };
        match self.value_type {
            PropertyType::Boolean => Ok((number != 0.0).to_string()),
            PropertyType::Int if number.abs() < INT_LIMIT => Ok(format!("{:.0}", number.round() + 0.0)),
            PropertyType::Int => Err(format!("{number} is no integer of 64 bits")),
            #[expect(clippy::cast_possible_truncation, reason = "the type has 32 bits")]
            PropertyType::Float => Ok((number as f32).to_string()),
            PropertyType::Double | PropertyType::String => Ok(number.to_string()),
            PropertyType::Bytes | PropertyType::Stream => {
                Err("a number is no value of a property of this type".to_owned())
            }
        }
    }

    /// The number that the device gets for a value, divided by `scale`.
    ///
    /// # Errors
    /// If the value is no number, or neither `true` nor `false` for a boolean.
    pub fn number_of(&self, value: &str, scale: f64) -> Result<f64, String> {
        if self.value_type == PropertyType::Boolean {
            return match value {
                "true" => Ok(1.0),
                "false" => Ok(0.0),
                other => Err(format!("{:?} is neither true nor false", cut(other))),
            };
        }
        let number =
            value.parse::<f64>().ok().map(|number| number / scale).filter(|number| number.is_finite());
        let number = number.ok_or_else(|| format!("{:?} is no number", cut(value)))?;
        Ok(if scale == 1.0 { number } else { shorten(number) })
    }

    /// Whether two texts say the same value of this property: numbers are compared as numbers.
    pub fn is_same(&self, a: &str, b: &str) -> bool {
        let numbers = || Some((a.parse::<f64>().ok()?, b.parse::<f64>().ok()?));
        match self.value_type {
            #[expect(clippy::cast_possible_truncation, reason = "the type has 32 bits")]
            PropertyType::Float => {
                a == b || numbers().is_some_and(|(a, b)| (a as f32).to_bits() == (b as f32).to_bits())
            }
            PropertyType::Double => {
                a == b || numbers().is_some_and(|(a, b)| shorten(a).to_bits() == shorten(b).to_bits())
            }
            PropertyType::Int => {
                a == b || a.parse::<i64>().is_ok_and(|number| b.parse::<i64>() == Ok(number))
            }
            PropertyType::Boolean | PropertyType::String | PropertyType::Bytes | PropertyType::Stream => {
                a == b
            }
        }
    }

    fn unit_after(&self) -> String {
        if self.unit.is_empty() { String::new() } else { format!(" {}", self.unit) }
    }
}

/// Two to the power of 63: the first number that 64 bits with a sign do not have.
const INT_LIMIT: f64 = 9_223_372_036_854_775_808.0;

/// A number rounded to 15 significant digits, which is what 64 bits always have.
fn shorten(number: f64) -> f64 {
    format!("{number:.14e}").parse().unwrap_or(number)
}

/// The beginning of a value, for messages: what a device sends may be long.
fn cut(value: &str) -> String {
    value.chars().take(80).collect()
}

/// Whether a text has the form of RFC 4648 §4, with padding.
fn is_base64(text: &str) -> bool {
    let digits = text.trim_end_matches('=');
    text.len().is_multiple_of(4)
        && text.len() - digits.len() <= 2
        && digits.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceSpec;

    fn property(value_type: &str, more: &str) -> PropertySpec {
        let device = r#"{"metadata":{"namespace":"default","name":"d"},"spec":{"protocol":{"protocolName":"x"},
            "properties":[{"name":"p"}]}}"#;
        let model = format!(r#"{{"spec":{{"properties":[{{"name":"p","type":"{value_type}"{more}}}]}}}}"#);
        DeviceSpec::from_json(device.as_bytes(), model.as_bytes()).unwrap().properties.remove(0)
    }

    #[test]
    fn values_are_checked_by_type_and_bounds() {
        let limit = property("INT", r#","minimum":"0","maximum":"100","unit":"bar""#);
        assert!(limit.check("100").is_ok());
        for bad in ["101", "-1", "1.5", "warm", "", "99999999999999999999"] {
            assert!(limit.check(bad).is_err(), "{bad:?}");
        }
        assert_eq!(limit.check("101").unwrap_err(), "101 is above the maximum of 100 bar");
        let double = property("DOUBLE", "");
        assert!(double.check("1e3").is_ok());
        for bad in ["NaN", "inf", "-inf", "1,5"] {
            assert!(double.check(bad).is_err(), "{bad:?}");
        }
        let bytes = property("BYTES", "");
        for good in ["", "AQ==", "AQI=", "AQID"] {
            assert!(bytes.check(good).is_ok(), "{good:?}");
        }
        for bad in ["A", "A===", "AQ=D", "AQ D"] {
            assert!(bytes.check(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_devices_number_becomes_a_value_of_the_type_and_back() {
        for (value_type, raw, scale, value) in [
            ("INT", 215.0, 0.1, "22"),
            ("INT", -0.2, 1.0, "0"),
            ("DOUBLE", 215.0, 0.1, "21.5"),
            ("DOUBLE", 3.0, 0.1, "0.3"),
            ("FLOAT", 21.3, 1.0, "21.3"),
            ("BOOLEAN", 1.0, 1.0, "true"),
            ("STRING", 7.0, 2.0, "14"),
        ] {
            let property = property(value_type, "");
            assert_eq!(property.value_of(raw, scale).unwrap(), value, "{value_type} {raw}");
        }
        let double = property("DOUBLE", "");
        assert_eq!(double.number_of("21.5", 0.1), Ok(215.0));
        assert!(double.number_of("warm", 1.0).is_err());
        assert!(double.number_of("1", 0.0).is_err());
        assert!(double.value_of(f64::NAN, 1.0).is_err());
        assert!(property("INT", "").value_of(1e30, 1.0).is_err());
        assert_eq!(property("BOOLEAN", "").number_of("true", 1.0), Ok(1.0));
    }

    #[test]
    fn numbers_are_the_same_however_they_are_written() {
        assert!(property("DOUBLE", "").is_same("7", "7.0"));
        assert!(property("FLOAT", "").is_same("21.3", "21.299999"));
        assert!(!property("FLOAT", "").is_same("21.3", "21.4"));
        assert!(property("INT", "").is_same("7", "+7"));
        assert!(!property("STRING", "").is_same("7", "7.0"));
    }
}
