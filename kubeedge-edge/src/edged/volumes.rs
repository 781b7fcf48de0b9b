//! What the files of a Pod's volumes are. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use kubeedge_core::message::ObjectRef;

use super::{
    pod::{DownwardItem, KeyToPath, Pod, ProjectedSource, Volume},
    resolve::{Facts, Unresolved, data_of, field_value, is_inside, no_key, not_found, resource_value},
};

/// A file in a volume.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) bytes: Vec<u8>,
    pub(crate) mode: u32,
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The content stays out: it may be a Secret.
        write!(f, "File({} bytes, {:o})", self.bytes.len(), self.mode)
    }
}

/// The files of one volume, by path below it.
pub(crate) type Files = BTreeMap<String, File>;

/// The ConfigMaps and Secrets that a Pod's volumes are made of.
pub(crate) fn volume_references(pod: &Pod) -> BTreeSet<ObjectRef> {
    let namespace = pod.reference.namespace();
    let mut found = BTreeSet::new();
    for volume in &pod.spec.volumes {
        let projected = volume.projected.iter().flat_map(|projected| &projected.sources);
        let maps = volume.config_map.iter().chain(projected.filter_map(|source| source.config_map.as_ref()));
        found.extend(maps.map(|source| ObjectRef::config_map(namespace, &source.name)));
    }
    for volume in &pod.spec.volumes {
        let projected = volume.projected.iter().flat_map(|projected| &projected.sources);
        let names = volume.secret.iter().map(|source| &source.secret_name);
        let names =
            names.chain(projected.filter_map(|source| source.secret.as_ref()).map(|source| &source.name));
        found.extend(names.map(|name| ObjectRef::secret(namespace, name)));
    }
    found
}

/// The contents of all volumes of `pod` that are made of objects, by volume name.
pub(crate) fn volumes(pod: &Pod, facts: &Facts<'_>) -> Result<BTreeMap<String, Files>, Unresolved> {
    let mut all = BTreeMap::new();
    for volume in &pod.spec.volumes {
        if let Some(files) = files_of(volume, pod, facts)? {
            all.insert(volume.name.clone(), files);
        }
    }
    Ok(all)
}

/// 0644: the API's default for every kind of volume that has a `defaultMode`.
const DEFAULT_MODE: u32 = 0o644;

fn files_of(volume: &Volume, pod: &Pod, facts: &Facts<'_>) -> Result<Option<Files>, Unresolved> {
    let mut files = Files::new();
    if let Some(source) = &volume.config_map {
        let reference = ObjectRef::config_map(pod.reference.namespace(), &source.name);
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        add_object(&mut files, &reference, source.items.as_deref(), mode, source.optional, facts)?;
    } else if let Some(source) = &volume.secret {
        let reference = ObjectRef::secret(pod.reference.namespace(), &source.secret_name);
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        add_object(&mut files, &reference, source.items.as_deref(), mode, source.optional, facts)?;
    } else if let Some(downward) = &volume.downward_api {
        let mode = downward.default_mode.unwrap_or(DEFAULT_MODE);
        add_downward(&mut files, &downward.items, mode, pod, facts)?;
    } else if let Some(projected) = &volume.projected {
        let mode = projected.default_mode.unwrap_or(DEFAULT_MODE);
        // The volume that Kubernetes adds to every pod has a token, which only the cloud can issue, and the
        // cluster's CA beside it. A pod that never talks to the API server must start without them.
        let with_token = projected.sources.iter().any(|source| source.service_account_token.is_some());
        for source in &projected.sources {
            add_projected(&mut files, source, mode, with_token, pod, facts)?;
        }
    } else {
        return Ok(None);
    }
    Ok(Some(files))
}

fn add_projected(
    files: &mut Files,
    source: &ProjectedSource,
    mode: u32,
    lenient: bool,
    pod: &Pod,
    facts: &Facts<'_>,
) -> Result<(), Unresolved> {
    let namespace = pod.reference.namespace();
    if let Some(map) = &source.config_map {
        let reference = ObjectRef::config_map(namespace, &map.name);
        add_object(files, &reference, map.items.as_deref(), mode, map.optional || lenient, facts)?;
    }
    if let Some(secret) = &source.secret {
        let reference = ObjectRef::secret(namespace, &secret.name);
        add_object(files, &reference, secret.items.as_deref(), mode, secret.optional, facts)?;
    }
    match &source.downward_api {
        Some(downward) => add_downward(files, &downward.items, mode, pod, facts),
        None => Ok(()),
    }
}

fn add_object(
    files: &mut Files,
    reference: &ObjectRef,
    items: Option<&[KeyToPath]>,
    mode: u32,
    optional: bool,
    facts: &Facts<'_>,
) -> Result<(), Unresolved> {
    let Some(data) = data_of(reference, facts)? else {
        return if optional { Ok(()) } else { Err(not_found(reference)) };
    };
    let Some(items) = items else {
        for (key, bytes) in data {
            add_file(files, &key, bytes, mode)?;
        }
        return Ok(());
    };
    for item in items {
        match data.get(&item.key) {
            Some(bytes) => add_file(files, &item.path, bytes.clone(), item.mode.unwrap_or(mode))?,
            None if optional => {}
            None => return Err(no_key(reference, &item.key)),
        }
    }
    Ok(())
}

fn add_downward(
    files: &mut Files,
    items: &[DownwardItem],
    mode: u32,
    pod: &Pod,
    facts: &Facts<'_>,
) -> Result<(), Unresolved> {
    for item in items {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => field_value(field, pod, facts)?,
            (None, Some(resource)) => resource_value(resource, None, pod, facts)?,
            (None, None) => String::new(),
        };
        add_file(files, &item.path, text.into_bytes(), item.mode.unwrap_or(mode))?;
    }
    Ok(())
}

fn add_file(files: &mut Files, path: &str, bytes: Vec<u8>, mode: u32) -> Result<(), Unresolved> {
    if !is_inside(path) || path.starts_with("..") {
        return Err(Unresolved(format!("path {path:?} leads out of its volume")));
    }
    files.insert(path.to_owned(), File { bytes, mode: mode & 0o777 });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leads_out_of_a_volume() {
        for bad in ["", "/etc/passwd", "../x", "a/../../x", "..data", "..", ".", "./a", "a\0b"] {
            let outcome = add_file(&mut Files::new(), bad, vec![], 0o644);
            assert!(outcome.is_err(), "{bad:?}");
        }
        assert!(add_file(&mut Files::new(), "sub/dir.conf", vec![], 0o644).is_ok());
    }
}
