//! Both ends of the link between edge and cloud, as pure state machines.

mod calls;
mod cloud;
mod config;
mod edge;
mod frame;
mod incoming;
mod outgoing;
#[cfg(test)]
mod tests;
mod timers;

pub use cloud::{NodeLink, NodeOutput};
pub use config::{EdgeConfig, Flow, NodeConfig};
pub use edge::{EdgeLink, EdgeOutput};
pub use frame::{Ack, Frame, Hello, InventoryPart, Item, PROTOCOL, Payload, Welcome};
