//! One mapper: what it was told, what it has to be told, and when.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use kubeedge_core::{dmi::proto, id::DeviceId};
use tonic::Code;

use super::{
    super::{
        Limits,
        record::{Registration, Told},
    },
    Device,
    bucket::Bucket,
};

/// The namespace and name of a DeviceModel.
pub(super) type ModelId = (String, String);

/// A mapper that has registered, now or in an earlier run.
#[derive(Debug)]
pub(super) struct Mapper {
    pub(super) registration: Registration,
    told: BTreeMap<DeviceId, Told>,
    /// The devices of which the store does not say what the mapper was told.
    pub(super) unwritten: BTreeSet<DeviceId>,
    /// The devices of which the store says that the mapper may know them.
    maybe_in_store: BTreeSet<DeviceId>,
    /// The models that it was told in this run. Telling one again costs little, so that this is not kept longer.
    models: BTreeMap<ModelId, u128>,
    /// The devices about which there is something to tell, and when.
    open: BTreeMap<DeviceId, Retry>,
    /// Whether a model may be there for which there is no device any more.
    tidy: bool,
    /// Whether a call is under way.
    busy: bool,
    /// The registration in this run whose answer it acts on; outcomes of calls before it say nothing.
    generation: u64,
    /// It did not answer; when the next call is made, and how long the pause after that is.
    retry: Retry,
    pub(super) bucket: Bucket,
}

#[derive(Debug, Clone, Copy)]
struct Retry {
    at: Instant,
    pause: Duration,
    failures: u32,
}

/// A call to a mapper.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) struct Call {
    pub(in super::super) protocol: String,
    pub(in super::super) address: String,
    pub(in super::super) what: What,
    generation: u64,
    /// What the mapper was told of the device before.
    before: Option<Told>,
}

/// What a mapper is called with.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) enum What {
    CreateModel(DeviceId, Arc<proto::DeviceModel>, u128),
    UpdateModel(DeviceId, Arc<proto::DeviceModel>, u128),
    RemoveModel(ModelId),
    Register(DeviceId, Arc<proto::Device>, u128),
    Update(DeviceId, Arc<proto::Device>, u128),
    Remove(DeviceId),
}

/// What became of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum Outcome {
    Done,
    /// The mapper said no.
    Refused(Code, String),
    /// The mapper said nothing, so that nobody knows whether it took the call.
    Silent(String),
    /// Nobody is there.
    Unreachable(String),
}

/// How often a mapper may refuse to remove a device, or a model, before it is left alone with it.
const REMOVALS_MAX: u32 = 5;

/// What stands for a model that the mapper has, nobody knows how: no fingerprint is this by chance.
const SOME_MODEL: u128 = 0;

impl Retry {
    fn fresh(now: Instant, limits: &Limits) -> Self {
        Self { at: now, pause: limits.retry_min, failures: 0 }
    }

    fn fail(&mut self, now: Instant, limits: &Limits) {
        self.at = now + self.pause;
        self.pause = (self.pause * 2).min(limits.retry_max);
        self.failures += 1;
    }
}

impl Mapper {
    pub(super) fn new(registration: Registration, limits: &Limits, now: Instant) -> Self {
        Self {
            registration,
            told: BTreeMap::new(),
            unwritten: BTreeSet::new(),
            maybe_in_store: BTreeSet::new(),
            models: BTreeMap::new(),
            open: BTreeMap::new(),
            tidy: false,
            busy: false,
            generation: 0,
            retry: Retry::fresh(now, limits),
            bucket: Bucket::new(limits.calls_at_once, now),
        }
    }

    /// Takes what the store says that it was told.
    pub(super) fn restore(&mut self, id: DeviceId, told: Told) {
        if told == Told::Maybe {
            self.maybe_in_store.insert(id.clone());
        }
        self.told.insert(id, told);
    }

