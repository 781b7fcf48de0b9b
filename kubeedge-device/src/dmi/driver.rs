//! The loop: serves edgecore's calls, registers, and reports.

use std::{path::PathBuf, time::Duration};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use kubeedge_core::{
    dmi::{
        FileId, Socket, check_path, endpoint, file_id,
        proto::{
            DeviceStatus, MapperRegisterRequest, MapperRegisterResponse, ReportDeviceStatesRequest,
            ReportDeviceStatusRequest, device_manager_service_client::DeviceManagerServiceClient,
            device_mapper_service_server::DeviceMapperServiceServer,
        },
    },
    pipe::{self, Callee},
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status,
    transport::{Channel, Server},
};

use super::{
    Config, Dmi, Error, Limits,
    service::{Answered, Question, Service},
    state::{Outcome, Report, State},
};

/// How many calls of edgecore may wait for the loop.
const QUESTIONS_MAX: usize = 64;

/// How long the calls of edgecore that are under way may take when the part is stopped.
const LAST_MOMENTS: Duration = Duration::from_secs(2);

pub(super) async fn run(dmi: Dmi, stop: CancellationToken) -> Result<(), Error> {
    check_path(&dmi.config.edgecore)?;
    let limits = dmi.config.limits.clone();
    let socket = Socket::listen(&dmi.config.socket, limits.connections)?;
    let (caller, questions) = pipe::calls("dmi", QUESTIONS_MAX);
    let service = DeviceMapperServiceServer::new(Service { questions: caller })
        .max_decoding_message_size(limits.message_bytes)
        .max_encoding_message_size(limits.message_bytes);
    let server =
        Server::builder().serve_with_incoming_shutdown(service, socket.connections(), stop.cancelled());
    let mut server = std::pin::pin!(server);
    let mut part = std::pin::pin!(serve_mapper(dmi, questions, stop.clone()));
    tokio::select! {
        () = &mut part => {
            let _ = timeout(LAST_MOMENTS, server).await;
            Ok(())
        }
        ended = &mut server => {
            ended.map_err(Error::Serve)?;
            part.await;
            Ok(())
        }
    }
}

/// A registration that has ended: with a way to edgecore, and its answer.
type Registered = Result<(Edgecore, MapperRegisterResponse), String>;

/// The edgecore that knows the mapper.
struct Edgecore {
    channel: Channel,
    socket: Option<FileId>,
}

async fn serve_mapper(dmi: Dmi, mut questions: Callee<Question, Answered>, stop: CancellationToken) {
    let Dmi { config, mut inbox, outbox } = dmi;
    let mut state = State::new(config.clone(), now());
    let mut edgecore: Option<Edgecore> = None;
    let mut registration: Option<BoxFuture<'static, Registered>> = None;
    let mut reports: FuturesUnordered<BoxFuture<'static, (Report, Outcome)>> = FuturesUnordered::new();
    let mut look = interval(config.limits.look_every.max(Duration::from_millis(1)));
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        state.handle_timeout(now());
        for assignment in state.poll_assignments() {
            // Without a receiver the mapper has stopped, and this part will be stopped next.
            let _ = outbox.assignments.send(assignment);
        }
        if let Some(request) = state.poll_registration(now()) {
            registration = Some(register(config.clone(), request).boxed());
        }
        if let Some(edgecore) = &edgecore {
            for report in state.poll_reports(now()) {
                reports.push(tell(edgecore.channel.clone(), report, config.limits.clone()).boxed());
            }
        }
        let next = state.poll_timeout().map(Instant::from_std);
        tokio::select! {
            () = stop.cancelled() => return,
            Some(reading) = inbox.readings.recv() => {
                state.handle_reading(reading);
                while let Some(reading) = inbox.readings.try_recv() {
                    state.handle_reading(reading);
                }
            }
            Some(call) = questions.recv() => {
                let (question, reply) = call.split();
                reply.answer(state.handle_question(question));
            }
            ended = async { registration.as_mut()?.await.into() }, if registration.is_some() => {
                registration = None;
                match ended {
                    Some(Ok((known, answer))) => {
                        edgecore = Some(known);
                        state.handle_registered(answer, now());
                    }
                    Some(Err(why)) => state.handle_not_registered(&why, now()),
                    None => {}
                }
            }
            Some((report, outcome)) = reports.next(), if !reports.is_empty() => {
                state.handle_outcome(report, outcome, now());
            }
            _ = look.tick() => {
                if edgecore.as_ref().is_some_and(|edgecore| edgecore.socket != file_id(&config.edgecore)) {
                    state.handle_edgecore_changed(now());
                }
            }
            () = until(next) => {}
        }
        tokio::task::yield_now().await;
    }
}

/// Registers over a connection of its own.
async fn register(config: Config, request: MapperRegisterRequest) -> Registered {
    let Config { edgecore, limits, .. } = config;
    let deadline = limits.call_deadline;
    match timeout(deadline, try_register(edgecore, request, limits)).await {
        Ok(registered) => registered,
        Err(_) => Err(format!("no answer within {deadline:?}")),
    }
}

async fn try_register(path: PathBuf, request: MapperRegisterRequest, limits: Limits) -> Registered {
    // Looked at before, so that a restart in between is noticed rather than missed.
    let socket = file_id(&path);
    let endpoint = endpoint(&path, limits.call_deadline).map_err(|error| error.to_string())?;
    let channel = endpoint.connect().await.map_err(|error| causes(&error))?;
    let mut client = DeviceManagerServiceClient::new(channel.clone())
        .max_decoding_message_size(limits.message_bytes)
        .max_encoding_message_size(limits.message_bytes);
    match client.mapper_register(request).await {
        Ok(answer) => Ok((Edgecore { channel, socket }, answer.into_inner())),
        Err(status) => Err(status.message().to_owned()),
    }
}

/// Makes a report: the connection first, then all values in one call.
async fn tell(channel: Channel, report: Report, limits: Limits) -> (Report, Outcome) {
    let outcome = match timeout(limits.call_deadline, try_tell(channel, &report, &limits)).await {
        Ok(Ok(())) => Outcome::Done,
        Ok(Err(status)) => outcome_of(&status),
        Err(_) => Outcome::Lost(format!("no answer within {:?}", limits.call_deadline)),
    };
    (report, outcome)
}

async fn try_tell(channel: Channel, report: &Report, limits: &Limits) -> Result<(), Status> {
    let mut client = DeviceManagerServiceClient::new(channel).max_encoding_message_size(limits.message_bytes);
    let (name, namespace) = (report.device.name(), report.device.namespace());
    if let Some(state) = &report.state {
        let request = ReportDeviceStatesRequest {
            device_name: name.to_owned(),
            device_namespace: namespace.to_owned(),
            state: state.clone(),
        };
        client.report_device_states(request).await?;
    }
    if !report.twins.is_empty() {
        let status = DeviceStatus { twins: report.twins.clone(), ..DeviceStatus::default() };
        let request = ReportDeviceStatusRequest {
            device_name: name.to_owned(),
            device_namespace: namespace.to_owned(),
            reported_device: Some(status),
        };
        client.report_device_status(request).await?;
    }
    Ok(())
}

fn outcome_of(status: &Status) -> Outcome {
    let why = status.message().to_owned();
    if matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded) {
        Outcome::Lost(why)
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

fn now() -> std::time::Instant {
    Instant::now().into_std()
}
