//! Images, and what it takes to fetch them.

use std::fmt;

use super::ImageId;

/// An image that is here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// The digest of its configuration.
    pub id: ImageId,
    /// Names with a tag, such as `docker.io/library/busybox:1`.
    pub tags: Vec<String>,
    /// Names with the digest under which a registry has it.
    pub digests: Vec<String>,
    /// What it takes of the disk.
    pub size_bytes: u64,
    /// Who its processes run as if a container does not say; `None` if the image does not say either, which is root.
    pub user: Option<ImageUser>,
    /// Whether the runtime needs it for itself, as that of sandboxes, so that it must not be removed.
    pub pinned: bool,
}

/// Who an image's processes run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageUser {
    /// A user id.
    Uid(i64),
    /// A name that only the image's own `/etc/passwd` can tell the id of.
    Name(String),
}

/// What an image registry wants to know. Which of it, the registry decides; empty means it is not given.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub username: String,
    /// The password or token.
    pub password: String,
    /// User and password as a registry's `auth` has them: joined by a colon, in Base64.
    pub auth: String,
    /// A token that stands for the user, to be exchanged for one that is good for the registry.
    pub identity_token: String,
    /// A token that is sent to the registry as it is.
    pub registry_token: String,
    /// The registry that they are for, as the `auths` of a Docker configuration name it.
    pub server_address: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}