    /// The store has everything.
    pub(super) fn written(&mut self) {
        for id in std::mem::take(&mut self.unwritten) {
            if self.told(&id) == Some(Told::Maybe) {
                self.maybe_in_store.insert(id);
            } else {
                self.maybe_in_store.remove(&id);
            }
        }
    }

    /// Whether a call may be made only after the store says that it may have been made.
    pub(super) fn must_write(&self, call: &Call) -> bool {
        call.what.told_of().is_some_and(|id| !self.maybe_in_store.contains(id))
    }

    /// It has registered, so what it knows is what the answer says.
    pub(super) fn registered(
        &mut self,
        told: BTreeMap<DeviceId, Told>,
        models: BTreeMap<ModelId, u128>,
        limits: &Limits,
        now: Instant,
    ) {
        let ids: BTreeSet<_> = self.told.keys().chain(told.keys()).cloned().collect();
        for id in ids {
            let told = told.get(&id).copied();
            self.note(&id, told);
        }
        self.models = models;
        self.open.clear();
        self.generation += 1;
        self.retry = Retry::fresh(now, limits);
    }

    /// What it was told of a device.
    pub(super) fn told(&self, id: &DeviceId) -> Option<Told> {
        self.told.get(id).copied()
    }

    /// The devices that it was told.
    pub(super) fn knows(&self) -> impl Iterator<Item = &DeviceId> {
        self.told.keys()
    }

    fn note(&mut self, id: &DeviceId, told: Option<Told>) {
        let before = match told {
            Some(told) => self.told.insert(id.clone(), told),
            None => self.told.remove(id),
        };
        if before != told {
            self.unwritten.insert(id.clone());
        }
    }

    /// Compares what it was told of a device with what there is, `device` being the one that should be run by it.
    pub(super) fn look_at(&mut self, id: &DeviceId, device: Option<&Device>, limits: &Limits, now: Instant) {
        let same_model =
            |device: &Device| self.models.get(&device.model_id()) == Some(&device.model_fingerprint);
        if self.told(id) == device.map(|device| Told::As(device.fingerprint)) && device.is_none_or(same_model)
        {
            self.open.remove(id);
        } else {
            // What has changed is told at once, whatever became of the last call about it.
            self.open.insert(id.clone(), Retry::fresh(now, limits));
        }
        self.tidy |= device.is_none();
    }

    /// The next call, if it is time for one. Until its outcome is known, the mapper may or may not know of it.
    pub(super) fn next(
        &mut self,
        protocol: &str,
        devices: &BTreeMap<DeviceId, Device>,
        now: Instant,
    ) -> Option<Call> {
        if self.busy || self.retry.at > now {
            return None;
        }
        let what = loop {
            let due = self.open.iter().filter(|(_, retry)| retry.at <= now);
            let Some(id) = due.min_by_key(|(_, retry)| retry.at).map(|(id, _)| id.clone()) else {
                break What::RemoveModel(self.unused_model(protocol, devices)?);
            };
            match self.about(&id, devices.get(&id).filter(|device| device.protocol == protocol)) {
                Some(what) => break what,
                // Only the model had changed, and the mapper was told that for another device.
                None => self.open.remove(&id),
            };
        };
        self.busy = true;
        let before = what.told_of().and_then(|id| self.told(id));
        if let Some(id) = what.told_of() {
            self.note(id, Some(Told::Maybe));
        }
        if let What::UpdateModel(_, model, _) = &what {
            self.models.insert((model.namespace.clone(), model.name.clone()), SOME_MODEL);
        }
        Some(Call {
            protocol: protocol.to_owned(),
            address: self.registration.address.clone(),
            what,
            generation: self.generation,
            before,
        })
    }

