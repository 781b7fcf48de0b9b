//! What the two ends of the link promise, told through the pair of them and a simulated network.

use crate::{
    id::{DeviceId, ResourceVersion, Uid},
    message::{DeviceReport, Fingerprint, NodeReport, Object, ObjectRef, PodReport, PodState, Report},
};

mod flow;
mod pair;
mod sessions;
mod simulation;

/// An object whose content is its version.
pub(super) fn object(reference: &ObjectRef, uid: &str, version: u64) -> Object {
    Object {
        reference: reference.clone(),
        uid: Uid::new(uid),
        resource_version: ResourceVersion(version),
        fingerprint: Fingerprint(version),
        json: format!("{{\"v\":{version}}}").into(),
    }
}

pub(super) fn pod(name: &str) -> ObjectRef {
    ObjectRef::pod("default", name)
}

pub(super) fn node_report(number: u64) -> Report {
    Report::Node(NodeReport { json: number.to_string().into() })
}

pub(super) fn pod_report(name: &str, number: u64) -> Report {
    Report::Pod(PodReport {
        reference: pod(name),
        uid: Uid::new(name),
        state: PodState::Status(number.to_string().into()),
    })
}

pub(super) fn device_report(name: &str, number: u64) -> Report {
    Report::Device(DeviceReport {
        device: DeviceId::new("default", name).unwrap(),
        uid: Uid::new(name),
        twins: Vec::new(),
        state: Some(number.to_string()),
        last_online: None,
    })
}

/// SplitMix64, so that a seed says all.
#[derive(Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// True in so many of a thousand cases.
    pub(super) fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }
}
