//! A simulated thermometer with a heater: a protocol without hardware.
//!
//! Each device is a room. Its temperature drifts towards the setpoint with every reading and wanders a little around
//! it, always in the same way for the same seed. A property is what its visitor's `kind` says, or what its name says:
//!
//! | `kind` | Names | Access | Meaning |
//! |---|---|---|---|
//! | `temperature` | `temperature` | read | degrees Celsius in the room |
//! | `setpoint` | `target`, `setpoint`, `target-temperature` | read, write | degrees Celsius that the heater aims at |
//! | `heater` | `heater` | read | whether the heater is on: `true` or `false` |
//!
//! The device's protocol settings may give `initial` (21, the temperature to begin with), `setpoint` (21, what the
//! heater aims at until it is told) and `noise` (0.2, how far the temperature wanders; zero makes it stand still once
//! it is there).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use kubeedge_core::{
    device::{DeviceError, DeviceHandle, DeviceProtocol, DeviceSpec, PropertySpec, PropertyType},
    id::DeviceId,
};

/// Simulated thermometers. Rooms live in the protocol and not in its handles, so a device that is opened again, by a
/// mapper or a whole edge that was restarted in this process, finds its room as it was. Clones share the rooms.
#[derive(Debug, Clone)]
pub struct SimulatedThermometer {
    name: Arc<str>,
    seed: u64,
    rooms: Rooms,
}

type Rooms = Arc<Mutex<BTreeMap<DeviceId, Room>>>;

/// How much of the way to the setpoint a room goes with each reading.
const STEP: f64 = 0.25;

/// Absolute zero and the boiling point of iron: the heater takes no setpoint outside.
const SETPOINTS: std::ops::RangeInclusive<f64> = -273.15..=2_862.0;

#[derive(Debug)]
struct Room {
    temperature: f64,
    setpoint: f64,
    /// The setpoint as it was written, so that it reads back as it is.
    setpoint_text: String,
    noise: f64,
    random: u64,
}

/// What a property of the thermometer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Temperature,
    Setpoint,
    Heater,
}

impl Default for SimulatedThermometer {
    fn default() -> Self {
        Self::new(0)
    }
}

impl SimulatedThermometer {
    /// Creates the protocol `thermometer`. The seed decides how temperatures wander.
    pub fn new(seed: u64) -> Self {
        Self::named("thermometer", seed)
    }

    /// Creates the protocol under another name.
    pub fn named(name: &str, seed: u64) -> Self {
        Self { name: name.into(), seed, rooms: Rooms::default() }
    }

    /// The setpoint of a device's room, once the device was opened: what the heater was told last.
    pub fn setpoint(&self, device: &DeviceId) -> Option<f64> {
        lock(&self.rooms).get(device).map(|room| room.setpoint)
    }
}

#[async_trait]
impl DeviceProtocol for SimulatedThermometer {
    fn name(&self) -> &str {
        &self.name
    }

