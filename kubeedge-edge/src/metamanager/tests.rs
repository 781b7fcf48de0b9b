//! Behaviour: as stories of the state, then through the pipes with stores that fail.

use bytes::Bytes;
use kubeedge_core::{
    id::{ResourceVersion, Uid},
    message::{Acked, Delivered, Delivery, Fingerprint, Object, ObjectEvent, ObjectRef},
};

mod parts;
mod power;
mod records;
mod stories;
mod tokens;

fn object(reference: ObjectRef, uid: &str, version: u64, content: &str) -> Object {
    let fingerprint = content.bytes().fold(7, |sum: u64, byte| sum.wrapping_mul(31) + u64::from(byte));
    Object {
        reference,
        uid: Uid::new(uid),
        resource_version: ResourceVersion(version),
        fingerprint: Fingerprint(fingerprint),
        json: Bytes::from(format!("{{\"data\":\"{content}\"}}")),
    }
}

fn pod(name: &str, uid: &str, version: u64, content: &str) -> Object {
    object(ObjectRef::pod("default", name), uid, version, content)
}

fn deleted(reference: ObjectRef, uid: &str) -> ObjectEvent {
    ObjectEvent::Deleted { reference, uid: Uid::new(uid) }
}

fn delivery(number: u64) -> Delivery {
    Delivery { session: 1, number }
}

fn delivered(number: u64, message: ObjectEvent) -> Delivered<ObjectEvent> {
    Delivered { delivery: delivery(number), message }
}

fn acked(key: ObjectRef, number: u64) -> Acked<ObjectRef> {
    Acked { key, delivery: delivery(number) }
}
