//! A configuration file as a tree of values: read, laid over the defaults, and taken apart with paths in errors.
//!
//! The text of the defaults says which keys there are and of which type each is, so that there is one place
//! for keys, defaults and their explanation.

#![allow(dead_code, reason = "two programs share this file, and each uses some of it")]

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value};

/// The longest file that is read. A configuration has some kilobytes.
const BYTES_MAX: u64 = 1 << 20;

/// Reads a file into text.
pub(crate) fn read(path: &std::path::Path) -> Result<String> {
    let shown = path.display();
    let length = std::fs::metadata(path).with_context(|| format!("cannot read {shown}"))?.len();
    ensure!(length <= BYTES_MAX, "{shown} has {length} bytes; a configuration has at most {BYTES_MAX}");
    std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))
}

/// Parses YAML: the only place that knows by which library.
///
/// `yes`, `on`, `no` and `off` are truth values as they are for KubeEdge. A key that stands twice is an error,
/// and every error of syntax says line and column.
pub(crate) fn parse(text: &str) -> Result<Value> {
    let options = serde_saphyr::options! { with_snippet: false };
    match serde_saphyr::from_str_with_options(text, options) {
        Ok(Value::Null) => Ok(Value::Object(Map::new())),
        Ok(tree @ Value::Object(_)) => Ok(tree),
        Ok(other) => bail!("keys and values expected, and {} found", type_name(&other)),
        Err(error) => Err(anyhow!("{error}")),
    }
}

/// Lays `given` over `defaults`; returns what an operator should look at.
///
/// Absent keys and empty values keep their default, as in KubeEdge, and lists replace lists. Below an empty map
/// every key is allowed. A key that is known to `also_known` by path and name is accepted without effect.
///
/// # Errors
/// If a value is of another type than its default; the error begins with the value's path.
pub(crate) fn overlay(
    defaults: &mut Value,
    given: Value,
    also_known: &dyn Fn(&str, &str) -> bool,
) -> Result<Vec<String>> {
    let mut overlay = Overlay { also_known, warnings: Vec::new() };
    overlay.value("", defaults, given)?;
    Ok(overlay.warnings)
}

struct Overlay<'a> {
    also_known: &'a dyn Fn(&str, &str) -> bool,
    warnings: Vec<String>,
}

impl Overlay<'_> {
    fn value(&mut self, path: &str, default: &mut Value, given: Value) -> Result<()> {
        match (default, given) {
            (_, Value::Null) => {}
            (Value::Object(known), Value::Object(given)) if !known.is_empty() => {
                for (key, value) in given {
                    self.member(path, known, &key, value)?;
                }
            }
            (default, given) if same_type(default, &given) => *default = given,
            // Neither shows its value: it may be a secret.
            (default, given) => {
                bail!("{path}: {} expected, and {} found", type_name(default), type_name(&given))
            }
        }
        Ok(())
    }

    fn member(&mut self, path: &str, known: &mut Map<String, Value>, key: &str, value: Value) -> Result<()> {
        let here = join(path, key);
        if let Some(default) = known.get_mut(key) {
            return self.value(&here, default, value);
        }
        // KubeEdge's decoder does not mind upper and lower case.
        if let Some((name, default)) = known.iter_mut().find(|(name, _)| name.eq_ignore_ascii_case(key)) {
            self.warnings.push(format!("{here}: taken as {name}"));
            return self.value(&here, default, value);
        }
        if (self.also_known)(path, key) {
            tracing::debug!(key = here, "configuration key has no effect");
        } else {
            self.warnings.push(format!("{here}: unknown key, ignored"));
        }
        Ok(())
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn same_type(default: &Value, given: &Value) -> bool {
    match (default, given) {
        (Value::Bool(_), Value::Bool(_))
        | (Value::String(_), Value::String(_))
        | (Value::Array(_), Value::Array(_))
        | (Value::Object(_), Value::Object(_)) => true,
        (Value::Number(_), Value::Number(number)) => number.is_i64(),
        _ => false,
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(number) if number.is_i64() => "a whole number",
        Value::Number(_) => "a number",
        Value::String(_) => "a text (in quotes, if it looks like something else)",
        Value::Array(_) => "a list",
        Value::Object(_) => "keys and values",
    }
}

/// Names the keys whose value is not the default and makes no difference; `keys` are paths, each with the reason.
pub(crate) fn warn_without_effect(
    root: &Node<'_>,
    defaults: &Node<'_>,
    keys: &[(&str, &str)],
    warnings: &mut Vec<String>,
) {
    let changed = keys.iter().filter(|(path, _)| !root.at(path).is_as(&defaults.at(path)));
    warnings.extend(changed.map(|(path, why)| format!("{path}: it has no effect: {why}")));
}

/// Doubts a file that says that it is another program's.
///
/// # Errors
/// If `kind` is no text.
pub(crate) fn warn_of_kind(root: &Node<'_>, expected: &str, warnings: &mut Vec<String>) -> Result<()> {
    let kind = root.at("kind");
    let found = kind.text()?;
    if found != expected {
        warnings.push(format!("{}: {found:?} is not {expected}; is this the right file?", kind.path()));
    }
    Ok(())
}

/// A value with its path.
#[derive(Debug, Clone)]
pub(crate) struct Node<'a> {
    path: String,
    value: &'a Value,
}

