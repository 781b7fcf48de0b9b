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
    message::{
        Answer, Connectivity, LogRequest, Object, ObjectEvent, ObjectRef, Query, Report, Response,
        TokenRequest,
    },
    pipe::{Call, CallError, Caller, SendError},
    runtime::{ContainerId, ObservedSandbox, RuntimeError, RuntimeInfo},
};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::{
    Edged, Error,
    action::{Action, Outcome, Slot},
    cgroups, devices,
    host::{HostFiles, Machine, Usage},
    logs,
    node::Node,
    perform::perform,
    probe::probe,
    record::{self, Record},
    state::{Capacity, Moment, Output, ProbeKey, ProbeResult, State},
    upkeep::Upkeep,
    words,
};

/// How long MetaManager may take for a token: it asks the cloud, and has a deadline of its own.
const TOKEN_DEADLINE: Duration = Duration::from_secs(30);

/// How long choosing a pod's devices may take. Plugins are asked one after the other, each with a deadline of its own.
const DEVICES_DEADLINE: Duration = Duration::from_secs(120);

/// How long the runtime may take to say how it is or what it has.
const ASK_DEADLINE: Duration = Duration::from_secs(120);

/// How soon an event is sent again that its pipe had no room for.
const UPLOAD_AGAIN: Duration = Duration::from_secs(1);

/// How long the cloud may take to say what the API has of the node.
const NODE_DEADLINE: Duration = Duration::from_secs(10);

/// How long reading a container's last words may take.
const WORDS_DEADLINE: Duration = Duration::from_secs(10);

/// What has come of something that the state asked for.
enum Done {
    Action(Uid, Slot, Outcome),
    Probe(Uid, ProbeKey, ProbeResult),
    Words(Uid, ContainerId, String),
    Node(Option<Object>),
    Allocated(Uid, Result<(), String>),
    Kept,
    Shared,
}

type Observation = Result<Vec<ObservedSandbox>, RuntimeError>;

struct Driver {
    edged: Edged,
    state: State,
    node: Node,
    work: FuturesUnordered<BoxFuture<'static, Done>>,
    aborts: BTreeMap<(Uid, Slot), AbortHandle>,
    /// Records to be written or, if there is none, removed; and whether one is being.
    records: BTreeMap<Uid, Option<Record>>,
    keeping: bool,
    /// When events are sent again that the pipe had no room for.
    upload_at: Option<Instant>,
    answers: FuturesUnordered<BoxFuture<'static, ()>>,
    tokens: FuturesUnordered<BoxFuture<'static, (TokenRequest, Result<Answer, String>)>>,
    observing: Option<BoxFuture<'static, Observation>>,
    asking: Option<BoxFuture<'static, Result<RuntimeInfo, RuntimeError>>>,
    upkeep: Upkeep,
    next_look: Instant,
    /// Nobody sends objects any more.
    closed: bool,
}

