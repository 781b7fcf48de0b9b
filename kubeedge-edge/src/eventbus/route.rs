//! Which topics EventBus listens to, and whom a message is for.

use std::sync::Arc;

use bytes::Bytes;
use kubeedge_core::{
    message::Publish,
    pipe::{EventSender, SendError},
};

use super::{
    QoS,
    broker::{Intake, Offer},
    rules::RuleTopics,
    topic,
    uploads::Uploads,
};

/// What DeviceTwin is told, as in KubeEdge.
const TWIN: [&str; 3] = [
    "$hw/events/device/+/+/state/update",
    "$hw/events/device/+/+/twin/+",
    "$hw/events/node/+/membership/get",
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

/// Knows whom a message is for.
#[derive(Debug)]
pub(super) struct Routes {
    /// Filters of topics that go to the cloud.
    cloud: Vec<String>,
    /// And those of Rules.
    rules: Arc<RuleTopics>,
}

impl Routes {
    pub(super) fn new(cloud: Vec<String>, rules: Arc<RuleTopics>) -> Self {
        Self { cloud: cloud.into_iter().filter(|filter| topic::is_filter(filter)).collect(), rules }
    }

    /// The filters that have to be subscribed to at another's broker, besides those of Rules.
    pub(super) fn filters(&self) -> Vec<String> {
        TWIN.iter().map(|filter| (*filter).to_owned()).chain(self.cloud.iter().cloned()).collect()
    }

    /// Decides whom a message on this topic is for.
    pub(super) fn of(&self, name: &str) -> Destination {
        let matches = |filter: &str| topic::matches(filter, name);
        if ["$hw/events/device/", "$hw/events/node/"].iter().any(|prefix| name.starts_with(prefix)) {
            let wanted = TWIN.iter().any(|filter| matches(filter)) && !matches(CLOUD_ONLY);
            if wanted { Destination::Twin } else { Destination::Nobody }
        } else if self.cloud.iter().any(|filter| matches(filter)) || self.rules.matches(name) {
            Destination::Cloud
        } else {
            Destination::Nobody
        }
    }
}

/// Brings applications' messages to the parts that they are for.
#[derive(Debug)]
pub(super) struct Router {
    pub(super) routes: Routes,
    pub(super) device_messages: EventSender<Publish>,
    pub(super) uploads: Arc<Uploads>,
}

impl Intake for Router {
    fn offer(&self, topic: &str, payload: &Bytes, qos: QoS) -> Offer {
        let certain = qos != QoS::AtMostOnce;
        match self.routes.of(topic) {
            Destination::Nobody => Offer::NotMine,
            Destination::Cloud => self.uploads.offer(topic, payload, certain),
            Destination::Twin => {
                let publish = Publish { topic: topic.to_owned(), payload: payload.clone() };
                offered(if certain {
                    self.device_messages.send_for_receipt(publish).map(Offer::Promised)
                } else {
                    self.device_messages.send(publish).map(|()| Offer::Taken)
                })
            }
        }
    }
}

/// A part that is gone, or was never there, takes nothing, and holds nobody up either.
fn offered(sent: Result<Offer, SendError<Publish>>) -> Offer {
    match sent {
        Ok(offer) => offer,
        Err(SendError::Full(_)) => Offer::Full,
        Err(SendError::Closed(_)) => Offer::NotMine,
    }
}
