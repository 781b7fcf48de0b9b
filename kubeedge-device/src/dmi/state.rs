//! The pure machine: what the mapper should run, what edgecore has yet to be told, and when.

use std::{
    collections::BTreeMap,
    mem,
    time::{Duration, Instant},
};

use kubeedge_core::{
    device::{DeviceAssignment, Reading, ReadingContent},
    dmi::{self, ConvertError, proto},
    id::DeviceId,
};
use tonic::Code;

use super::{
    Config,
    service::{Answered, Question, Refusal},
};

type ModelId = (String, String);

/// All devices of the mapper.
#[derive(Debug)]
pub(super) struct State {
    config: Config,
    link: Link,
    pause: Duration,
    devices: BTreeMap<DeviceId, Device>,
    models: BTreeMap<ModelId, proto::DeviceModel>,
    assignments: Vec<DeviceAssignment>,
    /// How many reports are under way.
    reporting: usize,
}

/// How edgecore sees the mapper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    /// It does not know it; it ends when it is time to register.
    Unknown { register_at: Instant },
    /// A registration is under way; it ends with its outcome.
    Asked,
    /// It knows it; it ends with a call that is not answered, or with another edgecore.
    Registered,
}

#[derive(Debug)]
struct Device {
    message: proto::Device,
    /// The types of its properties, as its model has them.
    types: BTreeMap<String, String>,
    /// Whether the mapper was told to run it.
    assigned: bool,
    /// Edgecore has not mentioned it when the mapper registered again; until when it runs on.
    orphan_until: Option<Instant>,
    /// What was found last.
    twins: BTreeMap<String, proto::Twin>,
    /// What edgecore has yet to be told.
    due: Due,
}

#[derive(Debug, Default)]
struct Due {
    twins: BTreeMap<String, proto::Twin>,
    state: Option<String>,
    /// A report is under way.
    busy: bool,
    /// Something in a report was wrong, so that each value goes alone until all have gone.
    singly: bool,
    retry_at: Option<Instant>,
    pause: Duration,
}

/// A report that is to be made.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Report {
    pub(super) device: DeviceId,
    /// Whether the device is connected, if that is to be said.
    pub(super) state: Option<String>,
    pub(super) twins: Vec<proto::Twin>,
}

/// What became of a call to edgecore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    Refused(Code, String),
    /// Edgecore is not there, or says nothing.
    Lost(String),
}

impl State {
    pub(super) fn new(config: Config, now: Instant) -> Self {
        Self {
            link: Link::Unknown { register_at: now },
            pause: config.limits.retry_min,
            config,
            devices: BTreeMap::new(),
            models: BTreeMap::new(),
            assignments: Vec::new(),
            reporting: 0,
        }
    }

    // -------------------------------------------------------------------------------------------- registration

    /// The registration that is to be made now, if one is.
    pub(super) fn poll_registration(&mut self, now: Instant) -> Option<proto::MapperRegisterRequest> {
        let Link::Unknown { register_at } = self.link else { return None };
        if register_at > now {
            return None;
        }
        self.link = Link::Asked;
        let mapper = proto::MapperInfo {
            name: self.config.name.clone(),
            version: self.config.version.clone(),
            api_version: "v1beta1".to_owned(),
            protocol: self.config.protocol.clone(),
            address: self.config.socket.to_string_lossy().into_owned().into_bytes(),
            state: "ok".to_owned(),
        };
        Some(proto::MapperRegisterRequest { with_data: true, mapper: Some(mapper) })
    }

    /// Takes the answer to a registration: it says all there is, as far as edgecore knows so far.
    pub(super) fn handle_registered(&mut self, answer: proto::MapperRegisterResponse, now: Instant) {
        self.link = Link::Registered;
        self.pause = self.config.limits.retry_min;
        let orphan_until = now + self.config.limits.orphans_kept;
        for device in self.devices.values_mut() {
            device.orphan_until = Some(orphan_until);
            device.due.retry_at = None;
        }
        for model in answer.model_list {
            self.models.insert((model.namespace.clone(), model.name.clone()), model);
        }
        for device in answer.device_list {
            if let Err(refusal) = self.take_device(device) {
                tracing::warn!(why = refusal.why, "a device is not run");
            }
        }
        let devices = self.devices.values().filter(|device| device.orphan_until.is_none()).count();
        tracing::info!(devices, "the mapper is registered");
    }

    /// The registration has failed.
    pub(super) fn handle_not_registered(&mut self, why: &str, now: Instant) {
        tracing::warn!(edgecore = %self.config.edgecore.display(), why, retry_in = ?self.pause, "the mapper is not registered");
        self.link = Link::Unknown { register_at: now + self.pause };
        self.pause = (self.pause * 2).min(self.config.limits.retry_max);
    }

    /// There is another edgecore than the one that knows the mapper, or none.
    pub(super) fn handle_edgecore_changed(&mut self, now: Instant) {
        if self.link == Link::Registered {
            tracing::info!("edgecore has restarted, or stopped: the mapper registers again");
            self.link = Link::Unknown { register_at: now };
        }
    }

