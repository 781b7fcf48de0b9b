//! What applications say and ask by MQTT.

use std::collections::BTreeMap;

use kubeedge_core::{
    id::DeviceId,
    message::Publish,
    pace::Urgency,
    wire::topic::{DeviceTopic, NodeTopic, Topic},
};

use super::{
    super::payload::{
        self, BeforeAndAfter, Changes, Delta, Document, Members, Request, StateRequest, StateResult,
        TwinChange, TwinResult, TwinShown, Update,
    },
    Now, State,
    device::Device,
    twin::{DEFAULT_TYPE, Source, Twin, before_and_after},
};

const BAD_REQUEST: u16 = 400;
const NOT_FOUND: u16 = 404;
const NOT_SAVED: u16 = 500;

impl State {
    /// Takes a message of an application. What is no request of KubeEdge's DeviceTwin is ignored.
    pub(in super::super) fn handle_message(&mut self, message: &Publish, now: Now) {
        let topic = match message.topic.parse::<Topic>() {
            Ok(topic) => topic,
            Err(error) => return self.refuse_topic(&message.topic, &error.to_string(), now),
        };
        match topic {
            Topic::Device { device, event } => {
                self.handle_device_message(&device, event, &message.payload, now)
            }
            Topic::Node { node, event: NodeTopic::MembershipGet } if node == self.config.node => {
                self.list_members(&message.payload, now);
            }
            Topic::Node { .. } | Topic::UnreadableTwinUpdate | Topic::Custom(_) => {
                tracing::debug!(topic = message.topic, "a message that is no request was ignored");
            }
        }
    }

    /// Answers a twin update of what cannot be a device. Of other messages KubeEdge says nothing, and has no topic to
    /// say it on.
    fn refuse_topic(&mut self, topic: &str, error: &str, now: Now) {
        tracing::warn!(error = payload::short(&error), "a message was ignored");
        if topic.starts_with("$hw/events/device/") && topic.ends_with("/twin/update") {
            let reason = format!("update rejected: {}", payload::short(&error));
            self.refuse(&Topic::UnreadableTwinUpdate, "", now, BAD_REQUEST, reason);
        }
    }

    fn handle_device_message(&mut self, id: &DeviceId, event: DeviceTopic, payload: &[u8], now: Now) {
        match event {
            DeviceTopic::TwinUpdate => self.update_twins(id, payload, now),
            DeviceTopic::TwinGet => self.get_twins(id, payload, now),
            DeviceTopic::StateUpdate => self.update_state_by_message(id, payload, now),
            // Over MQTT anyone could say this in the cloud's name.
            DeviceTopic::TwinCloudUpdated => {
                tracing::warn!(device = %id, "twin/cloud_updated by MQTT was ignored");
            }
            // KubeEdge does not answer it either.
            DeviceTopic::StateGet
            // What DeviceTwin says itself.
            | DeviceTopic::TwinUpdateResult
            | DeviceTopic::TwinUpdateDocument
            | DeviceTopic::TwinUpdateDelta
            | DeviceTopic::TwinGetResult
            | DeviceTopic::StateUpdateResult
            | DeviceTopic::Updated => {}
        }
    }

    /// Says that a message could not be made durable, so that it changed nothing.
    pub(in super::super) fn handle_not_saved(&mut self, message: &Publish, now: Now) {
        if let Ok(Topic::Device { device, event: DeviceTopic::TwinUpdate }) = message.topic.parse()
            && let Ok(update) = Update::parse(&message.payload)
        {
            let topic = DeviceTopic::TwinUpdateResult.of(&device);
            let reason = format!("the update of device {device} could not be saved; try again");
            self.refuse(&topic, &update.event_id, now, NOT_SAVED, reason);
        }
    }

    fn update_twins(&mut self, id: &DeviceId, payload: &[u8], now: Now) {
        let Update { event_id, changes } = match self.fits(payload).and_then(|()| Update::parse(payload)) {
            Ok(update) => update,
            // KubeEdge answers what it could not read on the topic of no device.
            Err(reason) => {
                let reason = format!("{reason} (device {id})");
                return self.refuse(&Topic::UnreadableTwinUpdate, "", now, BAD_REQUEST, reason);
            }
        };
        let (event_id, topic) = (event_id.as_str(), DeviceTopic::TwinUpdateResult.of(id));
        if self.lacks_room(id, &changes) {
            self.forget_deleted(id);
        }
        let Some(device) = self.devices.get(id) else {
            let reason = "update rejected due to the device is not existed";
            return self.refuse(&topic, event_id, now, NOT_FOUND, reason);
        };
        if let Err(reason) = self.check(device, &changes) {
            let reason = format!("{reason} (device {id})");
            return self.refuse(&topic, event_id, now, BAD_REQUEST, reason);
        }
        let (mut results, mut documents) = (BTreeMap::new(), BTreeMap::new());
        let desires =
            |change: &Option<TwinChange>| change.as_ref().is_none_or(|change| change.expected.is_some());
        if changes.values().any(desires) {
            self.to_assign.insert(id.clone());
        }
        let mut urgency = Urgency::Ordinary;
        for (key, change) in changes {
            let was_as_desired = self.is_as_desired(id, &key);
            let Some((result, document)) = self.change_twin(id, &key, change, now) else { continue };
            if self.is_as_desired(id, &key) != was_as_desired {
                urgency = Urgency::Urgent;
            }
            if let Some(result) = result {
                results.insert(key.clone(), result.into_shown());
            }
            documents.insert(key, document);
        }
        let base = self.base(event_id, now);
        if !results.is_empty() {
            self.report(id, urgency, now);
        }
        self.publish(&topic, &TwinResult { base, twin: results });
        self.publish_document(id, event_id, documents, now);
    }

