//! The members of a Pod that Edged acts on. Kubernetes' own types have ten times as many, and would be most
//! of this program's size. What becomes of each of the others says the table in [`fields`].

use std::fmt;

use bytes::Bytes;
use kubeedge_core::{
    id::{Uid, check_subdomain},
    message::{Object, ObjectRef},
};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Types of the API's members: each has a default, since the API leaves out what is empty.
macro_rules! members {
    ($($(#[$doc:meta])* $name:ident { $($(#[$attr:meta])* $field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Default, serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub(crate) struct $name {
            $($(#[$attr])* #[serde(default, deserialize_with = "crate::edged::pod::or_default")] pub(crate) $field: $type),*
        }
    )*};
}

mod check;
mod container;
mod fields;
mod life;
mod scheduling;
mod security;
mod spec;
mod status;
mod volume;

pub(crate) use self::{
    check::Admission, container::*, life::*, scheduling::*, security::*, spec::*, status::*, volume::*,
};

/// A Pod as Edged reads it.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    pub(crate) reference: ObjectRef,
    pub(crate) uid: Uid,
    pub(crate) metadata: Metadata,
    pub(crate) spec: PodSpec,
    pub(crate) status: OldStatus,
    /// The whole of it, as the API has it.
    pub(crate) json: Bytes,
    /// What it asks for that is left undone, in words for an event.
    pub(crate) undone: Option<String>,
}

/// Says why a Pod is not run at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct InvalidPod {
    /// In one word, for the pod's status.
    pub(crate) reason: &'static str,
    /// In a sentence, beginning with the member that it is about.
    pub(crate) message: String,
    /// Whether the API server has been asked to delete it.
    pub(crate) deleting: bool,
}

impl InvalidPod {
    fn new(message: impl fmt::Display) -> Self {
        Self { reason: "InvalidPod", message: format!("the pod cannot be read: {message}"), deleting: false }
    }

    fn unsupported((path, why): (String, String)) -> Self {
        Self { reason: "UnsupportedField", message: format!("{path}: {why}"), deleting: false }
    }
}

#[derive(Deserialize)]
struct Whole {
    metadata: Metadata,
    spec: PodSpec,
    #[serde(default, deserialize_with = "or_default")]
    status: OldStatus,
}

impl Pod {
    /// Reads a Pod, and checks every name of it that becomes a part of a path.
    ///
    /// # Errors
    /// If the JSON is not a Pod's, if a name could lead out of the pod's directory, or if it asks for what is
    /// not done.
    pub(crate) fn parse(object: &Object) -> Result<Self, InvalidPod> {
        let invalid = |error: &dyn fmt::Display| InvalidPod::new(error);
        let json: Value = serde_json::from_slice(&object.json).map_err(|error| invalid(&error))?;
        Self::from_value(object, &json).map_err(|error| {
            let deleting = json["metadata"]["deletionTimestamp"].is_string();
            InvalidPod { deleting, ..error }
        })
    }

    fn from_value(object: &Object, json: &Value) -> Result<Self, InvalidPod> {
        let invalid = |error: &dyn fmt::Display| InvalidPod::new(error);
        if let Some(refused) = fields::unsupported(&json["spec"]) {
            return Err(InvalidPod::unsupported(refused));
        }
        let whole = Whole::deserialize(json).map_err(|error| invalid(&error))?;
        let names = [("namespace", object.reference.namespace()), ("name", object.reference.name())];
        for (what, name) in names {
            check_subdomain(what, name).map_err(|error| invalid(&error))?;
        }
        let uid = object.uid.as_str();
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if uid.is_empty() || uid.len() > 128 || !uid.chars().all(plain) {
            return Err(InvalidPod::new(format_args!("uid {uid:?} is not one that Kubernetes gives")));
        }
        let containers = whole.spec.init_containers.iter().chain(&whole.spec.containers);
        for name in containers.map(|container| &container.name) {
            check_subdomain("container name", name).map_err(|error| invalid(&error))?;
        }
        for volume in &whole.spec.volumes {
            check_subdomain("volume name", &volume.name).map_err(|error| invalid(&error))?;
        }
        if whole.spec.containers.is_empty() {
            return Err(InvalidPod::new("it has no containers"));
        }
        if let Some((path, why)) = check::contradiction(&whole.spec) {
            return Err(InvalidPod::new(format_args!("{path}: {why}")));
        }
        Ok(Self {
            reference: object.reference.clone(),
            uid: object.uid.clone(),
            metadata: whole.metadata,
            spec: whole.spec,
            undone: fields::undone(&json["spec"]),
            status: whole.status,
            json: object.json.clone(),
        })
    }

    /// Whether the API server has been asked to delete it.
    pub(crate) fn is_deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// How long its containers may take to stop: 30 s unless it says otherwise, which is Kubernetes' default.
    pub(crate) fn grace_seconds(&self) -> u64 {
        let asked = self.metadata.deletion_grace_period_seconds.filter(|_| self.is_deleting());
        let seconds = asked.or(self.spec.termination_grace_period_seconds).unwrap_or(30);
        u64::try_from(seconds).unwrap_or(0).min(24 * 3600)
    }

    /// Whether it ended for good as far as the API knows.
    pub(crate) fn had_ended(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }
}

/// `null` and absence mean the default, as in Kubernetes' own reading.
pub(crate) fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// When a container that ended is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(crate) enum RestartPolicy {
    #[default]
    Always,
    OnFailure,
    Never,
}

#[cfg(test)]
mod tests;
