//! What mappers may call: each call becomes a question to the loop.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use kubeedge_core::{
    dmi::proto::{
        MapperRegisterRequest, MapperRegisterResponse, ReportDeviceStatesRequest, ReportDeviceStatesResponse,
        ReportDeviceStatusRequest, ReportDeviceStatusResponse,
        device_manager_service_server::DeviceManagerService,
    },
    pipe::{CallError, Caller},
};
use tonic::{Code, Request, Response, Status, async_trait};

/// What a mapper says.
#[derive(Debug)]
pub(super) enum Question {
    Register(MapperRegisterRequest),
    Values(ReportDeviceStatusRequest),
    State(ReportDeviceStatesRequest),
}

/// What it is answered.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    Registered(MapperRegisterResponse),
    Taken,
}

/// Why it is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: Code,
    pub(super) why: String,
}

impl Refusal {
    pub(super) fn new(code: Code, why: impl Into<String>) -> Self {
        Self { code, why: why.into() }
    }
}

pub(super) type Answered = Result<Answer, Refusal>;

/// How long the loop may take. It waits for nothing but the store; KubeEdge's mappers give it one second.
const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Service {
    pub(super) questions: Caller<Question, Answered>,
    /// When a refusal was logged last, and how many have been left out since.
    pub(super) logged: Mutex<(Option<Instant>, u64)>,
}

/// How often a refusal is logged at most: a mapper that is wrong is wrong with every report.
const LOG_EVERY: Duration = Duration::from_secs(1);

impl Service {
    fn note(&self, refusal: &Refusal) {
        // No code of others runs under the lock, so a poisoned pair is still whole.
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.0.is_some_and(|at| at.elapsed() < LOG_EVERY) {
            logged.1 += 1;
            return;
        }
        let (code, why, left_out) = (refusal.code, &refusal.why, logged.1);
        *logged = (Some(Instant::now()), 0);
        drop(logged);
        tracing::warn!(?code, why, left_out, "a mapper's call was refused");
    }

    async fn ask(&self, question: Question) -> Result<Answer, Status> {
        match self.questions.call(question, DEADLINE).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(refusal)) => {
                self.note(&refusal);
                Err(Status::new(refusal.code, refusal.why))
            }
            Err(error @ CallError::Full(_)) => {
                Err(Status::resource_exhausted(format!("edgecore is busy: {error}; try again")))
            }
            Err(error) => Err(Status::unavailable(format!("{error}; try again"))),
        }
    }

    async fn report(&self, question: Question) -> Result<(), Status> {
        self.ask(question).await.map(|_| ())
    }
}

#[async_trait]
impl DeviceManagerService for Service {
    async fn mapper_register(
        &self,
        request: Request<MapperRegisterRequest>,
    ) -> Result<Response<MapperRegisterResponse>, Status> {
        match self.ask(Question::Register(request.into_inner())).await? {
            Answer::Registered(answer) => Ok(Response::new(answer)),
            Answer::Taken => Ok(Response::new(MapperRegisterResponse::default())),
        }
    }

    async fn report_device_status(
        &self,
        request: Request<ReportDeviceStatusRequest>,
    ) -> Result<Response<ReportDeviceStatusResponse>, Status> {
        self.report(Question::Values(request.into_inner())).await?;
        Ok(Response::new(ReportDeviceStatusResponse {}))
    }

    async fn report_device_states(
        &self,
        request: Request<ReportDeviceStatesRequest>,
    ) -> Result<Response<ReportDeviceStatesResponse>, Status> {
        self.report(Question::State(request.into_inner())).await?;
        Ok(Response::new(ReportDeviceStatesResponse {}))
    }
}
