use std::fmt::{self, Display, Write};

/// A figure with a name, and with a value for each set of labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    name: &'static str,
    help: &'static str,
    kind: &'static str,
    samples: Vec<(Vec<(&'static str, String)>, f64)>,
}

impl Metric {
    /// A figure that goes up and down. Names and labels are words of letters, digits and `_`.
    pub fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: "gauge", samples: Vec::new() }
    }

    /// A figure that only grows while the process lives; its name ends with `_total`.
    pub fn counter(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: "counter", samples: Vec::new() }
    }

    /// Adds a value.
    #[must_use]
    pub fn with(mut self, labels: &[(&'static str, &str)], value: f64) -> Self {
        let labels = labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        self.samples.push((labels, value));
        self
    }
}

/// Prometheus' text format, version 0.0.4.
impl Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# HELP {} {}", self.name, self.help.replace('\\', "\\\\").replace('\n', "\\n"))?;
        writeln!(f, "# TYPE {} {}", self.name, self.kind)?;
        for (labels, value) in &self.samples {
            f.write_str(self.name)?;
            for (place, (label, text)) in labels.iter().enumerate() {
                f.write_char(if place == 0 { '{' } else { ',' })?;
                write!(f, "{label}=\"")?;
                for character in text.chars() {
                    match character {
                        '\\' => f.write_str("\\\\")?,
                        '"' => f.write_str("\\\"")?,
                        '\n' => f.write_str("\\n")?,
                        other => f.write_char(other)?,
                    }
                }
                f.write_char('"')?;
            }
            if !labels.is_empty() {
                f.write_char('}')?;
            }
            match value {
                value if value.is_nan() => writeln!(f, " NaN")?,
                value if value.is_infinite() => writeln!(f, " {}Inf", if *value > 0.0 { "+" } else { "-" })?,
                value => writeln!(f, " {value}")?,
            }
        }
        Ok(())
    }
}
