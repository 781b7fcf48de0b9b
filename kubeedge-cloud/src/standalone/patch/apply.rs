//! Server-side apply: each manager says what it wants, and the object remembers who has said what.
//!
//! `metadata.managedFields` holds, for each manager, the paths of the fields that it has set. A field that a
//! manager no longer names goes, unless another has set it too; a field that another has set to something
//! else is a conflict. Writers that do not apply are remembered only in objects that someone applies:
//! everywhere else their entries would double the object's size and be read by nobody.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{
    fields::{self, FieldPath, Fields, Finder, Step, list_of},
    schema::List,
};
use crate::standalone::{
    failure::{Cause, Failure},
    json::{items, metadata, text},
    write::{Options, Validation, seconds},
};

/// Reads what is applied: YAML, of which JSON is a part.
pub(crate) fn parse(body: &[u8]) -> Result<Value, Failure> {
    let text = std::str::from_utf8(body).map_err(|_| Failure::bad_request("the body is not UTF-8"))?;
    let value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(_) => {
            let bad = |error| Failure::bad_request(format!("error decoding YAML: {error}"));
            serde_saphyr::from_str(text).map_err(bad)?
        }
    };
    if !value.is_object() {
        return Err(Failure::bad_request("error decoding YAML: it must be an object"));
    }
    Ok(value)
}

/// Who applies, and how.
#[derive(Debug)]
pub(crate) struct Applier<'a> {
    /// The manager, and whether it forces.
    pub(crate) options: &'a Options,
    /// Whether `status` is applied by its own path.
    pub(crate) status: bool,
    /// Whether the kind is one of Kubernetes' own.
    pub(crate) built_in: bool,
    /// The time of the write.
    pub(crate) now: Timestamp,
}

impl Applier<'_> {
    /// The object when there is none yet.
    pub(crate) fn create(&self, config: &Value) -> Result<Value, Failure> {
        self.apply(&json!({}), config)
    }

    /// The object after the configuration has been applied to it.
    ///
    /// # Errors
    /// 409 with every field that another manager has set to something else, unless forced.
    pub(crate) fn apply(&self, old: &Value, config: &Value) -> Result<Value, Failure> {
        if !items(config, &["metadata", "managedFields"]).is_empty() {
            return Err(Failure::bad_request("metadata.managedFields must be nil"));
        }
        for member in ["apiVersion", "kind"] {
            if self.options.validation == Validation::Strict && text(config, &[member]).is_empty() {
                return Err(Failure::bad_request(format!("{member} must be set in what is applied")));
            }
        }
        let mut config = config.clone();
        crate::standalone::json::drop_nulls(&mut config);
        let wanted = Fields::of(&config, self.built_in);
        let mut managers = Managers::read(old);
        let mine = Owner { manager: self.options.manager.clone(), apply: true, status: self.status };
        let differences = Differences::between(old, &config);
        let conflicts = self.conflicts(&differences, &wanted, &managers, &mine);
        if !conflicts.is_empty() && !self.options.force {
            return Err(Failure::apply_conflict(conflicts));
        }
        let mut new = old.clone();
        merge(&mut new, &config, self.built_in);
        let before = managers.take(&mine).unwrap_or_default();
        // What stands below a path may be wanted, or another's.
        let others =
            |path: &FieldPath| managers.entries.iter().any(|(_, fields, _)| fields.reach_below(path));
        let gone = before.0.iter().filter(|path| !wanted.reach_below(path) && !others(path)).collect();
        fields::remove(&mut new, &gone);
        if self.options.force {
            managers.give_up(|path| wanted.0.contains(path) && differences.has(path));
        }
        managers.entries.push((mine, wanted, seconds(self.now)));
        managers.write(&mut new, text(&config, &["apiVersion"]), old);
        Ok(new)
    }

    fn conflicts(
        &self,
        differences: &Differences<'_>,
        wanted: &Fields,
        managers: &Managers,
        mine: &Owner,
    ) -> Vec<Cause> {
        let mut conflicts = Vec::new();
        for path in wanted.0.iter().filter(|path| differences.has(path)) {
            for (owner, fields, _) in &managers.entries {
                if owner != mine && fields.0.contains(path) {
                    let using = if owner.apply { "" } else { " using v1" };
                    conflicts.push(Cause {
                        reason: "FieldManagerConflict",
                        field: fields::display(path),
                        message: format!("conflict with {:?}{using}", owner.manager),
                    });
                }
            }
        }
        conflicts
    }
}

/// What one object has otherwise than another.
struct Differences<'a> {
    old: Finder<'a>,
    new: Finder<'a>,
}

impl<'a> Differences<'a> {
    fn between(old: &'a Value, new: &'a Value) -> Self {
        Self { old: Finder::new(old), new: Finder::new(new) }
    }

