//! Label and field selectors.

use serde_json::Value;

use super::{failure::Failure, json};

/// Which objects a list or a watch is about.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<FieldRequirement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    label: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
}

#[derive(Debug, Clone)]
struct FieldRequirement {
    path: Vec<String>,
    value: String,
    equal: bool,
}

impl Selector {
    /// Reads the two query parameters.
    pub(crate) fn parse(labels: Option<&str>, fields: Option<&str>, kind: &str) -> Result<Self, Failure> {
        let labels = split(labels.unwrap_or_default()).map(|term| requirement(term.trim()));
        let fields = fields.unwrap_or_default().split(',').filter(|term| !term.is_empty());
        Ok(Self {
            labels: labels.collect::<Result<_, _>>()?,
            fields: fields.map(|term| field(term.trim(), kind)).collect::<Result<_, _>>()?,
        })
    }

    /// Whether everything matches.
    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether the object matches.
    pub(crate) fn matches(&self, object: &Value) -> bool {
        let label = |name: &str| json::at(object, &["metadata", "labels", name]).and_then(Value::as_str);
        self.labels.iter().all(|requirement| requirement.test.holds(label(&requirement.label)))
            && self.fields.iter().all(|field| field.holds(object))
    }
}

impl Test {
    fn holds(&self, value: Option<&str>) -> bool {
        match (self, value) {
            (Self::In(values), Some(value)) => values.iter().any(|v| v == value),
            (Self::NotIn(values), Some(value)) => values.iter().all(|v| v != value),
            (Self::Exists, value) => value.is_some(),
            (Self::Absent, value) => value.is_none(),
            (Self::In(_), None) => false,
            (Self::NotIn(_), None) => true,
        }
    }
}

impl FieldRequirement {
    fn holds(&self, object: &Value) -> bool {
        let value = self.path.iter().try_fold(object, |value, name| value.get(name));
        let equal = match value {
            None | Some(Value::Null) => self.value.is_empty(),
            Some(Value::String(text)) => *text == self.value,
            Some(Value::Bool(flag)) => self.value == if *flag { "true" } else { "false" },
            Some(Value::Number(number)) => number.to_string() == self.value,
            Some(Value::Array(_) | Value::Object(_)) => false,
        };
        equal == self.equal
    }
}

/// The terms between commas that stand outside parentheses.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_i32;
    text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    })
    .filter(|term| !term.trim().is_empty())
}

fn requirement(term: &str) -> Result<Requirement, Failure> {
    let bad = || Failure::bad_request(format!("unable to parse requirement: {term:?} is no label selector"));
    let one = |text: &str| vec![text.trim().to_owned()];
    let (label, test) = if let Some((label, values)) = term.strip_suffix(')').and_then(|t| t.split_once('('))
    {
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        let label = label.trim();
        if let Some(label) = label.strip_suffix(" notin") {
            (label, Test::NotIn(values))
        } else {
            (label.strip_suffix(" in").ok_or_else(bad)?, Test::In(values))
        }
    } else if let Some((label, value)) = term.split_once("!=") {
        (label, Test::NotIn(one(value)))
    } else if let Some((label, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        (label, Test::In(one(value)))
    } else if let Some(label) = term.strip_prefix('!') {
        (label, Test::Absent)
    } else {
        (term, Test::Exists)
    };
    let label = label.trim();
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if label.is_empty() || !label.chars().all(allowed) {
        return Err(bad());
    }
    Ok(Requirement { label: label.to_owned(), test })
}

fn field(term: &str, kind: &str) -> Result<FieldRequirement, Failure> {
    let bad = || Failure::bad_request(format!("invalid field selector: {term:?}"));
    let (path, value, equal) = if let Some((path, value)) = term.split_once("!=") {
        (path, value, false)
    } else {
        let (path, value) = term.split_once("==").or_else(|| term.split_once('=')).ok_or_else(bad)?;
        (path, value, true)
    };
    let path = path.trim();
    let general = ["metadata.name", "metadata.namespace"];
    let particular: &[&str] = match kind {
        "Pod" => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        "Node" => &["spec.unschedulable"],
        "Namespace" => &["status.phase"],
        "Secret" => &["type"],
        "Event" => &["reason", "reportingComponent", "source", "type", "involvedObject."],
        "Device" => &["spec.nodeName"],
        _ => &[],
    };
    let known = general.contains(&path)
        || particular.iter().any(|p| *p == path || (p.ends_with('.') && path.starts_with(p)));
    if !known {
        return Err(Failure::bad_request(format!("field label not supported: {path}")));
    }
    let path = if path == "source" { "source.component" } else { path };
    Ok(FieldRequirement {
        path: path.split('.').map(str::to_owned).collect(),
        value: value.trim().into(),
        equal,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn matches(labels: &str, fields: &str) -> bool {
        let pod = json!({
            "metadata": { "name": "a", "labels": { "app": "web", "tier": "front" } },
            "spec": { "nodeName": "n1" },
        });
        Selector::parse(Some(labels), Some(fields), "Pod").unwrap().matches(&pod)
    }

    #[test]
    fn labels_are_selected_by_equality_by_sets_and_by_existence() {
        for yes in [
            "",
            "app=web",
            "app==web,tier",
            "app in (db, web),tier!=back",
            "!gone",
            "gone notin (a)",
            "gone!=a",
        ] {
            assert!(matches(yes, ""), "{yes}");
        }
        for no in ["app=db", "gone", "!app", "app notin (web)", "app in (db),tier", "gone in (a)"] {
            assert!(!matches(no, ""), "{no}");
        }
    }

    #[test]
    fn fields_are_selected_by_equality_and_an_absent_one_is_empty() {
        for yes in
            ["spec.nodeName=n1", "metadata.name!=b", "status.phase=", "spec.nodeName=n1,metadata.name=a"]
        {
            assert!(matches("", yes), "{yes}");
        }
        assert!(!matches("", "spec.nodeName=n2"));
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        assert!(Selector::parse(Some("a b c"), None, "Pod").is_err());
        assert!(Selector::parse(None, Some("spec.unknown=1"), "Pod").is_err());
        assert!(Selector::parse(None, Some("nothing"), "Pod").is_err());
    }
}
