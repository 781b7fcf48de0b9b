//! What the cloud says: devices and models come, change and go.

use std::{collections::BTreeMap, sync::Arc};

use kubeedge_core::{
    device::{DeviceSource, DeviceSpec},
    id::DeviceId,
    message::{Object, ObjectEvent, ObjectRef},
    pace::Urgency,
    wire::topic::NodeTopic,
};

use super::{
    super::payload::{BeforeAndAfter, Member, MembershipUpdate},
    Now, State,
    device::{Device, Seen},
    twin::{Source, Twin, before_and_after},
};

impl State {
    /// Takes a Device or DeviceModel; hearing the same again changes nothing. Other kinds are ignored.
    pub(in super::super) fn handle_object(&mut self, event: &ObjectEvent, now: Now) {
        match (event.key().kind(), event) {
            ("Device", ObjectEvent::Applied(object)) => self.apply_device(object, now),
            ("Device", ObjectEvent::Deleted { reference, .. }) => self.delete_device(reference, now),
            ("DeviceModel", ObjectEvent::Applied(object)) => self.apply_model(object),
            ("DeviceModel", ObjectEvent::Deleted { reference, .. }) => self.delete_model(reference),
            (kind, _) => tracing::debug!(kind, "an object that is no device was ignored"),
        }
    }

    fn apply_device(&mut self, object: &Object, now: Now) {
        let id = match object.reference.device_id() {
            Ok(id) => id,
            Err(error) => return tracing::warn!(%error, "a device was ignored"),
        };
        let seen = match Seen::read(object) {
            Ok(seen) => Arc::new(seen),
            Err(error) => return tracing::warn!(device = %id, %error, "a Device object was ignored"),
        };
        let known = self.devices.get(&id);
        if known.is_some_and(|device| device.record.uid != object.uid) {
            // Another device under the same name: nothing of the former one is true of it.
            self.remove(&id, now);
        } else if known.is_some_and(|device| device.seen.is_some() && is_older(object, device)) {
            return;
        }
        if !self.devices.contains_key(&id) {
            self.add(&id, &seen, now);
        }
        let Some(device) = self.change(&id) else { return };
        let before = device.report(&id);
        let (is_older, is_newer) =
            (is_older(object, device), object.resource_version > device.record.resource_version);
        device.seen = Some(seen.clone());
        if is_newer {
            device.record.resource_version = object.resource_version;
            device.record.description.clone_from(&seen.description);
            self.dirty.devices.insert(id.clone());
        }
        self.count_on(&id, &seen);
        if !is_older {
            self.apply_desired(&id, &seen, now);
        }
        self.merge(&id);
        if self.devices.get(&id).is_some_and(|device| device.report(&id) != before) {
            self.report(&id, Urgency::Ordinary, now);
        }
    }

    /// Lets versions go on behind those that the cloud has, should they be from another node, or from a store that
    /// this node has lost.
    fn count_on(&mut self, id: &DeviceId, seen: &Seen) {
        for (property, version) in &seen.versions {
            let twin = self.devices.get_mut(id).and_then(|device| device.twins.get_mut(property));
            if twin.is_some_and(|twin| twin.count_on(*version)) {
                self.mark_twin(id, property);
            }
        }
    }

    fn add(&mut self, id: &DeviceId, seen: &Seen, now: Now) {
        self.remember(id);
        let mut device = Device::new(seen.object.uid.clone(), seen.object.resource_version);
        device.record.description.clone_from(&seen.description);
        device.record.forgotten_version = seen.versions.values().copied().max().unwrap_or_default();
        let member = device.member(id);
        self.devices.insert(id.clone(), device);
        self.dirty.devices.insert(id.clone());
        self.publish_membership(Some(member), None, now);
    }

    /// Nothing of this name exists any more, whichever UID it had: the pipe keeps only the last event of a
    /// name, so the deletion of a device may be all that is heard of it and of the end of the one before it.
    fn delete_device(&mut self, reference: &ObjectRef, now: Now) {
        let Ok(id) = reference.device_id() else { return };
        if self.devices.contains_key(&id) {
            self.remove(&id, now);
        }
    }

    pub(super) fn remove(&mut self, id: &DeviceId, now: Now) {
        self.remember(id);
        let Some(device) = self.devices.remove(id) else { return };
        self.twins = self.twins.saturating_sub(device.twins.len());
        for property in device.twins.keys() {
            self.mark_twin(id, property);
        }
        self.dirty.devices.insert(id.clone());
        self.to_assign.insert(id.clone());
        self.reports.withdraw(id);
        self.publish_membership(None, Some(device.member(id)), now);
    }

    fn publish_membership(&mut self, added: Option<Member>, removed: Option<Member>, now: Now) {
        let named = |member: Member| vec![Member { state: None, last_online: None, ..member }];
        let event_id = self.ids.next();
        let update = MembershipUpdate {
            base: self.base(&event_id, now),
            added_devices: added.map(named),
            removed_devices: removed.map(named),
        };
        self.publish(&NodeTopic::MembershipUpdated.of(&self.config.node), &update);
    }

