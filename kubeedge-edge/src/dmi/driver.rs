//! The loop: serves mappers, calls them, and keeps what they were told.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use kubeedge_core::{
    dmi::{
        Socket, SocketError, endpoint, proto,
        proto::{
            device_manager_service_server::DeviceManagerServiceServer,
            device_mapper_service_client::DeviceMapperServiceClient,
        },
    },
    pipe::{self, Callee, Replier},
    store::{Key, MetaStore, MetaStoreExt, StoreError},
};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status,
    transport::{Channel, Server},
};

use super::{
    Config, Dmi, Error, Inbox, Limits, Outbox,
    record::{self, RecordError},
    service::{Answer, Answered, Question, Refusal, Service},
    state::{Call, Now, Outcome, SETTLING_MAX, State, What},
};

/// How many calls of mappers may wait for the loop.
const QUESTIONS_MAX: usize = 256;

/// How long the last write, and the calls of mappers that are under way, may take when the part is stopped.
const LAST_MOMENTS: Duration = Duration::from_secs(2);

/// How often a connection is asked for a sign of life.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// How many calls one connection may make at once.
const STREAMS_MAX: u32 = 64;

pub(super) async fn run(dmi: Dmi, stop: CancellationToken) -> Result<(), Error> {
    let (caller, questions) = pipe::calls("dmi", QUESTIONS_MAX);
    let config = dmi.config.clone();
    let server = serve(&config, Service { questions: caller, logged: Default::default() }, stop.clone());
    let mut server = std::pin::pin!(server);
    let part = Loop::new(dmi, questions);
    let mut part = std::pin::pin!(part.run(stop));
    tokio::select! {
        ended = &mut part => {
            let _ = timeout(LAST_MOMENTS, server).await;
            ended
        }
        ended = &mut server => match ended {
            Ok(()) => part.await,
            Err(error) => Err(error),
        },
    }
}

/// Serves on the socket, which is tried again for as long as it takes.
async fn serve(config: &Config, service: Service, stop: CancellationToken) -> Result<(), Error> {
    let limits = &config.limits;
    let mut pause = limits.retry_min;
    let socket = loop {
        match Socket::listen(&config.socket, limits.connections) {
            Ok(socket) => break socket,
            Err(error @ SocketError::Path { .. }) => return Err(Error::Socket(error)),
            Err(error) => tracing::warn!(%error, retry_in = ?pause, "mappers cannot be served"),
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(limits.retry_max),
        }
    };
    let service = DeviceManagerServiceServer::new(service)
        .max_decoding_message_size(limits.message_bytes)
        .max_encoding_message_size(limits.message_bytes);
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .max_concurrent_streams(Some(STREAMS_MAX))
        .serve_with_incoming_shutdown(service, socket.connections(), stop.cancelled())
        .await
        .map_err(Error::Serve)
}

/// A registration that waits until the devices of the node are known.
struct Waiting {
    request: proto::MapperRegisterRequest,
    reply: Replier<Answered>,
    until: Instant,
}

struct Loop {
    limits: Limits,
    store: Arc<dyn MetaStore>,
    inbox: Inbox,
    outbox: Outbox,
    questions: Callee<Question, Answered>,
    state: State,
    waiting: Vec<Waiting>,
    calls: FuturesUnordered<BoxFuture<'static, (Call, Outcome)>>,
}

impl Loop {
    fn new(dmi: Dmi, questions: Callee<Question, Answered>) -> Self {
        let Dmi { config, store, inbox, outbox } = dmi;
        Self {
            limits: config.limits.clone(),
            state: State::new(config, now().at),
            store,
            inbox,
            outbox,
            questions,
            waiting: Vec::new(),
            calls: FuturesUnordered::new(),
        }
    }

