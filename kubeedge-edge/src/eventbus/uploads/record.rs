//! How a message that waits for the cloud stands in the store.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kubeedge_core::{
    message::{Publish, UploadId},
    store::{Key, Prefix, StoreError},
};

/// A message, and since when it waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) id: UploadId,
    /// Milliseconds since the Unix epoch.
    pub(super) since_ms: u64,
    pub(super) publish: Publish,
}

impl Kept {
    /// What it counts in limits: about what it takes in the store.
    pub(super) fn size(&self) -> u64 {
        size(&self.publish)
    }
}

/// See [`Kept::size`].
pub(super) fn size(publish: &Publish) -> u64 {
    (publish.size() + OVERHEAD) as u64
}

/// The head of a record and its key.
const OVERHEAD: usize = 64;

/// The first byte of a record.
const VERSION: u8 = 1;

/// Where the messages are.
pub(super) fn prefix() -> Prefix {
    Prefix::new(["eventbus", "uploads"])
}

/// Keys ascend as numbers do.
pub(super) fn key(number: u64) -> Result<Key, StoreError> {
    Key::new(["eventbus", "uploads", &format!("{number:020}")])
}

pub(super) fn number(key: &Key) -> Option<u64> {
    key.parts().last()?.parse().ok()
}

pub(super) fn encode(kept: &Kept) -> Bytes {
    let Kept { id, since_ms, publish } = kept;
    let mut bytes = BytesMut::with_capacity(1 + 8 + 8 + 8 + 4 + publish.size());
    bytes.put_u8(VERSION);
    bytes.put_u64(id.run);
    bytes.put_u64(id.number);
    bytes.put_u64(*since_ms);
    bytes.put_u32(u32::try_from(publish.topic.len()).unwrap_or(u32::MAX));
    bytes.put_slice(publish.topic.as_bytes());
    bytes.put_slice(&publish.payload);
    bytes.freeze()
}

/// Reads a record; `None` if it is not one.
pub(super) fn decode(mut bytes: Bytes) -> Option<Kept> {
    if bytes.try_get_u8().ok()? != VERSION {
        return None;
    }
    let id = UploadId { run: bytes.try_get_u64().ok()?, number: bytes.try_get_u64().ok()? };
    let since_ms = bytes.try_get_u64().ok()?;
    let length = usize::try_from(bytes.try_get_u32().ok()?).ok()?;
    if length > bytes.len() {
        return None;
    }
    let topic = String::from_utf8(bytes.split_to(length).to_vec()).ok()?;
    Some(Kept { id, since_ms, publish: Publish { topic, payload: bytes } })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_record_reads_back_as_it_was_written(
            run: u64, number: u64, since_ms: u64, topic: String, payload: Vec<u8>,
        ) {
            let publish = Publish { topic, payload: payload.into() };
            let kept = Kept { id: UploadId { run, number }, since_ms, publish };
            prop_assert_eq!(decode(encode(&kept)), Some(kept));
            prop_assert_eq!(super::number(&key(number).unwrap()), Some(number));
        }

        #[test]
        fn garbage_is_no_record_and_no_panic(bytes: Vec<u8>) {
            let _ = decode(bytes.into());
        }

        #[test]
        fn keys_ascend_as_their_numbers_do(a: u64, b: u64) {
            prop_assert_eq!(a.cmp(&b), key(a).unwrap().cmp(&key(b).unwrap()));
        }
    }
}
