//! What the API answers to a list and a watch, and what can be wrong with it.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::controller::api;

#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("the API's answer is not what it should be: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the API did not answer in time")]
    Late,
    #[error("the API ended the watch at once")]
    Ended,
    #[error("the page was not read: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl Problem {
    fn code(&self) -> Option<u16> {
        match self {
            Self::Api(error) => api::code(error),
            Self::Json(_) | Self::Late | Self::Ended | Self::Task(_) => None,
        }
    }

    /// Whether the API does not have the kind.
    pub(super) fn is_missing(&self) -> bool {
        self.code() == Some(404)
    }

    /// Whether the kind may not be read.
    pub(super) fn is_forbidden(&self) -> bool {
        self.code() == Some(403)
    }

    /// Whether the API no longer knows the version asked from.
    pub(super) fn is_expired(&self) -> bool {
        self.code() == Some(410)
    }

    /// Whether asking again from the same version is of no use.
    pub(super) fn forgets_version(&self) -> bool {
        self.code().is_some_and(|code| (400..500).contains(&code) && !matches!(code, 401 | 403 | 408 | 429))
    }
}

#[derive(Deserialize)]
pub(super) struct List<'a> {
    pub(super) metadata: ListMeta,
    /// Absent or null is what a server in Go makes of a list that it never filled.
    #[serde(borrow, default)]
    pub(super) items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListMeta {
    #[serde(default)]
    pub(super) resource_version: String,
    #[serde(default, rename = "continue")]
    pub(super) next: Option<String>,
}

/// A plain struct with borrowed text, so that `object` may come before `type`.
#[derive(Deserialize)]
pub(super) struct Event<'a> {
    #[serde(rename = "type")]
    pub(super) what: &'a str,
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

/// The resource version in an object's metadata.
pub(super) fn version_of(raw: &RawValue) -> Option<String> {
    #[derive(Deserialize)]
    struct Head {
        metadata: ListMeta,
    }
    let head: Head = serde_json::from_str(raw.get()).ok()?;
    Some(head.metadata.resource_version).filter(|version| !version.is_empty())
}
