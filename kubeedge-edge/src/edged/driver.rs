//! The loop that performs what the states ask.

use std::{
    collections::BTreeMap,
    future::pending,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{
    FutureExt, StreamExt,
    future::{AbortHandle, BoxFuture, abortable},
    stream::FuturesUnordered,
};
use kubeedge_core::{
    id::Uid,
    message::{Connectivity, LogRequest, ObjectEvent, ObjectRef, Report, Response},
    pipe::Call,
    runtime::{ObservedSandbox, RuntimeError, RuntimeInfo},
};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::{
    Edged, Error,
    action::{Action, Outcome},
    host::{Machine, Usage},
    logs,
    node::Node,
    perform::perform,
    state::{Capacity, Moment, Output, State},
};

/// How long the runtime may take to say how it is or what it has.
const ASK_DEADLINE: Duration = Duration::from_secs(120);

type Observation = Result<Vec<ObservedSandbox>, RuntimeError>;

struct Driver {
    edged: Edged,
    state: State,
    node: Node,
    actions: FuturesUnordered<BoxFuture<'static, (Uid, Outcome)>>,
    aborts: BTreeMap<Uid, AbortHandle>,
    answers: FuturesUnordered<BoxFuture<'static, ()>>,
    observing: Option<BoxFuture<'static, Observation>>,
    asking: Option<BoxFuture<'static, Result<RuntimeInfo, RuntimeError>>>,
    next_look: Instant,
    /// Nobody sends objects any more.
    closed: bool,
}

impl Edged {
    /// Runs until `stop`. What the pods run goes on running.
    ///
    /// # Errors
    /// If the directory for pods cannot be made.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        let root = self.config.root.clone();
        tokio::fs::create_dir_all(&root).await.map_err(|source| Error::Directory { path: root, source })?;
        let machine = Machine::read();
        let capacity = Capacity { cpu_milli: machine.cpus * 1000, memory_bytes: machine.memory_bytes };
        let driver = Driver {
            state: State::new(self.config.clone(), capacity, now()),
            node: Node::new(self.config.clone(), machine),
            actions: FuturesUnordered::new(),
            aborts: BTreeMap::new(),
            answers: FuturesUnordered::new(),
            observing: None,
            asking: None,
            next_look: Instant::now(),
            closed: false,
            edged: self,
        };
        driver.run(stop).await;
        Ok(())
    }
}

impl Driver {
    async fn run(mut self, stop: CancellationToken) {
        let connectivity = *self.edged.inbox.connectivity.borrow_and_update();
        self.connectivity(connectivity);
        loop {
            self.look();
            self.state.handle_timeout(now());
            while let Some(output) = self.state.poll_output() {
                self.perform(output);
            }
            if let Some(report) = self.node.poll_report(now()) {
                self.report(report);
            }
            let mut wake = Instant::from_std(self.state.poll_timeout()).min(self.next_look);
            if let Some(node) = self.node.poll_timeout() {
                wake = wake.min(Instant::from_std(node));
            }
            tokio::select! {
                () = stop.cancelled() => return,
                Some((uid, outcome)) = self.actions.next(), if !self.actions.is_empty() => {
                    self.aborts.remove(&uid);
                    self.state.handle_done(&uid, outcome, now());
                }
                observed = ready(&mut self.observing) => {
                    self.observing = None;
                    self.state.handle_observed(observed, now());
                }
                info = ready(&mut self.asking) => {
                    self.asking = None;
                    if let Ok(info) = &info {
                        self.state.handle_runtime(&info.name);
                    }
                    self.node.handle_runtime(info, now());
                }
                event = self.edged.inbox.workloads.recv(), if !self.closed => self.object(event),
                Some(call) = self.edged.inbox.logs.recv() => self.answer(call),
                Ok(()) = self.edged.inbox.connectivity.changed() => {
                    let connectivity = *self.edged.inbox.connectivity.borrow_and_update();
                    self.connectivity(connectivity);
                }
                Some(()) = self.answers.next(), if !self.answers.is_empty() => {}
                () = sleep_until(wake) => {}
            }
        }
    }

    fn object(&mut self, event: Option<ObjectEvent>) {
        let Some(event) = event else {
            self.closed = true;
            return self.state.handle_closed();
        };
        self.state.handle_object(event, now());
        // Whatever came with it is one turn: a pod and its ConfigMap are not two plans.
        while let Some(event) = self.edged.inbox.workloads.try_recv() {
            self.state.handle_object(event, now());
        }
    }

    fn connectivity(&mut self, connectivity: Connectivity) {
        debug!(?connectivity, "connectivity");
        self.state.handle_connectivity(connectivity, now());
        self.node.handle_connectivity(connectivity.is_online(), now());
    }

    /// Looks at the machine and asks the runtime how it is, when it is time.
    fn look(&mut self) {
        if Instant::now() < self.next_look {
            return;
        }
        self.next_look = Instant::now() + self.edged.config.status_interval;
        self.node.handle_usage(Usage::read(&self.edged.config.root, None), now());
        if self.asking.is_none() {
            let runtime = Arc::clone(&self.edged.runtime);
            let ask = async move { timeout(ASK_DEADLINE, runtime.info()).await.unwrap_or_else(|_| late()) };
            self.asking = Some(ask.boxed());
        }
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Report(report) => self.report(report),
            Output::Observe => {
                let runtime = Arc::clone(&self.edged.runtime);
                let observe =
                    async move { timeout(ASK_DEADLINE, runtime.observe()).await.unwrap_or_else(|_| late()) };
                self.observing = Some(observe.boxed());
            }
            Output::Abort(uid) => {
                if let Some(handle) = self.aborts.get(&uid) {
                    handle.abort();
                }
            }
            Output::Do(uid, action) => self.act(uid, action),
        }
    }

    fn act(&mut self, uid: Uid, action: Action) {
        let (work, handle) = abortable(perform(Arc::clone(&self.edged.runtime), action));
        self.aborts.insert(uid.clone(), handle);
        self.actions.push(async move { (uid, work.await.unwrap_or(Outcome::Aborted)) }.boxed());
    }

    fn report(&self, report: Report) {
        if self.edged.outbox.reports.send(report).is_err() {
            debug!("nobody takes reports any more");
        }
    }

    fn answer(&mut self, call: Call<LogRequest, Response>) {
        let (request, replier) = call.split();
        let reference = ObjectRef::pod(&request.namespace, &request.pod);
        let source = logs::find(self.state.find(&reference), &request);
        let answer = async move {
            let response = match source {
                Err(failed) => failed,
                Ok(source) => {
                    let read = tokio::task::spawn_blocking(move || logs::read(&source, &request)).await;
                    match read.map_err(std::io::Error::other).and_then(|read| read) {
                        Ok(chunk) => Response::Logs(chunk),
                        Err(error) => {
                            Response::Failed { code: 500, message: format!("read the log: {error}") }
                        }
                    }
                }
            };
            replier.answer(response);
        };
        self.answers.push(answer.boxed());
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if !self.actions.is_empty() {
            info!(
                steps = self.actions.len(),
                "stopped between steps; the next start goes on from what it finds"
            );
        }
    }
}

/// Waits for the future, if there is one.
async fn ready<T>(future: &mut Option<Pin<Box<dyn Future<Output = T> + Send>>>) -> T {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

fn late<T>() -> Result<T, RuntimeError> {
    let message = format!("no answer within {ASK_DEADLINE:?}");
    Err(RuntimeError::Unavailable { what: "ask the container runtime".to_owned(), message })
}

fn now() -> Moment {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Moment { at: Instant::now().into_std(), unix_ms: unix.as_millis() as u64 }
}
