//! The device SDK of KubeEdge: run a [`DeviceProtocol`](kubeedge_core::device::DeviceProtocol) as a mapper.

#[cfg(feature = "dmi")]
pub mod dmi;

#[cfg(feature = "keeper")]
pub mod keeper;

#[cfg(feature = "mapper")]
pub mod mapper;

pub mod protocols;
