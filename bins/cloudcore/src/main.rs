//! cloudcore
fn main() {}