    fn about(&mut self, id: &DeviceId, device: Option<&Device>) -> Option<What> {
        let Some(device) = device else { return Some(What::Remove(id.clone())) };
        let id = id.clone();
        match self.models.get(&device.model_id()) {
            None => return Some(What::CreateModel(id, device.model.clone(), device.model_fingerprint)),
            Some(told) if *told != device.model_fingerprint => {
                return Some(What::UpdateModel(id, device.model.clone(), device.model_fingerprint));
            }
            Some(_) => {}
        }
        match self.told(&id) {
            None => Some(What::Register(id, device.message.clone(), device.fingerprint)),
            Some(Told::As(told)) if told == device.fingerprint => None,
            Some(Told::Maybe | Told::As(_)) => {
                Some(What::Update(id, device.message.clone(), device.fingerprint))
            }
        }
    }

    /// A model that none of its devices has any more.
    fn unused_model(&mut self, protocol: &str, devices: &BTreeMap<DeviceId, Device>) -> Option<ModelId> {
        if !self.tidy || !self.open.is_empty() {
            return None;
        }
        let own = devices.values().filter(|device| device.protocol == protocol);
        let used: BTreeSet<ModelId> = own.map(Device::model_id).collect();
        let unused = self.models.keys().find(|model| !used.contains(*model)).cloned();
        self.tidy = unused.is_some();
        unused
    }

    /// When the next call may be made, if there is one to make.
    pub(super) fn due(&self) -> Option<Instant> {
        if self.busy {
            return None;
        }
        let next = self.open.values().map(|retry| retry.at).min();
        let tidy = (self.tidy && self.open.is_empty()).then_some(self.retry.at);
        next.or(tidy).map(|at| at.max(self.retry.at))
    }

    /// Takes what became of a call.
    pub(super) fn handle_outcome(
        &mut self,
        call: Call,
        outcome: Outcome,
        devices: &BTreeMap<DeviceId, Device>,
        limits: &Limits,
        now: Instant,
    ) {
        self.busy = false;
        let about = call.what.device().cloned();
        let device = about.as_ref().and_then(|id| devices.get(id));
        let device = device.filter(|device| device.protocol == call.protocol);
        if call.generation != self.generation {
            // It may have come before the answer to the registration, or after it.
            if let Some(id) = about.filter(|id| self.told.contains_key(id)) {
                self.note(&id, Some(Told::Maybe));
                self.look_at(&id, device, limits, now);
            }
            return;
        }
        let waiting = device.map(Device::waiting).unwrap_or_default();
        match &outcome {
            Outcome::Silent(why) | Outcome::Unreachable(why) => {
                tracing::warn!(
                    mapper = self.registration.name, protocol = call.protocol, call = %call.what, why, ?waiting,
                    retry_in = ?self.retry.pause, "the mapper does not answer"
                );
                self.retry.fail(now, limits);
            }
            Outcome::Refused(code, why) => {
                tracing::warn!(
                    mapper = self.registration.name, protocol = call.protocol, call = %call.what, ?code, why, ?waiting,
                    "the mapper refuses"
                );
                self.retry = Retry::fresh(now, limits);
            }
            Outcome::Done => self.retry = Retry::fresh(now, limits),
        }
        match outcome {
            Outcome::Done => {
                self.done(call.what);
                if let Some(id) = about {
                    self.look_at(&id, device, limits, now);
                }
            }
            Outcome::Refused(code, _) => {
                self.take_back(&call);
                self.refused(call.what, code, limits, now);
            }
            Outcome::Unreachable(_) => {
                self.take_back(&call);
                self.fail(about.as_ref(), limits, now);
            }
            Outcome::Silent(_) => {
                self.fail(about.as_ref(), limits, now);
            }
        }
    }

    /// The call changed nothing.
    fn take_back(&mut self, call: &Call) {
        if let Some(id) = call.what.told_of() {
            self.note(id, call.before);
        }
    }

