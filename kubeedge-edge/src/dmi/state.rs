//! The pure machine: which mapper serves which protocol, what each was told, and what is to be told next.

mod bucket;
mod mapper;
mod report;

use std::{
    collections::BTreeMap,
    mem,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use kubeedge_core::{
    device::{DeviceAssignment, DeviceSpec, PropertyType, Reading},
    dmi::{self, ConvertError, proto},
    id::DeviceId,
    store::{Batch, StoreError},
};
use prost::Message;
use tonic::Code;

use self::{
    bucket::Bucket,
    mapper::{Mapper, ModelId},
};
use super::{
    Config,
    record::{self, Registration, Told},
    service::Refusal,
};

pub(super) use mapper::{Call, Outcome, What};

/// The time of an input: for waiting, and for people.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) at: Instant,
    /// Milliseconds since the Unix epoch.
    pub(super) wall_ms: u64,
}

/// All devices and mappers of the node, except what is run inside the process.
#[derive(Debug)]
pub(super) struct State {
    config: Config,
    devices: BTreeMap<DeviceId, Device>,
    /// By protocol.
    mappers: BTreeMap<String, Mapper>,
    readings: Vec<Reading>,
    /// Of reports about devices that no registered mapper has.
    strangers: Bucket,
    /// Registrations that the store does not have.
    unwritten: Vec<String>,
    write_at: Option<Instant>,
    started: Instant,
    last_assignment: Option<Instant>,
    /// The assignments of the start have come.
    settled: bool,
    orphans_at: Option<Instant>,
}

/// A device that a mapper outside should run.
#[derive(Debug)]
struct Device {
    protocol: String,
    message: Arc<proto::Device>,
    model: Arc<proto::DeviceModel>,
    fingerprint: u128,
    model_fingerprint: u128,
    properties: BTreeMap<String, Property>,
}

#[derive(Debug)]
struct Property {
    value_type: PropertyType,
    desired: Option<String>,
    /// The desired value that the mapper has taken.
    observed: Option<String>,
}

impl Device {
    fn new(spec: &DeviceSpec, before: Option<&Self>) -> Result<Self, ConvertError> {
        let (message, model) = (dmi::device(spec)?, dmi::model(spec)?);
        let observed = |name: &str| before?.properties.get(name)?.observed.clone();
        let properties = spec.properties.iter().map(|property| {
            let (value_type, desired) = (property.value_type, property.desired.clone());
            let observed = observed(&property.name);
            (property.name.clone(), Property { value_type, desired, observed })
        });
        Ok(Self {
            protocol: spec.protocol.clone(),
            fingerprint: dmi::fingerprint(&message),
            model_fingerprint: dmi::fingerprint(&model),
            properties: properties.collect(),
            message: Arc::new(message),
            model: Arc::new(model),
        })
    }

    fn model_id(&self) -> ModelId {
        (self.model.namespace.clone(), self.model.name.clone())
    }

    /// The properties whose desired value the mapper has not confirmed.
    fn waiting(&self) -> Vec<String> {
        let waits = |property: &Property| property.desired.is_some() && property.desired != property.observed;
        self.properties.iter().filter(|(_, property)| waits(property)).map(|(name, _)| name.clone()).collect()
    }
}

/// How long assignments have to pause at the start before a registration is answered: a mapper that restarts together
/// with edgecore shall not be told that it has no devices.
const QUIET: Duration = Duration::from_millis(100);

/// How long a registration waits for that at most, of the second that KubeEdge's mappers give it.
pub(super) const SETTLING_MAX: Duration = Duration::from_millis(600);

/// What a registration's answer leaves free of the largest message, for what is around the devices.
const MARGIN: usize = 4 << 10;

impl State {
    pub(super) fn new(config: Config, now: Instant) -> Self {
        let strangers = Bucket::new(config.limits.calls_at_once, now);
        let orphans_at = Some(now + config.limits.orphans_kept);
        Self {
            config,
            devices: BTreeMap::new(),
            mappers: BTreeMap::new(),
            readings: Vec::new(),
            strangers,
            unwritten: Vec::new(),
            write_at: None,
            started: now,
            last_assignment: None,
            settled: false,
            orphans_at,
        }
    }

