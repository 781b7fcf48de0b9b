//! Amounts of resources in the API's notation.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An amount such as `100m` or `64Mi`, in thousandths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Quantity(i128);

impl Quantity {
    /// Reads a quantity in the API's notation.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '+' || c == '-'));
        let (number, suffix) = text.split_at(digits.unwrap_or(text.len()));
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let negative = whole.starts_with('-');
        let whole: i128 = match whole.trim_start_matches(['+', '-']) {
            "" => 0,
            text => text.parse().ok()?,
        };
        if number.is_empty() || whole > 1 << 62 || fraction.len() > 18 {
            return None;
        }
        // Nano is the smallest step of the API, so count in nano and round up to milli at the end.
        let nano = if fraction.is_empty() {
            0
        } else {
            fraction.parse::<i128>().ok()? * 1_000_000_000 / 10i128.checked_pow(fraction.len() as u32)?
        };
        let value = whole * 1_000_000_000 + nano;
        let (times, per) = match suffix {
            "n" => (1, 1_000_000_000),
            "u" => (1, 1_000_000),
            "m" => (1, 1000),
            "" => (1, 1),
            "k" => (1000, 1),
            "M" => (1_000_000, 1),
            "G" => (1_000_000_000, 1),
            "T" => (1_000_000_000_000, 1),
            "P" => (1_000_000_000_000_000, 1),
            "Ki" => (1 << 10, 1),
            "Mi" => (1 << 20, 1),
            "Gi" => (1 << 30, 1),
            "Ti" => (1 << 40, 1),
            "Pi" => (1 << 50, 1),
            _ => {
                let exponent: u32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
                (10i128.checked_pow(exponent.min(18))?, 1)
            }
        };
        let milli = value.checked_mul(times)?.checked_div(per * 1_000_000)?;
        Some(Self(if negative { -milli } else { milli }))
    }

    /// So many whole units.
    pub(crate) fn whole(units: i64) -> Self {
        Self(i128::from(units) * 1000)
    }

    /// In thousandths: millicores of a CPU.
    pub(crate) fn milli(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }

    /// Whole units, rounded up: bytes of memory.
    pub(crate) fn units(self) -> i64 {
        i64::try_from((self.0 + 999).div_euclid(1000)).unwrap_or(i64::MAX)
    }
}

/// In the shortest form of the API: whole units where it can be, else thousandths.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 % 1000 {
            0 => write!(f, "{}", self.0 / 1000),
            _ => write!(f, "{}m", self.0),
        }
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Writes an amount of bytes as the API does: with the largest of its binary suffixes that leaves a whole number.
pub(crate) fn binary(bytes: i64) -> String {
    let suffixes = ["", "Ki", "Mi", "Gi", "Ti", "Pi"];
    let (mut number, mut times) = (bytes, 0);
    while number != 0 && number % 1024 == 0 && times + 1 < suffixes.len() {
        (number, times) = (number / 1024, times + 1);
    }
    format!("{number}{}", suffixes[times])
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Text(String),
            Whole(i64),
            Fraction(f64),
        }
        let text = match Form::deserialize(from)? {
            Form::Text(text) => text,
            Form::Whole(number) => number.to_string(),
            Form::Fraction(number) => number.to_string(),
        };
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no quantity")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_with_the_largest_suffix_that_fits() {
        for (bytes, text) in
            [(0, "0"), (1, "1"), (1024, "1Ki"), (1536, "1536"), (100 << 20, "100Mi"), (3 << 50, "3Pi")]
        {
            assert_eq!(binary(bytes), text);
        }
    }

    #[test]
    fn quantities_read_as_the_api_writes_them() {
        let milli = |text| Quantity::parse(text).map(Quantity::milli);
        assert_eq!(milli("100m"), Some(100));
        assert_eq!(milli("1.5"), Some(1500));
        assert_eq!(milli("64Mi").map(|milli| milli / 1000), Some(64 << 20));
        assert_eq!(milli("1e3"), Some(1_000_000));
        for wrong in ["", "x", "1x", "1.2.3", "99999999999999999999999999999999999999999"] {
            assert_eq!(milli(wrong), None, "{wrong:?}");
        }
    }
}
