//! Lists: which objects, and in which pieces.

use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    failure::Failure, json::text, query::Query, resource::Resource, selector::Selector, store, write::Target,
};

/// Which objects a request is about.
pub(crate) struct Scope {
    pub(crate) resource: &'static Resource,
    pub(crate) namespace: Option<String>,
    pub(crate) selector: Selector,
}

impl Scope {
    pub(crate) fn parse(
        resource: &'static Resource,
        namespace: Option<String>,
        query: &Query,
    ) -> Result<Self, Failure> {
        let selector =
            Selector::parse(query.get("labelSelector"), query.get("fieldSelector"), resource.kind)?;
        Ok(Self { resource, namespace, selector })
    }

    pub(crate) fn prefix(&self) -> Vec<u8> {
        let namespace = if self.resource.namespaced { self.namespace.as_deref() } else { Some("") };
        store::prefix(self.resource, namespace)
    }

    fn matches(&self, object: &[u8]) -> Result<bool, Failure> {
        Ok(self.selector.is_empty() || self.selector.matches(&store::decode(object)?))
    }

    pub(crate) fn all(&self, snapshot: &store::Snapshot) -> Result<Vec<Bytes>, Failure> {
        let mut objects = Vec::new();
        snapshot.scan(&self.prefix(), None, |_, object| {
            if self.matches(object)? {
                objects.push(Bytes::copy_from_slice(object));
            }
            Ok(true)
        })?;
        Ok(objects)
    }

    pub(crate) fn target_of(&self, object: &Value) -> Target {
        let meta = |member| text(object, &["metadata", member]).to_owned();
        Target { resource: self.resource, namespace: meta("namespace"), name: meta("name"), status: false }
    }
}

/// Which part of a list.
pub(crate) struct Page {
    limit: usize,
    /// The version as of which the list began, and the last key that was sent.
    after: Option<(u64, Vec<u8>)>,
}

impl Page {
    pub(crate) fn parse(query: &Query) -> Result<Self, Failure> {
        let limit = query.number("limit")?.unwrap_or_default();
        let limit = if limit == 0 { usize::MAX } else { usize::try_from(limit).unwrap_or(usize::MAX) };
        let bad = || Failure::bad_request("continue key is not valid");
        let Some(text) = query.get("continue") else { return Ok(Self { limit, after: None }) };
        // Version and key, in hexadecimal, so that it passes through any client unchanged.
        let (version, key) = text.split_once('-').ok_or_else(bad)?;
        let version = u64::from_str_radix(version, 16).map_err(|_| bad())?;
        if !key.is_ascii() || key.len() % 2 != 0 || key.len() > 2048 {
            return Err(bad());
        }
        let key = (0..key.len()).step_by(2).map(|i| u8::from_str_radix(&key[i..i + 2], 16));
        Ok(Self { limit, after: Some((version, key.collect::<Result<_, _>>().map_err(|_| bad())?)) })
    }

    pub(crate) fn read(&self, store: &store::Store, scope: &Scope) -> Result<(Vec<Bytes>, Value), Failure> {
        let snapshot = store.read()?;
        let version = self.after.as_ref().map_or(snapshot.version, |(version, _)| *version);
        let mut undo = match &self.after {
            Some((version, _)) => store.history().undo(scope.resource, *version)?,
            None => Default::default(),
        };
        let prefix = scope.prefix();
        let after = self.after.as_ref().map(|(_, key)| key.as_slice());
        if after.is_some_and(|after| !after.starts_with(&prefix)) {
            return Err(Failure::bad_request("continue key is not valid"));
        }
        undo.retain(|key, _| key.starts_with(&prefix) && after.is_none_or(|after| key.as_slice() > after));
        let mut taken =
            Taken { limit: self.limit, scope, objects: Vec::new(), last: Vec::new(), more: false };
        snapshot.scan(&prefix, after, |key, object| {
            // Objects that have been deleted since stand before this one in the list as it was.
            while let Some(entry) = undo.first_entry() {
                if entry.key().as_slice() >= key {
                    break;
                }
                let (key, old) = entry.remove_entry();
                if !taken.take(&key, old)? {
                    return Ok(false);
                }
            }
            match undo.remove(key) {
                Some(old) => taken.take(key, old),
                None => taken.take(key, Some(Bytes::copy_from_slice(object))),
            }
        })?;
        for (key, old) in undo {
            if taken.more || !taken.take(&key, old)? {
                break;
            }
        }
        let mut meta = json!({ "resourceVersion": version.to_string() });
        if taken.more {
            let key: String = taken.last.iter().map(|byte| format!("{byte:02x}")).collect();
            meta["continue"] = format!("{version:x}-{key}").into();
        }
        Ok((taken.objects, meta))
    }
}

struct Taken<'a> {
    limit: usize,
    scope: &'a Scope,
    objects: Vec<Bytes>,
    last: Vec<u8>,
    more: bool,
}

impl Taken<'_> {
    /// Takes the object if it matches and there is room. Returns whether to go on.
    fn take(&mut self, key: &[u8], object: Option<Bytes>) -> Result<bool, Failure> {
        let Some(object) = object else { return Ok(true) };
        if !self.scope.matches(&object)? {
            return Ok(true);
        }
        if self.objects.len() == self.limit {
            self.more = true;
            return Ok(false);
        }
        self.objects.push(object);
        self.last = key.to_vec();
        Ok(true)
    }
}