    // ------------------------------------------------------------------------------------------------- store

    /// Takes a stored registration; all of them come before what mappers were told.
    pub(super) fn restore_mapper(&mut self, protocol: String, registration: Registration, now: Instant) {
        if self.config.reserved.contains(&protocol) {
            tracing::info!(protocol, mapper = registration.name, "the protocol is run inside edgecore now");
            return;
        }
        self.mappers.insert(protocol, Mapper::new(registration, &self.config.limits, now));
    }

    /// Takes what a mapper was told in an earlier run.
    pub(super) fn restore_told(&mut self, protocol: &str, device: DeviceId, told: Told) {
        if let Some(mapper) = self.mappers.get_mut(protocol) {
            mapper.restore(device, told);
        }
    }

    /// Whether something has to be durable before the next calls are made.
    ///
    /// After a crash nobody remembers whether a call was made. So the store says that it may have been before it is, and
    /// says what came of it later, together with others.
    pub(super) fn must_write(&self, calls: &[Call]) -> bool {
        let must =
            |call: &Call| self.mappers.get(&call.protocol).is_some_and(|mapper| mapper.must_write(call));
        calls.iter().any(must)
    }

    /// Whether it is time to write what is not urgent.
    pub(super) fn is_write_due(&self, now: Instant) -> bool {
        self.write_at.is_some_and(|at| at <= now)
    }

    /// What the store does not have.
    ///
    /// # Errors
    /// If a key cannot be formed: names were checked when they came, so it is a broken invariant.
    pub(super) fn batch(&self) -> Result<Batch, StoreError> {
        let mut batch = Batch::new();
        for protocol in &self.unwritten {
            if let Some(mapper) = self.mappers.get(protocol) {
                batch.put(record::mapper_key(protocol)?, record::encode(&mapper.registration));
            }
        }
        for (protocol, mapper) in &self.mappers {
            for id in &mapper.unwritten {
                let key = record::told_key(protocol, id)?;
                match mapper.told(id) {
                    Some(told) => batch.put(key, record::encode(&told)),
                    None => batch.delete(key),
                };
            }
        }
        Ok(batch)
    }

    /// The store has it.
    pub(super) fn written(&mut self) {
        self.unwritten.clear();
        self.mappers.values_mut().for_each(Mapper::written);
        self.write_at = None;
    }

    /// The store does not have it; it is tried again later.
    pub(super) fn not_written(&mut self, now: Instant) {
        self.write_at = Some(now + self.config.limits.retry_max);
    }

    // --------------------------------------------------------------------------------------------- assignments

    /// Takes what should become of a device. One that DMI cannot carry stays with its mapper as it was.
    pub(super) fn handle_assignment(&mut self, assignment: DeviceAssignment, now: Now) {
        self.last_assignment = Some(now.at);
        let id = assignment.device;
        let spec = assignment.spec.filter(|spec| !self.config.reserved.contains(&spec.protocol));
        let before = self.devices.get(&id);
        let device = match spec.map(|spec| Device::new(&spec, before)).transpose() {
            Ok(device) => device,
            Err(error) => return tracing::warn!(device = %id, %error, "the device is not told to its mapper"),
        };
        let former = before.map(|device| device.protocol.clone());
        match device {
            Some(device) if self.has_room(&device.protocol, former.as_deref()) => {
                self.devices.insert(id.clone(), device);
            }
            Some(device) => {
                let limit = self.config.limits.devices_per_mapper;
                tracing::warn!(device = %id, protocol = device.protocol, limit, "too many devices for one mapper");
                self.devices.remove(&id);
            }
            None => drop(self.devices.remove(&id)),
        }
        let device = self.devices.get(&id);
        let protocols = [former.as_deref(), device.map(|device| device.protocol.as_str())];
        // A mapper of an earlier run may have it too, although nobody has said so in this run.
        for (protocol, mapper) in &mut self.mappers {
            if protocols.contains(&Some(protocol)) || mapper.told(&id).is_some() {
                let own = device.filter(|device| device.protocol == *protocol);
                mapper.look_at(&id, own, &self.config.limits, now.at);
            }
        }
    }

