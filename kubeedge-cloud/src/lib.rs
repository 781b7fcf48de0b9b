//! The cloud half of KubeEdge, one feature per part.

#[cfg(feature = "cloudhub")]
pub mod cloudhub;

#[cfg(any(feature = "devicecontroller", feature = "edgecontroller"))]
mod controller;

#[cfg(feature = "devicecontroller")]
pub mod devicecontroller;

#[cfg(feature = "edgecontroller")]
pub mod edgecontroller;

#[cfg(feature = "pki")]
pub mod pki;

#[cfg(feature = "standalone")]
pub mod standalone;