impl<'a> Node<'a> {
    pub(crate) fn root(value: &'a Value) -> Self {
        Self { path: String::new(), value }
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// The value below `keys`, which are separated by dots.
    pub(crate) fn at(&self, keys: &str) -> Self {
        keys.split('.').fold(self.clone(), |node, key| Self {
            path: join(&node.path, key),
            value: node.value.get(key).unwrap_or(&Value::Null),
        })
    }

    /// An error about this value.
    pub(crate) fn wrong(&self, why: impl std::fmt::Display) -> anyhow::Error {
        anyhow!("{}: {why}", self.path)
    }

    pub(crate) fn is_as(&self, other: &Node<'_>) -> bool {
        self.value == other.value
    }

    pub(crate) fn is_absent(&self) -> bool {
        self.value.is_null()
    }

    pub(crate) fn bool(&self) -> Result<bool> {
        self.value.as_bool().ok_or_else(|| self.wrong("true or false expected"))
    }

    pub(crate) fn text(&self) -> Result<&'a str> {
        self.value.as_str().ok_or_else(|| self.wrong("a text expected"))
    }

    /// The text, or `None` if it is empty.
    pub(crate) fn filled(&self) -> Result<Option<&'a str>> {
        Ok(Some(self.text()?).filter(|text| !text.is_empty()))
    }

    /// Parses the text; the error of the type becomes the reason.
    pub(crate) fn parsed<T>(&self) -> Result<T>
    where
        T: std::str::FromStr<Err: std::fmt::Display>,
    {
        let text = self.text()?;
        text.parse().map_err(|error| self.wrong(format!("{text:?}: {error}")))
    }

    /// Parses the text, or returns `None` if it is empty.
    pub(crate) fn parsed_if_filled<T>(&self) -> Result<Option<T>>
    where
        T: std::str::FromStr<Err: std::fmt::Display>,
    {
        self.filled()?.map(|_| self.parsed()).transpose()
    }

    /// A whole number between `min` and `max`.
    pub(crate) fn number<T>(&self, min: T, max: T) -> Result<T>
    where
        T: TryFrom<i64> + PartialOrd + Copy + std::fmt::Display,
    {
        let number = self.value.as_i64().ok_or_else(|| self.wrong("a whole number expected"))?;
        T::try_from(number)
            .ok()
            .filter(|value| (min..=max).contains(value))
            .ok_or_else(|| self.wrong(format!("{number} is not between {min} and {max}")))
    }

    pub(crate) fn port(&self) -> Result<u16> {
        self.number(1, u16::MAX)
    }

    /// A whole number of units, such as seconds; at least one, at most ten years.
    pub(crate) fn units(&self, unit: Duration) -> Result<Duration> {
        let ten_years =
            10 * 366 * 24 * 3600 / u32::try_from(unit.as_secs().max(1)).unwrap_or(u32::MAX).max(1);
        Ok(unit * self.number::<u32>(1, ten_years.max(1))?)
    }

    pub(crate) fn seconds(&self) -> Result<Duration> {
        self.units(Duration::from_secs(1))
    }

    /// A duration in Go's form, such as `1m30s`.
    pub(crate) fn duration(&self) -> Result<Duration> {
        let text = self.text()?;
        go_duration(text)
            .ok_or_else(|| self.wrong(format!("{text:?} is not a duration such as 10s, 500ms or 1h30m")))
    }

    /// An absolute path.
    pub(crate) fn file(&self) -> Result<PathBuf> {
        let text = self.text()?;
        ensure!(text.starts_with('/'), self.wrong(format!("{text:?} is not an absolute path")));
        Ok(text.into())
    }

    pub(crate) fn list(&self) -> Result<Vec<Self>> {
        let list = self.value.as_array().ok_or_else(|| self.wrong("a list expected"))?;
        let node = |(at, value)| Self { path: format!("{}[{at}]", self.path), value };
        Ok(list.iter().enumerate().map(node).collect())
    }

    pub(crate) fn members(&self) -> Result<Vec<(&'a str, Self)>> {
        let map = self.value.as_object().ok_or_else(|| self.wrong("keys and values expected"))?;
        let node =
            |(key, value): (&'a String, _)| (key.as_str(), Self { path: join(&self.path, key), value });
        Ok(map.iter().map(node).collect())
    }

    /// The address to listen on that `address` and `port` below this node make; `None` if `enable` is false.
    pub(crate) fn listener(&self) -> Result<Option<SocketAddr>> {
        let (address, port) = (self.at("address").parsed::<IpAddr>()?, self.at("port").port()?);
        Ok(self.at("enable").bool()?.then_some(SocketAddr::new(address, port)))
    }
}

