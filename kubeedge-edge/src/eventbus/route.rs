//! Which topics EventBus listens to, and whom a message is for.

use kubeedge_core::{
    message::{Publish, Upload, UploadId, UploadedPublish},
    pipe::SendError,
};

use super::{
    Outbox,
    broker::{Intake, Offer},
    topic,
};

/// What EventBus subscribes to, as KubeEdge does.
pub(super) const FILTERS: [&str; 6] = [
    "$hw/events/upload/#",
    "$hw/events/device/+/+/state/update",
    "$hw/events/device/+/+/twin/+",
    "$hw/events/node/+/membership/get",
    "SYS/dis/upload_records",
    "+/user/#",
];

/// What no client may say, since it is what the cloud says.
pub(super) const CLOUD_ONLY: &str = "$hw/events/device/+/+/twin/cloud_updated";

/// Whom a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Destination {
    Twin,
    Cloud,
    Nobody,
}

/// Decides whom a message on this topic is for.
pub(super) fn route(name: &str) -> Destination {
    let wanted = FILTERS.iter().any(|filter| topic::matches(filter, name));
    if !wanted || topic::matches(CLOUD_ONLY, name) {
        Destination::Nobody
    } else if ["$hw/events/device/", "$hw/events/node/"].iter().any(|prefix| name.starts_with(prefix)) {
        Destination::Twin
    } else {
        Destination::Cloud
    }
}

impl Intake for Outbox {
    fn offer(&self, publish: &Publish) -> Offer {
        match route(&publish.topic) {
            Destination::Twin => offered(self.device_messages.send(publish.clone())),
            Destination::Cloud => offered(self.uploads.send(Upload::Publish(UploadedPublish {
                id: UploadId::default(),
                publish: publish.clone(),
            }))),
            Destination::Nobody => Offer::NotMine,
        }
    }
}

/// A part that is gone, or was never there, takes nothing, and holds nobody up either.
fn offered<T>(sent: Result<(), SendError<T>>) -> Offer {
    match sent {
        Ok(()) => Offer::Taken,
        Err(SendError::Full(_)) => Offer::Full,
        Err(SendError::Closed(_)) => Offer::NotMine,
    }
}
