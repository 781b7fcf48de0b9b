//! What a container may do.

/// Linux capabilities, by their names without `CAP_`; `ALL` means all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Besides the runtime's own.
    pub add: Vec<String>,
    /// Taken from the runtime's own.
    pub drop: Vec<String>,
}

/// A seccomp or AppArmor profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecurityProfile {
    /// The runtime's own.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// One of the node's: for seccomp the absolute path of its file, for AppArmor the name of a loaded profile.
    Localhost(String),
}

/// SELinux labels; an empty part leaves it to the runtime.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SelinuxLabels {
    /// The user.
    pub user: String,
    /// The role.
    pub role: String,
    /// The type.
    pub kind: String,
    /// The level.
    pub level: String,
}