    fn is_as_desired(&self, id: &DeviceId, property: &str) -> bool {
        let twin = self.devices.get(id).and_then(|device| device.twins.get(property));
        twin.is_some_and(Twin::is_as_desired)
    }

    fn fits(&self, payload: &[u8]) -> Result<(), String> {
        let limit = self.config.limits.payload_bytes;
        if payload.len() > limit { Err(format!("the payload is longer than {limit} bytes")) } else { Ok(()) }
    }

    fn lacks_room(&self, id: &DeviceId, changes: &Changes) -> bool {
        let Some(device) = self.devices.get(id) else { return false };
        let (limits, created) = (&self.config.limits, created(device, changes));
        created > 0
            && (device.twins.len() + created > limits.twins_per_device || self.twins + created > limits.twins)
    }

    /// Checks a whole update, so that it is taken whole or not at all.
    fn check(&self, device: &Device, changes: &Changes) -> Result<(), String> {
        for (key, change) in changes {
            let Some(change) = change else { continue };
            let twin = device.twins.get(key);
            let value_type = match twin.filter(|twin| !twin.deleted) {
                Some(twin) => twin.value_type.as_str(),
                None => new_type(change),
            };
            for (name, slot) in [("expected", &change.expected), ("actual", &change.actual)] {
                let Some(slot) = slot else { continue };
                let Some(value) = &slot.value else {
                    return Err(format!("Update twin error, key:{key} {name} has no value"));
                };
                payload::check_type(value_type, value)
                    .and_then(|()| device.check(key, value))
                    .map_err(|reason| format!("{reason} (property {key}, {name})"))?;
            }
        }
        let (limits, created) = (&self.config.limits, created(device, changes));
        if created > 0 && device.twins.len() + created > limits.twins_per_device {
            return Err(format!("a device may have {} twins", limits.twins_per_device));
        }
        if created > 0 && self.twins + created > limits.twins {
            return Err(format!("the devices of this node may have {} twins together", limits.twins));
        }
        Ok(())
    }

    /// Applies one checked change. Returns the result and the document, or `None` if nothing is to be told.
    fn change_twin(
        &mut self,
        id: &DeviceId,
        key: &str,
        change: Option<TwinChange>,
        now: Now,
    ) -> Option<(Option<Changed>, BeforeAndAfter)> {
        let known = self.devices.get(id)?.twins.get(key);
        let last = known.and_then(Twin::shown);
        let begins = known.is_none_or(|twin| twin.deleted);
        match (known, change) {
            // KubeEdge has nothing to delete either, and says so in the document only.
            (None, None) => Some((None, BeforeAndAfter { last: None, current: None })),
            (Some(twin), None) if twin.deleted || !twin.optional => None,
            (Some(twin), Some(change)) if !is_change(twin, &change) => None,
            (Some(_), None) => {
                self.mark_twin(id, key);
                let twin = self.twin_or_new(id, key)?;
                twin.delete(now.wall_ms);
                Some((Some(Changed::Deleted), before_and_after(last, twin)))
            }
            (_, Some(change)) => {
                self.mark_twin(id, key);
                let twin = self.twin_or_new(id, key)?;
                let shown = write(twin, begins, change, now);
                Some((Some(Changed::Written(shown)), before_and_after(last, twin)))
            }
        }
    }

    /// Tells applications what changed, and what the device has yet to do.
    pub(super) fn publish_document(
        &mut self,
        id: &DeviceId,
        event_id: &str,
        twin: BTreeMap<String, BeforeAndAfter>,
        now: Now,
    ) {
        if !twin.is_empty() {
            let base = self.base(event_id, now);
            self.publish(&DeviceTopic::TwinUpdateDocument.of(id), &Document { base, twin });
            self.publish_delta(id, now);
        }
    }

    fn publish_delta(&mut self, id: &DeviceId, now: Now) {
        let Some(device) = self.devices.get(id) else { return };
        let delta: BTreeMap<_, _> = device
            .twins
            .iter()
            .filter_map(|(key, twin)| Some((key.clone(), twin.delta()?.to_owned())))
            .collect();
        if delta.is_empty() {
            return;
        }
        let desired = device.twins.iter().filter(|(_, twin)| twin.desired().is_some());
        let twin = desired.filter_map(|(key, twin)| Some((key.clone(), twin.shown()?))).collect();
        let event_id = self.ids.next();
        let base = self.base(&event_id, now);
        self.publish(&DeviceTopic::TwinUpdateDelta.of(id), &Delta { base, twin, delta });
    }

