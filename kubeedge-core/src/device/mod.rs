//! The port `DeviceProtocol`, and the vocabulary of devices: what DeviceTwin and mappers say to each other.

use std::{fmt, sync::Arc};

use async_trait::async_trait;

use crate::id::DeviceId;

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod memory;
mod push;
mod spec;
mod value;

pub use push::{HttpPush, MqttPush, PushMethod, Unsupported};
pub use spec::{AccessMode, DeviceSource, DeviceSpec, MethodSpec, PropertySpec, PropertyType, SpecError};

/// Speaks a device's protocol, such as Modbus.
#[async_trait]
pub trait DeviceProtocol: fmt::Debug + Send + Sync + 'static {
    /// The protocol's name: devices whose `spec.protocol.protocolName` is this are given to it.
    fn name(&self) -> &str;

    /// Opens a device. The handle is the device's only owner, so a serial bus needs no lock.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if the specification cannot work, [`DeviceError::Unreachable`] if the device
    /// does not answer now.
    async fn open(&self, spec: &DeviceSpec) -> Result<Box<dyn DeviceHandle>, DeviceError>;
}

/// An open device.
#[async_trait]
pub trait DeviceHandle: fmt::Debug + Send + 'static {
    /// Reads a property's value, as text in the form of the property's type.
    ///
    /// Dropping the future leaves the handle usable.
    ///
    /// # Errors
    /// [`DeviceError::Unreachable`] if the device does not answer (the mapper opens it again),
    /// [`DeviceError::Invalid`] if it has no such property.
    async fn read(&mut self, property: &PropertySpec) -> Result<String, DeviceError>;

    /// Writes a property's value. `Ok` says that the device has taken it.
    ///
    /// # Errors
    /// As [`DeviceHandle::read`]; [`DeviceError::Rejected`] if the device does not take this value.
    async fn write(&mut self, property: &PropertySpec, value: &str) -> Result<(), DeviceError>;
}

/// Says why a device did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The specification, or the property, is not what the protocol can use.
    #[error("{0}")]
    Invalid(String),
    /// The device does not answer.
    #[error("the device does not answer: {0}")]
    Unreachable(String),
    /// The device does not take the value.
    #[error("the device does not take the value: {0}")]
    Rejected(String),
}

/// What a mapper should do about a device: a state, whole, keyed by the device.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceAssignment {
    /// The device.
    pub device: DeviceId,
    /// How it should be run; `None` means that it is no longer there.
    pub spec: Option<DeviceSpec>,
}

impl DeviceAssignment {
    /// The key of the state.
    pub fn key(&self) -> DeviceId {
        self.device.clone()
    }
}

/// What a mapper has found: a state, keyed by device and property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// The device.
    pub device: DeviceId,
    /// What was found.
    pub content: ReadingContent,
}

/// The content of a [`Reading`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadingContent {
    /// A property's value.
    Property {
        /// The property's name.
        property: String,
        /// Its value.
        value: String,
        /// The desired value that the driver has last written, if any.
        observed_desired: Option<String>,
        /// When it was read, milliseconds since the Unix epoch.
        timestamp_ms: u64,
    },
    /// Whether the device is connected: `online`, `offline`, `unhealthy`.
    State(String),
}

impl Reading {
    /// The key of the state: the device, and the property (none for the connection state).
    pub fn key(&self) -> (DeviceId, Option<String>) {
        let property = match &self.content {
            ReadingContent::Property { property, .. } => Some(property.clone()),
            ReadingContent::State(_) => None,
        };
        (self.device.clone(), property)
    }
}

/// A value that was read from a device: an occurrence, of which each one matters, unlike [`Reading`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The device.
    pub device: DeviceId,
    /// The property's name.
    pub property: String,
    /// Its value.
    pub value: String,
    /// When it was read, milliseconds since the Unix epoch.
    pub timestamp_ms: u64,
    /// Where the device wants it pushed.
    pub push: Arc<[PushMethod]>,
}

impl Sample {
    /// How many bytes it takes in memory, about; for a pipe that weighs.
    pub fn size(&self) -> usize {
        size_of::<Self>()
            + self.device.namespace().len()
            + self.device.name().len()
            + self.property.len()
            + self.value.len()
    }
}

macro_rules! forward {
    ($($outer:ty),*) => {$(
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl<T: DeviceProtocol + ?Sized> DeviceProtocol for $outer {
            fn name(&self) -> &str {
                (**self).name()
            }
            async fn open(&self, spec: &DeviceSpec) -> Result<Box<dyn DeviceHandle>, DeviceError> {
                (**self).open(spec).await
            }
        }
    )*};
}
forward!(Arc<T>, Box<T>);
