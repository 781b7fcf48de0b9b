//! The kubelet's Device Plugin interface, v1beta1: the messages, and both ends of its gRPC services.

#[expect(missing_docs, reason = "generated from proto/device_plugin.proto")]
#[allow(clippy::all, clippy::use_self, clippy::wildcard_enum_match_arm, reason = "generated")]
pub mod proto {
    include!("v1beta1.rs");
}
