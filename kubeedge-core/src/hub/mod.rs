//! Both ends of the link between edge and cloud, as pure state machines.
//!
//! [`EdgeLink`] is the edge's end, [`NodeLink`] the cloud's end of one session. They know neither sockets nor the
//! clock nor bytes: frames and times come in by `handle_*`, frames go out by `poll_transmit`, and what else is to be
//! done by `poll_output`. The drivers are `kubeedge_edge::edgehub` and `kubeedge_cloud::cloudhub`.
//!
//! What the two promise each other:
//!
//! * **Nothing is acknowledged that could be lost.** An item is acknowledged when the part that has to make it durable
//!   has echoed its [`Delivery`](crate::message::Delivery). Until then the sender keeps it, and sends it in the next
//!   session if there is no answer in this one.
//! * **Only the newest state of a key travels**, and one at a time, so memory is bounded by what exists, and an older
//!   state can never overtake a newer one.
//! * **A session begins with a comparison.** The edge says what it holds; the cloud sends the difference, and says when
//!   the edge has stored it. If both hold the same, that costs four small frames.
//! * **Nothing holds up anything else**: each lane has its own sequence and window, and within a lane one item that its
//!   part cannot store delays no other.
//! * **Both ends know within three heartbeats** that the other is gone, and an idle session costs a ping and a pong per
//!   heartbeat.
//!
//! ```
//! use std::time::Instant;
//! use kubeedge_core::{
//!     hub::{EdgeConfig, EdgeLink, EdgeOutput, NodeConfig, NodeLink, NodeOutput},
//!     message::{Connectivity, Inventory, Lane},
//! };
//!
//! let now = Instant::now();
//! let name: kubeedge_core::id::NodeName = "edge-1".parse()?;
//! let mut edge = EdgeLink::new(EdgeConfig::default(), name.clone(), 1, now);
//! let mut cloud = NodeLink::new(NodeConfig::default(), name, 1, now);
//!
//! edge.handle_timeout(now);
//! assert_eq!(edge.poll_output(), Some(EdgeOutput::Dial));
//! edge.handle_connected(now);
//! assert_eq!(edge.poll_output(), Some(EdgeOutput::NeedInventory));
//! edge.handle_inventory(&Inventory::default(), now);
//!
//! let hello = edge.poll_transmit(Lane::Heartbeat, now).unwrap();
//! cloud.handle_frame(hello, now);
//! assert_eq!(cloud.poll_output(), Some(NodeOutput::NeedSnapshot));
//! cloud.handle_snapshot(Vec::new());
//!
//! while let Some(frame) = cloud.poll_transmit(Lane::Heartbeat, now) {
//!     edge.handle_frame(frame, now);
//! }
//! let last = std::iter::from_fn(|| edge.poll_output()).last();
//! assert_eq!(last, Some(EdgeOutput::Connectivity(Connectivity::Synchronized)));
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

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

pub use cloud::{NodeLink, NodeOutput, Offence};
pub use config::{EdgeConfig, Flow, NodeConfig};
pub use edge::{EdgeLink, EdgeOutput};
pub use frame::{Ack, Frame, Hello, InventoryPart, Item, PROTOCOL, Payload, Welcome};
