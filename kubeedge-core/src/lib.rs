//! The contract of KubeEdge in Rust: what parts say to each other, what they stand on, and how the link
//! between edge and cloud behaves.
//!
//! * [`id`] and [`message`]: the vocabulary, parsed once and typed from then on.
//! * [`pipe`]: how parts are connected; [`group`]: how they are run and stopped together.
//! * Ports, each a folder with its contract, an in-memory adapter, our default adapter and a conformance
//!   suite: [`transport`], [`store`], [`runtime`], [`device`].
//! * [`hub`]: both ends of the link as pure state machines; [`wire`]: messages to bytes and back.
//!
//! This crate knows no Kubernetes client, spawns nothing by itself, sets up no logging and reads no environment.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod device;
#[cfg(feature = "device-plugins")]
pub mod device_plugin;

#[cfg(feature = "dmi")]
pub mod dmi;
pub mod group;
pub mod hub;
pub mod id;
#[cfg(feature = "join")]
pub mod join;
pub mod message;
pub mod pace;
pub mod pipe;
pub mod runtime;
pub mod store;
#[cfg(feature = "tls")]
pub mod tls;
pub mod transport;
pub mod wire;