    async fn run(mut self, stop: CancellationToken) -> Result<(), Error> {
        let restored = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            restored = self.restore() => restored,
        };
        restored?;
        loop {
            self.answer_waiting().await?;
            self.state.handle_timeout(now().at);
            self.make_calls().await?;
            let next = self.next();
            tokio::select! {
                () = stop.cancelled() => break,
                Some(assignment) = self.inbox.assignments.recv() => {
                    self.state.handle_assignment(assignment, now());
                    while let Some(assignment) = self.inbox.assignments.try_recv() {
                        self.state.handle_assignment(assignment, now());
                    }
                }
                Some(call) = self.questions.recv() => {
                    let (question, reply) = call.split();
                    self.answer(question, reply).await?;
                }
                Some((call, outcome)) = self.calls.next(), if !self.calls.is_empty() => {
                    self.state.handle_outcome(call, outcome, now().at);
                }
                () = until(next) => {}
            }
            // Under load there is always a next input; others that run on this thread want to go on too.
            tokio::task::yield_now().await;
        }
        match timeout(LAST_MOMENTS, self.write()).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(_)) | Err(_)) | Err(_) => tracing::warn!("what mappers were told could not be written"),
        }
        Ok(())
    }

    fn next(&self) -> Option<Instant> {
        let timeout = self.state.poll_timeout().map(Instant::from_std);
        // Whoever waits looks again soon whether it is quiet.
        let soon = (!self.waiting.is_empty()).then(|| Instant::now() + Duration::from_millis(20));
        timeout.into_iter().chain(soon).min()
    }

    // -------------------------------------------------------------------------------------------------- start

    async fn restore(&mut self) -> Result<(), Error> {
        let mut pause = self.limits.retry_min;
        loop {
            match self.try_restore().await {
                Err(Error::Restore(error)) if error.is_retryable() => {
                    tracing::warn!(%error, retry_in = ?pause, "the registrations of mappers cannot be read");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(self.limits.retry_max);
                }
                other => return other,
            }
        }
    }

    async fn try_restore(&mut self) -> Result<(), Error> {
        let deadline = self.limits.store_deadline;
        let read = async {
            let mappers = self.store.scan_all(&record::mappers()).await?;
            let told = self.store.scan_all(&record::told()).await?;
            Ok::<_, StoreError>((mappers, told))
        };
        let (mappers, told) = timeout(deadline, read)
            .await
            .map_err(|_| Error::Stuck { what: "read the registrations of mappers", deadline })?
            .map_err(Error::Restore)?;
        for (key, value) in mappers {
            let restored = record::protocol_of(&key).and_then(|protocol| {
                self.state.restore_mapper(protocol, record::decode(&value)?, now().at);
                Ok(())
            });
            warn_if_damaged(&key, restored);
        }
        for (key, value) in told {
            let restored = record::told_of(&key).and_then(|(protocol, device)| {
                self.state.restore_told(&protocol, device, record::decode(&value)?);
                Ok(())
            });
            warn_if_damaged(&key, restored);
        }
        Ok(())
    }

    // ------------------------------------------------------------------------------------------------ questions

    async fn answer(&mut self, question: Question, reply: Replier<Answered>) -> Result<(), Error> {
        match question {
            Question::Register(request) => {
                let until = Instant::now() + SETTLING_MAX;
                self.waiting.push(Waiting { request, reply, until });
            }
            Question::Values(request) => {
                let taken = self.state.handle_values(request, now());
                self.answer_report(taken, reply);
            }
            Question::State(request) => {
                let taken = self.state.handle_state(&request, now());
                self.answer_report(taken, reply);
            }
        }
        self.answer_waiting().await
    }

    /// Says that a report was taken once DeviceTwin's pipe has it.
    fn answer_report(&mut self, taken: Result<(), Refusal>, reply: Replier<Answered>) {
        let closed = |_| Refusal::new(Code::Unavailable, "DeviceTwin has stopped; try again");
        let told = self.tell().map_err(closed);
        reply.answer(taken.and(told).map(|()| Answer::Taken));
    }

    /// Answers registrations, once the devices of the node are known or may no longer be waited for.
    async fn answer_waiting(&mut self) -> Result<(), Error> {
        let settled = self.state.is_settled(now().at);
        let due = |waiting: &mut Waiting| settled || waiting.until <= Instant::now();
        let due: Vec<Waiting> = self.waiting.extract_if(.., due).collect();
        for Waiting { request, reply, .. } in due {
            let answer = match self.state.handle_register(request, now()) {
                Ok(answer) => match self.write().await? {
                    Ok(()) => Ok(Answer::Registered(answer)),
                    Err(error) => {
                        let why = format!("the registration could not be saved: {error}; try again");
                        Err(Refusal::new(Code::Unavailable, why))
                    }
                },
                Err(refusal) => Err(refusal),
            };
            reply.answer(answer);
        }
        Ok(())
    }

    fn tell(&mut self) -> Result<(), pipe::Closed> {
        let sent = self.state.poll_readings().into_iter().map(|reading| self.outbox.readings.send(reading));
        sent.fold(Ok(()), Result::and)
    }

    // ---------------------------------------------------------------------------------------------------- calls

    async fn make_calls(&mut self) -> Result<(), Error> {
        let calls = self.state.poll_calls(now().at);
        let urgent = self.state.must_write(&calls);
        if (urgent || self.state.is_write_due(now().at))
            && let Err(error) = self.write().await?
        {
            tracing::warn!(%error, "what mappers were told cannot be written");
            if urgent {
                self.state.handle_not_made(&calls, now().at);
                return Ok(());
            }
        }
        for call in calls {
            self.calls.push(perform(call, self.limits.clone()).boxed());
        }
        Ok(())
    }

    async fn write(&mut self) -> Result<Result<(), StoreError>, Error> {
        let batch = match self.state.batch() {
            Ok(batch) if batch.is_empty() => {
                self.state.written();
                return Ok(Ok(()));
            }
            Ok(batch) => batch,
            Err(error) => return Ok(Err(error)),
        };
        let deadline = self.limits.store_deadline;
        let committed = timeout(deadline, self.store.commit(batch)).await;
        let committed =
            committed.map_err(|_| Error::Stuck { what: "write what mappers were told", deadline })?;
        match &committed {
            Ok(()) => self.state.written(),
            Err(_) => self.state.not_written(now().at),
        }
        Ok(committed)
    }
}

