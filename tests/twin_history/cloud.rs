//! The API, and DeviceController beside it.

use std::{collections::BTreeMap, time::Duration, time::Instant};

use kubeedge_cloud::devicecontroller::{
    Config,
    simulation::{Controller, Write},
};
use kubeedge_core::{
    id::DeviceId,
    message::{DeviceReport, Object, ObjectRef, TwinReport, TwinValue},
};
use serde_json::{Value, json};

use crate::{checker::Checker, random::Random};

/// The properties that every device has. The last is no mapper's.
pub(crate) const PROPERTIES: [&str; 3] = ["a", "b", "c"];

/// The devices.
pub(crate) fn devices() -> [DeviceId; 2] {
    ["one", "two"].map(|name| DeviceId::new("default", name).expect("it is a name"))
}

/// The API and its controller.
pub(crate) struct Cloud {
    objects: BTreeMap<ObjectRef, Value>,
    counter: u64,
    pub(crate) controller: Controller,
    config: Config,
    /// Writes on their way, and when they are answered; whether the API takes each.
    writing: Vec<(Instant, bool, Write)>,
    /// What the watch has yet to tell, in order.
    watched: Vec<(Instant, Object, bool)>,
    /// Until when the API takes nothing.
    pub(crate) away_until: Instant,
    start: Instant,
    writes: u64,
}

impl Cloud {
    pub(crate) fn new(start: Instant) -> Self {
        let config = Config::default();
        let mut cloud = Self {
            objects: BTreeMap::new(),
            counter: 0,
            controller: Controller::listing(&config, &[]),
            config,
            writing: Vec::new(),
            watched: Vec::new(),
            away_until: start,
            start,
            writes: 0,
        };
        let properties: Vec<_> =
            PROPERTIES.iter().map(|name| json!({"name": name, "type": "STRING"})).collect();
        cloud.put(
            ObjectRef::device_model("default", "model"),
            json!({"spec": {"properties": properties}}),
            start,
        );
        for device in devices() {
            cloud.desire(&device, "a", Some("start"), start);
        }
        cloud.restart();
        cloud
    }

    /// The controller starts anew, and lists what there is. Writes on their way are taken, or are not.
    pub(crate) fn restart(&mut self) {
        self.watched.clear();
        self.writing.clear();
        let objects: Vec<Object> = self.objects.values().map(object).collect();
        self.controller = Controller::listing(&self.config, &objects);
    }

    /// A write on its way arrives, though who sent it is gone.
    pub(crate) fn take_orphan(&mut self, checker: &mut Checker, now: Instant) {
        if let Some((_, _, write)) = self.writing.pop() {
            self.merge(write.device(), write.patch(), checker, now);
        }
    }

    fn put(&mut self, reference: ObjectRef, mut body: Value, now: Instant) {
        self.counter += 1;
        let uid = self
            .objects
            .get(&reference)
            .map_or_else(|| json!(format!("uid-{}", self.counter)), |known| known["metadata"]["uid"].clone());
        body["apiVersion"] = json!(reference.api_version());
        body["kind"] = json!(reference.kind());
        body["metadata"] = json!({
            "namespace": reference.namespace(), "name": reference.name(), "uid": uid,
            "resourceVersion": self.counter.to_string(),
        });
        self.watched.push((now, object(&body), true));
        self.objects.insert(reference, body);
    }

    /// A user changes what is desired.
    pub(crate) fn desire(&mut self, device: &DeviceId, property: &str, value: Option<&str>, now: Instant) {
        let reference = ObjectRef::device(device);
        let mut body = self.objects.get(&reference).cloned().unwrap_or_else(|| {
            let properties: Vec<_> =
                PROPERTIES.iter().map(|name| json!({"name": name, "reportToCloud": true})).collect();
            json!({"spec": {
                "deviceModelRef": {"name": "model"}, "nodeName": "edge-1",
                "protocol": {"protocolName": "memory"}, "properties": properties,
            }})
        });
        for known in body["spec"]["properties"].as_array_mut().expect("it is a list") {
            if known["name"] == property {
                known["desired"] = value.map_or(Value::Null, |value| json!({"value": value}));
            }
        }
        self.put(reference, body, now);
    }

