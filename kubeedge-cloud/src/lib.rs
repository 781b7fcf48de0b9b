//! The cloud half of KubeEdge, one feature per part.

#[cfg(any(
    feature = "admission",
    feature = "cloudstream",
    feature = "enrollment",
    feature = "monitor",
    feature = "relay",
    feature = "router"
))]
mod accept;

#[cfg(feature = "admission")]
pub mod admission;

#[cfg(any(feature = "devicecontroller", feature = "edgecontroller", feature = "router"))]
pub mod authorization;

#[cfg(any(feature = "admission", feature = "standalone"))]
mod checks;

#[cfg(feature = "cloudhub")]
pub mod cloudhub;

#[cfg(feature = "cloudstream")]
pub mod cloudstream;

#[cfg(any(
    feature = "devicecontroller",
    feature = "edgecontroller",
    feature = "election",
    feature = "relay",
    feature = "router"
))]
mod controller;

#[cfg(feature = "devicecontroller")]
pub mod devicecontroller;

#[cfg(feature = "edgecontroller")]
pub mod edgecontroller;

#[cfg(feature = "election")]
pub mod election;

#[cfg(feature = "enrollment")]
pub mod enrollment;

#[cfg(feature = "manifests")]
pub mod manifests;

#[cfg(feature = "monitor")]
pub mod monitor;

#[cfg(any(feature = "cloudstream", feature = "standalone"))]
mod node;

#[cfg(feature = "pki")]
pub mod pki;

#[cfg(feature = "relay")]
pub mod relay;

#[cfg(feature = "router")]
pub mod router;

#[cfg(feature = "standalone")]
pub mod standalone;

#[cfg(any(feature = "cloudstream", feature = "standalone"))]
mod tunnel;
