//! Sets of field paths: which manager of an object has set what.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use serde_json::{Map, Value, json};

use super::schema::{self, List};

#[cfg(test)]
thread_local! {
    /// How often an item has been asked for its names: the work that must not grow as the square of a list.
    pub(super) static NAMED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// One step from a value to a part of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// The member of this name.
    Member(String),
    /// The item of a list that has these key members, as JSON.
    Item(String),
    /// The item of a set that is this value, as JSON.
    Value(String),
}

impl Step {
    /// Kubernetes' text for it, the name of a member in `fieldsV1`.
    fn text(&self) -> String {
        match self {
            Self::Member(name) => format!("f:{name}"),
            Self::Item(keys) => format!("k:{keys}"),
            Self::Value(value) => format!("v:{value}"),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        let rest = rest.to_owned();
        match kind {
            "f" => Some(Self::Member(rest)),
            "k" => Some(Self::Item(rest)),
            "v" => Some(Self::Value(rest)),
            _ => None,
        }
    }

    /// The item of a list that `item` is.
    pub(super) fn item(list: List, item: &Value) -> Option<Self> {
        #[cfg(test)]
        NAMED.set(NAMED.get() + 1);
        match list {
            List::Atomic => None,
            List::Set => Some(Self::Value(item.to_string())),
            List::Map { keys, .. } => {
                let mut names = Map::new();
                for (key, default) in keys {
                    let value = item.get(*key).cloned().or_else(|| default.map(Value::from))?;
                    names.insert((*key).to_owned(), value);
                }
                Some(Self::Item(Value::Object(names).to_string()))
            }
        }
    }
}

/// A way from the object to a field.
pub(super) type FieldPath = Vec<Step>;

/// Fields. A field that is an object or a list of items stands for itself, not for what is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fields(pub(super) BTreeSet<FieldPath>);

impl Fields {
    /// The fields that a configuration sets: its leaves, and the items of its lists.
    pub(super) fn of(config: &Value, built_in: bool) -> Self {
        let mut fields = Self::default();
        let Some(members) = config.as_object() else { return fields };
        for (name, value) in members {
            match name.as_str() {
                "apiVersion" | "kind" => {}
                "metadata" => {
                    // Names are no fields: they say which object is meant.
                    for (name, value) in value.as_object().into_iter().flatten() {
                        if !["name", "namespace", "managedFields", "resourceVersion", "uid"]
                            .contains(&name.as_str())
                        {
                            let path = vec![Step::Member("metadata".into()), Step::Member(name.clone())];
                            fields.add(path, name, value, built_in);
                        }
                    }
                }
                _ => fields.add(vec![Step::Member(name.clone())], name, value, built_in),
            }
        }
        fields
    }

    /// Whether one of the fields is at the path or below it: it is next to the path then, in order.
    pub(super) fn reach_below(&self, path: &FieldPath) -> bool {
        self.0.range::<FieldPath, _>(path..).next().is_some_and(|next| next.starts_with(path))
    }

    fn add(&mut self, path: FieldPath, name: &str, value: &Value, built_in: bool) {
        let below = |step| path.iter().cloned().chain([step]).collect::<FieldPath>();
        match value {
            Value::Object(members) if !members.is_empty() => {
                for (name, value) in members {
                    self.add(below(Step::Member(name.clone())), name, value, built_in);
                }
            }
            Value::Array(items) if !items.is_empty() => {
                let list = list_of(name, built_in);
                let steps: Option<Vec<Step>> = items.iter().map(|item| Step::item(list, item)).collect();
                let Some(steps) = steps else {
                    self.0.insert(path);
                    return;
                };
                for (step, item) in steps.into_iter().zip(items) {
                    let path = below(step);
                    if let Value::Object(members) = item {
                        for (name, value) in members {
                            let path = path.iter().cloned().chain([Step::Member(name.clone())]).collect();
                            self.add(path, name, value, built_in);
                        }
                    }
                    self.0.insert(path);
                }
            }
            Value::Null => {}
            Value::Object(_) | Value::Array(_) | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                self.0.insert(path);
            }
        }
    }

    /// Kubernetes' `fieldsV1`.
    pub(super) fn to_json(&self) -> Value {
        let mut root = Map::new();
        for path in &self.0 {
            let mut members = &mut root;
            for step in path {
                members = crate::standalone::json::object(members, &step.text());
            }
            members.insert(".".into(), json!({}));
        }
        // A leaf is written `{}`, and `.` beside others says that the field itself is meant too.
        fn tidy(members: &mut Map<String, Value>) {
            for member in members.values_mut().filter_map(Value::as_object_mut) {
                tidy(member);
                if member.len() == 1 && member.contains_key(".") {
                    member.clear();
                }
            }
        }
        tidy(&mut root);
        Value::Object(root)
    }

