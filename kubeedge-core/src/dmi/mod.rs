//! The Device Mapper Interface (DMI), v1beta1: gRPC between edgecore and mappers over unix sockets.
//!
//! [`proto`] has the messages and both services as KubeEdge numbers them.

#[expect(missing_docs, reason = "generated from proto/dmi.proto")]
#[allow(clippy::all, clippy::use_self, clippy::wildcard_enum_match_arm, reason = "generated")]
pub mod proto {
    include!("v1beta1.rs");
}
