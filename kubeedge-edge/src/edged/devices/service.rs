//! What plugins may call: it becomes a question to the loop.

use std::time::Duration;

use kubeedge_core::{
    device_plugin::proto::{Empty, RegisterRequest, registration_server::Registration},
    pipe::Caller,
};
use tonic::{Request, Response, Status, async_trait};

/// How long the loop may take, which waits for nothing but the store.
const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Service {
    pub(super) registrations: Caller<RegisterRequest, Result<(), String>>,
}

#[async_trait]
impl Registration for Service {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        match self.registrations.call(request.into_inner(), DEADLINE).await {
            Ok(Ok(())) => Ok(Response::new(Empty {})),
            Ok(Err(why)) => Err(Status::invalid_argument(why)),
            Err(error) => Err(Status::unavailable(format!("{error}; try again"))),
        }
    }
}