    pub(crate) fn delete(&mut self, device: &DeviceId, now: Instant) {
        if let Some(body) = self.objects.remove(&ObjectRef::device(device)) {
            self.counter += 1;
            self.watched.push((now, object(&body), false));
        }
    }

    pub(crate) fn exists(&self, device: &DeviceId) -> bool {
        self.objects.contains_key(&ObjectRef::device(device))
    }

    pub(crate) fn desired(&self, device: &DeviceId, property: &str) -> Option<String> {
        let properties = self.objects.get(&ObjectRef::device(device))?["spec"]["properties"].as_array()?;
        let known = properties.iter().find(|known| known["name"] == property)?;
        known["desired"]["value"].as_str().map(str::to_owned)
    }

    /// Does what is due, and gives when something is due next.
    pub(crate) fn act(
        &mut self,
        checker: &mut Checker,
        now: Instant,
        random: &mut Random,
    ) -> Option<Instant> {
        while self.watched.first().is_some_and(|(at, _, _)| *at <= now) {
            let (_, object, exists) = self.watched.remove(0);
            self.controller.handle_watched(object, exists);
        }
        while let Some(at) = self.writing.iter().position(|(at, _, _)| *at <= now) {
            let (_, taken, write) = self.writing.swap_remove(at);
            // An answer may be lost though the API has taken the write.
            let told = taken && (random.below(20) != 0);
            if taken {
                self.merge(write.device(), write.patch(), checker, now);
            }
            self.controller.handle_written(write, told, now);
        }
        while let Some(write) = self.controller.poll_write(now) {
            let taken = now >= self.away_until;
            self.writing.push((now + Duration::from_millis(random.below(40)), taken, write));
        }
        let answers = self.writing.iter().map(|(at, _, _)| *at);
        let watched = self.watched.first().map(|(at, _, _)| *at);
        answers.chain(watched).chain(self.controller.poll_timeout()).min()
    }

    fn merge(&mut self, device: &DeviceId, patch: &Value, checker: &mut Checker, now: Instant) {
        let reference = ObjectRef::device(device);
        let Some(body) = self.objects.get_mut(&reference) else { return };
        if body["metadata"]["uid"] != patch["metadata"]["uid"] {
            return;
        }
        for (name, value) in patch["status"].as_object().expect("a status is patched") {
            body["status"][name] = value.clone();
        }
        self.writes += 1;
        let allowed = 50 + 50 * now.duration_since(self.start).as_secs();
        assert!(self.writes <= allowed, "{} writes, {allowed} are allowed", self.writes);
        let body = body.clone();
        self.put(reference, body, now);
        if let Some(status) = self.status(device) {
            checker.check_status(&status);
        }
    }

    /// What the API says that the edge reported.
    pub(crate) fn status(&self, device: &DeviceId) -> Option<DeviceReport> {
        let body = self.objects.get(&ObjectRef::device(device))?;
        let status = body["status"].as_object()?;
        let text = |name: &str| status.get(name).and_then(Value::as_str).map(str::to_owned);
        let read = |twin: &Value| TwinReport {
            property: twin["propertyName"].as_str().expect("each has a name").to_owned(),
            reported: value(&twin["reported"]),
            observed_desired: value(&twin["observedDesired"]),
        };
        Some(DeviceReport {
            device: device.clone(),
            uid: kubeedge_core::id::Uid::new(body["metadata"]["uid"].as_str().expect("it has one")),
            twins: status["twins"].as_array().expect("it is a list").iter().map(read).collect(),
            state: text("state"),
            last_online: text("lastOnlineTime"),
        })
    }
}

fn value(json: &Value) -> Option<TwinValue> {
    let metadata = |name: &str| json["metadata"][name].as_str().and_then(|text| text.parse().ok());
    Some(TwinValue {
        value: json["value"].as_str()?.to_owned(),
        version: metadata("version").expect("each value has a version"),
        timestamp_ms: metadata("timestamp").expect("each value has a time"),
        metadata: BTreeMap::new(),
    })
}

fn object(body: &Value) -> Object {
    Object::from_json(body.to_string()).expect("the model writes objects")
}
