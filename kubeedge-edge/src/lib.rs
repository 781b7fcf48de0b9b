//! The edge half of KubeEdge, one feature per part.

#[cfg(feature = "certificates")]
pub mod certificates;

#[cfg(feature = "devicetwin")]
pub mod devicetwin;

#[cfg(feature = "dmi")]
pub mod dmi;

#[cfg(feature = "edged")]
pub mod edged;

#[cfg(feature = "edgehub")]
pub mod edgehub;

#[cfg(feature = "eventbus")]
pub mod eventbus;

#[cfg(feature = "metamanager")]
pub mod metamanager;

#[cfg(feature = "servicebus")]
pub mod servicebus;