/// A record that cannot be used is left out: the mapper registers again when it restarts.
fn warn_if_damaged(key: &Key, restored: Result<(), RecordError>) {
    if let Err(error) = restored {
        tracing::warn!(%key, %error, "a stored record was left out");
    }
}

/// Makes a call. Each has a connection of its own, as KubeEdge has it, so that nothing of an earlier one can be left.
async fn perform(call: Call, limits: Limits) -> (Call, Outcome) {
    let deadline = limits.call_deadline;
    let silent = || Outcome::Silent(format!("no answer within {deadline:?}"));
    let connected = match endpoint(Path::new(&call.address), deadline) {
        Ok(endpoint) => timeout(deadline, endpoint.connect()).await.map_err(|_| silent()),
        Err(error) => return (call, Outcome::Unreachable(error.to_string())),
    };
    let outcome = match connected {
        Ok(Ok(channel)) => match timeout(deadline, make(&call, channel, &limits)).await {
            Ok(Ok(())) => Outcome::Done,
            Ok(Err(status)) => outcome_of(&status),
            Err(_) => silent(),
        },
        Ok(Err(error)) => Outcome::Unreachable(causes(&error)),
        Err(silent) => silent,
    };
    (call, outcome)
}

async fn make(call: &Call, channel: Channel, limits: &Limits) -> Result<(), Status> {
    let mut mapper = DeviceMapperServiceClient::new(channel)
        .max_encoding_message_size(limits.message_bytes)
        .max_decoding_message_size(limits.message_bytes);
    match &call.what {
        What::CreateModel(_, model, _) => {
            let model = Some(proto::DeviceModel::clone(model));
            mapper.create_device_model(proto::CreateDeviceModelRequest { model }).await?;
        }
        What::UpdateModel(_, model, _) => {
            let model = Some(proto::DeviceModel::clone(model));
            mapper.update_device_model(proto::UpdateDeviceModelRequest { model }).await?;
        }
        What::RemoveModel((namespace, name)) => {
            let (model_name, model_namespace) = (name.clone(), namespace.clone());
            let request = proto::RemoveDeviceModelRequest { model_name, model_namespace };
            mapper.remove_device_model(request).await?;
        }
        What::Register(_, device, _) => {
            let device = Some(proto::Device::clone(device));
            mapper.register_device(proto::RegisterDeviceRequest { device }).await?;
        }
        What::Update(_, device, _) => {
            let device = Some(proto::Device::clone(device));
            mapper.update_device(proto::UpdateDeviceRequest { device }).await?;
        }
        What::Remove(id) => {
            let (device_name, device_namespace) = (id.name().to_owned(), id.namespace().to_owned());
            mapper.remove_device(proto::RemoveDeviceRequest { device_name, device_namespace }).await?;
        }
    }
    Ok(())
}

/// Tells a mapper that says no from one that says nothing.
fn outcome_of(status: &Status) -> Outcome {
    let why: String = status.message().chars().take(300).collect();
    if matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded) {
        Outcome::Silent(why)
    } else {
        Outcome::Refused(status.code(), why)
    }
}

/// An error with what caused it: the library's own words are only "transport error".
fn causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn now() -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { at: Instant::now().into_std(), wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX) }
}