    fn done(&mut self, what: What) {
        match what {
            What::CreateModel(_, model, hash) | What::UpdateModel(_, model, hash) => {
                self.models.insert((model.namespace.clone(), model.name.clone()), hash);
            }
            What::RemoveModel(model) => drop(self.models.remove(&model)),
            What::Register(id, _, told) | What::Update(id, _, told) => self.note(&id, Some(Told::As(told))),
            What::Remove(id) => self.note(&id, None),
        }
    }

    /// The mapper said no: where that says what it knows, it is told what fits that; where not, again later.
    fn refused(&mut self, what: What, code: Code, limits: &Limits, now: Instant) {
        match (what, code) {
            (What::CreateModel(_, model, _), Code::AlreadyExists) => {
                self.models.insert((model.namespace.clone(), model.name.clone()), SOME_MODEL);
            }
            (What::UpdateModel(id, model, _), Code::NotFound) => {
                self.models.remove(&(model.namespace.clone(), model.name.clone()));
                self.fail(Some(&id), limits, now);
            }
            (What::RemoveModel(model), _) => drop(self.models.remove(&model)),
            (What::Register(id, ..), Code::AlreadyExists) => self.note(&id, Some(Told::Maybe)),
            (What::Update(id, ..), code) => {
                // Whoever may not know the device, and does not say so by the code for it, is told to register it.
                if code == Code::NotFound || self.told(&id) == Some(Told::Maybe) {
                    self.note(&id, None);
                }
                self.fail(Some(&id), limits, now);
            }
            (What::Remove(id), Code::NotFound) => self.removed(&id),
            (What::Remove(id), _) => {
                if self.fail(Some(&id), limits, now) >= REMOVALS_MAX {
                    self.removed(&id);
                }
            }
            (What::CreateModel(id, ..) | What::UpdateModel(id, ..) | What::Register(id, ..), _) => {
                self.fail(Some(&id), limits, now);
            }
        }
    }

    fn removed(&mut self, id: &DeviceId) {
        self.note(id, None);
        self.open.remove(id);
        self.tidy = true;
    }

    /// Puts a device behind the others for a while. Returns how often that has happened in a row.
    fn fail(&mut self, id: Option<&DeviceId>, limits: &Limits, now: Instant) -> u32 {
        let Some(retry) = id.and_then(|id| self.open.get_mut(id)) else { return 0 };
        retry.fail(now, limits);
        retry.failures
    }

    /// A call that was to be made could not be noted in the store, and was not made.
    pub(super) fn not_made(&mut self, call: &Call, limits: &Limits, now: Instant) {
        self.busy = false;
        self.retry.fail(now, limits);
        self.take_back(call);
    }
}

impl What {
    /// The device that it is about, or for the sake of which it is made.
    pub(super) fn device(&self) -> Option<&DeviceId> {
        match self {
            Self::CreateModel(id, ..)
            | Self::UpdateModel(id, ..)
            | Self::Register(id, ..)
            | Self::Update(id, ..)
            | Self::Remove(id) => Some(id),
            Self::RemoveModel(_) => None,
        }
    }
}

impl What {
    /// The device of which the mapper knows something else after it.
    fn told_of(&self) -> Option<&DeviceId> {
        match self {
            Self::Register(id, ..) | Self::Update(id, ..) | Self::Remove(id) => Some(id),
            Self::CreateModel(..) | Self::UpdateModel(..) | Self::RemoveModel(_) => None,
        }
    }
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::CreateModel(id, model, _) => write!(f, "CreateDeviceModel {} for {id}", model.name),
            Self::UpdateModel(id, model, _) => write!(f, "UpdateDeviceModel {} for {id}", model.name),
            Self::RemoveModel((namespace, name)) => write!(f, "RemoveDeviceModel {namespace}/{name}"),
            Self::Register(id, ..) => write!(f, "RegisterDevice {id}"),
            Self::Update(id, ..) => write!(f, "UpdateDevice {id}"),
            Self::Remove(id) => write!(f, "RemoveDevice {id}"),
        }
    }
}