    /// Whether the values at the path differ. Items of lists are compared by their members.
    fn has(&self, path: &[Step]) -> bool {
        let is_item = matches!(path.last(), Some(Step::Item(_) | Step::Value(_)));
        !is_item && self.old.find(path) != self.new.find(path)
    }
}

/// Puts the configuration into the object: what it does not name stays.
fn merge(object: &mut Value, config: &Value, built_in: bool) {
    let Some(members) = config.as_object() else {
        *object = config.clone();
        return;
    };
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let Some(target) = object.as_object_mut() else { return };
    for (name, value) in members {
        let existing = target.entry(name).or_insert(Value::Null);
        match value {
            Value::Object(_) => merge(existing, value, built_in),
            Value::Array(wanted) => merge_list(existing, wanted, list_of(name, built_in), built_in),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => *existing = value.clone(),
        }
    }
}

/// Items that exist keep their places, and others follow.
fn merge_list(existing: &mut Value, wanted: &[Value], list: List, built_in: bool) {
    let steps: Option<Vec<Step>> = wanted.iter().map(|item| Step::item(list, item)).collect();
    let (Some(steps), Some(items)) = (steps, existing.as_array_mut()) else {
        *existing = Value::Array(wanted.to_vec());
        return;
    };
    // Of items with the same names the first counts.
    let mut places = BTreeMap::new();
    for (place, item) in items.iter().enumerate() {
        if let Some(step) = Step::item(list, item) {
            places.entry(step).or_insert(place);
        }
    }
    for (step, item) in steps.into_iter().zip(wanted) {
        let place = *places.entry(step).or_insert(items.len());
        match items.get_mut(place) {
            Some(other) => merge(other, item, built_in),
            None => items.push(item.clone()),
        }
    }
}