    // ------------------------------------------------------------------------------------------------- devices

    /// Takes what edgecore says or asks.
    pub(super) fn handle_question(&mut self, question: Question) -> Answered {
        match question {
            Question::Device(device) => self.take_device(device).map(|()| None),
            Question::RemoveDevice { namespace, name } => {
                let id = dmi::device_id(&namespace, &name).map_err(invalid)?;
                // Removing what is gone is success.
                self.remove(&id);
                Ok(None)
            }
            Question::Model(model) => self.take_model(model).map(|()| None),
            Question::RemoveModel { namespace, name } => {
                self.models.remove(&(namespace, name));
                Ok(None)
            }
            Question::Get { namespace, name } => {
                let id = dmi::device_id(&namespace, &name).map_err(invalid)?;
                let device = self.devices.get(&id).ok_or_else(|| Refusal {
                    code: Code::NotFound,
                    why: format!("device {id} is not run by this mapper"),
                })?;
                let mut message = device.message.clone();
                let status = message.status.get_or_insert_default();
                status.twins = device.twins.values().cloned().collect();
                Ok(Some(message))
            }
        }
    }

    fn take_device(&mut self, message: proto::Device) -> Result<(), Refusal> {
        let id = dmi::device_id(&message.namespace, &message.name).map_err(invalid)?;
        let known = self.devices.get_mut(&id);
        if let Some(known) = known {
            known.orphan_until = None;
            if known.message == message && known.assigned {
                return Ok(());
            }
        } else if self.devices.len() >= self.config.limits.devices {
            let why =
                format!("device {id}: the mapper has {} devices, which is its limit", self.devices.len());
            return Err(Refusal { code: Code::ResourceExhausted, why });
        }
        let model = self.models.get(&model_of(&message));
        let made = model.map(|model| Ok((dmi::spec(&message, model)?, types_of(model)))).transpose();
        let made = made.map_err(|error: ConvertError| Refusal {
            code: Code::InvalidArgument,
            why: format!("device {id}: {error}"),
        })?;
        let device = self.devices.entry(id.clone()).or_insert_with(|| Device {
            message: proto::Device::default(),
            types: BTreeMap::new(),
            assigned: false,
            orphan_until: None,
            twins: BTreeMap::new(),
            due: Due::default(),
        });
        device.message = message;
        match made {
            Some((spec, types)) => {
                device.assigned = true;
                device.twins.retain(|property, _| spec.property(property).is_some());
                device.due.twins.retain(|property, _| spec.property(property).is_some());
                device.types = types;
                self.assignments.push(DeviceAssignment { device: id, spec: Some(spec) });
            }
            None => tracing::info!(device = %id, "the device waits for its model"),
        }
        Ok(())
    }

    fn take_model(&mut self, model: proto::DeviceModel) -> Result<(), Refusal> {
        let id = (model.namespace.clone(), model.name.clone());
        let same = self.models.get(&id) == Some(&model);
        if !self.models.contains_key(&id) && self.models.len() >= self.config.limits.devices {
            let why = format!(
                "device model {}/{}: the mapper has {} models, which is its limit",
                id.0,
                id.1,
                self.models.len()
            );
            return Err(Refusal { code: Code::ResourceExhausted, why });
        }
        self.models.insert(id.clone(), model);
        let users = self.devices.values_mut().filter(|device| model_of(&device.message) == id);
        let users: Vec<_> = users
            .filter(|device| !same || !device.assigned)
            .map(|device| {
                device.assigned = false;
                device.message.clone()
            })
            .collect();
        for device in users {
            if let Err(refusal) = self.take_device(device) {
                tracing::warn!(
                    why = refusal.why,
                    "the device does not fit its changed model, and runs on as it was"
                );
            }
        }
        Ok(())
    }

    fn remove(&mut self, id: &DeviceId) {
        if self.devices.remove(id).is_some() {
            self.assignments.push(DeviceAssignment { device: id.clone(), spec: None });
        }
    }

    /// What the mapper should run.
    pub(super) fn poll_assignments(&mut self) -> Vec<DeviceAssignment> {
        mem::take(&mut self.assignments)
    }

    // ------------------------------------------------------------------------------------------------- reports

    /// Takes what the mapper has found; the newest for each property waits for its report.
    pub(super) fn handle_reading(&mut self, reading: Reading) {
        let Some(device) = self.devices.get_mut(&reading.device) else { return };
        match reading.content {
            ReadingContent::State(state) => device.due.state = Some(state),
            ReadingContent::Property { property, value, observed_desired, timestamp_ms } => {
                let timestamp = ("timestamp".to_owned(), timestamp_ms.to_string());
                let mut metadata = BTreeMap::from([timestamp.clone()]);
                if let Some(name) = device.types.get(&property) {
                    metadata.insert("type".to_owned(), name.clone());
                }
                let observed = |value| proto::TwinProperty { value, metadata: BTreeMap::from([timestamp]) };
                let twin = proto::Twin {
                    property_name: property.clone(),
                    observed_desired: observed_desired.map(observed),
                    reported: Some(proto::TwinProperty { value, metadata }),
                };
                device.twins.insert(property.clone(), twin.clone());
                device.due.twins.insert(property, twin);
            }
        }
    }

