//! KubeEdge's MQTT topics: text to [`Topic`] and back, level by level.
//!
//! A topic is read by its levels and never searched for a name, so that a namespace called `device`, `hw` or
//! `twin` means nothing special.
//!
//! ```
//! use kubeedge_core::wire::topic::{DeviceTopic, Topic};
//!
//! let topic: Topic = "$hw/events/device/default/sensor-1/twin/update".parse()?;
//! assert!(matches!(&topic, Topic::Device { event: DeviceTopic::TwinUpdate, .. }));
//! assert_eq!(topic.to_string(), "$hw/events/device/default/sensor-1/twin/update");
//! # Ok::<(), kubeedge_core::id::InvalidId>(())
//! ```

use std::{fmt, str::FromStr};

use crate::id::{DeviceId, InvalidId, NodeName};

/// An MQTT topic name, as far as KubeEdge gives it a meaning.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// `$hw/events/device/<namespace>/<name>/...`: something about one device.
    Device {
        /// The device.
        device: DeviceId,
        /// What about it.
        event: DeviceTopic,
    },
    /// `$hw/events/device//twin/update/result`: where KubeEdge answers a twin update that it could not read.
    UnreadableTwinUpdate,
    /// `$hw/events/node/<node>/...`: something about a node's devices.
    Node {
        /// The node.
        node: NodeName,
        /// What about it.
        event: NodeTopic,
    },
    /// Any other topic; it belongs to applications, or to another part than DeviceTwin.
    Custom(CustomTopic),
}

/// What a topic below `$hw/events/device/<namespace>/<name>/` is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceTopic {
    /// An application changes twins.
    TwinUpdate,
    /// What became of a twin update.
    TwinUpdateResult,
    /// The twins before and after an update.
    TwinUpdateDocument,
    /// The twins whose reported value is not the desired one.
    TwinUpdateDelta,
    /// An application asks for all twins.
    TwinGet,
    /// All twins.
    TwinGetResult,
    /// A twin update in the cloud's name. Only the bus may say this, so DeviceTwin ignores it.
    TwinCloudUpdated,
    /// An application says whether the device is connected.
    StateUpdate,
    /// What became of a state update.
    StateUpdateResult,
    /// Known to KubeEdge's dispatcher, and never answered by it.
    StateGet,
    /// The device's attributes have changed.
    Updated,
}

/// What a topic below `$hw/events/node/<node>/` is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeTopic {
    /// An application asks for the node's devices.
    MembershipGet,
    /// The node's devices.
    MembershipGetResult,
    /// A device has come or gone.
    MembershipUpdated,
}

/// A valid topic name outside of `$hw/events/device/` and `$hw/events/node/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CustomTopic(String);

impl CustomTopic {
    /// The topic name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl DeviceTopic {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::TwinUpdate,
        Self::TwinUpdateResult,
        Self::TwinUpdateDocument,
        Self::TwinUpdateDelta,
        Self::TwinGet,
        Self::TwinGetResult,
        Self::TwinCloudUpdated,
        Self::StateUpdate,
        Self::StateUpdateResult,
        Self::StateGet,
        Self::Updated,
    ];

    /// The topic's last levels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TwinUpdate => "twin/update",
            Self::TwinUpdateResult => "twin/update/result",
            Self::TwinUpdateDocument => "twin/update/document",
            Self::TwinUpdateDelta => "twin/update/delta",
            Self::TwinGet => "twin/get",
            Self::TwinGetResult => "twin/get/result",
            Self::TwinCloudUpdated => "twin/cloud_updated",
            Self::StateUpdate => "state/update",
            Self::StateUpdateResult => "state/update/result",
            Self::StateGet => "state/get",
            Self::Updated => "updated",
        }
    }

    /// The whole topic, for `device`.
    pub fn of(self, device: &DeviceId) -> Topic {
        Topic::Device { device: device.clone(), event: self }
    }
}

impl NodeTopic {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::MembershipGet, Self::MembershipGetResult, Self::MembershipUpdated];

    /// The topic's last levels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MembershipGet => "membership/get",
            Self::MembershipGetResult => "membership/get/result",
            Self::MembershipUpdated => "membership/updated",
        }
    }

    /// The whole topic, for `node`.
    pub fn of(self, node: &NodeName) -> Topic {
        Topic::Node { node: node.clone(), event: self }
    }
}

/// What all device topics begin with.
const DEVICE_PREFIX: &str = "$hw/events/device/";
/// What all node topics begin with.
const NODE_PREFIX: &str = "$hw/events/node/";
/// The one topic with an empty device.
const UNREADABLE: &str = "$hw/events/device//twin/update/result";
/// The longest topic name in bytes (MQTT 3.1.1 §1.5.3).
const TOPIC_LIMIT: usize = 65_535;

impl FromStr for Topic {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        check_topic_name(text)?;
        if text == UNREADABLE {
            return Ok(Self::UnreadableTwinUpdate);
        }
        if let Some(rest) = text.strip_prefix(DEVICE_PREFIX) {
            return device_topic(text, rest);
        }
        if let Some(rest) = text.strip_prefix(NODE_PREFIX) {
            return node_topic(text, rest);
        }
        Ok(Self::Custom(CustomTopic(text.to_owned())))
    }
}

