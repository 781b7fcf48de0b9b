//! A model of the Kubernetes API and its controllers: a map of objects, and one node.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use kubeedge_cloud::cloudhub;
use kubeedge_core::{
    id::{DeviceId, NodeName, Uid},
    message::{
        Acked, Delivered, DeviceReport, FromNode, Object, ObjectEvent, ObjectRef, PodState, Report,
        ReportKey, ToNode,
    },
    pipe::LatestSender,
};
use serde_json::{Value, json};

use crate::random::Random;

pub(crate) type Downstream = LatestSender<(NodeName, ObjectRef), ToNode<ObjectEvent>>;

/// The API, shared between the test and the controllers.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    node: NodeName,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) objects: BTreeMap<ObjectRef, (Value, Object)>,
    pub(crate) pods: BTreeMap<(ObjectRef, Uid), PodState>,
    pub(crate) devices: BTreeMap<DeviceId, DeviceReport>,
    /// To the node, while there is a cloud.
    downstream: Option<Downstream>,
    counter: u64,
}

impl Api {
    pub(crate) fn new(node: NodeName) -> Self {
        let api = Self { node, state: Arc::default() };
        let mut state = api.lock();
        let model = json!({"spec": {"properties": [{"name": "setpoint", "type": "STRING"}]}});
        api.put(&mut state, ObjectRef::device_model("default", "model"), model);
        drop(state);
        api
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with the lock")
    }

    /// Connects the controllers' watch: from here on changes are sent.
    pub(crate) fn connect(&self, downstream: Downstream) {
        self.lock().downstream = Some(downstream);
    }

    /// Creates the object, or changes it.
    fn put(&self, state: &mut State, reference: ObjectRef, mut body: Value) {
        state.counter += 1;
        let version = state.counter;
        let uid = match state.objects.get(&reference) {
            Some((_, object)) => object.uid.to_string(),
            None => format!("uid-{version}"),
        };
        body["apiVersion"] = json!(reference.api_version());
        body["kind"] = json!(reference.kind());
        let metadata = &mut body["metadata"];
        metadata["namespace"] = json!(reference.namespace());
        metadata["name"] = json!(reference.name());
        metadata["uid"] = json!(uid);
        metadata["resourceVersion"] = json!(version.to_string());
        let object = Object::from_json(body.to_string()).expect("the model writes objects");
        state.objects.insert(reference, (body, object.clone()));
        self.tell(state, ObjectEvent::Applied(object));
    }

    /// Removes the object for good.
    fn remove(&self, state: &mut State, reference: &ObjectRef) {
        if let Some((_, object)) = state.objects.remove(reference) {
            self.tell(state, ObjectEvent::Deleted { reference: object.reference, uid: object.uid });
        }
    }

    fn tell(&self, state: &State, event: ObjectEvent) {
        if let Some(downstream) = &state.downstream {
            // A cloud that has just lost its power does not listen.
            let _ = downstream.send(ToNode { node: self.node.clone(), message: event });
        }
    }

    /// Changes something, as users do.
    pub(crate) fn change(&self, random: &mut Random) {
        let mut state = self.lock();
        let number = random.below(5);
        let value = random.below(1_000_000);
        match random.below(10) {
            0..=3 => {
                let body = json!({"data": {"value": value.to_string()}});
                self.put(&mut state, ObjectRef::config_map("default", format!("map-{number}")), body);
            }
            4 => {
                let body =
                    json!({"data": {"value": "c2VjcmV0"}, "metadata": {"labels": {"v": value.to_string()}}});
                self.put(&mut state, ObjectRef::secret("default", format!("secret-{number}")), body);
            }
            5 => self.remove(&mut state, &ObjectRef::config_map("default", format!("map-{number}"))),
            6 => self.create_pod(&mut state, number),
            7 => self.delete_pod(&mut state, number),
            8 => self.remove(&mut state, &ObjectRef::pod("default", format!("pod-{number}"))),
            _ => self.set_device(&mut state, number % 2, value),
        }
    }

    fn create_pod(&self, state: &mut State, number: u64) {
        let reference = ObjectRef::pod("default", format!("pod-{number}"));
        if !state.objects.contains_key(&reference) {
            let containers = json!([{"name": "main", "image": "image:1"}]);
            let spec =
                json!({"nodeName": self.node, "terminationGracePeriodSeconds": 1, "containers": containers});
            self.put(state, reference, json!({"spec": spec}));
        }
    }

    /// Asks for the pod's end, as `kubectl delete` does: the node has to confirm it.
    fn delete_pod(&self, state: &mut State, number: u64) {
        let reference = ObjectRef::pod("default", format!("pod-{number}"));
        if let Some((mut body, _)) = state.objects.get(&reference).cloned() {
            body["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            body["metadata"]["deletionGracePeriodSeconds"] = json!(1);
            self.put(state, reference, body);
        }
    }

    fn set_device(&self, state: &mut State, number: u64, value: u64) {
        let reference =
            ObjectRef::new("devices.kubeedge.io/v1beta1", "Device", "default", format!("device-{number}"));
        let properties =
            json!([{"name": "setpoint", "reportToCloud": true, "desired": {"value": value.to_string()}}]);
        let spec = json!({
            "deviceModelRef": {"name": "model"}, "nodeName": self.node, "protocol": {"protocolName": "memory"},
            "properties": properties,
        });
        self.put(state, reference, json!({"spec": spec}));
    }

    /// Does what the controllers do with a report, and says when the API has it.
    fn take(&self, report: Delivered<Report>) -> Acked<ReportKey> {
        let mut state = self.lock();
        let acked = Acked { key: report.message.key(), delivery: report.delivery };
        match report.message {
            Report::Node(_) | Report::Mirror(_) => {}
            Report::Pod(pod) => {
                let known = state.objects.get(&pod.reference).filter(|(_, object)| object.uid == pod.uid);
                let deleting =
                    known.is_some_and(|(body, _)| !body["metadata"]["deletionTimestamp"].is_null());
                if known.is_some() && deleting && pod.state == PodState::Gone {
                    self.remove(&mut state, &pod.reference);
                } else if known.is_some() {
                    state.pods.insert((pod.reference, pod.uid), pod.state);
                }
            }
            Report::Device(device) => {
                state.devices.insert(device.device.clone(), device);
            }
        }
        acked
    }

    /// Runs the controllers' ends of CloudHub's pipes, until the cloud loses its power.
    pub(crate) async fn control(self, outside: cloudhub::Outside, delay: std::time::Duration) {
        let cloudhub::Outside { mut snapshots, mut statuses, mut device_reports, acked, downstream, .. } =
            outside;
        self.connect(downstream);
        let acknowledge = |node: NodeName, message| {
            let _ = acked.send(ToNode { node, message });
        };
        loop {
            tokio::select! {
                Some(call) = snapshots.recv() => {
                    tokio::time::sleep(delay).await;
                    let objects: Vec<Object> =
                        self.lock().objects.values().map(|(_, object)| object.clone()).collect();
                    call.answer(objects.into());
                }
                Some(FromNode { node, message }) = statuses.recv() => {
                    tokio::time::sleep(delay).await;
                    acknowledge(node, self.take(message));
                }
                Some(FromNode { node, message }) = device_reports.recv() => {
                    tokio::time::sleep(delay).await;
                    acknowledge(node, self.take(message));
                }
                else => return,
            }
        }
    }
}