    /// Reads `fieldsV1`.
    pub(super) fn from_json(fields: &Value) -> Self {
        let mut all = Self::default();
        all.read(fields, &[]);
        all
    }

    fn read(&mut self, fields: &Value, path: &[Step]) {
        let Some(members) = fields.as_object() else { return };
        if (members.is_empty() || members.contains_key(".")) && !path.is_empty() {
            self.0.insert(path.to_vec());
        }
        for (name, below) in members {
            if let Some(step) = Step::parse(name) {
                self.read(below, &[path, &[step]].concat());
            }
        }
    }
}

/// How the list in the member of this name is merged. Custom resources have only lists that are one value,
/// since KubeEdge's definitions say nothing else.
pub(super) fn list_of(name: &str, built_in: bool) -> List {
    if built_in || ["finalizers", "ownerReferences"].contains(&name) {
        schema::list(name)
    } else {
        List::Atomic
    }
}

/// Finds values by their paths, and the items of a list without comparing with each of them every time.
#[derive(Debug)]
pub(super) struct Finder<'a> {
    object: &'a Value,
    /// The items of the lists that were asked for, by the address of the list: the object stands still.
    lists: RefCell<BTreeMap<usize, BTreeMap<Step, &'a Value>>>,
}

impl<'a> Finder<'a> {
    pub(super) fn new(object: &'a Value) -> Self {
        Self { object, lists: RefCell::default() }
    }

    /// The value at the path.
    pub(super) fn find(&self, path: &[Step]) -> Option<&'a Value> {
        let mut value = self.object;
        let mut list = List::Atomic;
        for step in path {
            value = match step {
                Step::Member(name) => {
                    list = schema::list(name);
                    value.get(name)?
                }
                Step::Item(_) | Step::Value(_) => self.item(value.as_array()?, list, step)?,
            };
        }
        Some(value)
    }

    fn item(&self, items: &'a [Value], list: List, step: &Step) -> Option<&'a Value> {
        let mut lists = self.lists.borrow_mut();
        let by_step = lists.entry(items.as_ptr().addr()).or_insert_with(|| {
            // Of items with the same names the first counts: it comes last, and so replaces the others.
            let steps = items.iter().rev().map(|item| Some((Step::item(list, item)?, item)));
            steps.flatten().collect()
        });
        by_step.get(step).copied()
    }
}

/// Removes what is at the paths, and objects and lists that become empty by it.
pub(super) fn remove(object: &mut Value, paths: &BTreeSet<&FieldPath>) {
    let paths: Vec<&[Step]> = paths.iter().map(|path| path.as_slice()).collect();
    remove_below(object, &paths, List::Atomic);
}

/// Does so for paths in order that begin at the value. Returns whether the value is to go as well.
fn remove_below(value: &mut Value, paths: &[&[Step]], list: List) -> bool {
    if paths.first().is_some_and(|path| path.is_empty()) {
        return true;
    }
    let groups = paths.chunk_by(|one, other| one.first() == other.first()).filter_map(|group| {
        let step = group.first()?.first()?;
        Some((step, group.iter().filter_map(|path| path.get(1..)).collect::<Vec<_>>()))
    });
    let mut removed = false;
    match value {
        Value::Object(members) => {
            for (step, below) in groups {
                if let Step::Member(name) = step
                    && let Some(member) = members.get_mut(name)
                    && remove_below(member, &below, schema::list(name))
                {
                    members.remove(name);
                    removed = true;
                }
            }
            removed && members.is_empty()
        }
        Value::Array(items) => {
            let mut groups: BTreeMap<&Step, Vec<&[Step]>> = groups.collect();
            items.retain_mut(|item| {
                let Some(below) = Step::item(list, item).and_then(|step| groups.remove(&step)) else {
                    return true;
                };
                // An item is removed by its own path only: without its names it would be nothing.
                let itself = below.first().is_some_and(|path| path.is_empty());
                if !itself {
                    remove_below(item, &below, List::Atomic);
                }
                removed |= itself;
                !itself
            });
            removed && items.is_empty()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// Kubernetes' text for a path in messages, such as `.spec.containers[name="main"].image`.
pub(super) fn display(path: &[Step]) -> String {
    let step = |step: &Step| match step {
        Step::Member(name) => format!(".{name}"),
        Step::Value(value) => format!("[={value}]"),
        Step::Item(keys) => {
            let keys: BTreeMap<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let keys: Vec<String> = keys.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("[{}]", keys.join(","))
        }
    };
    path.iter().map(step).collect()
}
