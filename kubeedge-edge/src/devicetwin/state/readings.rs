//! What mappers find.

use std::collections::BTreeMap;

use kubeedge_core::{
    device::{Reading, ReadingContent},
    id::DeviceId,
    pace::Urgency,
    wire::topic::DeviceTopic,
};

use super::{
    super::payload::TwinResult,
    Now, State,
    twin::{Twin, before_and_after},
};

impl State {
    /// Takes what a mapper found. What says the same as before changes nothing but a timestamp.
    pub(in super::super) fn handle_reading(&mut self, reading: Reading, now: Now) {
        let id = reading.device;
        match reading.content {
            ReadingContent::State(state) => {
                let same = |device: &super::Device| device.record.state.as_ref() == Some(&state);
                if !self.devices.get(&id).is_some_and(same) {
                    self.set_device_state(&id, state, now);
                }
            }
            ReadingContent::Property { property, value, observed_desired, timestamp_ms } => {
                if let Err(why) = self.admit(&id, &property, &value) {
                    return tracing::warn!(device = %id, property, why, "a reading was dropped");
                }
                self.take_value(&id, &property, (value, observed_desired, timestamp_ms), now);
            }
        }
    }

    fn admit(&self, id: &DeviceId, property: &str, value: &str) -> Result<(), &'static str> {
        let limits = &self.config.limits;
        let Some(device) = self.devices.get(id) else { return Err("the device is not of this node") };
        if value.len() > limits.value_bytes {
            return Err("the value is too long");
        }
        if device.twins.contains_key(property) || device.is_specified(property) {
            return Ok(());
        }
        if property.is_empty() || property.len() > 128 {
            return Err("the property's name is empty or longer than 128 bytes");
        }
        if device.twins.len() >= limits.twins_per_device || self.twins >= limits.twins {
            return Err("there are too many twins");
        }
        Ok(())
    }

    fn take_value(
        &mut self,
        id: &DeviceId,
        property: &str,
        (value, observed, read_ms): (String, Option<String>, u64),
        now: Now,
    ) {
        let last = self.devices.get(id).and_then(|device| device.twins.get(property)).and_then(Twin::shown);
        let Some(twin) = self.twin_or_new(id, property) else { return };
        let before = (twin.is_as_desired(), twin.observed.value.clone());
        if !twin.read(value, observed, read_ms) {
            return;
        }
        let is_answer = before != (twin.is_as_desired(), twin.observed.value.clone());
        let (shown, document) = (twin.shown(), before_and_after(last, twin));
        if twin.is_beyond_reserve() {
            self.mark_twin(id, property);
        } else {
            self.unwritten.insert((id.clone(), property.to_owned()));
            self.wait_to_write(now.at);
        }
        self.report(id, if is_answer { Urgency::Urgent } else { Urgency::Ordinary }, now);
        // KubeEdge tells applications of a mapper's value as of one that an application wrote.
        let base = self.base("", now);
        let result = TwinResult { base, twin: BTreeMap::from([(property.to_owned(), shown)]) };
        self.publish(&DeviceTopic::TwinUpdateResult.of(id), &result);
        self.publish_document(id, "", BTreeMap::from([(property.to_owned(), document)]), now);
    }
}
