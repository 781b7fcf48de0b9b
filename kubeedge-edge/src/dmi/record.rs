//! What stands in the store: one record for each mapper, one for each device that a mapper was told.

use kubeedge_core::{
    id::{DeviceId, InvalidId},
    store::{Key, Prefix, StoreError},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The form of the records that this code writes, and the only one that it reads.
const FORMAT: u32 = 1;

/// First part of the keys of mappers: `mappers/<protocol>`.
const MAPPERS: &str = "mappers";
/// First part of the keys of what they were told: `mapper-devices/<protocol>/<namespace>/<name>`.
const TOLD: &str = "mapper-devices";

/// A mapper that has registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Registration {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) api_version: String,
    /// The path of its socket.
    pub(super) address: String,
}

/// What a mapper knows of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Told {
    /// It may or may not have been told of the device.
    Maybe,
    /// It was told of the device with this fingerprint.
    As(#[serde(with = "hex")] u128),
}

/// Fingerprints as text: JSON's numbers are too small for them.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(value: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{value:032x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        u128::from_str_radix(&String::deserialize(deserializer)?, 16).map_err(D::Error::custom)
    }
}

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
    serde_json::to_vec(&Record { format: FORMAT, content }).expect("a record has only strings and numbers")
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

pub(super) fn mapper_key(protocol: &str) -> Result<Key, StoreError> {
    Key::new([MAPPERS, protocol])
}

pub(super) fn told_key(protocol: &str, device: &DeviceId) -> Result<Key, StoreError> {
    Key::new([TOLD, protocol, device.namespace(), device.name()])
}

pub(super) fn mappers() -> Prefix {
    Prefix::new([MAPPERS])
}

pub(super) fn told() -> Prefix {
    Prefix::new([TOLD])
}

/// Reads the key of a mapper: its protocol.
pub(super) fn protocol_of(key: &Key) -> Result<String, RecordError> {
    let parts: Vec<_> = key.parts().collect();
    match parts.as_slice() {
        [_, protocol] => Ok(protocol.clone()),
        other => Err(RecordError::Key(other.len())),
    }
}

/// Reads the key of a device that a mapper was told.
pub(super) fn told_of(key: &Key) -> Result<(String, DeviceId), RecordError> {
    let parts: Vec<_> = key.parts().collect();
    match parts.as_slice() {
        [_, protocol, namespace, name] => Ok((protocol.clone(), DeviceId::new(namespace, name)?)),
        other => Err(RecordError::Key(other.len())),
    }
}
