//! Devices come, change and go while edgecore, the mapper and the answers between them are lost at random.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use kubeedge_core::{
    device::DeviceSpec,
    dmi::{self, proto},
    id::DeviceId,
    store::{MetaStore, MetaStoreExt, memory::MemoryStore},
};
use tonic::Code;

use super::{
    super::{
        Config, record,
        state::{Call, Outcome, What},
    },
    Clocked, assign, gone, id, registration, spec,
};

/// A mapper that keeps strictly to the words: a device is registered once, and only what is there is updated.
#[derive(Default)]
struct Strict {
    devices: BTreeMap<DeviceId, proto::Device>,
    models: BTreeMap<String, proto::DeviceModel>,
    created_twice: usize,
    is_up: bool,
}

impl Strict {
    fn take(&mut self, what: &What) -> Outcome {
        let refuse = |code| Outcome::Refused(code, String::new());
        match what {
            What::CreateModel(_, model, _) | What::UpdateModel(_, model, _) => {
                self.models.insert(model.name.clone(), proto::DeviceModel::clone(model));
            }
            What::RemoveModel((_, name)) => drop(self.models.remove(name)),
            What::Register(id, device, _) => {
                if self.devices.insert(id.clone(), proto::Device::clone(device)).is_some() {
                    self.created_twice += 1;
                }
            }
            What::Update(id, device, _) => match self.devices.get_mut(id) {
                Some(known) => *known = proto::Device::clone(device),
                None => return refuse(Code::NotFound),
            },
            What::Remove(id) => {
                if self.devices.remove(id).is_none() {
                    return refuse(Code::NotFound);
                }
            }
        }
        Outcome::Done
    }
}

struct World {
    edge: Clocked,
    store: Arc<MemoryStore>,
    mapper: Strict,
    desired: BTreeMap<DeviceId, DeviceSpec>,
    random: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mapper = Strict { is_up: true, ..Strict::default() };
        let (store, desired) = (Arc::new(MemoryStore::new()), BTreeMap::new());
        Self { edge: Clocked::new(), store, mapper, desired, random: seed }
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % limit
    }

    fn change_devices(&mut self) -> DeviceId {
        let name = format!("d-{}", self.below(4));
        if self.below(4) == 0 {
            self.desired.remove(&id(&name));
        } else {
            let (limit, unit) = (self.below(3).to_string(), ["bar", "Pa"][self.below(2) as usize]);
            self.desired.insert(id(&name), spec(&name, "rig", &limit, unit));
            // All devices of a model see the same one, as DeviceTwin has it.
            for (other, device) in &mut self.desired {
                let limit = device.property("limit").unwrap().desired.clone().unwrap();
                *device = spec(other.name(), "rig", &limit, unit);
            }
        }
        id(&name)
    }

    fn assign(&mut self, changed: &DeviceId) {
        if !self.desired.contains_key(changed) {
            self.edge.assign(gone(changed.name()));
        }
        for spec in self.desired.values() {
            self.edge.assign(assign(spec.clone()));
        }
    }

    async fn commit(&mut self) {
        self.store.commit(self.edge.state.batch().unwrap()).await.unwrap();
        self.edge.state.written();
    }

    /// Edgecore crashes, and misses what changes until it is back.
    async fn restart_edge(&mut self) {
        for _ in 0..self.below(3) {
            self.change_devices();
        }
        self.edge = Clocked::with(Config::new("/run/test/dmi.sock"));
        let now = self.edge.now().at;
        for (key, value) in self.store.scan_all(&record::mappers()).await.unwrap() {
            let registration = record::decode(&value).unwrap();
            self.edge.state.restore_mapper(record::protocol_of(&key).unwrap(), registration, now);
        }
        for (key, value) in self.store.scan_all(&record::told()).await.unwrap() {
            let (protocol, device) = record::told_of(&key).unwrap();
            self.edge.state.restore_told(&protocol, device, record::decode(&value).unwrap());
        }
        for spec in self.desired.values() {
            self.edge.assign(assign(spec.clone()));
        }
    }

    /// The mapper forgets everything, and registers.
    async fn restart_mapper(&mut self) {
        let created_twice = self.mapper.created_twice;
        self.mapper = Strict { created_twice, is_up: true, ..Strict::default() };
        let request = registration("m", "rig", "/run/test/m.sock");
        let answer = self.edge.state.handle_register(request, self.edge.now()).unwrap();
        self.commit().await;
        for device in answer.device_list {
            self.mapper.devices.insert(id(&device.name), device);
        }
        for model in answer.model_list {
            self.mapper.models.insert(model.name.clone(), model);
        }
    }

    /// Makes a call if there is one. Returns whether there was one.
    async fn step(&mut self, faults: bool) -> bool {
        self.edge.state.handle_timeout(self.edge.now().at);
        let Some(call) = self.edge.call() else { return false };
        if self.edge.state.must_write(std::slice::from_ref(&call))
            || self.edge.state.is_write_due(self.edge.now().at)
        {
            self.commit().await;
        }
        match if faults { self.below(12) } else { 11 } {
            0 => self.outcome(call, Outcome::Silent("lost on the way there".into())),
            1 => {
                self.mapper.take(&call.what);
                self.outcome(call, Outcome::Silent("lost on the way back".into()));
            }
            2 => {
                self.mapper.take(&call.what);
                self.restart_edge().await;
            }
            _ if !self.mapper.is_up => self.outcome(call, Outcome::Unreachable("nobody is there".into())),
            _ => {
                let outcome = self.mapper.take(&call.what);
                self.outcome(call, outcome);
            }
        }
        true
    }

    fn outcome(&mut self, call: Call, outcome: Outcome) {
        self.edge.state.handle_outcome(call, outcome, self.edge.now().at);
    }
}

#[tokio::test]
async fn a_mapper_ends_up_with_its_devices_and_none_was_created_twice_whatever_was_lost() {
    let seeds = std::env::var("DMI_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(60);
    for seed in 0..seeds {
        let mut world = World::new(seed);
        world.restart_mapper().await;
        for _ in 0..80 {
            match world.below(16) {
                0..6 => {
                    let changed = world.change_devices();
                    world.assign(&changed);
                }
                6 => world.restart_edge().await,
                7 => world.restart_mapper().await,
                8 => world.mapper.is_up = !world.mapper.is_up,
                _ => drop(world.step(true).await),
            }
            world.edge.passed += Duration::from_millis(700);
        }
        world.mapper.is_up = true;
        for _ in 0..400 {
            world.step(false).await;
            world.edge.passed += Duration::from_secs(1);
        }
        let wanted: BTreeMap<_, _> =
            world.desired.iter().map(|(id, spec)| (id.clone(), dmi::device(spec).unwrap())).collect();
        assert_eq!(world.mapper.devices, wanted, "seed {seed}");
        let models: BTreeSet<_> = wanted.values().map(|_| "boiler".to_owned()).collect();
        assert!(models.iter().all(|model| world.mapper.models.contains_key(model)), "seed {seed}");
        for spec in world.desired.values() {
            assert_eq!(world.mapper.models["boiler"], dmi::model(spec).unwrap(), "seed {seed}");
        }
        assert_eq!(world.mapper.created_twice, 0, "seed {seed}");
    }
}