/// Remembers who changed what, in an object that someone applies: fields that this writer changed are its own.
pub(crate) fn note_update(old: &Value, mut new: Value, by: &Applier<'_>) -> Value {
    let mut managers = Managers::read(old);
    if managers.entries.is_empty() {
        if let Some(meta) = new.get_mut("metadata").and_then(Value::as_object_mut) {
            meta.remove("managedFields");
        }
        return new;
    }
    let fields = Fields::of(&new, by.built_in);
    let differences = Differences::between(old, &new);
    let changed = |path: &FieldPath| differences.has(path) || differences.old.find(path).is_none();
    let changed = Fields(fields.0.into_iter().filter(changed).collect());
    // What a writer removed or changed is no longer what others have set.
    managers.give_up(|path| changed.0.contains(path) || differences.new.find(path).is_none());
    let mine = Owner { manager: by.options.manager.clone(), apply: false, status: by.status };
    let mut own = managers.take(&mine).unwrap_or_default();
    own.0.extend(changed.0);
    if !own.0.is_empty() {
        managers.entries.push((mine, own, seconds(by.now)));
    }
    managers.write(&mut new, text(old, &["apiVersion"]), old);
    new
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Owner {
    manager: String,
    /// Whether it applies, or just writes.
    apply: bool,
    status: bool,
}

/// The content of `metadata.managedFields`.
#[derive(Debug, Default)]
struct Managers {
    entries: Vec<(Owner, Fields, String)>,
}

impl Managers {
    fn read(object: &Value) -> Self {
        let entry = |entry: &Value| {
            let owner = Owner {
                manager: text(entry, &["manager"]).to_owned(),
                apply: text(entry, &["operation"]) == "Apply",
                status: text(entry, &["subresource"]) == "status",
            };
            let fields = entry.get("fieldsV1").map(Fields::from_json).unwrap_or_default();
            (owner, fields, text(entry, &["time"]).to_owned())
        };
        Self { entries: items(object, &["metadata", "managedFields"]).iter().map(entry).collect() }
    }

    fn take(&mut self, owner: &Owner) -> Option<Fields> {
        let at = self.entries.iter().position(|(other, ..)| other == owner)?;
        Some(self.entries.remove(at).1)
    }

    fn give_up(&mut self, lost: impl Fn(&FieldPath) -> bool) {
        for (_, fields, _) in &mut self.entries {
            fields.0.retain(|path| !lost(path));
        }
        self.entries.retain(|(_, fields, _)| !fields.0.is_empty());
    }

    /// Writes the entries. One whose fields are the same keeps its time, so that applying twice changes
    /// nothing.
    fn write(mut self, object: &mut Value, api_version: &str, old: &Value) {
        self.entries.sort_by(|(a, ..), (b, ..)| {
            (!a.apply, &a.manager, a.status).cmp(&(!b.apply, &b.manager, b.status))
        });
        let before = items(old, &["metadata", "managedFields"]);
        let entry = |(owner, fields, time): (Owner, Fields, String)| {
            let mut entry = json!({
                "manager": owner.manager, "operation": if owner.apply { "Apply" } else { "Update" },
                "apiVersion": api_version, "time": time, "fieldsType": "FieldsV1", "fieldsV1": fields.to_json(),
            });
            if owner.status {
                entry["subresource"] = "status".into();
            }
            for old in before.iter().filter(|old| old["manager"] == entry["manager"]) {
                let mut same = old.clone();
                same["time"] = entry["time"].clone();
                if same == entry {
                    return old.clone();
                }
            }
            entry
        };
        let entries: Vec<Value> = self.entries.into_iter().map(entry).collect();
        let meta = metadata(object);
        if entries.is_empty() {
            meta.remove("managedFields");
        } else {
            meta.insert("managedFields".into(), entries.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Objects like pods, in which every kind of list occurs, and every kind of nonsense.
    fn objects() -> impl Strategy<Value = Value> {
        let names = prop::sample::select(vec![
            "a",
            "name",
            "spec",
            "data",
            "containers",
            "ports",
            "containerPort",
            "finalizers",
            "conditions",
            "type",
            "metadata",
            "$patch",
            "$retainKeys",
            "$setElementOrder/containers",
            "$deleteFromPrimitiveList/finalizers",
        ]);
        let plain = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..3).prop_map(Value::from),
            prop::sample::select(vec!["", "x", "y", "delete", "replace"]).prop_map(Value::from),
        ];
        let value = plain.prop_recursive(4, 40, 4, move |inner| {
            let members =
                prop::collection::btree_map(names.clone().prop_map(str::to_owned), inner.clone(), 0..5);
            prop_oneof![
                prop::collection::vec(inner, 0..4).prop_map(Value::Array),
                members.prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        });
        value.prop_filter("an object", Value::is_object)
    }

    proptest! {
        #[test]
        fn no_patch_panics(object in objects(), patch in objects()) {
            let _ = super::super::Patch::Strategic(patch.clone()).apply_to(object.clone());
            let _ = super::super::Patch::Merge(patch.clone()).apply_to(object.clone());
            let _ = apply(&object, "one", patch, true);
        }

        #[test]
        fn a_strategic_patch_without_directives_can_be_applied_twice(object in objects(), patch in objects()) {
            prop_assume!(!patch.to_string().contains('$'));
            let patch = super::super::Patch::Strategic(patch);
            if let Ok(once) = patch.apply_to(object) {
                prop_assert_eq!(patch.apply_to(once.clone()).unwrap(), once);
            }
        }

        #[test]
        fn fields_are_read_as_they_were_written(object in objects()) {
            let fields = Fields::of(&object, true);
            prop_assert_eq!(Fields::from_json(&fields.to_json()), fields);
        }

        #[test]
        fn what_was_applied_can_be_applied_again_and_taken_back(object in objects(), config in objects()) {
            let object = without_managers(object);
            if let Ok(once) = apply(&object, "one", config.clone(), true) {
                prop_assert_eq!(&apply(&once, "one", config.clone(), false).unwrap(), &once);
                let none = apply(&once, "one", json!({}), false).unwrap();
                let owns_nothing = items(&none, &["metadata", "managedFields"])
                    .iter()
                    .all(|entry| entry["fieldsV1"] == json!({}));
                prop_assert!(owns_nothing);
            }
        }
    }

    fn apply(old: &Value, manager: &str, config: Value, force: bool) -> Result<Value, Failure> {
        let options = Options { manager: manager.into(), force, ..Options::default() };
        let applier =
            Applier { options: &options, status: false, built_in: true, now: Timestamp::UNIX_EPOCH };
        applier.apply(old, &config)
    }

    fn without_managers(mut object: Value) -> Value {
        metadata(&mut object).remove("managedFields");
        object
    }

    fn containers(list: Value) -> Value {
        json!({ "spec": { "containers": list } })
    }

    #[test]
    fn a_field_that_is_no_longer_applied_goes_unless_another_applies_it_too() {
        let one = apply(&json!({}), "one", json!({ "data": { "a": "1", "b": "2" } }), false).unwrap();
        let both = apply(&one, "two", json!({ "data": { "b": "2", "c": "3" } }), false).unwrap();
        let less = apply(&both, "one", json!({ "metadata": { "name": "x" } }), false).unwrap();
        assert_eq!(less["data"], json!({ "b": "2", "c": "3" }));
        let none = apply(&less, "two", json!({ "metadata": { "name": "x" } }), false).unwrap();
        assert!(none.get("data").is_none());
    }

    #[test]
    fn applying_twice_changes_nothing() {
        let config = containers(json!([{ "name": "a", "image": "x", "ports": [{ "containerPort": 80 }] }]));
        let one = apply(&json!({}), "one", config.clone(), false).unwrap();
        assert_eq!(apply(&one, "one", config, false).unwrap(), one);
    }

    #[test]
    fn a_large_configuration_is_applied_beside_anothers_and_taken_back() {
        let many = 2_000;
        let env = |member: &str, value: &str| -> Vec<Value> {
            (0..many).map(|i| json!({ "name": format!("E{i}"), member: value })).collect()
        };
        let config =
            |member: &str, value: &str| containers(json!([{ "name": "a", "env": env(member, value) }]));
        let one = apply(&json!({}), "one", config("value", "x"), false).unwrap();
        let both = apply(&one, "two", config("other", "y"), false).unwrap();
        let back = apply(&both, "one", json!({}), false).unwrap();
        assert!(back["spec"] == config("other", "y")["spec"]);
        let conflict = apply(&both, "two", config("value", "z"), false).unwrap_err();
        assert!(conflict.message.starts_with(&format!("Apply failed with {many} conflicts")));
        let mut edited = both.clone();
        edited["spec"]["containers"][0]["env"] = env("value", "z").into();
        let options = Options { manager: "editor".into(), ..Options::default() };
        let by = Applier { options: &options, status: false, built_in: true, now: Timestamp::UNIX_EPOCH };
        let edited = note_update(&both, edited, &by);
        let owners = items(&edited, &["metadata", "managedFields"]).iter().map(|e| &e["manager"]);
        assert_eq!(owners.collect::<Vec<_>>(), ["one", "two", "editor"]);
        let none = apply(&one, "one", json!({}), false).unwrap();
        assert!(none.get("spec").is_none());
        // Six writes look at every item a few times each, and not once for every other item.
        assert!(fields::NAMED.get() < 100 * many, "{} times", fields::NAMED.get());
    }

    #[test]
    fn items_belong_to_who_applies_them() {
        let one =
            apply(&json!({}), "one", containers(json!([{ "name": "a", "image": "x" }])), false).unwrap();
        let side = containers(json!([{ "name": "b", "image": "y" }, { "name": "a", "tty": true }]));
        let both = apply(&one, "two", side, false).unwrap();
        assert_eq!(
            without_managers(both.clone())["spec"]["containers"],
            json!([{ "name": "a", "image": "x", "tty": true }, { "name": "b", "image": "y" }])
        );
        let less = apply(&both, "two", json!({ "spec": {} }), false).unwrap();
        assert_eq!(less["spec"]["containers"], json!([{ "name": "a", "image": "x" }]));
    }

    #[test]
    fn another_value_for_what_another_applies_is_a_conflict_unless_forced() {
        let one =
            apply(&json!({}), "one", containers(json!([{ "name": "a", "image": "x" }])), false).unwrap();
        let other = containers(json!([{ "name": "a", "image": "y" }]));
        let conflict = apply(&one, "two", other.clone(), false).unwrap_err();
        assert_eq!(conflict.code, 409);
        assert_eq!(
            conflict.message,
            "Apply failed with 1 conflict: conflict with \"one\": .spec.containers[name=\"a\"].image"
        );
        let forced = apply(&one, "two", other, true).unwrap();
        assert_eq!(forced["spec"]["containers"][0]["image"], "y");
        // The first has lost the field: applying without it takes nothing away.
        let less = apply(&forced, "one", containers(json!([{ "name": "a" }])), false).unwrap();
        assert_eq!(less["spec"]["containers"][0]["image"], "y");
    }

    #[test]
    fn a_plain_write_takes_the_field_over() {
        let one = apply(&json!({}), "one", json!({ "data": { "a": "1" } }), false).unwrap();
        let mut edited = one.clone();
        edited["data"]["a"] = "2".into();
        let options = Options { manager: "editor".into(), ..Options::default() };
        let by = Applier { options: &options, status: false, built_in: true, now: Timestamp::UNIX_EPOCH };
        let edited = note_update(&one, edited, &by);
        let conflict = apply(&edited, "one", json!({ "data": { "a": "1" } }), false).unwrap_err();
        assert!(conflict.message.contains("conflict with \"editor\""), "{conflict}");
    }

    #[test]
    fn the_fields_are_written_as_kubernetes_writes_them() {
        let config = containers(json!([{ "name": "a", "ports": [{ "containerPort": 80 }] }]));
        let one = apply(&json!({}), "one", config, false).unwrap();
        assert_eq!(
            one["metadata"]["managedFields"][0]["fieldsV1"],
            json!({ "f:spec": { "f:containers": { "k:{\"name\":\"a\"}": {
                ".": {}, "f:name": {},
                "f:ports": { "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": { ".": {}, "f:containerPort": {} } },
            }}}})
        );
    }
}
