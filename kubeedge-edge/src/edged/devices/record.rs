//! What stands in the store: one record for each plugin, one for each pod that has devices.

use kubeedge_core::{
    id::Uid,
    store::{Batch, Key, MetaStore, MetaStoreExt, Prefix, StoreError},
};
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;

use super::state::{OfPod, Plugin};

/// First part of the keys of plugins: `device-plugins/<resource>`.
const PLUGINS: &str = "device-plugins";
/// First part of the keys of pods: `device-holders/<uid>`.
const HOLDERS: &str = "device-holders";

/// All plugins that have registered, and all pods that have devices. A record that cannot be read is passed over.
pub(super) async fn read(
    store: &dyn MetaStore,
) -> Result<(BTreeMap<String, Plugin>, BTreeMap<Uid, OfPod>), StoreError> {
    let plugins = all(store, PLUGINS).await?;
    let holders = all(store, HOLDERS).await?;
    Ok((plugins, holders.into_iter().map(|(uid, held)| (Uid::new(uid), held)).collect()))
}

async fn all<T: DeserializeOwned>(
    store: &dyn MetaStore,
    kind: &str,
) -> Result<BTreeMap<String, T>, StoreError> {
    let mut read = BTreeMap::new();
    for (key, value) in store.scan_all(&Prefix::new([kind])).await? {
        let name = key.parts().nth(1).unwrap_or_default();
        match serde_json::from_slice(&value) {
            Ok(record) => drop(read.insert(name, record)),
            Err(error) => tracing::warn!(%key, %error, "a record about devices is passed over"),
        }
    }
    Ok(read)
}

/// Adds a plugin to what is written.
pub(super) fn put_plugin(batch: &mut Batch, resource: &str, plugin: &Plugin) -> Result<(), StoreError> {
    put(batch, PLUGINS, resource, Some(plugin))
}

/// Adds to what is written what a pod has; nothing removes its record.
pub(super) fn put_holder(batch: &mut Batch, uid: &Uid, held: Option<&OfPod>) -> Result<(), StoreError> {
    put(batch, HOLDERS, uid.as_str(), held)
}

fn put<T: Serialize>(
    batch: &mut Batch,
    kind: &str,
    name: &str,
    record: Option<&T>,
) -> Result<(), StoreError> {
    let key = Key::new([kind, name])?;
    match record.map(serde_json::to_vec) {
        Some(Ok(json)) => batch.put(key, json),
        Some(Err(_)) | None => batch.delete(key),
    };
    Ok(())
}

/// A grant as JSON, whose types belong to the runtime's port.
pub(super) mod grant {
    use std::{collections::BTreeMap, path::PathBuf};

    use kubeedge_core::runtime::{Device, Mount};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::edged::devices::Grant;

    #[derive(Serialize, Deserialize)]
    struct Kept {
        env: BTreeMap<String, String>,
        mounts: Vec<(PathBuf, PathBuf, bool)>,
        devices: Vec<(PathBuf, PathBuf, String)>,
        annotations: BTreeMap<String, String>,
        cdi: Vec<String>,
    }

    pub(in super::super) fn serialize<S: Serializer>(grant: &Grant, to: S) -> Result<S::Ok, S::Error> {
        let Grant { env, mounts, devices, annotations, cdi_devices } = grant.clone();
        let mounts = mounts.into_iter().map(|it| (it.container_path, it.host_path, it.read_only));
        let devices = devices.into_iter().map(|it| (it.container_path, it.host_path, it.permissions));
        let kept =
            Kept { env, mounts: mounts.collect(), devices: devices.collect(), annotations, cdi: cdi_devices };
        kept.serialize(to)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Grant, D::Error> {
        let Kept { env, mounts, devices, annotations, cdi } = Kept::deserialize(from)?;
        let mounts = mounts.into_iter().map(|(container_path, host_path, read_only)| Mount {
            container_path,
            host_path,
            read_only,
            ..Mount::default()
        });
        let devices = devices.into_iter().map(|(container_path, host_path, permissions)| Device {
            container_path,
            host_path,
            permissions,
        });
        Ok(Grant { env, mounts: mounts.collect(), devices: devices.collect(), annotations, cdi_devices: cdi })
    }
}
