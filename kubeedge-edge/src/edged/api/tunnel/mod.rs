//! Connections that the cloud opens to the kubelet's interface by calls. Each is served as one of the socket is.

mod driver;
mod state;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

use kubeedge_core::{
    message::{Response, TunnelId, TunnelRequest, TunnelResponse, TunnelStep},
    pipe::{Call, Callee},
};
use tokio::{io::duplex, sync::mpsc, task::JoinSet};
use tracing::debug;

use super::serve::Server;

/// How many there may be, and how long without a word of the cloud.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) at_once: usize,
    pub(super) idle: Duration,
}

type Step = Call<TunnelRequest, Response>;

/// All connections of the cloud.
#[derive(Debug)]
pub(super) struct Tunnels {
    limits: Limits,
    server: Server,
    steps: Callee<TunnelRequest, Response>,
    open: BTreeMap<TunnelId, mpsc::Sender<Step>>,
    tasks: JoinSet<TunnelId>,
}

/// Bytes on their way between the tunnel and whoever serves the connection, in each direction.
const BUFFER: usize = 64 << 10;

/// Steps that wait for one tunnel. The cloud has two under way, and may repeat each.
const STEPS_MAX: usize = 4;

impl Tunnels {
    pub(super) fn new(limits: Limits, server: Server, steps: Callee<TunnelRequest, Response>) -> Self {
        Self { limits, server, steps, open: BTreeMap::new(), tasks: JoinSet::new() }
    }

    /// Serves for ever. What has begun ends when it is dropped.
    pub(super) async fn serve(mut self) {
        let mut asked = true;
        loop {
            tokio::select! {
                step = self.steps.recv(), if asked => match step {
                    Some(step) => self.handle_step(step),
                    None => asked = false,
                },
                Some(ended) = self.tasks.join_next_with_id() => match ended {
                    Ok((_, id)) => {
                        self.open.remove(&id);
                    }
                    Err(error) => {
                        debug!(%error, "a connection of the cloud failed");
                        self.open.retain(|_, steps| !steps.is_closed());
                    }
                },
                else => std::future::pending().await,
            }
        }
    }

    fn handle_step(&mut self, step: Step) {
        let id = step.question.tunnel;
        if matches!(step.question.step, TunnelStep::Open) {
            let answer = self.open(id);
            return step.answer(answer);
        }
        let Some(steps) = self.open.get(&id) else { return step.answer(gone(id)) };
        match steps.try_send(step) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Closed(step)) => step.answer(gone(id)),
            Err(mpsc::error::TrySendError::Full(step)) => {
                step.answer(failed(503, format!("tunnel {id} has too many steps to do")));
            }
        }
    }

    fn open(&mut self, id: TunnelId) -> Response {
        if self.open.contains_key(&id) {
            return failed(409, format!("tunnel {id} is open already"));
        }
        if self.open.len() >= self.limits.at_once {
            let max = self.limits.at_once;
            return failed(
                503,
                format!("the node has {max} connections of the cloud, which is all it takes"),
            );
        }
        let (sender, steps) = mpsc::channel(STEPS_MAX);
        self.open.insert(id, sender);
        let (server, idle) = (self.server.clone(), self.limits.idle);
        self.tasks.spawn(async move {
            let (near, far) = duplex(BUFFER);
            let served = async {
                server.connection(far, true).await;
                // What it has said last is still to be asked for.
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = driver::run(near, idle, steps) => {}
                () = served => {}
            }
            id
        });
        Response::Tunnel(TunnelResponse::Taken(0))
    }
}

fn gone(id: TunnelId) -> Response {
    failed(404, format!("there is no tunnel {id}: it has ended, or the node has restarted"))
}

fn failed(code: u16, message: String) -> Response {
    Response::Failed { code, message }
}
