//! The Device Mapper Interface (DMI), v1beta1: gRPC between edgecore and mappers over unix sockets.
//!
//! [`proto`] has the messages and both services as KubeEdge numbers them; [`device`] and [`model`] make messages of
//! Kubernetes' objects, and [`spec`] makes of them again what drivers are made for. [`Socket`] serves one of the
//! services so that clients of every language can call, and [`channel`] calls the other.

mod authority;
mod from_proto;
mod socket;
#[cfg(test)]
mod tests;
mod to_proto;
mod value;

#[expect(missing_docs, reason = "generated from proto/dmi.proto")]
#[allow(clippy::all, clippy::use_self, clippy::wildcard_enum_match_arm, reason = "generated")]
pub mod proto {
    include!("v1beta1.rs");
}

pub use from_proto::{device_id, spec};
pub use socket::{Connection, FileId, PATH_MAX, Socket, SocketError, channel, check_path, file_id};
pub use to_proto::{device, model};

/// Says what of a device cannot be told, or understood, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {why}")]
pub struct ConvertError {
    /// The field's path, such as `spec.properties[2].visitors.configData.register`.
    pub path: String,
    /// What is wrong with it.
    pub why: String,
}
