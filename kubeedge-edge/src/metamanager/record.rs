//! How an object lies in the store: its key, and its value.
//!
//! The key is `objects/<apiVersion>/<kind>/<namespace>/<name>`, with `_` for the namespace of cluster-scoped
//! objects (no namespace can be called so). The value is, numbers big-endian:
//!
//! | Bytes | What |
//! |---|---|
//! | 1 | the format's version, 1 |
//! | 8 | the resource version |
//! | 8 | the fingerprint |
//! | 1 | the length of the UID |
//! | that many | the UID |
//! | the rest | the object's JSON, unchanged |

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kubeedge_core::{
    id::{ResourceVersion, Uid},
    message::{Fingerprint, Object, ObjectRef},
    store::{Key, Prefix, StoreError},
};

const ROOT: &str = "objects";
const NO_NAMESPACE: &str = "_";
const VERSION: u8 = 1;

/// Says why a value is not read as an object.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    /// A later version of this program wrote it.
    #[error("its format {0} is not known")]
    Version(u8),
    /// It is not what was written.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
}

/// The prefix of all objects.
pub(super) fn root() -> Prefix {
    Prefix::new([ROOT])
}

/// The prefix of the objects of a kind.
pub(super) fn kind(api_version: &str, kind: &str, namespace: Option<&str>) -> Prefix {
    let parts = [ROOT, api_version, kind].into_iter();
    Prefix::new(
        parts.chain(namespace.map(|namespace| if namespace.is_empty() { NO_NAMESPACE } else { namespace })),
    )
}

/// Where the object lies.
pub(super) fn key(reference: &ObjectRef) -> Result<Key, StoreError> {
    let namespace = if reference.namespace().is_empty() { NO_NAMESPACE } else { reference.namespace() };
    Key::new([ROOT, reference.api_version(), reference.kind(), namespace, reference.name()])
}

/// Whether an object with this UID can be encoded; the API server's UIDs have 36 characters.
pub(super) fn fits(uid: &Uid) -> bool {
    u8::try_from(uid.as_str().len()).is_ok()
}

/// Writes the value. A UID that does not [`fits`] is cut, so it is checked before.
pub(super) fn encode(object: &Object) -> Bytes {
    let uid = object.uid.as_str().as_bytes();
    let length = u8::try_from(uid.len()).unwrap_or(u8::MAX);
    let uid = &uid[..usize::from(length)];
    let mut value = BytesMut::with_capacity(18 + uid.len() + object.json.len());
    value.put_u8(VERSION);
    value.put_u64(object.resource_version.0);
    value.put_u64(object.fingerprint.0);
    value.put_u8(length);
    value.put_slice(uid);
    value.put_slice(&object.json);
    value.freeze()
}

/// Reads an object back; the JSON shares the value's memory.
pub(super) fn decode(key: &Key, mut value: Bytes) -> Result<Object, Unreadable> {
    let reference = reference(key)?;
    match value.try_get_u8() {
        Ok(VERSION) => {}
        Ok(version) => return Err(Unreadable::Version(version)),
        Err(_) => return Err(Unreadable::Damaged("the value is empty")),
    }
    let cut = |_| Unreadable::Damaged("the header is cut off");
    let resource_version = ResourceVersion(value.try_get_u64().map_err(cut)?);
    let fingerprint = Fingerprint(value.try_get_u64().map_err(cut)?);
    let length = usize::from(value.try_get_u8().map_err(cut)?);
    if value.len() < length {
        return Err(Unreadable::Damaged("the UID is cut off"));
    }
    let uid = value.split_to(length);
    let uid = std::str::from_utf8(&uid).map_err(|_| Unreadable::Damaged("the UID is no text"))?;
    let json = value.trim_ascii();
    if !(json.starts_with(b"{") && json.ends_with(b"}")) {
        // The store's own checksums find rot; this finds a value that was never whole. White space around an object is JSON,
        // and API servers end their answers with it.
        return Err(Unreadable::Damaged("the JSON is no object"));
    }
    Ok(Object { reference, uid: Uid::new(uid), resource_version, fingerprint, json: value })
}

fn reference(key: &Key) -> Result<ObjectRef, Unreadable> {
    let parts: Vec<String> = key.parts().collect();
    let Ok([_, api_version, kind, namespace, name]) = <[String; 5]>::try_from(parts) else {
        return Err(Unreadable::Damaged("the key does not name an object"));
    };
    let namespace = if namespace == NO_NAMESPACE { String::new() } else { namespace };
    Ok(ObjectRef::new(api_version, kind, namespace, name))
}