    fn has_room(&self, protocol: &str, former: Option<&str>) -> bool {
        let of_protocol = |device: &&Device| device.protocol == protocol;
        former == Some(protocol)
            || self.devices.values().filter(of_protocol).count() < self.config.limits.devices_per_mapper
    }

    /// Whether the assignments of the start have come, as far as one can tell.
    pub(super) fn is_settled(&mut self, now: Instant) -> bool {
        let quiet = self.last_assignment.is_some_and(|last| last + QUIET <= now);
        self.settled |= quiet || self.started + SETTLING_MAX <= now;
        self.settled
    }

    // -------------------------------------------------------------------------------------------- registration

    /// Takes a registration. What follows of it is durable once [`State::batch`] is.
    pub(super) fn handle_register(
        &mut self,
        request: proto::MapperRegisterRequest,
        now: Now,
    ) -> Result<proto::MapperRegisterResponse, Refusal> {
        let (protocol, registration) = self.check_registration(request.mapper.unwrap_or_default())?;
        if !request.with_data {
            tracing::info!(
                mapper = registration.name,
                protocol,
                "a mapper that wants no devices has registered"
            );
            return Ok(proto::MapperRegisterResponse::default());
        }
        let (answer, told, models) = self.all_of(&protocol);
        let limits = &self.config.limits;
        let new = || Mapper::new(registration.clone(), limits, now.at);
        let known = self.mappers.contains_key(&protocol);
        let mapper = self.mappers.entry(protocol.clone()).or_insert_with(new);
        if !known || mapper.registration != registration {
            if known && mapper.registration.name != registration.name {
                let (before, after) = (&mapper.registration.name, &registration.name);
                tracing::warn!(protocol, before, after, "another mapper takes the protocol");
            }
            mapper.registration = registration;
            self.unwritten.push(protocol.clone());
        }
        mapper.registered(told, models, limits, now.at);
        // What found no room in the answer is told by calls.
        for (id, device) in self.devices.iter().filter(|(_, device)| device.protocol == protocol) {
            mapper.look_at(id, Some(device), limits, now.at);
        }
        tracing::info!(
            mapper = mapper.registration.name,
            protocol,
            socket = mapper.registration.address,
            devices = answer.device_list.len(),
            "a mapper has registered"
        );
        Ok(answer)
    }

    fn check_registration(&self, mapper: proto::MapperInfo) -> Result<(String, Registration), Refusal> {
        let wrong = |why: String| {
            let name: String = mapper.name.chars().take(80).collect();
            Err(Refusal::new(Code::InvalidArgument, format!("fail to register mapper {name:?}: {why}")))
        };
        if mapper.name.is_empty() || mapper.name.len() > 253 {
            return wrong("its name must have 1 to 253 bytes".to_owned());
        }
        if mapper.protocol.is_empty() || mapper.protocol.len() > 253 {
            return wrong("its protocol must have 1 to 253 bytes".to_owned());
        }
        if let Some(long) = [&mapper.version, &mapper.api_version].into_iter().find(|text| text.len() > 253) {
            return wrong(format!("a version has {} bytes; 253 are allowed", long.len()));
        }
        let Ok(address) = std::str::from_utf8(&mapper.address) else {
            return wrong("its address is not UTF-8".to_owned());
        };
        let address = address.strip_prefix("unix://").or(address.strip_prefix("unix:")).unwrap_or(address);
        if let Err(error) = dmi::check_path(Path::new(address)) {
            return wrong(format!("its address {error}"));
        }
        if Path::new(address) == self.config.socket {
            return wrong("its address is edgecore's own socket".to_owned());
        }
        let protocol = mapper.protocol.clone();
        if self.config.reserved.contains(&protocol) {
            let why = format!(
                "protocol {protocol:?} is run inside edgecore; take it out of kubeedgeRs.mappers to run it outside"
            );
            return Err(Refusal::new(Code::FailedPrecondition, why));
        }
        if !self.mappers.contains_key(&protocol) && self.mappers.len() >= self.config.limits.mappers {
            let why = format!("{} mappers are registered, which is the limit", self.mappers.len());
            return Err(Refusal::new(Code::ResourceExhausted, why));
        }
        let registration = Registration {
            name: mapper.name.clone(),
            version: mapper.version.clone(),
            api_version: mapper.api_version.clone(),
            address: address.to_owned(),
        };
        Ok((protocol, registration))
    }

