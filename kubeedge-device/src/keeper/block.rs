//! Blocks: samples that are stored together, as bytes and back.
//!
//! A block names its devices, properties and destinations once and refers to them by number, so that a sample takes
//! about the bytes of its value and four more, and so that a block can be read without any other.

use std::{collections::BTreeMap, sync::Arc};

use kubeedge_core::{
    device::{HttpPush, MqttPush, PushMethod, Sample},
    id::DeviceId,
};
use prost::Message;

/// Samples with the sequence number of the first; the others follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) first: u64,
    pub(super) samples: Vec<Sample>,
}

/// Says why bytes are no block.
#[derive(Debug, thiserror::Error)]
pub(super) enum BlockError {
    #[error("{0}")]
    Bytes(#[from] prost::DecodeError),
    #[error("{0}")]
    Content(&'static str),
    #[error("{0}")]
    Device(#[from] kubeedge_core::id::InvalidId),
}

#[derive(Clone, PartialEq, Message)]
struct BlockPb {
    #[prost(uint64, tag = "1")]
    first: u64,
    #[prost(message, repeated, tag = "2")]
    devices: Vec<DevicePb>,
    #[prost(message, repeated, tag = "3")]
    targets: Vec<TargetPb>,
    /// Which property of which device, counted through all devices.
    #[prost(uint32, repeated, tag = "4")]
    of: Vec<u32>,
    /// Milliseconds since the sample before.
    #[prost(sint64, repeated, tag = "5")]
    times: Vec<i64>,
    #[prost(string, repeated, tag = "6")]
    values: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct DevicePb {
    #[prost(string, tag = "1")]
    namespace: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, repeated, tag = "3")]
    properties: Vec<PropertyPb>,
}

#[derive(Clone, PartialEq, Message)]
struct PropertyPb {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, repeated, tag = "2")]
    targets: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
struct TargetPb {
    #[prost(message, optional, tag = "1")]
    http: Option<HttpPb>,
    #[prost(message, optional, tag = "2")]
    mqtt: Option<MqttPb>,
}

#[derive(Clone, PartialEq, Message)]
struct HttpPb {
    #[prost(string, tag = "1")]
    host: String,
    #[prost(uint32, tag = "2")]
    port: u32,
    #[prost(string, tag = "3")]
    path: String,
    #[prost(uint64, optional, tag = "4")]
    timeout_ms: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct MqttPb {
    #[prost(string, tag = "1")]
    host: String,
    #[prost(uint32, tag = "2")]
    port: u32,
    #[prost(string, tag = "3")]
    topic: String,
    #[prost(uint32, tag = "4")]
    qos: u32,
    #[prost(bool, tag = "5")]
    retained: bool,
}

/// What a block says of a property, once.
type Series<'a> = (&'a str, &'a [PushMethod]);

impl Block {
    /// The block as bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut devices: BTreeMap<&DeviceId, BTreeMap<Series<'_>, u32>> = BTreeMap::new();
        let mut targets: BTreeMap<&PushMethod, u32> = BTreeMap::new();
        for sample in &self.samples {
            let properties = devices.entry(&sample.device).or_default();
            if properties.insert((&sample.property, &sample.push), 0).is_none() {
                targets.extend(sample.push.iter().map(|push| (push, 0)));
            }
        }
        for (number, target) in (0..).zip(targets.values_mut()) {
            *target = number;
        }
        for (number, series) in (0..).zip(devices.values_mut().flat_map(BTreeMap::values_mut)) {
            *series = number;
        }
        let mut before = 0;
        let block = BlockPb {
            first: self.first,
            of: self.samples.iter().map(|it| devices[&it.device][&(&*it.property, &*it.push)]).collect(),
            times: self.samples.iter().map(|it| since(it.timestamp_ms, &mut before)).collect(),
            values: self.samples.iter().map(|it| it.value.clone()).collect(),
            devices: devices
                .iter()
                .map(|(device, properties)| device_pb(device, properties, &targets))
                .collect(),
            targets: targets.keys().map(|push| target_pb(push)).collect(),
        };
        block.encode_to_vec()
    }

    /// Reads a block.
    ///
    /// # Errors
    /// If the bytes are no block.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, BlockError> {
        let block = BlockPb::decode(bytes)?;
        if block.of.len() != block.times.len() || block.of.len() != block.values.len() {
            return Err(BlockError::Content("its columns are not of one length"));
        }
        let targets = block.targets.into_iter().map(target).collect::<Result<Vec<_>, _>>()?;
        let mut series = Vec::new();
        for device in block.devices {
            let id = DeviceId::new(device.namespace, device.name)?;
            for property in device.properties {
                let push = property.targets.iter().map(|place| targets.get(*place as usize).cloned());
                let push: Option<Arc<[PushMethod]>> = push.collect();
                let push = push.ok_or(BlockError::Content("it has no such destination"))?;
                series.push((id.clone(), property.name, push));
            }
        }
        let mut before = 0;
        let samples = block.of.into_iter().zip(block.times).zip(block.values).map(|((of, time), value)| {
            let series = series.get(of as usize).ok_or(BlockError::Content("it has no such property"))?;
            let (device, property, push) = series.clone();
            before = u64::wrapping_add_signed(before, time);
            Ok(Sample { device, property, value, timestamp_ms: before, push })
        });
        Ok(Self { first: block.first, samples: samples.collect::<Result<_, BlockError>>()? })
    }

