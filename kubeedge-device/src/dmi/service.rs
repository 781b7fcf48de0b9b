//! What edgecore may call: each call becomes a question to the loop.

use std::time::Duration;

use kubeedge_core::{
    dmi::proto::{
        CreateDeviceModelRequest, CreateDeviceModelResponse, Device, DeviceModel, GetDeviceRequest,
        GetDeviceResponse, RegisterDeviceRequest, RegisterDeviceResponse, RemoveDeviceModelRequest,
        RemoveDeviceModelResponse, RemoveDeviceRequest, RemoveDeviceResponse, UpdateDeviceModelRequest,
        UpdateDeviceModelResponse, UpdateDeviceRequest, UpdateDeviceResponse,
        device_mapper_service_server::DeviceMapperService,
    },
    pipe::Caller,
};
use tonic::{Code, Request, Response, Status, async_trait};

/// What edgecore says.
#[derive(Debug)]
pub(super) enum Question {
    /// A device that is there, whether it was before or not.
    Device(Device),
    RemoveDevice {
        namespace: String,
        name: String,
    },
    Model(DeviceModel),
    RemoveModel {
        namespace: String,
        name: String,
    },
    /// How a device is.
    Get {
        namespace: String,
        name: String,
    },
}

/// What it is answered; the device if it has asked for one.
pub(super) type Answered = Result<Option<Device>, Refusal>;

/// Why it is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: Code,
    pub(super) why: String,
}

/// How long the loop may take: it waits for nothing.
const DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Service {
    pub(super) questions: Caller<Question, Answered>,
}

impl Service {
    async fn ask(&self, question: Question) -> Result<Option<Device>, Status> {
        match self.questions.call(question, DEADLINE).await {
            Ok(Ok(device)) => Ok(device),
            Ok(Err(refusal)) => {
                tracing::warn!(code = ?refusal.code, why = refusal.why, "a call of edgecore was refused");
                Err(Status::new(refusal.code, refusal.why))
            }
            Err(error) => Err(Status::unavailable(format!("{error}; try again"))),
        }
    }

    async fn device(&self, device: Option<Device>) -> Result<(String, String), Status> {
        let device = device.ok_or_else(|| Status::invalid_argument("the request has no device"))?;
        let names = (device.name.clone(), device.namespace.clone());
        self.ask(Question::Device(device)).await?;
        Ok(names)
    }

    async fn model(&self, model: Option<DeviceModel>) -> Result<(String, String), Status> {
        let model = model.ok_or_else(|| Status::invalid_argument("the request has no device model"))?;
        let names = (model.name.clone(), model.namespace.clone());
        self.ask(Question::Model(model)).await?;
        Ok(names)
    }
}

#[async_trait]
impl DeviceMapperService for Service {
    async fn register_device(
        &self,
        request: Request<RegisterDeviceRequest>,
    ) -> Result<Response<RegisterDeviceResponse>, Status> {
        let (device_name, device_namespace) = self.device(request.into_inner().device).await?;
        Ok(Response::new(RegisterDeviceResponse { device_name, device_namespace }))
    }

    async fn update_device(
        &self,
        request: Request<UpdateDeviceRequest>,
    ) -> Result<Response<UpdateDeviceResponse>, Status> {
        self.device(request.into_inner().device).await?;
        Ok(Response::new(UpdateDeviceResponse {}))
    }

    async fn remove_device(
        &self,
        request: Request<RemoveDeviceRequest>,
    ) -> Result<Response<RemoveDeviceResponse>, Status> {
        let RemoveDeviceRequest { device_name: name, device_namespace: namespace } = request.into_inner();
        self.ask(Question::RemoveDevice { namespace, name }).await?;
        Ok(Response::new(RemoveDeviceResponse {}))
    }

    async fn create_device_model(
        &self,
        request: Request<CreateDeviceModelRequest>,
    ) -> Result<Response<CreateDeviceModelResponse>, Status> {
        let (device_model_name, device_model_namespace) = self.model(request.into_inner().model).await?;
        Ok(Response::new(CreateDeviceModelResponse { device_model_name, device_model_namespace }))
    }

    async fn update_device_model(
        &self,
        request: Request<UpdateDeviceModelRequest>,
    ) -> Result<Response<UpdateDeviceModelResponse>, Status> {
        self.model(request.into_inner().model).await?;
        Ok(Response::new(UpdateDeviceModelResponse {}))
    }

    async fn remove_device_model(
        &self,
        request: Request<RemoveDeviceModelRequest>,
    ) -> Result<Response<RemoveDeviceModelResponse>, Status> {
        let RemoveDeviceModelRequest { model_name: name, model_namespace: namespace } = request.into_inner();
        self.ask(Question::RemoveModel { namespace, name }).await?;
        Ok(Response::new(RemoveDeviceModelResponse {}))
    }

    async fn get_device(
        &self,
        request: Request<GetDeviceRequest>,
    ) -> Result<Response<GetDeviceResponse>, Status> {
        let GetDeviceRequest { device_name: name, device_namespace: namespace } = request.into_inner();
        let device = self.ask(Question::Get { namespace, name }).await?;
        Ok(Response::new(GetDeviceResponse { device }))
    }
}
