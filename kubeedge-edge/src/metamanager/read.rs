use std::time::Duration;

use kubeedge_core::{
    message::{Object, ObjectRef},
    pipe::{CallError, Caller},
    store::StoreError,
};

/// A question to MetaManager. Answers come from the node's store, also without a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// One object. If it is not here and there is a link, the cloud is asked; its answer is given on and not kept,
    /// because only what the cloud pushes is kept up to date.
    Get(ObjectRef),
    /// All objects of one kind that are here, ordered by namespace and name; the cloud is not asked.
    List {
        /// Group and version, such as `v1`.
        api_version: String,
        /// The kind, such as `Pod`.
        kind: String,
        /// Only those of this namespace; empty means those of none.
        namespace: Option<String>,
    },
}

/// Says why a read has no objects to give.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The object is not here, and the cloud has none of that name either.
    #[error("{0} does not exist")]
    NotFound(ObjectRef),
    /// The object is not here, and the cloud cannot be asked.
    #[error("{0} is not on this node, which has no link to the cloud")]
    Offline(ObjectRef),
    /// The cloud does not give it to this node.
    #[error("the cloud refused {reference}: {why}")]
    Refused {
        /// The object.
        reference: ObjectRef,
        /// What the cloud says.
        why: String,
    },
    /// Too many questions to the cloud are under way.
    #[error("{0} is not on this node, and too many questions to the cloud are under way")]
    Busy(ObjectRef),
    /// The question was not answered in time, by MetaManager or by the cloud.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Asks MetaManager for objects; sugar over the pipe `reads`.
#[derive(Debug, Clone)]
pub struct MetaClient {
    reads: Caller<Read, Result<Vec<Object>, ReadError>>,
    deadline: Duration,
}

impl MetaClient {
    /// Wraps the pipe. `deadline` bounds each question, so it should be longer than
    /// [`Config::query_deadline`](super::Config::query_deadline).
    pub fn new(reads: Caller<Read, Result<Vec<Object>, ReadError>>, deadline: Duration) -> Self {
        Self { reads, deadline }
    }

    /// Reads one object, as [`Read::Get`].
    ///
    /// # Errors
    /// If there is none, or it cannot be told whether there is.
    pub async fn get(&self, reference: ObjectRef) -> Result<Object, ReadError> {
        let objects = self.reads.call(Read::Get(reference.clone()), self.deadline).await??;
        objects.into_iter().next().ok_or(ReadError::NotFound(reference))
    }

    /// Reads all objects of a kind that are on the node, as [`Read::List`].
    ///
    /// # Errors
    /// If MetaManager does not answer or the store cannot be read.
    pub async fn list(
        &self,
        api_version: impl Into<String>,
        kind: impl Into<String>,
        namespace: Option<String>,
    ) -> Result<Vec<Object>, ReadError> {
        let read = Read::List { api_version: api_version.into(), kind: kind.into(), namespace };
        self.reads.call(read, self.deadline).await?
    }
}