    /// All devices of a protocol with their models, as far as one message has room, and what that tells.
    fn all_of(
        &self,
        protocol: &str,
    ) -> (proto::MapperRegisterResponse, BTreeMap<DeviceId, Told>, BTreeMap<ModelId, u128>) {
        let mut room = self.config.limits.message_bytes.saturating_sub(MARGIN);
        let mut answer = proto::MapperRegisterResponse::default();
        let (mut told, mut models) = (BTreeMap::new(), BTreeMap::new());
        for (id, device) in self.devices.iter().filter(|(_, device)| device.protocol == protocol) {
            let is_new = !models.contains_key(&device.model_id());
            let size =
                device.message.encoded_len() + if is_new { device.model.encoded_len() } else { 0 } + 16;
            if size > room {
                break;
            }
            room -= size;
            if is_new {
                models.insert(device.model_id(), device.model_fingerprint);
                answer.model_list.push(proto::DeviceModel::clone(&device.model));
            }
            answer.device_list.push(proto::Device::clone(&device.message));
            told.insert(id.clone(), Told::As(device.fingerprint));
        }
        (answer, told, models)
    }

    // --------------------------------------------------------------------------------------------------- calls

    /// The calls that are to be made, at most one for each mapper.
    pub(super) fn poll_calls(&mut self, now: Instant) -> Vec<Call> {
        let (mappers, devices) = (&mut self.mappers, &self.devices);
        let calls: Vec<_> =
            mappers.iter_mut().filter_map(|(protocol, mapper)| mapper.next(protocol, devices, now)).collect();
        self.wait_to_write(now);
        calls
    }

    /// Takes what became of a call.
    pub(super) fn handle_outcome(&mut self, call: Call, outcome: Outcome, now: Instant) {
        if let Some(mapper) = self.mappers.get_mut(&call.protocol) {
            mapper.handle_outcome(call, outcome, &self.devices, &self.config.limits, now);
        }
        self.wait_to_write(now);
    }

    /// Calls could not be noted in the store, and were not made.
    pub(super) fn handle_not_made(&mut self, calls: &[Call], now: Instant) {
        for call in calls {
            if let Some(mapper) = self.mappers.get_mut(&call.protocol) {
                mapper.not_made(call, &self.config.limits, now);
            }
        }
    }

    fn wait_to_write(&mut self, now: Instant) {
        if self.write_at.is_none() && self.mappers.values().any(|mapper| !mapper.unwritten.is_empty()) {
            self.write_at = Some(now + self.config.limits.told_persisted_every);
        }
    }

    /// What was reported.
    pub(super) fn poll_readings(&mut self) -> Vec<Reading> {
        mem::take(&mut self.readings)
    }

    /// When there will be something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let calls = self.mappers.values().filter_map(Mapper::due);
        calls.chain(self.write_at).chain(self.orphans_at).min()
    }

    /// Takes devices that nobody has mentioned since the start from the mappers that know them.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.orphans_at.is_none_or(|at| at > now) {
            return;
        }
        self.orphans_at = None;
        for (protocol, mapper) in &mut self.mappers {
            let own =
                |id: &&DeviceId| self.devices.get(id).is_some_and(|device| device.protocol == *protocol);
            let orphans: Vec<_> = mapper.knows().filter(|id| !own(id)).cloned().collect();
            for id in orphans {
                mapper.look_at(&id, None, &self.config.limits, now);
            }
        }
    }
}
