//! edgecore
fn main() {}
