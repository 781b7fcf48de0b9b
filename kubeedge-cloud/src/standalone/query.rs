//! What stands in a request beside its body.

use super::{
    failure::Failure,
    write::{Options, Validation},
};

/// The parameters behind the `?`, decoded.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads the text behind the `?`.
    pub(crate) fn parse(text: Option<&str>) -> Result<Self, Failure> {
        let pairs = text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(&name.replace('+', " "))?, decode(&value.replace('+', " "))?))
        });
        pairs.collect::<Result<_, _>>().map(Self)
    }

    /// The first value of the parameter; an empty one is none.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let value = self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        value.filter(|value| !value.is_empty())
    }

    /// Whether the parameter is set to true.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.0.iter().any(|(n, value)| n == name && ["true", "1"].contains(&value.as_str()))
    }

    /// The parameter as a number.
    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, Failure> {
        let bad = |_| Failure::bad_request(format!("the query parameter {name} must be a number"));
        self.get(name).map(str::parse).transpose().map_err(bad)
    }

    /// Whether the request only asks what would happen.
    pub(crate) fn dry_run(&self) -> Result<bool, Failure> {
        match self.get("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => Err(Failure::bad_request(format!(
                "dryRun: Unsupported value: {other:?}: supported values: \"All\""
            ))),
        }
    }

    /// How to write.
    pub(crate) fn options(&self, agent: &str) -> Result<Options, Failure> {
        let validation = match self.get("fieldValidation") {
            None | Some("Warn") => Validation::Warn,
            Some("Strict") => Validation::Strict,
            Some("Ignore") => Validation::Ignore,
            Some(other) => {
                let message = format!(
                    "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
                );
                return Err(Failure::bad_request(message));
            }
        };
        let manager = match self.get("fieldManager") {
            Some(manager) if manager.len() > 128 => {
                return Err(Failure::bad_request("fieldManager: may not be longer than 128 characters"));
            }
            Some(manager) => manager.to_owned(),
            // Kubernetes names a writer that does not say who it is after its program.
            None => agent.split('/').next().unwrap_or_default().chars().take(128).collect(),
        };
        Ok(Options { manager, force: self.flag("force"), validation })
    }
}

/// Undoes percent-encoding.
pub(crate) fn decode(text: &str) -> Result<String, Failure> {
    if !text.contains('%') {
        return Ok(text.to_owned());
    }
    let bad = || Failure::bad_request("the URL is not valid percent-encoded UTF-8");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, tail) = rest.split_at_checked(2).ok_or_else(bad)?;
        let digits = std::str::from_utf8(digits).map_err(|_| bad())?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| bad())?);
        rest = tail;
    }
    String::from_utf8(bytes).map_err(|_| bad())
}
