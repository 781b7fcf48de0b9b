//! The Device Mapper Interface (DMI), v1beta1: gRPC between edgecore and mappers over unix sockets.
//!
//! [`proto`] has the messages and both services as KubeEdge numbers them; [`device`] and [`model`] make messages of
//! Kubernetes' objects, and [`spec`] makes of them again what drivers are made for. [`Socket`] serves one of the
//! services so that clients of every language can call, and [`endpoint`] calls the other.

mod authority;
mod from_proto;
mod socket;
#[cfg(test)]
mod tests;
mod to_proto;
mod value;

use sha2::{Digest, Sha256};

#[expect(missing_docs, reason = "generated from proto/dmi.proto")]
#[allow(clippy::all, clippy::use_self, clippy::wildcard_enum_match_arm, reason = "generated")]
pub mod proto {
    include!("v1beta1.rs");
}

pub use from_proto::{device_id, spec};
pub use socket::{Connection, FileId, PATH_MAX, Socket, SocketError, check_path, endpoint, file_id};
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

/// Tells whether two messages say the same, across restarts: the first half of the SHA-256 of their bytes.
pub fn fingerprint(message: &impl prost::Message) -> u128 {
    let digest = Sha256::digest(message.encode_to_vec());
    digest.iter().take(16).fold(0, |half, byte| (half << 8) | u128::from(*byte))
}