fn device_topic(text: &str, rest: &str) -> Result<Topic, InvalidId> {
    let mut levels = rest.splitn(3, '/');
    let (Some(namespace), Some(name), Some(last)) = (levels.next(), levels.next(), levels.next()) else {
        return Err(InvalidId::new("topic", text, "a device topic has a namespace, a name and an event"));
    };
    let event = DeviceTopic::ALL
        .into_iter()
        .find(|event| event.as_str() == last)
        .ok_or_else(|| InvalidId::new("topic", text, "no event of a device is called so"))?;
    Ok(Topic::Device { device: DeviceId::new(namespace, name)?, event })
}

fn node_topic(text: &str, rest: &str) -> Result<Topic, InvalidId> {
    let (node, last) = rest
        .split_once('/')
        .ok_or_else(|| InvalidId::new("topic", text, "a node topic has a node and an event"))?;
    let event = NodeTopic::ALL
        .into_iter()
        .find(|event| event.as_str() == last)
        .ok_or_else(|| InvalidId::new("topic", text, "no event of a node is called so"))?;
    Ok(Topic::Node { node: node.parse()?, event })
}

/// Checks the rules of MQTT 3.1.1 §4.7 for the name of a topic that something is published to.
fn check_topic_name(text: &str) -> Result<(), InvalidId> {
    let wrong = |why| Err(InvalidId::new("topic", text, why));
    if text.is_empty() {
        return wrong("it is empty");
    }
    if text.len() > TOPIC_LIMIT {
        return wrong("it is longer than 65535 bytes");
    }
    if text.contains(['+', '#', '\0']) {
        return wrong("a topic name has no '+', '#' or NUL");
    }
    Ok(())
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device { device, event } => write!(f, "{DEVICE_PREFIX}{device}/{}", event.as_str()),
            Self::UnreadableTwinUpdate => f.write_str(UNREADABLE),
            Self::Node { node, event } => write!(f, "{NODE_PREFIX}{node}/{}", event.as_str()),
            Self::Custom(topic) => f.write_str(topic.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn topic(text: &str) -> Topic {
        text.parse().unwrap()
    }

    #[test]
    fn a_namespace_or_name_that_looks_like_a_level_confuses_nothing() {
        for namespace in ["device", "events", "hw", "twin", "e", "state", "update"] {
            for event in DeviceTopic::ALL {
                let device = DeviceId::new(namespace, "twin").unwrap();
                let text = format!("$hw/events/device/{namespace}/twin/{}", event.as_str());
                assert_eq!(topic(&text), Topic::Device { device, event });
            }
        }
    }

    #[test]
    fn the_topic_of_an_answer_to_nobody_is_known() {
        assert_eq!(topic("$hw/events/device//twin/update/result"), Topic::UnreadableTwinUpdate);
        assert!("$hw/events/device//twin/update".parse::<Topic>().is_err());
    }

    #[test]
    fn what_is_no_topic_name_or_no_known_event_is_refused() {
        for bad in [
            "",
            "a/+",
            "a/#",
            "a\0",
            "$hw/events/device/default",
            "$hw/events/device/default/a/twin",
            "$hw/events/device/default/a/b/twin/update",
            "$hw/events/device/Default/a/twin/update",
            "$hw/events/node/edge-1",
            "$hw/events/node//membership/get",
        ] {
            assert!(bad.parse::<Topic>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn other_topics_belong_to_applications() {
        for text in ["default/user/foo", "$hw/events/upload/x", "SYS/dis/upload_records", "/"] {
            assert!(matches!(topic(text), Topic::Custom(custom) if custom.as_str() == text));
        }
    }

    fn any_topic() -> impl Strategy<Value = Topic> {
        let name = "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?";
        let device = (name, name, proptest::sample::select(DeviceTopic::ALL.to_vec()))
            .prop_map(|(namespace, name, event)| event.of(&DeviceId::new(namespace, name).unwrap()));
        let node = (name, proptest::sample::select(NodeTopic::ALL.to_vec()))
            .prop_map(|(node, event)| event.of(&node.parse().unwrap()));
        prop_oneof![device, node, Just(Topic::UnreadableTwinUpdate)]
    }

    proptest! {
        #[test]
        fn a_topic_reads_back_as_it_was_written(topic in any_topic()) {
            prop_assert_eq!(topic.to_string().parse::<Topic>().unwrap(), topic);
        }

        #[test]
        fn a_text_that_is_taken_is_written_as_it_was(
            text in "(\\$hw/events/(device|node)/)?[a-z0-9./-]{0,12}(/(twin|state)/(get|update))?(/result)?|\\PC{0,40}"
        ) {
            if let Ok(topic) = text.parse::<Topic>() {
                prop_assert_eq!(topic.to_string(), text);
            }
        }
    }
}
