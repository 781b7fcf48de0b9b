//! edgecore
mod config;
fn main() {}