    fn get_twins(&mut self, id: &DeviceId, payload: &[u8], now: Now) {
        let topic = DeviceTopic::TwinGetResult.of(id);
        let request = match self.fits(payload).and_then(|()| Request::parse(payload)) {
            Ok(request) => request,
            Err(reason) => return self.refuse(&topic, "", now, BAD_REQUEST, reason),
        };
        let event_id = request.event_id();
        let Some(device) = self.devices.get(id) else {
            let reason = format!("Device {id} not found while getting twin");
            return self.refuse(&topic, event_id, now, NOT_FOUND, reason);
        };
        let shown = |(key, twin): (&String, &Twin)| Some((key.clone(), Some(twin.shown()?)));
        let twin = device.twins.iter().filter_map(shown).collect();
        let base = self.base(event_id, now);
        self.publish(&topic, &TwinResult { base, twin });
    }

    fn list_members(&mut self, payload: &[u8], now: Now) {
        let topic = NodeTopic::MembershipGetResult.of(&self.config.node);
        let request = match self.fits(payload).and_then(|()| Request::parse(payload)) {
            Ok(request) => request,
            Err(reason) => return self.refuse(&topic, "", now, BAD_REQUEST, reason),
        };
        let devices = self.devices.iter().map(|(id, device)| device.member(id)).collect();
        let base = self.base(request.event_id(), now);
        self.publish(&topic, &Members { base, devices });
    }

    /// KubeEdge answers neither an unknown device nor an unknown state.
    fn update_state_by_message(&mut self, id: &DeviceId, payload: &[u8], now: Now) {
        let request = self.fits(payload).and_then(|()| StateRequest::parse(payload));
        match request {
            Ok(request) => self.set_device_state(id, request.state, now),
            Err(error) => tracing::warn!(device = %id, error, "a state update was ignored"),
        }
    }

    /// Sets whether the device is connected, if `state` is one that KubeEdge knows.
    pub(super) fn set_device_state(&mut self, id: &DeviceId, state: String, now: Now) {
        if !payload::is_device_state(&state) {
            let state = payload::short(&state);
            return tracing::warn!(device = %id, state, "a state that is none of KubeEdge's was ignored");
        }
        let Some(device) = self.change(id) else { return };
        let urgency =
            if device.record.state.as_ref() == Some(&state) { Urgency::Ordinary } else { Urgency::Urgent };
        device.record.last_online = payload::is_connected(&state).then(|| payload::rfc3339(now.wall_ms));
        device.record.state = Some(state);
        let device = device.state(id);
        self.dirty.devices.insert(id.clone());
        self.report(id, urgency, now);
        let event_id = self.ids.next();
        let base = self.base(&event_id, now);
        self.publish(&DeviceTopic::StateUpdateResult.of(id), &StateResult { base, device });
    }
}

/// What became of a twin in an update.
enum Changed {
    Deleted,
    Written(TwinShown),
}

impl Changed {
    /// How the result shows it: a deleted twin as `null`.
    fn into_shown(self) -> Option<TwinShown> {
        match self {
            Self::Deleted => None,
            Self::Written(shown) => Some(shown),
        }
    }
}

/// How many twins an update would make that need room.
fn created(device: &Device, changes: &Changes) -> usize {
    let is_new = |key: &String| !device.twins.contains_key(key) && !device.is_specified(key);
    changes.iter().filter(|(key, change)| change.is_some() && is_new(key)).count()
}

/// The type that a change gives to a twin that begins.
fn new_type(change: &TwinChange) -> &str {
    change.metadata.as_ref().and_then(|metadata| metadata.r#type.as_deref()).unwrap_or(DEFAULT_TYPE)
}

/// Whether there is anything to a change of a known twin. A value counts even if it is the same again.
fn is_change(twin: &Twin, change: &TwinChange) -> bool {
    twin.deleted
        || change.expected.is_some()
        || change.actual.is_some()
        || (twin.optional && change.optional == Some(false))
        || change
            .metadata
            .as_ref()
            .and_then(|metadata| metadata.r#type.as_ref())
            .is_some_and(|t| *t != twin.value_type)
}

/// Writes a checked change of a twin that may begin, or begin again. Returns what of it the result shows.
fn write(twin: &mut Twin, begins: bool, change: TwinChange, now: Now) -> TwinShown {
    if begins {
        twin.begin(new_type(&change).to_owned());
    }
    // Only ever from true to false.
    twin.optional &= change.optional.unwrap_or(true);
    let (expected, actual) = (change.expected.is_some(), change.actual.is_some());
    if let Some(value) = change.expected.and_then(|slot| slot.value) {
        twin.expect(Some(value), now.wall_ms, Source::Application);
    }
    if let Some(value) = change.actual.and_then(|slot| slot.value) {
        twin.report(value, now.wall_ms);
    }
    twin.shown_parts(expected, actual)
}
