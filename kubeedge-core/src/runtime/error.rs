//! Why a runtime did not do what it was asked.

/// Says why the runtime did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The thing is not there.
    #[error("{what}: not found: {message}")]
    NotFound {
        /// What was being done.
        what: String,
        /// What the runtime says.
        message: String,
    },
    /// The configuration cannot work; trying again will not help.
    #[error("{what}: {message}")]
    Invalid {
        /// What was being done.
        what: String,
        /// What is wrong.
        message: String,
    },
    /// A registry or the system does not allow it.
    #[error("{what}: refused: {message}")]
    Refused {
        /// What was being done.
        what: String,
        /// What the runtime says.
        message: String,
    },
    /// The runtime does not answer.
    #[error("{what}: unavailable: {message}")]
    Unavailable {
        /// What was being done.
        what: String,
        /// What was met.
        message: String,
    },
    /// The registry of an image cannot be reached; the runtime itself is well.
    #[error("{what}: the registry cannot be reached: {message}")]
    RegistryUnavailable {
        /// What was being done.
        what: String,
        /// What the runtime says.
        message: String,
    },
    /// A command did not end within the time that it was given.
    #[error("{what}: {message}")]
    TimedOut {
        /// What was being done.
        what: String,
        /// How long it was given.
        message: String,
    },
    /// There is no room left on a disk of the runtime.
    #[error("{what}: no space left: {message}")]
    NoSpace {
        /// What was being done.
        what: String,
        /// What the runtime says.
        message: String,
    },
    /// The same is being done already, for an earlier process of ours. It is worth asking again soon.
    #[error("{what}: under way: {message}")]
    UnderWay {
        /// What was being done.
        what: String,
        /// What the runtime says.
        message: String,
    },
    /// The runtime tried and failed.
    #[error("{what}: failed: {message}")]
    Failed {
        /// What was being done.
        what: String,
        /// What the runtime says.
        message: String,
    },
}