/// Parses what Go's `time.ParseDuration` does, without signs: numbers with units, one after the other.
fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let seconds = match &rest[..unit_end] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        rest = &rest[unit_end..];
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
    }
    (!text.is_empty()).then_some(total)
}

/// A text that does not show in logs.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Shows the text to the code that needs it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(defaults: &str, given: &str) -> Result<(Value, Vec<String>)> {
        let mut tree = parse(defaults)?;
        let also_known = |path: &str, key: &str| path == "a" && key == "extra";
        let warnings = overlay(&mut tree, parse(given)?, &also_known)?;
        Ok((tree, warnings))
    }

    #[test]
    fn what_is_given_replaces_the_default_and_the_rest_stays() {
        let (tree, warnings) = over("a: {b: 1, c: x, d: [1]}\ne: true", "a: {b: 2, c: , d: []}").unwrap();
        assert_eq!(tree, parse("a: {b: 2, c: x, d: []}\ne: true").unwrap());
        assert!(warnings.is_empty());
    }

    #[test]
    fn every_unknown_key_is_named_with_its_path() {
        let given = "a: {x: 1, extra: 2, free: {y: 1}}\nz: {b: 1}\nA: {B: 5}";
        let (tree, warnings) = over("a: {b: 1, free: {}}", given).unwrap();
        assert_eq!(
            warnings,
            ["A: taken as a", "A.B: taken as b", "a.x: unknown key, ignored", "z: unknown key, ignored"],
        );
        assert_eq!(tree, parse("a: {b: 5, free: {y: 1}}").unwrap());
    }

    #[test]
    fn a_value_of_another_type_is_named_and_not_shown() {
        for (given, expected) in [
            ("a: {b: secret}", "a.b: a whole number expected, and a text"),
            ("a: {b: 1.5}", "a.b: a whole number expected, and a number found"),
            ("a: {c: 1234}", "a.c: a text (in quotes, if it looks like something else) expected"),
            ("a: {c: off}", "a.c: a text"),
            ("a: [1]", "a: keys and values expected, and a list found"),
            ("a: {e: maybe}", "a.e: true or false expected"),
        ] {
            let error = over("a: {b: 1, c: x, e: true}", given).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
            assert!(!error.contains("secret") && !error.contains("1234"), "{error}");
        }
    }

    #[test]
    fn truth_is_written_as_go_reads_it_too() {
        for (text, truth) in [("yes", true), ("on", true), ("True", true), ("no", false), ("off", false)] {
            let (tree, _) = over("a: true\nb: false", &format!("a: {text}\nb: {text}")).unwrap();
            assert_eq!((tree["a"].as_bool(), tree["b"].as_bool()), (Some(truth), Some(truth)), "{text}");
        }
        let (tree, _) = over("a: x", "a: \"yes\"").unwrap();
        assert_eq!(tree["a"], "yes");
    }

    #[test]
    fn broken_yaml_is_pointed_at_with_line_and_column() {
        for (text, line) in [
            ("a: 1\nb: [1\nc: 2\n", "line 3"),
            ("a:\n  b: 1\n  b: 2\n", "line 3"),
            ("a: 1\n\tb: 2\n", "found a tab at line 1"),
            ("a: \"x\n", "line"),
            ("a: *nobody\n", "line 1"),
            ("a: 1\n---\nb: 2\n", "line"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(line) && error.contains("column"), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_file_is_empty_or_has_keys_and_values() {
        for empty in ["", "# nothing\n", "---\n"] {
            assert_eq!(parse(empty).unwrap(), Value::Object(Map::new()), "{empty:?}");
        }
        let error = parse("- a\n").unwrap_err().to_string();
        assert_eq!(error, "keys and values expected, and a list found");
    }

    #[test]
    fn aliases_do_not_blow_up() {
        let mut text = "a: &a [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for (name, before) in ["b", "c", "d", "e", "f", "g", "h", "i"].iter().zip("abcdefgh".chars()) {
            let list = vec![format!("*{before}"); 10].join(",");
            text += &format!("{name}: &{name} [{list}]\n");
        }
        assert!(parse(&text).is_err());
    }

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, expected) in
            [("10s", 10_000), ("1m30s", 90_000), ("1.5h", 5_400_000), ("250ms", 250), ("0s", 0), ("0", 0)]
        {
            assert_eq!(go_duration(text), Some(Duration::from_millis(expected)), "{text}");
        }
        for bad in ["", "10", "s", "-1s", "1 s", "1d", "1e400h", "..s", "99999999999999999999h"] {
            assert_eq!(go_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn numbers_have_bounds_and_errors_have_paths() {
        let tree = parse("a: {port: 70000, zero: 0, big: 99999999999, time: soon, l: [{p: x}]}").unwrap();
        let a = Node::root(&tree).at("a");
        let text = |result: Result<Duration>| result.unwrap_err().to_string();
        assert_eq!(a.at("port").port().unwrap_err().to_string(), "a.port: 70000 is not between 1 and 65535");
        assert!(text(a.at("zero").seconds()).starts_with("a.zero: 0 is not between 1 and"));
        assert!(text(a.at("big").seconds()).starts_with("a.big: 99999999999 is not between"));
        assert!(text(a.at("time").duration()).starts_with("a.time: \"soon\" is not a duration"));
        assert_eq!(a.at("absent.x").bool().unwrap_err().to_string(), "a.absent.x: true or false expected");
        assert_eq!(a.at("l").list().unwrap()[0].at("p").path(), "a.l[0].p");
    }
}
