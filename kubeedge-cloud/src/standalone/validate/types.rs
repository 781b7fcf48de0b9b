//! Finds the place of what does not fit a type. The types of Kubernetes say that something is wrong, and
//! sometimes drop it in silence; they do not say where.

use serde_json::{Map, Value};

/// The fields of `object` that are lost when it is read by its type and written again as `typed`.
pub(super) fn unknown(object: &Value, typed: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare(object, typed, &mut String::new(), &mut found);
    found
}

fn compare(object: &Value, typed: &Value, path: &mut String, found: &mut Vec<String>) {
    let length = path.len();
    match (object, typed) {
        (Value::Object(members), Value::Object(typed)) => {
            for (name, value) in members.iter().filter(|(_, value)| !value.is_null()) {
                push(path, name);
                match typed.get(name) {
                    Some(typed) => compare(value, typed, path, found),
                    None => found.push(path.clone()),
                }
                path.truncate(length);
            }
        }
        (Value::Array(items), Value::Array(typed)) => {
            for (index, (value, typed)) in items.iter().zip(typed).enumerate() {
                path.push_str(&format!("[{index}]"));
                compare(value, typed, path, found);
                path.truncate(length);
            }
        }
        // Other values may be written in another form, such as `1` for `"1"`.
        _ => {}
    }
}

fn push(path: &mut String, name: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(name);
}

/// The path of a value that cannot be read by the type: the object is cut down to one part after the other,
/// and the part by which reading still fails holds it.
pub(super) fn misplaced<E>(object: &Value, retype: impl Fn(&Value) -> Result<Value, E>) -> Option<String> {
    let mut steps: Vec<Step> = Vec::new();
    // No field of Kubernetes is deeper; the bound keeps a hostile object from taking long.
    while steps.len() < 32 {
        let current = steps.iter().try_fold(object, |value, step| step.of(value))?;
        let next = parts(current).into_iter().take(512).find(|step| {
            let mut path = steps.clone();
            path.push(step.clone());
            only(object, &path).is_some_and(|cut| retype(&cut).is_err())
        });
        match next {
            Some(step) => steps.push(step),
            None => break,
        }
    }
    let mut path = String::new();
    for step in &steps {
        match step {
            Step::Member(name) => push(&mut path, name),
            Step::Item(index) => path.push_str(&format!("[{index}]")),
        }
    }
    (!path.is_empty()).then_some(path)
}

#[derive(Debug, Clone)]
enum Step {
    Member(String),
    Item(usize),
}

impl Step {
    fn of<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        match self {
            Self::Member(name) => value.get(name),
            Self::Item(index) => value.get(index),
        }
    }
}

fn parts(value: &Value) -> Vec<Step> {
    match value {
        Value::Object(members) => members.keys().cloned().map(Step::Member).collect(),
        Value::Array(items) => (0..items.len()).map(Step::Item).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    }
}

/// The object with nothing but what the path leads to.
fn only(object: &Value, path: &[Step]) -> Option<Value> {
    let Some((step, rest)) = path.split_first() else { return Some(object.clone()) };
    let part = only(step.of(object)?, rest)?;
    Some(match step {
        Step::Member(name) => Value::Object(Map::from_iter([(name.clone(), part)])),
        Step::Item(_) => Value::Array(vec![part]),
    })
}
