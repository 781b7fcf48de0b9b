//! The files of volumes that are made of objects.

use kubeedge_core::message::ObjectRef;

use super::{File, Files, group_of, user_of};
use crate::edged::{
    files::GROUP_READS,
    pod::{DownwardItem, KeyToPath, Pod, ProjectedSource, TokenSource, Volume},
    resolve::{Facts, Unresolved, data_of, field_value, is_inside, no_key, not_found, resource_value},
    tokens::token_request,
};

/// 0644: the API's default for every kind of volume that has a `defaultMode`.
const DEFAULT_MODE: u32 = 0o644;

/// The files of a volume that is made of objects; `None` if it is made of something else.
pub(super) fn files(volume: &Volume, pod: &Pod, facts: &Facts<'_>) -> Result<Option<Files>, Unresolved> {
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
        for source in &projected.sources {
            add_projected(&mut files, source, mode, pod, facts)?;
        }
    } else {
        return Ok(None);
    }
    if let Some(group) = group_of(pod) {
        for file in files.values_mut() {
            file.group = Some(group);
            file.mode |= GROUP_READS;
        }
    }
    Ok(Some(files))
}

fn add_projected(
    files: &mut Files,
    source: &ProjectedSource,
    mode: u32,
    pod: &Pod,
    facts: &Facts<'_>,
) -> Result<(), Unresolved> {
    let namespace = pod.reference.namespace();
    if let Some(map) = &source.config_map {
        let reference = ObjectRef::config_map(namespace, &map.name);
        add_object(files, &reference, map.items.as_deref(), mode, map.optional, facts)?;
    }
    if let Some(secret) = &source.secret {
        let reference = ObjectRef::secret(namespace, &secret.name);
        add_object(files, &reference, secret.items.as_deref(), mode, secret.optional, facts)?;
    }
    if let Some(downward) = &source.downward_api {
        add_downward(files, &downward.items, mode, pod, facts)?;
    }
    match &source.service_account_token {
        Some(token) => add_token(files, token, mode, pod, facts),
        None => Ok(()),
    }
}

/// Adds a token. Where a pod says which user or group it runs as, nobody else may read it (KEP-1205).
fn add_token(
    files: &mut Files,
    source: &TokenSource,
    mode: u32,
    pod: &Pod,
    facts: &Facts<'_>,
) -> Result<(), Unresolved> {
    let request = token_request(pod, source);
    let token = facts.tokens.token(&request)?;
    let user = user_of(pod);
    let mode = if user.is_some() || group_of(pod).is_some() { 0o600 } else { mode };
    add_file(files, &source.path, token.as_bytes().to_vec(), mode)?;
    if let Some(file) = files.get_mut(&source.path) {
        file.user = user;
    }
    Ok(())
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
    files.insert(path.to_owned(), File::new(bytes, mode & 0o777));
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