impl Edged {
    /// Runs until `stop`. What the pods run goes on running.
    ///
    /// # Errors
    /// If the directory for pods cannot be made.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), Error> {
        let root = self.config.root.clone();
        tokio::fs::create_dir_all(&root).await.map_err(|source| Error::Directory { path: root, source })?;
        let records = self.config.records();
        let records = tokio::task::spawn_blocking(move || record::read_all(&records)).await;
        let machine = Machine::read();
        let capacity = Capacity { cpu_milli: machine.cpus * 1000, memory_bytes: machine.memory_bytes };
        let config = self.config.clone();
        let has_cgroups = tokio::task::spawn_blocking(move || {
            cgroups::prepare(&config, capacity.cpu_milli, capacity.memory_bytes)
        });
        if !has_cgroups.await.unwrap_or_default() {
            self.config.cgroups = None;
        }
        let mut state = State::new(self.config.clone(), capacity, now());
        for (uid, record) in records.unwrap_or_default() {
            state.restore(uid, record);
        }
        let mut upkeep = Upkeep::new(self.config.clone(), Arc::clone(&self.runtime));
        upkeep.scan_first(&mut state, now()).await;
        let driver = Driver {
            state,
            node: Node::new(self.config.clone(), machine),
            work: FuturesUnordered::new(),
            aborts: BTreeMap::new(),
            records: BTreeMap::new(),
            keeping: false,
            upload_at: None,
            answers: FuturesUnordered::new(),
            tokens: FuturesUnordered::new(),
            observing: None,
            asking: None,
            upkeep,
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
        self.devices();
        loop {
            self.look();
            self.state.handle_timeout(now());
            while let Some(output) = self.state.poll_output() {
                self.perform(output);
            }
            self.keep();
            self.upload();
            self.upkeep.begin(&self.state, now());
            if let Some(report) = self.node.poll_report(now()) {
                self.report(report);
            }
            let mut wake = Instant::from_std(self.state.poll_timeout()).min(self.next_look);
            if let Some(node) = self.node.poll_timeout() {
                wake = wake.min(Instant::from_std(node));
            }
            wake = self.upload_at.map_or(wake, |at| wake.min(at));
            wake = self.upkeep.wake().map_or(wake, |at| wake.min(Instant::from_std(at)));
            tokio::select! {
                () = stop.cancelled() => break,
                Some(done) = self.work.next(), if !self.work.is_empty() => self.done(done),
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
                done = self.upkeep.next() => {
                    if self.upkeep.handle(done, &mut self.state, &mut self.node, now()) {
                        self.next_look = Instant::now();
                    }
                }
                event = self.edged.inbox.workloads.recv(), if !self.closed => self.object(event),
                Some(call) = self.edged.inbox.logs.recv() => self.answer(call),
                Some(call) = self.edged.inbox.releases.recv() => {
                    let released = self.state.handle_release(&call.question);
                    call.answer(released);
                }
                Some(call) = self.edged.inbox.pods.recv() => call.answer(self.state.known_pods()),
                Ok(()) = self.edged.inbox.devices.changed() => self.devices(),
                Ok(()) = self.edged.inbox.connectivity.changed() => {
                    let connectivity = *self.edged.inbox.connectivity.borrow_and_update();
                    self.connectivity(connectivity);
                }
                Some((request, answer)) = self.tokens.next(), if !self.tokens.is_empty() => {
                    self.state.handle_token(&request, answer, now());
                }
                Some(()) = self.answers.next(), if !self.answers.is_empty() => {}
                () = sleep_until(wake) => {}
            }
        }
        // What was said last is what the next start begins with.
        while self.keeping || !self.records.is_empty() {
            self.keep();
            match self.work.next().await {
                Some(Done::Kept) => self.keeping = false,
                Some(_) => {}
                None => return,
            }
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Action(uid, slot, outcome) => {
                let key = (uid, slot);
                self.aborts.remove(&key);
                self.state.handle_done(&key.0, &key.1, outcome, now());
            }
            Done::Probe(uid, key, result) => self.state.handle_probe(&uid, &key, &result, now()),
            Done::Words(uid, id, said) => self.state.handle_words(&uid, &id, said),
            Done::Allocated(uid, outcome) => self.state.handle_allocated(&uid, outcome),
            Done::Node(node) => self.state.handle_node(node.as_ref()),
            Done::Kept => self.keeping = false,
            Done::Shared => {}
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

    fn devices(&mut self) {
        let devices = self.edged.inbox.devices.borrow_and_update().clone();
        self.node.handle_devices(devices);
        // Before the machine was looked at nothing is judged, so there is nothing to be changed.
        if self.state.knows_room() {
            self.state.handle_room(self.node.room(), self.node.pressures(now()));
        }
    }

    /// Looks at the machine and asks the runtime how it is, when it is time.
    fn look(&mut self) {
        if Instant::now() < self.next_look {
            return;
        }
        self.next_look = Instant::now() + self.edged.config.status_interval;
        self.state.handle_host(HostFiles::read(&self.edged.config.root));
        self.node.handle_usage(Usage::read(&self.edged.config.root, self.upkeep.image_mount()), now());
        self.state.handle_room(self.node.room(), self.node.pressures(now()));
        self.upkeep.relieve(&self.state, &self.node, now());
        if self.asking.is_none() {
            let runtime = Arc::clone(&self.edged.runtime);
            let ask = async move { timeout(ASK_DEADLINE, runtime.info()).await.unwrap_or_else(|_| late()) };
            self.asking = Some(ask.boxed());
        }
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Report(report) => self.report(report),
            Output::Token(request) => {
                let tokens = self.edged.outbox.tokens.clone();
                let ask = async move {
                    let answer = tokens.call(request.clone(), TOKEN_DEADLINE).await;
                    (request, answer.map_err(|error| error.to_string()))
                };
                self.tokens.push(ask.boxed());
            }
            Output::Observe => {
                let runtime = Arc::clone(&self.edged.runtime);
                let observe =
                    async move { timeout(ASK_DEADLINE, runtime.observe()).await.unwrap_or_else(|_| late()) };
                self.observing = Some(observe.boxed());
            }
            Output::Abort(uid, slot) => {
                if let Some(handle) = self.aborts.get(&(uid, slot)) {
                    handle.abort();
                }
            }
            Output::Do(uid, slot, action) => self.act(uid, slot, action),
            Output::Probe(uid, key, task, within) => {
                let runtime = Arc::clone(&self.edged.runtime);
                let work = async move { Done::Probe(uid, key, probe(runtime.as_ref(), task, within).await) };
                self.work.push(work.boxed());
            }
            Output::Read(uid, id, source) => {
                let read = tokio::task::spawn_blocking(move || words::read(&source));
                let work = async move {
                    let read = timeout(WORDS_DEADLINE, read).await.ok().and_then(Result::ok);
                    Done::Words(uid, id, read.unwrap_or_default())
                };
                self.work.push(work.boxed());
            }
            Output::Allocate(uid, question) => {
                let devices = self.edged.outbox.devices.clone();
                let ask = async move { Done::Allocated(uid, allocate(&devices, question).await) };
                self.work.push(ask.boxed());
            }
            Output::Keep(uid, record) => drop(self.records.insert(uid, Some(record))),
            Output::Forget(uid) => drop(self.records.insert(uid, None)),
            Output::Share(milli) => {
                let config = self.edged.config.clone();
                let share = tokio::task::spawn_blocking(move || cgroups::share(&config, milli));
                self.work.push(share.map(|_| Done::Shared).boxed());
            }
            Output::AskForNode => {
                let node = ObjectRef::node(self.edged.config.node.as_str());
                let queries = self.edged.outbox.queries.clone();
                let ask = async move {
                    match queries.call(Query::Get(node), NODE_DEADLINE).await {
                        Ok(Answer::Object(node)) => Done::Node(Some(node)),
                        answer => {
                            debug!(?answer, "the node could not be read from the API");
                            Done::Node(None)
                        }
                    }
                };
                self.work.push(ask.boxed());
            }
        }
    }

    fn act(&mut self, uid: Uid, slot: Slot, action: Action) {
        let (work, handle) =
            abortable(perform(Arc::clone(&self.edged.runtime), self.edged.outbox.devices.clone(), action));
        self.aborts.insert((uid.clone(), slot.clone()), handle);
        let work = async move { Done::Action(uid, slot, work.await.unwrap_or(Outcome::Aborted)) };
        self.work.push(work.boxed());
    }

    /// Writes what is to be kept, one write at a time, so that each pod's newest is what stays.
    fn keep(&mut self) {
        if self.keeping || self.records.is_empty() {
            return;
        }
        self.keeping = true;
        let config = self.edged.config.clone();
        let records = std::mem::take(&mut self.records);
        let work = tokio::task::spawn_blocking(move || {
            for (uid, record) in records {
                let path = config.pod_record(&uid);
                let kept = match record {
                    Some(record) => record::write(&path, &record),
                    // The next start finds by its record that something of the pod is left.
                    None => cgroups::remove(&config, &uid).and_then(|()| std::fs::remove_file(&path)),
                };
                if let Err(error) = kept {
                    debug!(path = %path.display(), %error, "the record of a pod was not kept");
                }
            }
        });
        self.work.push(work.map(|_| Done::Kept).boxed());
    }

    /// Hands on the events that wait, as many as there is room for.
    fn upload(&mut self) {
        if self.upload_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.upload_at = None;
        while let Some(event) = self.state.next_event() {
            match self.edged.outbox.events.send(event) {
                Ok(()) | Err(SendError::Closed(_)) => self.state.handle_event_sent(),
                Err(SendError::Full(_)) => {
                    self.upload_at = Some(Instant::now() + UPLOAD_AGAIN);
                    return;
                }
            }
        }
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
        if !self.aborts.is_empty() {
            info!(
                steps = self.aborts.len(),
                "stopped between steps; the next start goes on from what it finds"
            );
        }
    }
}

/// Asks for a pod's devices. That many ask at once is no reason to turn the pod away.
async fn allocate(
    devices: &Caller<devices::Question, devices::Answer>,
    question: devices::Question,
) -> Result<(), String> {
    let mut left = 10;
    loop {
        match devices.call(question.clone(), DEVICES_DEADLINE).await {
            Ok(answer) => return answer.map(drop),
            Err(CallError::Full(_)) if left > 0 => left -= 1,
            Err(error) => return Err(error.to_string()),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
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
