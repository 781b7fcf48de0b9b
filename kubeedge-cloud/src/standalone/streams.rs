//! Streams into pods: exec, attach and port-forward.

use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use http::{Request, Response, request::Parts};
use http_body_util::{BodyExt as _, Full};
use tokio::sync::Semaphore;

use super::{Body, Config, failure::Failure};
use crate::{
    node::Node,
    tunnel::{Spliced, splice},
};

/// Where a request's connection finds what goes on over it after the answer. It is in the request's extensions.
#[derive(Clone, Default)]
pub(super) struct Afterwards(Arc<Mutex<Option<BoxFuture<'static, ()>>>>);

impl Afterwards {
    fn set(&self, next: BoxFuture<'static, ()>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(next);
    }

    /// What goes on, if anything does.
    pub(super) fn take(&self) -> Option<BoxFuture<'static, ()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Joins the client's connection with the kubelet's interface of a node, at this path.
pub(super) async fn stream(
    node: Node,
    path: &str,
    parts: Parts,
    room: &Arc<Semaphore>,
    config: &Config,
) -> Result<Response<Body>, Failure> {
    let Some(afterwards) = parts.extensions.get::<Afterwards>().cloned() else {
        return Err(Failure::bad_request("a stream needs a connection to the API's socket"));
    };
    let full = || Failure::node(503, format!("there are {} streams into pods already", config.streams_max));
    let permit = room.clone().try_acquire_owned().map_err(|_| full())?;
    let request = Request::from_parts(parts, ());
    let Spliced { response, afterwards: next } = splice(request, path, node, config.stream_timeout).await?;
    if let Some(next) = next {
        afterwards.set(Box::pin(async move {
            next.await;
            drop(permit);
        }));
    }
    Ok(response.map(|words| Full::new(words).boxed_unsync()))
}
