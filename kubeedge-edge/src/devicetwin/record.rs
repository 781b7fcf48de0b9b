//! What stands in the store: one record for each device, one for each twin.

use kubeedge_core::{
    id::{DeviceId, InvalidId, ResourceVersion, Uid},
    store::{Key, Prefix, StoreError},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The form of the records that this code writes, and the newest that it reads.
const FORMAT: u32 = 1;

/// First part of the keys of devices: `devices/<namespace>/<name>`.
const DEVICES: &str = "devices";
/// First part of the keys of twins: `twins/<namespace>/<name>/<property>`.
const TWINS: &str = "twins";

/// A device, without its twins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DeviceRecord {
    pub(super) uid: Uid,
    pub(super) resource_version: ResourceVersion,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) state: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) last_online: Option<String>,
    /// What people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) description: Option<String>,
    /// The newest version of any twin that was forgotten, or was kept by others before, so that one of its name does not count from the beginning.
    #[serde(default)]
    pub(super) forgotten_version: u64,
}

/// A record as it is written: its form stands beside its content.
#[derive(Serialize, Deserialize)]
struct Record<T> {
    format: u32,
    content: T,
}

/// Says why a record is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error("its form is {0}, and this program knows {FORMAT}")]
    Format(u32),
    #[error(transparent)]
    Id(#[from] InvalidId),
    #[error("its key has {0} parts")]
    Key(usize),
}

pub(super) fn encode<T: Serialize>(content: &T) -> Vec<u8> {
    serde_json::to_vec(&Record { format: FORMAT, content })
        .expect("a record has only strings, numbers and maps with string keys")
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RecordError> {
    #[derive(Deserialize)]
    struct Head {
        format: u32,
    }
    let head: Head = serde_json::from_slice(bytes)?;
    if head.format != FORMAT {
        return Err(RecordError::Format(head.format));
    }
    Ok(serde_json::from_slice::<Record<T>>(bytes)?.content)
}

pub(super) fn device_key(device: &DeviceId) -> Result<Key, StoreError> {
    Key::new([DEVICES, device.namespace(), device.name()])
}

pub(super) fn twin_key(device: &DeviceId, property: &str) -> Result<Key, StoreError> {
    Key::new([TWINS, device.namespace(), device.name(), property])
}

pub(super) fn devices() -> Prefix {
    Prefix::new([DEVICES])
}

pub(super) fn twins() -> Prefix {
    Prefix::new([TWINS])
}

/// Reads the key of a device.
pub(super) fn device_of(key: &Key) -> Result<DeviceId, RecordError> {
    let parts: Vec<_> = key.parts().collect();
    match parts.as_slice() {
        [_, namespace, name] => Ok(DeviceId::new(namespace, name)?),
        other => Err(RecordError::Key(other.len())),
    }
}

/// Reads the key of a twin.
pub(super) fn twin_of(key: &Key) -> Result<(DeviceId, String), RecordError> {
    let parts: Vec<_> = key.parts().collect();
    match parts.as_slice() {
        [_, namespace, name, property] => Ok((DeviceId::new(namespace, name)?, property.clone())),
        other => Err(RecordError::Key(other.len())),
    }
}
