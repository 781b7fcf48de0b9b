//! A [`DeviceProtocol`] without devices: values and failures are whatever a test or an example says.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;

use super::{AccessMode, DeviceError, DeviceHandle, DeviceProtocol, DeviceSpec, PropertySpec, PropertyType};
use crate::id::DeviceId;

/// Devices in memory. Clones share them, so that one clone can be given away and the other keeps the strings.
///
/// A value that nobody set is the type's zero. What is written outlives the handle, as in a real device.
#[derive(Clone)]
pub struct MemoryProtocol {
    name: Arc<str>,
    devices: Arc<Mutex<BTreeMap<DeviceId, Device>>>,
}

/// What can be wrong with a device in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It does not answer, and says so at once.
    Unreachable,
    /// It never comes back: neither an answer nor an error.
    Hangs,
    /// It takes no value; reading works.
    RejectsWrites,
    /// Its specification cannot work.
    Invalid,
}

#[derive(Debug, Default)]
struct Device {
    values: BTreeMap<String, String>,
    fault: Option<Fault>,
    opens: usize,
    reads: usize,
    writes: Vec<(String, String)>,
}

impl MemoryProtocol {
    /// Creates a protocol of this name, without devices.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), devices: Arc::default() }
    }

    /// Sets what a property of a device has.
    pub fn set(&self, device: &DeviceId, property: &str, value: &str) {
        self.with(device, |device| device.values.insert(property.to_owned(), value.to_owned()));
    }

    /// What a property of a device has, if it was set or written.
    pub fn value(&self, device: &DeviceId, property: &str) -> Option<String> {
        self.with(device, |device| device.values.get(property).cloned())
    }

    /// Breaks a device, or repairs it.
    pub fn set_fault(&self, device: &DeviceId, fault: Option<Fault>) {
        self.with(device, |device| device.fault = fault);
    }

    /// How often the device was opened.
    pub fn opens(&self, device: &DeviceId) -> usize {
        self.with(device, |device| device.opens)
    }

    /// How many values were read from the device.
    pub fn reads(&self, device: &DeviceId) -> usize {
        self.with(device, |device| device.reads)
    }

    /// What was written to the device, in order.
    pub fn writes(&self, device: &DeviceId) -> Vec<(String, String)> {
        self.with(device, |device| device.writes.clone())
    }

    fn with<R>(&self, device: &DeviceId, f: impl FnOnce(&mut Device) -> R) -> R {
        f(self.lock().entry(device.clone()).or_default())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<DeviceId, Device>> {
        // No code of others runs under the lock, so a poisoned map is still whole.
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn fault(&self, device: &DeviceId) -> Result<Option<Fault>, DeviceError> {
        let fault = self.with(device, |device| device.fault);
        match fault {
            Some(Fault::Unreachable) => Err(DeviceError::Unreachable("it is unplugged".to_owned())),
            Some(Fault::Invalid) => {
                Err(DeviceError::Invalid("the device is not of this protocol".to_owned()))
            }
            Some(Fault::Hangs) => std::future::pending().await,
            Some(Fault::RejectsWrites) | None => Ok(fault),
        }
    }
}

impl fmt::Debug for MemoryProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryProtocol").field("name", &self.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl DeviceProtocol for MemoryProtocol {
    fn name(&self) -> &str {
        &self.name
    }

    async fn open(&self, spec: &DeviceSpec) -> Result<Box<dyn DeviceHandle>, DeviceError> {
        self.fault(&spec.device).await?;
        self.with(&spec.device, |device| device.opens += 1);
        Ok(Box::new(MemoryHandle { protocol: self.clone(), spec: spec.clone() }))
    }
}

#[derive(Debug)]
struct MemoryHandle {
    protocol: MemoryProtocol,
    spec: DeviceSpec,
}

impl MemoryHandle {
    fn known(&self, property: &PropertySpec) -> Result<(), DeviceError> {
        match self.spec.property(&property.name) {
            Some(_) => Ok(()),
            None => Err(DeviceError::Invalid(format!("the device has no property {:?}", property.name))),
        }
    }
}

#[async_trait]
impl DeviceHandle for MemoryHandle {
    async fn read(&mut self, property: &PropertySpec) -> Result<String, DeviceError> {
        self.protocol.fault(&self.spec.device).await?;
        self.known(property)?;
        Ok(self.protocol.with(&self.spec.device, |device| {
            device.reads += 1;
            let value = device.values.get(&property.name).cloned();
            value.unwrap_or_else(|| zero(property.value_type).to_owned())
        }))
    }

    async fn write(&mut self, property: &PropertySpec, value: &str) -> Result<(), DeviceError> {
        let fault = self.protocol.fault(&self.spec.device).await?;
        self.known(property)?;
        if property.access == AccessMode::ReadOnly || fault == Some(Fault::RejectsWrites) {
            return Err(DeviceError::Rejected(format!("{:?} cannot be written", property.name)));
        }
        self.protocol.with(&self.spec.device, |device| {
            device.writes.push((property.name.clone(), value.to_owned()));
            device.values.insert(property.name.clone(), value.to_owned());
        });
        Ok(())
    }
}

/// The value of a property that nobody set.
fn zero(value_type: PropertyType) -> &'static str {
    match value_type {
        PropertyType::Int | PropertyType::Float | PropertyType::Double => "0",
        PropertyType::Boolean => "false",
        PropertyType::String | PropertyType::Bytes | PropertyType::Stream => "",
    }
}

#[cfg(all(test, feature = "conformance"))]
mod tests {
    use super::*;
    use crate::device::conformance;

    #[tokio::test]
    async fn devices_in_memory_keep_the_contract() {
        let device = r#"{"metadata":{"namespace":"default","name":"d-1"},"spec":{"protocol":{"protocolName":"memory"},
            "properties":[{"name":"limit"},{"name":"temperature"}]}}"#;
        let model = r#"{"spec":{"properties":[{"name":"limit","type":"INT"},
            {"name":"temperature","type":"DOUBLE","accessMode":"ReadOnly"}]}}"#;
        let spec = DeviceSpec::from_json(device.as_bytes(), model.as_bytes()).unwrap();
        conformance::run(&MemoryProtocol::new("memory"), &spec, Some(("limit", "7"))).await;
    }
}
