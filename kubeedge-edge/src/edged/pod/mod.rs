//! The members of a Pod that Edged acts on. Kubernetes' own types have ten times as many, and would be most
//! of this program's size; what is not named here is left to later versions, never refused.

use std::fmt;

use kubeedge_core::{
    id::{Uid, check_subdomain},
    message::{Object, ObjectRef},
};
use serde::{Deserialize, Deserializer};

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

mod container;
mod life;
#[allow(dead_code, reason = "the state does not decide by it yet")]
mod scheduling;
mod security;
#[allow(dead_code, reason = "the state does not decide by it yet")]
mod spec;
mod status;
mod volume;

pub(crate) use self::{container::*, life::*, scheduling::*, security::*, spec::*, status::*, volume::*};

/// A Pod as Edged reads it.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    pub(crate) reference: ObjectRef,
    pub(crate) uid: Uid,
    pub(crate) metadata: Metadata,
    pub(crate) spec: PodSpec,
    pub(crate) status: OldStatus,
}

/// Says why a Pod cannot be run at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the pod cannot be read: {0}")]
pub(crate) struct InvalidPod(pub(crate) String);

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
    /// If the JSON is not a Pod's, or a name could lead out of the pod's directory.
    pub(crate) fn parse(object: &Object) -> Result<Self, InvalidPod> {
        let invalid = |error: &dyn fmt::Display| InvalidPod(error.to_string());
        let whole: Whole = serde_json::from_slice(&object.json).map_err(|error| invalid(&error))?;
        let names = [("namespace", object.reference.namespace()), ("name", object.reference.name())];
        for (what, name) in names {
            check_subdomain(what, name).map_err(|error| invalid(&error))?;
        }
        let uid = object.uid.as_str();
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if uid.is_empty() || uid.len() > 128 || !uid.chars().all(plain) {
            return Err(InvalidPod(format!("uid {uid:?} is not one that Kubernetes gives")));
        }
        let containers = whole.spec.init_containers.iter().chain(&whole.spec.containers);
        for name in containers.map(|container| &container.name) {
            check_subdomain("container name", name).map_err(|error| invalid(&error))?;
        }
        for volume in &whole.spec.volumes {
            check_subdomain("volume name", &volume.name).map_err(|error| invalid(&error))?;
        }
        if whole.spec.containers.is_empty() {
            return Err(InvalidPod("it has no containers".to_owned()));
        }
        Ok(Self {
            reference: object.reference.clone(),
            uid: object.uid.clone(),
            metadata: whole.metadata,
            spec: whole.spec,
            status: whole.status,
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
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_out_of_the_pods_directory_make_the_pod_invalid() {
        let with = |uid: &str, container: &str| {
            let json = format!(
                r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"p","namespace":"d","uid":"{uid}"}},
                     "spec":{{"containers":[{{"name":"{container}","image":"i"}}],"volumes":null}}}}"#
            );
            Pod::parse(&Object::from_json(json).unwrap())
        };
        assert!(with("u-1", "c").is_ok());
        assert!(with("../u", "c").is_err());
        assert!(with("u", "../c").is_err());
        assert!(with("", "c").is_err());
    }
}
