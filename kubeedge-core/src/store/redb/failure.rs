use std::io::ErrorKind;

use ::redb::Error;

use crate::store::StoreError;

/// A failure that can be told to each of those whose commits were grouped.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    kind: Kind,
    message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Full,
    Unavailable,
    Corrupt,
}

impl Failure {
    pub(super) fn closed(name: &str) -> Self {
        Self { kind: Kind::Unavailable, message: format!("{name} is not open") }
    }

    /// The writing thread is gone while the store is not: redb panics on pages that are not what it wrote. Trying
    /// again cannot help, opening the store anew does.
    pub(super) fn panicked(name: &str) -> Self {
        Self { kind: Kind::Corrupt, message: format!("the writing thread of {name} has panicked") }
    }

    /// Whether trying again at once is of no use, because only room would help.
    pub(super) fn is_full(&self) -> bool {
        self.kind == Kind::Full
    }

    /// Whether opening the file again may help.
    pub(super) fn is_unavailable(&self) -> bool {
        self.kind == Kind::Unavailable
    }

    /// Widens to the port's error.
    pub(super) fn during(self, what: String) -> StoreError {
        let source = self.message.into();
        match self.kind {
            Kind::Full => StoreError::Full { what, source },
            Kind::Unavailable => StoreError::Unavailable { what, source },
            Kind::Corrupt => StoreError::Corrupt { what, source },
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        Self { kind: kind_of(&error), message: error.to_string() }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "redb's errors are many, and not exhaustive")]
fn kind_of(error: &Error) -> Kind {
    match error {
        Error::Io(error) => match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Kind::Full,
            _ => Kind::Unavailable,
        },
        _ if is_damage(error) => Kind::Corrupt,
        _ => Kind::Unavailable,
    }
}

/// Whether the error says that the file's content is wrong, rather than that it cannot be reached.
#[expect(clippy::wildcard_enum_match_arm, reason = "redb's errors are many, and not exhaustive")]
pub(super) fn is_damage(error: &Error) -> bool {
    match error {
        // redb says InvalidData of a file without its magic number, UnexpectedEof of one that was cut.
        Error::Io(error) => matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof),
        Error::Corrupted(_)
        | Error::TableTypeMismatch { .. }
        | Error::TableIsMultimap(_)
        | Error::TypeDefinitionChanged { .. } => true,
        _ => false,
    }
}
