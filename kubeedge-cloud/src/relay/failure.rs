//! Why a request has no answer of its node. Pure.

use std::fmt;

use kubeedge_core::{id::NodeName, message::Response};

/// Says in one word why a request that came to a cloud without the node's session has no answer of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// No other cloud has the node, as far as its Lease says.
    NotConnected,
    /// The API does not say which cloud has the node.
    Unknown,
    /// The cloud that has the node does not say where it is reached.
    NoAddress,
    /// That cloud cannot be reached.
    Unreachable,
    /// Who is reached there is another, or no cloud.
    Stranger,
    /// That cloud has the node no more, and the Lease names it still.
    Stale,
    /// That cloud was asked and gave no answer, or none that can be used.
    Broken,
    /// The answer is longer than it may be.
    TooLong,
    /// The answer did not come in time.
    Late,
}

impl Reason {
    /// All of them, in order.
    pub const ALL: [Self; 9] = [
        Self::NotConnected,
        Self::Unknown,
        Self::NoAddress,
        Self::Unreachable,
        Self::Stranger,
        Self::Stale,
        Self::Broken,
        Self::TooLong,
        Self::Late,
    ];

    /// The reason in one word, for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotConnected => "NotConnected",
            Self::Unknown => "OwnerUnknown",
            Self::NoAddress => "OwnerWithoutAddress",
            Self::Unreachable => "OwnerUnreachable",
            Self::Stranger => "NotTheOwner",
            Self::Stale => "OwnerStale",
            Self::Broken => "OwnerBroken",
            Self::TooLong => "AnswerTooLong",
            Self::Late => "Late",
        }
    }

    /// The HTTP status that says it best.
    pub fn code(self) -> u16 {
        match self {
            Self::NotConnected | Self::Unknown | Self::NoAddress | Self::Stale => 503,
            Self::Unreachable | Self::Stranger | Self::Broken | Self::TooLong => 502,
            Self::Late => 504,
        }
    }

    /// Whether the node has certainly not been asked, and another look at the Lease may help.
    pub(super) fn is_about_the_owner(self) -> bool {
        match self {
            Self::Unreachable | Self::Stranger | Self::Stale => true,
            Self::NotConnected
            | Self::Unknown
            | Self::NoAddress
            | Self::Broken
            | Self::TooLong
            | Self::Late => false,
        }
    }
}

/// A request has no answer of its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) reason: Reason,
    /// Which cloud, where, and what happened; may be empty.
    pub(super) what: String,
}

impl Failure {
    pub(super) fn new(reason: Reason, what: impl fmt::Display) -> Self {
        Self { reason, what: what.to_string() }
    }

    /// What whoever asked for the node is told.
    pub(super) fn response(&self, node: &NodeName) -> Response {
        let what = &self.what;
        let message = match self.reason {
            Reason::NotConnected => format!("node {node} is not connected"),
            Reason::Unknown => format!("it is not known to which cloud node {node} is connected: {what}"),
            Reason::NoAddress => {
                format!("node {node} is connected to cloud {what}, which does not say where others reach it")
            }
            Reason::Unreachable => {
                format!("node {node} is connected to another cloud, which cannot be reached: {what}")
            }
            Reason::Stranger => format!("the cloud to which node {node} is connected was not found: {what}"),
            Reason::Stale => {
                format!("node {node} is connected to cloud {what} no more, which its Lease still names")
            }
            Reason::Broken => {
                format!("node {node} is connected to another cloud, which gave no answer: {what}")
            }
            Reason::TooLong => format!("the answer of node {node} is too long: {what}"),
            Reason::Late => format!("node {node} is connected to another cloud; no answer within {what}"),
        };
        Response::Failed { code: self.reason.code(), message }
    }
}
