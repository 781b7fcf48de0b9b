//! Names and numbers that identify things, parsed once at the border and trusted afterwards.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Says why a text is not the identifier it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} is invalid: {why}")]
pub struct InvalidId {
    /// What the text was meant to be, such as "node name".
    pub what: &'static str,
    /// The text, cut to 80 characters.
    pub text: String,
    /// The rule that it breaks.
    pub why: &'static str,
}

impl InvalidId {
    /// Creates the error for `text`, which breaks the rule `why`.
    pub fn new(what: &'static str, text: &str, why: &'static str) -> Self {
        Self { what, text: text.chars().take(80).collect(), why }
    }
}

/// A node's name: an RFC 1123 subdomain of at most 253 characters, as Kubernetes has it. Clones share it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(Arc<str>);

impl NodeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The user name that a node's certificate carries as its common name: `system:node:<name>`.
    pub fn user_name(&self) -> String {
        format!("{NODE_USER_PREFIX}{}", self.0)
    }

    /// Reads the node's name out of a certificate's common name.
    ///
    /// # Errors
    /// If the text does not begin with `system:node:`, or what follows is no node name.
    pub fn from_user_name(user: &str) -> Result<Self, InvalidId> {
        user.strip_prefix(NODE_USER_PREFIX)
            .ok_or_else(|| InvalidId::new("node identity", user, "it must begin with system:node:"))?
            .parse()
    }
}

/// The prefix of a node's user name in Kubernetes' node authorization.
pub const NODE_USER_PREFIX: &str = "system:node:";

/// The prefix of the common name by which clouds that serve one API know each other's certificates. No node's name can
/// begin with it, since that of a node follows [`NODE_USER_PREFIX`].
pub const CLOUD_USER_PREFIX: &str = "system:kubeedge:cloud:";

impl FromStr for NodeName {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        check_subdomain("node name", text)?;
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for NodeName {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        check_subdomain("node name", &text)?;
        Ok(Self(text.into()))
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        (*name.0).to_owned()
    }
}

impl Borrow<str> for NodeName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A device's identity on the edge: namespace and name of its Device object, written `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceId {
    namespace: String,
    name: String,
}

impl DeviceId {
    /// Creates the identity from its two names.
    ///
    /// # Errors
    /// If the namespace is no RFC 1123 label or the name no RFC 1123 subdomain.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Result<Self, InvalidId> {
        let (namespace, name) = (namespace.into(), name.into());
        check_subdomain("device namespace", &namespace)?;
        check_subdomain("device name", &name)?;
        Ok(Self { namespace, name })
    }

    /// The namespace of the Device object.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name of the Device object.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for DeviceId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let (namespace, name) = text
            .split_once('/')
            .ok_or_else(|| InvalidId::new("device id", text, "it must be namespace/name"))?;
        Self::new(namespace, name)
    }
}

impl TryFrom<String> for DeviceId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<DeviceId> for String {
    fn from(id: DeviceId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The UID that the API server gave an object: deleting and creating again under one name makes another UID. Clones
/// share it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Uid(Arc<str>);

impl Uid {
    /// Wraps a UID as the API server wrote it.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The UID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An object's resource version.
///
/// Versions of one object compare as numbers since Kubernetes 1.35 says so (KEP-5504); a text that is no
/// number reads as zero, which is older than every real version, so that such an object is sent again
/// rather than held back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ResourceVersion(pub u64);

impl ResourceVersion {
    /// Reads the version as the API server wrote it.
    pub fn parse_lossy(text: &str) -> Self {
        Self(text.parse().unwrap_or(0))
    }
}

impl fmt::Display for ResourceVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Checks that `text` is a lower-case RFC 1123 subdomain: the rule for most names in Kubernetes.
///
/// # Errors
/// If it is not; the error names `what` the text was meant to be.
pub fn check_subdomain(what: &'static str, text: &str) -> Result<(), InvalidId> {
    let wrong = |why| Err(InvalidId::new(what, text, why));
    if text.is_empty() {
        return wrong("it is empty");
    }
    if text.len() > 253 {
        return wrong("it is longer than 253 characters");
    }
    let inside = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    for label in text.split('.') {
        let bytes = label.as_bytes();
        let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
            return wrong("it has two dots in a row, or one at an end");
        };
        if !bytes.iter().all(|c| inside(*c)) {
            return wrong("only lower-case letters, digits, '-' and '.' are allowed");
        }
        if *first == b'-' || *last == b'-' {
            return wrong("a label begins or ends with '-'");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_name_is_an_rfc_1123_subdomain() {
        assert!("edge-1.site-a".parse::<NodeName>().is_ok());
        for bad in ["", "Edge", "a..b", "-a", "a-", "a/b", "a b", &"x".repeat(254)] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_node_is_known_by_its_user_name() {
        let name: NodeName = "edge-1".parse().unwrap();
        assert_eq!(NodeName::from_user_name(&name.user_name()).unwrap(), name);
        assert!(NodeName::from_user_name("kubernetes-admin").is_err());
    }

    #[test]
    fn a_device_id_reads_back_as_it_was_written() {
        let id = DeviceId::new("default", "sensor-1").unwrap();
        assert_eq!(id.to_string().parse::<DeviceId>().unwrap(), id);
        assert!("sensor-1".parse::<DeviceId>().is_err());
        assert!("a/b/c".parse::<DeviceId>().is_err());
    }

    #[test]
    fn a_resource_version_that_is_no_number_is_older_than_all() {
        assert!(ResourceVersion::parse_lossy("abc") < ResourceVersion::parse_lossy("1"));
    }
}
