//! EventBus draft.
pub mod broker;
pub(crate) mod topic;