    /// Takes over what the cloud desires, where that is something else than it desired before.
    fn apply_desired(&mut self, id: &DeviceId, seen: &Seen, now: Now) {
        let Some(device) = self.devices.get(id) else { return };
        let dropped = device
            .twins
            .iter()
            .filter(|(name, twin)| twin.cloud.is_some() && !seen.properties.contains_key(name.as_str()));
        let mut wanted: BTreeMap<String, Option<String>> =
            dropped.map(|(name, _)| (name.clone(), None)).collect();
        for (name, property) in &seen.properties {
            if device.twins.get(name).and_then(|twin| twin.cloud.as_ref()) != property.desired.as_ref() {
                wanted.insert(name.clone(), property.desired.clone());
            }
        }
        let mut documents = BTreeMap::new();
        for (name, desired) in wanted {
            if let Some(document) = self.desire(id, &name, desired, now) {
                documents.insert(name, document);
            }
        }
        self.publish_document(id, "", documents, now);
    }

    /// Takes over one desired value. Returns what has changed for applications.
    fn desire(
        &mut self,
        id: &DeviceId,
        property: &str,
        desired: Option<String>,
        now: Now,
    ) -> Option<BeforeAndAfter> {
        self.mark_twin(id, property);
        let last = self.devices.get(id)?.twins.get(property).and_then(Twin::shown);
        let twin = self.twin_or_new(id, property)?;
        twin.cloud.clone_from(&desired);
        // The cloud takes back only what it gave.
        let takes_back = desired.is_none() && twin.expected.source != Source::Cloud;
        if twin.expected.value == desired || takes_back {
            return None;
        }
        twin.expect(desired, now.wall_ms, Source::Cloud);
        Some(before_and_after(last, twin))
    }

    /// The twin, made if it is not there.
    pub(super) fn twin_or_new(&mut self, id: &DeviceId, property: &str) -> Option<&mut Twin> {
        self.remember(id);
        let device = self.devices.get_mut(id)?;
        if !device.twins.contains_key(property) {
            device.twins.insert(property.to_owned(), Twin::after(device.record.forgotten_version));
            self.twins += 1;
        }
        device.twins.get_mut(property)
    }

    /// Makes room by forgetting what applications made and deleted again.
    pub(super) fn forget_deleted(&mut self, id: &DeviceId) {
        self.remember(id);
        let Some(device) = self.devices.get_mut(id) else { return };
        let forgotten: Vec<(String, u64)> = device
            .twins
            .iter()
            .filter(|(name, twin)| twin.deleted && !device.is_specified(name))
            .map(|(name, twin)| (name.clone(), twin.newest_of_all()))
            .collect();
        for (name, version) in forgotten {
            device.twins.remove(&name);
            device.record.forgotten_version = device.record.forgotten_version.max(version);
            self.twins = self.twins.saturating_sub(1);
            self.dirty.devices.insert(id.clone());
            self.dirty.twins.insert((id.clone(), name));
        }
    }

    fn apply_model(&mut self, object: &Object) {
        let stale = self
            .models
            .get(&object.reference)
            .is_some_and(|known| known.uid == object.uid && object.resource_version < known.resource_version);
        if !stale {
            self.models.insert(object.reference.clone(), object.clone());
            self.merge_users(&object.reference);
        }
    }

    fn delete_model(&mut self, reference: &ObjectRef) {
        if self.models.remove(reference).is_some() {
            self.merge_users(reference);
        }
    }

    /// Merges all devices of a model with it again.
    fn merge_users(&mut self, model: &ObjectRef) {
        let uses = |device: &Device| device.seen.as_ref().is_some_and(|seen| seen.model == model.name());
        let users: Vec<DeviceId> = self
            .devices
            .iter()
            .filter(|(id, device)| id.namespace() == model.namespace() && uses(device))
            .map(|(id, _)| id.clone())
            .collect();
        for id in users {
            self.merge(&id);
        }
    }

    /// Merges a device with its model, if that is here.
    fn merge(&mut self, id: &DeviceId) {
        let Some(seen) = self.devices.get(id).and_then(|device| device.seen.clone()) else { return };
        let model = self.models.get(&ObjectRef::device_model(id.namespace(), seen.model.as_str()));
        if model.is_none() {
            tracing::info!(device = %id, model = seen.model, "the device waits for its model");
        }
        let source =
            |model: &Object| DeviceSource { device: seen.object.json.clone(), model: model.json.clone() };
        let spec = model.and_then(|model| match DeviceSpec::from_source(source(model)) {
            Ok(spec) => Some(Arc::new(spec)),
            Err(error) => {
                tracing::warn!(device = %id, %error, "the device fits no mapper");
                None
            }
        });
        if let Some(device) = self.change(id) {
            device.spec = spec;
        }
        self.to_assign.insert(id.clone());
    }
}

/// Whether something newer of the device is known already.
fn is_older(object: &Object, device: &Device) -> bool {
    object.resource_version < device.record.resource_version
}
