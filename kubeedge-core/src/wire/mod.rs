//! Messages to bytes and back: the only place that knows what the wire looks like.

pub mod topic;