    /// The reports that are to be made now, at most one for each device.
    pub(super) fn poll_reports(&mut self, now: Instant) -> Vec<Report> {
        let mut reports = Vec::new();
        if self.link != Link::Registered {
            return reports;
        }
        let limits = &self.config.limits;
        for (id, device) in &mut self.devices {
            if self.reporting >= limits.reports_at_once {
                break;
            }
            let due = &mut device.due;
            if due.busy || due.is_empty() || due.retry_at.is_some_and(|at| at > now) {
                continue;
            }
            let most = if due.singly { 1 } else { limits.values_per_report.max(1) };
            let mut twins = Vec::new();
            while let Some((_, twin)) = (twins.len() < most).then(|| due.twins.pop_first()).flatten() {
                twins.push(twin);
            }
            due.busy = true;
            self.reporting += 1;
            reports.push(Report { device: id.clone(), state: due.state.take(), twins });
        }
        reports
    }

    /// Takes what became of a report. What was not taken waits again, unless there is something newer.
    pub(super) fn handle_outcome(&mut self, report: Report, outcome: Outcome, now: Instant) {
        self.reporting -= 1;
        let limits = &self.config.limits;
        if let Some(device) = self.devices.get_mut(&report.device) {
            device.due.outcome(&report, &outcome, limits, now);
        }
        if let Outcome::Lost(why) = outcome
            && self.link == Link::Registered
        {
            tracing::warn!(why, retry_in = ?self.pause, "edgecore does not answer");
            self.link = Link::Unknown { register_at: now + self.pause };
            self.pause = (self.pause * 2).min(self.config.limits.retry_max);
        }
    }

    /// Lets devices go that edgecore has not mentioned for too long.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.link != Link::Registered {
            return;
        }
        let orphans =
            self.devices.iter().filter(|(_, device)| device.orphan_until.is_some_and(|at| at <= now));
        let orphans: Vec<_> = orphans.map(|(id, _)| id.clone()).collect();
        for id in &orphans {
            tracing::info!(device = %id, "edgecore has no such device any more");
            self.remove(id);
        }
    }

    /// When there will be something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self.link {
            Link::Unknown { register_at } => Some(register_at),
            Link::Asked => None,
            Link::Registered => {
                let retries =
                    self.devices.values().filter(|device| !device.due.busy && !device.due.is_empty());
                let retries = retries.filter_map(|device| device.due.retry_at);
                let orphans = self.devices.values().filter_map(|device| device.orphan_until);
                retries.chain(orphans).min()
            }
        }
    }
}

impl Due {
    fn is_empty(&self) -> bool {
        self.twins.is_empty() && self.state.is_none()
    }

    fn outcome(&mut self, report: &Report, outcome: &Outcome, limits: &super::Limits, now: Instant) {
        self.busy = false;
        match outcome {
            Outcome::Done => {
                self.retry_at = None;
                self.pause = limits.retry_min;
                self.singly &= !self.twins.is_empty();
            }
            Outcome::Lost(_) => self.put_back(report),
            Outcome::Refused(Code::InvalidArgument, why) => {
                if report.twins.len() + usize::from(report.state.is_some()) > 1 {
                    self.put_back(report);
                    self.singly = true;
                } else {
                    let property = report.twins.first().map(|twin| twin.property_name.as_str());
                    tracing::warn!(device = %report.device, property, why, "edgecore refuses what was reported");
                }
            }
            Outcome::Refused(code, why) => {
                self.put_back(report);
                self.pause = self.pause.max(limits.retry_min);
                tracing::warn!(device = %report.device, ?code, why, retry_in = ?self.pause, "edgecore refuses a report");
                self.retry_at = Some(now + self.pause);
                self.pause = (self.pause * 2).min(limits.retry_max);
            }
        }
    }

    fn put_back(&mut self, report: &Report) {
        for twin in &report.twins {
            self.twins.entry(twin.property_name.clone()).or_insert_with(|| twin.clone());
        }
        if self.state.is_none() {
            self.state.clone_from(&report.state);
        }
    }
}

fn model_of(device: &proto::Device) -> ModelId {
    let reference = device.spec.as_ref().map(|spec| spec.device_model_reference.clone());
    (device.namespace.clone(), reference.unwrap_or_default())
}

/// The types of a model's properties in lower case, as KubeEdge's mapper framework reports them.
fn types_of(model: &proto::DeviceModel) -> BTreeMap<String, String> {
    let properties = model.spec.iter().flat_map(|spec| &spec.properties);
    properties.map(|property| (property.name.clone(), property.r#type.to_ascii_lowercase())).collect()
}

fn invalid(error: ConvertError) -> Refusal {
    Refusal { code: Code::InvalidArgument, why: error.to_string() }
}
