//! Modbus TCP, and Modbus RTU through a gateway that carries its frames over TCP.
//!
//! Settings have the names of KubeEdge's Modbus mapper. The device's protocol settings:
//!
//! | Key | Meaning |
//! |---|---|
//! | `ip` (or `host`) | the device, or the gateway that it is behind |
//! | `port` | 502 unless it says otherwise |
//! | `slaveID` | the device's number, 0 to 255; 1 unless it says otherwise |
//! | `mode` | `TCP` (the default), or `RTU` for RTU frames over TCP |
//! | `timeout` | how many milliseconds an answer may take; 1000 unless it says otherwise |
//!
//! A property's visitor:
//!
//! | Key | Meaning |
//! |---|---|
//! | `register` | `CoilRegister`, `DiscreteInputRegister`, `HoldingRegister` or `InputRegister` |
//! | `offset` | the first register's address, counted from zero |
//! | `limit` | how many registers, or coils; what the property's type needs unless it says otherwise |
//! | `scale` | what the device's number is multiplied by |
//! | `isSwap`, `isRegisterSwap` | the two bytes of each register, and the registers, come in the other order |
//! | `dataType` | `int16`, `uint16`, `int32`, `uint32`, `int64`, `uint64`, `float32`, `float64`; otherwise numbers have no sign, and those of `FLOAT` and `DOUBLE` in two or four registers are IEEE 754 |
//!
//! Devices behind one gateway share its connection, one request at a time, as a serial bus needs it. A serial port of
//! the node is not opened: the crate for it has a licence that this project does not take; `ser2net` or any gateway
//! makes one reachable over TCP, with the mode `RTU`.

mod bus;
mod register;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use kubeedge_core::device::{
    AccessMode, DeviceError, DeviceHandle, DeviceProtocol, DeviceSpec, PropertySpec,
};

use self::{
    bus::{Bus, Framing},
    register::Register,
};
use super::settings::Settings;

/// Drives Modbus devices. Clones share their connections.
#[derive(Debug, Clone)]
pub struct Modbus {
    name: Arc<str>,
    buses: Arc<Mutex<BTreeMap<Address, Weak<Bus>>>>,
}

/// A device's, or a gateway's, place in the network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Address {
    host: String,
    port: u16,
    framing: Framing,
}

/// What a device's protocol settings say.
#[derive(Debug, PartialEq, Eq)]
struct Connection {
    address: Address,
    slave: u8,
    timeout: Duration,
}

impl Default for Modbus {
    fn default() -> Self {
        Self::named("modbus")
    }
}

impl Modbus {
    /// Creates the protocol under a name; devices whose `spec.protocol.protocolName` is this are given to it.
    pub fn named(name: &str) -> Self {
        Self { name: name.into(), buses: Arc::default() }
    }

    /// The bus at this address; devices share it while one of them is open.
    fn bus(&self, address: Address) -> Arc<Bus> {
        // No code of others runs under the lock, so a poisoned map is still whole.
        let mut buses = self.buses.lock().unwrap_or_else(PoisonError::into_inner);
        buses.retain(|_, bus| bus.strong_count() > 0);
        if let Some(bus) = buses.get(&address).and_then(Weak::upgrade) {
            return bus;
        }
        let bus = Arc::new(Bus::new(&address.host, address.port, address.framing));
        buses.insert(address, Arc::downgrade(&bus));
        bus
    }
}

impl Connection {
    fn read(spec: &DeviceSpec) -> Result<Self, String> {
        let settings = Settings(&spec.protocol_config);
        let Some(host) = settings.text(&["ip", "host"])? else {
            let serial = settings.text(&["serialPort"])?.is_some();
            return Err(if serial {
                "serialPort: serial ports are not opened; make it reachable over TCP, such as with ser2net, and \
                 give ip, port, and the mode RTU"
                    .to_owned()
            } else {
                "ip is missing: the address of the device or of its gateway".to_owned()
            });
        };
        let framing = match settings.text(&["mode"])?.map(str::to_ascii_uppercase).as_deref() {
            None | Some("TCP") => Framing::Tcp,
            Some("RTU" | "RTUOVERTCP") => Framing::RtuOverTcp,
            Some(other) => return Err(format!("mode is {other:?}, and neither TCP nor RTU")),
        };
        let port = settings.whole(&["port"], 1, 65_535)?.unwrap_or(502);
        let slave = settings.whole(&["slaveID", "slaveId"], 0, 255)?.unwrap_or(1);
        let timeout = settings.whole(&["timeout"], 1, 60_000)?.unwrap_or(1_000);
        Ok(Self {
            address: Address { host: host.to_owned(), port: u16::try_from(port).unwrap_or(502), framing },
            slave: u8::try_from(slave).unwrap_or(1),
            timeout: Duration::from_millis(timeout.into()),
        })
    }
}

#[async_trait]
impl DeviceProtocol for Modbus {
    fn name(&self) -> &str {
        &self.name
    }

    async fn open(&self, spec: &DeviceSpec) -> Result<Box<dyn DeviceHandle>, DeviceError> {
        let Connection { address, slave, timeout } = Connection::read(spec)
            .map_err(|why| DeviceError::Invalid(format!("spec.protocol.configData: {why}")))?;
        let bus = self.bus(address);
        bus.connect(timeout).await.map_err(DeviceError::Unreachable)?;
        let registers =
            spec.properties.iter().map(|property| (property.name.clone(), Register::read(property)));
        Ok(Box::new(Handle { bus, slave, timeout, registers: registers.collect() }))
    }
}

#[derive(Debug)]
struct Handle {
    bus: Arc<Bus>,
    slave: u8,
    timeout: Duration,
    /// What a property is; the others of a device work although one has a visitor that cannot.
    registers: BTreeMap<String, Result<Register, String>>,
}

impl Handle {
    fn register(&self, property: &PropertySpec) -> Result<Register, DeviceError> {
        match self.registers.get(&property.name) {
            Some(Ok(register)) => Ok(register.clone()),
            Some(Err(why)) => Err(DeviceError::Invalid(format!("visitors.configData: {why}"))),
            None => Err(DeviceError::Invalid(format!("the device has no property {:?}", property.name))),
        }
    }
}

#[async_trait]
impl DeviceHandle for Handle {
    async fn read(&mut self, property: &PropertySpec) -> Result<String, DeviceError> {
        let register = self.register(property)?;
        let found = self.bus.call(self.slave, self.timeout, register.request()).await?;
        register.value(property, found).map_err(DeviceError::Invalid)
    }

    async fn write(&mut self, property: &PropertySpec, value: &str) -> Result<(), DeviceError> {
        let register = self.register(property)?;
        if property.access == AccessMode::ReadOnly {
            return Err(DeviceError::Rejected(format!("{:?} can only be read", property.name)));
        }
        let request = register.write(property, value).map_err(DeviceError::Rejected)?;
        match self.bus.call(self.slave, self.timeout, request).await {
            Ok(_) => Ok(()),
            Err(DeviceError::Invalid(why)) => Err(DeviceError::Rejected(why)),
            Err(error) => Err(error),
        }
    }
}