    async fn open(&self, spec: &DeviceSpec) -> Result<Box<dyn DeviceHandle>, DeviceError> {
        let number = |key: &str, default: f64| match spec.protocol_config.get(key) {
            None => Ok(default),
            Some(value) => {
                let number = value.as_f64().filter(|number| number.is_finite());
                number.ok_or_else(|| DeviceError::Invalid(format!("{key} is {value}, and no number")))
            }
        };
        let (initial, setpoint, noise) =
            (number("initial", 21.0)?, number("setpoint", 21.0)?, number("noise", 0.2)?);
        let seed = spec.device.to_string().bytes().fold(self.seed, |seed, byte| {
            // FNV-1a, so that each room wanders in its own way.
            (seed ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        lock(&self.rooms).entry(spec.device.clone()).or_insert_with(|| Room {
            temperature: initial,
            setpoint,
            setpoint_text: setpoint.to_string(),
            noise,
            random: seed,
        });
        Ok(Box::new(Handle { rooms: self.rooms.clone(), device: spec.device.clone() }))
    }
}

fn lock(rooms: &Mutex<BTreeMap<DeviceId, Room>>) -> MutexGuard<'_, BTreeMap<DeviceId, Room>> {
    // No code of others runs under the lock, so poisoned rooms are still whole.
    rooms.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Handle {
    rooms: Rooms,
    device: DeviceId,
}

impl Handle {
    fn with<R>(&self, f: impl FnOnce(&mut Room) -> R) -> Result<R, DeviceError> {
        let mut rooms = lock(&self.rooms);
        let room = rooms.get_mut(&self.device);
        room.map(f).ok_or_else(|| DeviceError::Unreachable("the room is gone".to_owned()))
    }
}

#[async_trait]
impl DeviceHandle for Handle {
    async fn read(&mut self, property: &PropertySpec) -> Result<String, DeviceError> {
        let kind = kind(property)?;
        self.with(|room| match kind {
            Kind::Temperature => text(room.wander(), property.value_type),
            Kind::Setpoint => room.setpoint_text.clone(),
            Kind::Heater => (room.temperature < room.setpoint).to_string(),
        })
    }

    async fn write(&mut self, property: &PropertySpec, value: &str) -> Result<(), DeviceError> {
        if kind(property)? != Kind::Setpoint {
            return Err(DeviceError::Rejected(format!("{:?} can only be read", property.name)));
        }
        let number = value.parse().ok().filter(|number: &f64| SETPOINTS.contains(number));
        let Some(setpoint) = number else {
            return Err(DeviceError::Rejected(format!("{value:?} is no temperature that a heater reaches")));
        };
        self.with(|room| {
            room.setpoint = setpoint;
            value.clone_into(&mut room.setpoint_text);
        })
    }
}

impl Room {
    /// Goes a step towards the setpoint. Returns the temperature as the thermometer shows it.
    fn wander(&mut self) -> f64 {
        self.temperature += (self.setpoint - self.temperature) * STEP;
        self.temperature + self.noise * self.random()
    }

    /// A number from -1 to 1 (xorshift64*).
    fn random(&mut self) -> f64 {
        let mut x = self.random | 1;
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random = x;
        let high = u32::try_from(x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32).unwrap_or_default();
        f64::from(high) / f64::from(u32::MAX) * 2.0 - 1.0
    }
}

fn kind(property: &PropertySpec) -> Result<Kind, DeviceError> {
    let named = property.visitor.get("kind").and_then(|kind| kind.as_str()).unwrap_or(&property.name);
    match named {
        "temperature" => Ok(Kind::Temperature),
        "setpoint" | "target" | "target-temperature" => Ok(Kind::Setpoint),
        "heater" => Ok(Kind::Heater),
        other => Err(DeviceError::Invalid(format!("a thermometer has no {other:?}"))),
    }
}

/// A temperature as text: whole degrees for integers, else with one decimal place.
fn text(temperature: f64, value_type: PropertyType) -> String {
    let decimals = if value_type == PropertyType::Int { 0 } else { 1 };
    let text = format!("{temperature:.decimals$}");
    // A rounded -0.04 is no temperature that people write.
    if text.trim_start_matches(['-', '0', '.']).is_empty() {
        text.trim_start_matches('-').to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use kubeedge_core::device::conformance;

    use super::*;

    fn spec(config: &str) -> DeviceSpec {
        let device = format!(
            r#"{{"metadata":{{"namespace":"default","name":"t-1"}},"spec":{{
            "protocol":{{"protocolName":"thermometer","configData":{config}}},
            "properties":[{{"name":"temperature"}},{{"name":"target"}},{{"name":"whole","visitors":{{"configData":{{"kind":"temperature"}}}}}},{{"name":"heater"}}]}}}}"#
        );
        let model = r#"{"spec":{"properties":[
            {"name":"temperature","type":"DOUBLE","accessMode":"ReadOnly"},{"name":"target","type":"INT","minimum":"5","maximum":"30"},
            {"name":"whole","type":"INT","accessMode":"ReadOnly"},{"name":"heater","type":"BOOLEAN","accessMode":"ReadOnly"}]}}"#;
        DeviceSpec::from_json(device.as_bytes(), model.as_bytes()).unwrap()
    }

    async fn readings(protocol: &SimulatedThermometer, spec: &DeviceSpec, number: usize) -> Vec<String> {
        let mut handle = protocol.open(spec).await.unwrap();
        let mut values = Vec::new();
        for _ in 0..number {
            values.push(handle.read(spec.property("temperature").unwrap()).await.unwrap());
        }
        values
    }

    #[tokio::test]
    async fn a_thermometer_keeps_the_contract() {
        conformance::run(&SimulatedThermometer::new(7), &spec("{}"), Some(("target", "25"))).await;
    }

    #[tokio::test]
    async fn the_same_seed_wanders_the_same_way() {
        let spec = spec("{}");
        let one = readings(&SimulatedThermometer::new(7), &spec, 20).await;
        assert_eq!(one, readings(&SimulatedThermometer::new(7), &spec, 20).await);
        assert_ne!(one, readings(&SimulatedThermometer::new(8), &spec, 20).await);
    }

    #[tokio::test]
    async fn the_room_follows_the_setpoint_and_outlives_the_handle() {
        let (protocol, spec) = (SimulatedThermometer::new(7), spec(r#"{"noise":0,"initial":10}"#));
        let mut handle = protocol.open(&spec).await.unwrap();
        handle.write(spec.property("target").unwrap(), "30").await.unwrap();
        assert_eq!(handle.read(spec.property("heater").unwrap()).await.unwrap(), "true");
        drop(handle);
        let values = readings(&protocol, &spec, 40).await;
        assert_eq!(values.last().unwrap(), "30.0");
        assert_eq!(readings(&protocol, &spec, 3).await, ["30.0"; 3], "without noise it stands still");
        assert_eq!(protocol.setpoint(&spec.device), Some(30.0));
    }

    #[tokio::test]
    async fn what_no_heater_reaches_is_rejected() {
        let (protocol, spec) = (SimulatedThermometer::new(7), spec("{}"));
        let mut handle = protocol.open(&spec).await.unwrap();
        for bad in ["warm", "NaN", "inf", "1e300", ""] {
            let written = handle.write(spec.property("target").unwrap(), bad).await;
            assert!(matches!(written, Err(DeviceError::Rejected(_))), "{bad}");
        }
        assert!(matches!(
            protocol.open(&self::spec(r#"{"noise":"much"}"#)).await,
            Err(DeviceError::Invalid(_))
        ));
    }
}
