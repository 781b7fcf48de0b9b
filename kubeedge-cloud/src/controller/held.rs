//! Texts at rest, compressed.
//!
//! Of thousands of nodes nearly every pod and status waits for a change that does not come for days, and they look alike. So
//! they are held compressed, against a text that looks like them, and are whole for the moment in which they are read or
//! sent. What many nodes share is not held so: it would be made whole for each of them.

use std::fmt;

use bytes::Bytes;
use kubeedge_core::{
    id::{ResourceVersion, Uid},
    message::{Fingerprint, Object, ObjectRef},
};
use lz4_flex::block::{compress_into_with_dict, decompress_with_dict, get_maximum_output_size};

/// What texts of the API have in common: the state of a node, a pod, a device. Nothing outside this process depends on it.
const ALIKE: &[u8] = include_bytes!("alike.json");

/// A compressed text.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Packed {
    length: usize,
    bytes: Box<[u8]>,
}

impl Packed {
    pub(crate) fn new(text: &[u8]) -> Self {
        let mut room = vec![0; get_maximum_output_size(text.len())];
        let length = compress_into_with_dict(text, &mut room, ALIKE).unwrap_or_else(|error| {
            tracing::error!(%error, "a text cannot be held");
            0
        });
        // A copy, and not the room made smaller: what would be cut off of each is too small for anything else.
        Self { length: text.len(), bytes: room[..length].into() }
    }

    /// The text.
    pub(crate) fn text(&self) -> Bytes {
        decompress_with_dict(&self.bytes, self.length, ALIKE).map(Bytes::from).unwrap_or_else(|error| {
            // Only a fault of the machine's memory can do that; whoever reads an object finds no JSON.
            tracing::error!(%error, "a text that is held cannot be read");
            Bytes::new()
        })
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ratio = format_args!("{} of {} bytes", self.bytes.len(), self.length);
        f.debug_tuple("Packed").field(&ratio).finish()
    }
}

/// An object at rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) reference: ObjectRef,
    pub(crate) uid: Uid,
    resource_version: ResourceVersion,
    pub(crate) fingerprint: Fingerprint,
    json: Packed,
}

impl Held {
    pub(crate) fn new(object: Object) -> Self {
        let Object { reference, uid, resource_version, fingerprint, json } = object;
        Self { reference, uid, resource_version, fingerprint, json: Packed::new(&json) }
    }

    /// Its text.
    pub(crate) fn json(&self) -> Bytes {
        self.json.text()
    }

    /// The whole object.
    pub(crate) fn object(&self) -> Object {
        Object {
            reference: self.reference.clone(),
            uid: self.uid.clone(),
            resource_version: self.resource_version,
            fingerprint: self.fingerprint,
            json: self.json.text(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_comes_back_as_it_was() {
        let long = "äö\u{0}{}[]".repeat(200_000);
        for text in ["", "{", "null", r#"{"kind":"Pod","apiVersion":"v1"}"#, &long] {
            assert_eq!(Packed::new(text.as_bytes()).text(), text.as_bytes(), "{} bytes", text.len());
        }
        let random: Vec<u8> = (0..70_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        assert_eq!(Packed::new(&random).text(), random);
        assert_eq!(Packed::new(ALIKE).text(), ALIKE);
    }

    #[test]
    fn a_status_of_a_pod_takes_less_than_half() {
        let status = br#"{"phase":"Running","conditions":[{"type":"Initialized","status":"True","lastProbeTime":null,
            "lastTransitionTime":"2026-04-01T08:00:00Z"},{"type":"Ready","status":"True","lastProbeTime":null,
            "lastTransitionTime":"2026-04-01T08:00:07Z"}],"containerStatuses":[{"name":"web","image":"shop/web:1",
            "ready":true,"restartCount":0,"state":{"running":{"startedAt":"2026-04-01T08:00:06Z"}}}]}"#;
        let packed = Packed::new(status);
        assert!(packed.bytes.len() * 2 < status.len(), "{packed:?}");
    }
}
