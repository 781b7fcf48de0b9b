//! A whole edge and a whole cloud in one process, wired as the binaries wire them. What the examples and the
//! tests of the whole stand on; a vendor's own composition root looks like one of these two functions.

mod cloud;
mod edge;
pub mod relay;

pub use cloud::{Cloud, CloudConfig};
pub use edge::{Edge, EdgeConfig};
