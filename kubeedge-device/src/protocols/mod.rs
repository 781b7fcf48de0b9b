//! Device protocols, one feature each. [`Mapper`](crate::mapper) runs them; each may have a name of the owner's.
//!
//! | Feature | Devices |
//! |---|---|
//! | `modbus` | Modbus TCP, and RTU through a gateway |
//! | `mqtt` | devices that publish and take values over MQTT |
//! | `http` | devices with an HTTP interface |
//! | `local` | files of the node, such as those of `/sys`, and the output of commands |
//! | `thermometer` | a simulated one, to try things with |
//!
//! OPC UA is left out: the implementations that there are have licences that this project does not take.

#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "local")]
pub mod local;
#[cfg(feature = "modbus")]
pub mod modbus;
#[cfg(feature = "mqtt")]
pub mod mqtt;
#[cfg(any(feature = "http", feature = "local", feature = "modbus", feature = "mqtt"))]
mod settings;
#[cfg(any(feature = "http", feature = "local", feature = "mqtt"))]
mod text;
#[cfg(feature = "thermometer")]
pub mod thermometer;