    /// The sequence number that follows the last sample's.
    pub(super) fn end(&self) -> u64 {
        self.first.saturating_add(self.samples.len() as u64)
    }
}

fn since(time: u64, before: &mut u64) -> i64 {
    time.wrapping_sub(std::mem::replace(before, time)).cast_signed()
}

fn device_pb(
    device: &DeviceId,
    properties: &BTreeMap<Series<'_>, u32>,
    targets: &BTreeMap<&PushMethod, u32>,
) -> DevicePb {
    let property = |(name, push): &Series<'_>| PropertyPb {
        name: (*name).to_owned(),
        targets: push.iter().filter_map(|push| targets.get(push).copied()).collect(),
    };
    DevicePb {
        namespace: device.namespace().to_owned(),
        name: device.name().to_owned(),
        properties: properties.keys().map(property).collect(),
    }
}

fn target_pb(push: &PushMethod) -> TargetPb {
    match push.clone() {
        PushMethod::Http(HttpPush { host, port, path, timeout_ms }) => {
            TargetPb { http: Some(HttpPb { host, port: port.into(), path, timeout_ms }), mqtt: None }
        }
        PushMethod::Mqtt(MqttPush { host, port, topic, qos, retained }) => TargetPb {
            http: None,
            mqtt: Some(MqttPb { host, port: port.into(), topic, qos: qos.into(), retained }),
        },
    }
}

fn target(target: TargetPb) -> Result<PushMethod, BlockError> {
    let port = |port: u32| u16::try_from(port).map_err(|_| BlockError::Content("a port is too large"));
    match (target.http, target.mqtt) {
        (Some(HttpPb { host, port: number, path, timeout_ms }), None) => {
            Ok(PushMethod::Http(HttpPush { host, port: port(number)?, path, timeout_ms }))
        }
        (None, Some(MqttPb { host, port: number, topic, qos, retained })) => {
            let qos =
                u8::try_from(qos).map_err(|_| BlockError::Content("a quality of service is too large"))?;
            Ok(PushMethod::Mqtt(MqttPush { host, port: port(number)?, topic, qos, retained }))
        }
        (Some(_), Some(_)) | (None, None) => {
            Err(BlockError::Content("a destination is neither http nor mqtt"))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn push() -> impl Strategy<Value = PushMethod> {
        prop_oneof![
            ("[a-z]{1,4}", any::<u16>(), any::<Option<u64>>()).prop_map(|(host, port, timeout_ms)| {
                PushMethod::Http(HttpPush { host, port, path: "/in".to_owned(), timeout_ms })
            }),
            ("[a-z]{1,4}", 0..3_u8, any::<bool>()).prop_map(|(topic, qos, retained)| {
                PushMethod::Mqtt(MqttPush { host: "b".to_owned(), port: 1883, topic, qos, retained })
            }),
        ]
    }

    fn sample() -> impl Strategy<Value = Sample> {
        ("[a-c]", "[a-c]", ".{0,9}", any::<u64>(), prop::collection::vec(push(), 0..3)).prop_map(
            |(device, property, value, timestamp_ms, push)| {
                let device = DeviceId::new("default", device).unwrap();
                Sample { device, property, value, timestamp_ms, push: push.into() }
            },
        )
    }

    proptest! {
        #[test]
        fn a_block_comes_back_as_it_was(first in 0..u64::MAX / 2, samples in prop::collection::vec(sample(), 0..40)) {
            let block = Block { first, samples };
            prop_assert_eq!(Block::decode(&block.encode()).unwrap(), block);
        }

        #[test]
        fn bytes_that_are_no_block_are_an_error_and_no_panic(
            samples in prop::collection::vec(sample(), 1..9), at in any::<prop::sample::Index>(), byte: u8,
        ) {
            let mut bytes = Block { first: 7, samples }.encode();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = Block::decode(&bytes);
            let _ = Block::decode(&bytes[..at]);
        }
    }

    #[test]
    fn a_sample_takes_few_bytes() {
        let samples = (0..10_000).map(|number: u64| Sample {
            device: DeviceId::new("default", format!("device-{}", number % 1_000)).unwrap(),
            property: "temperature".to_owned(),
            value: "21.5".to_owned(),
            timestamp_ms: 1_700_000_000_000 + number / 10,
            push: [].into(),
        });
        let bytes = Block { first: 1, samples: samples.collect() }.encode().len();
        assert!(bytes < 10_000 * 13, "{bytes} bytes for 10,000 samples of 1,000 devices");
    }
}
