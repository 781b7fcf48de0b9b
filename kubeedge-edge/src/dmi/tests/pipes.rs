use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use kubeedge_core::{
    device::{Reading, ReadingContent},
    dmi::{
        Socket, endpoint, proto,
        proto::{
            device_manager_service_client::DeviceManagerServiceClient,
            device_mapper_service_server::{DeviceMapperService, DeviceMapperServiceServer},
        },
    },
    store::memory::MemoryStore,
};
use tokio::{io::AsyncWriteExt, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Response, Status, async_trait,
    transport::{Channel, Server},
};

use super::{
    super::{Config, Dmi, Error, Outside, pipes},
    assign, gone, registration, report, spec, twin,
};

/// A mapper on a real socket, which notes what it is called with.
#[derive(Debug, Clone, Default)]
struct RealMapper {
    devices: Arc<Mutex<BTreeMap<String, proto::Device>>>,
    calls: Arc<Mutex<Vec<String>>>,
    /// It takes calls and never answers.
    hangs: bool,
}

impl RealMapper {
    fn serve(&self, socket: &Path) -> JoinHandle<()> {
        let (mapper, socket) = (DeviceMapperServiceServer::new(self.clone()), socket.to_owned());
        let socket = Socket::listen(&socket, 8).unwrap();
        tokio::spawn(async move {
            Server::builder().serve_with_incoming(mapper, socket.connections()).await.unwrap();
        })
    }

    async fn take(&self, call: &str, name: &str) {
        self.calls.lock().unwrap().push(format!("{call} {name}"));
        if self.hangs {
            std::future::pending::<()>().await;
        }
    }

    fn limit_of(&self, name: &str) -> Option<String> {
        let devices = self.devices.lock().unwrap();
        let properties = &devices.get(name)?.spec.as_ref()?.properties;
        let limit = properties.iter().find(|property| property.name == "limit")?;
        Some(limit.desired.as_ref()?.value.clone())
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

#[async_trait]
impl DeviceMapperService for RealMapper {
    async fn register_device(
        &self,
        request: Request<proto::RegisterDeviceRequest>,
    ) -> Result<Response<proto::RegisterDeviceResponse>, Status> {
        let device = request.into_inner().device.unwrap();
        self.take("register", &device.name).await;
        self.devices.lock().unwrap().insert(device.name.clone(), device);
        Ok(Response::new(proto::RegisterDeviceResponse::default()))
    }

    async fn remove_device(
        &self,
        request: Request<proto::RemoveDeviceRequest>,
    ) -> Result<Response<proto::RemoveDeviceResponse>, Status> {
        let name = request.into_inner().device_name;
        self.take("remove", &name).await;
        self.devices.lock().unwrap().remove(&name);
        Ok(Response::new(proto::RemoveDeviceResponse {}))
    }

    async fn update_device(
        &self,
        request: Request<proto::UpdateDeviceRequest>,
    ) -> Result<Response<proto::UpdateDeviceResponse>, Status> {
        let device = request.into_inner().device.unwrap();
        self.take("update", &device.name).await;
        self.devices.lock().unwrap().insert(device.name.clone(), device);
        Ok(Response::new(proto::UpdateDeviceResponse {}))
    }

    async fn create_device_model(
        &self,
        _: Request<proto::CreateDeviceModelRequest>,
    ) -> Result<Response<proto::CreateDeviceModelResponse>, Status> {
        Ok(Response::new(proto::CreateDeviceModelResponse::default()))
    }

    async fn remove_device_model(
        &self,
        _: Request<proto::RemoveDeviceModelRequest>,
    ) -> Result<Response<proto::RemoveDeviceModelResponse>, Status> {
        Ok(Response::new(proto::RemoveDeviceModelResponse {}))
    }

    async fn update_device_model(
        &self,
        _: Request<proto::UpdateDeviceModelRequest>,
    ) -> Result<Response<proto::UpdateDeviceModelResponse>, Status> {
        Ok(Response::new(proto::UpdateDeviceModelResponse {}))
    }

    async fn get_device(
        &self,
        _: Request<proto::GetDeviceRequest>,
    ) -> Result<Response<proto::GetDeviceResponse>, Status> {
        Err(Status::unimplemented("edgecore does not ask"))
    }
}

/// The part over its pipes, with its socket in a folder.
struct Running {
    folder: Arc<tempfile::TempDir>,
    store: Arc<MemoryStore>,
    outside: Outside,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

impl Running {
    fn start() -> Self {
        Self::start_with(Arc::new(tempfile::tempdir().unwrap()), Arc::new(MemoryStore::new()))
    }

    fn start_with(folder: Arc<tempfile::TempDir>, store: Arc<MemoryStore>) -> Self {
        let (inbox, outbox, outside) = pipes();
        let stop = CancellationToken::new();
        let mut config = Config::new(folder.path().join("dmi.sock"));
        config.limits.call_deadline = Duration::from_millis(300);
        config.limits.retry_min = Duration::from_millis(20);
        let dmi = Dmi::new(config, store.clone(), inbox, outbox);
        let task = tokio::spawn(dmi.run(stop.clone()));
        Self { folder, store, outside, stop, task }
    }

    /// Stops it, and starts it again with what it has kept.
    async fn restart(self) -> Self {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
        Self::start_with(self.folder, self.store)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn client(&self) -> DeviceManagerServiceClient<Channel> {
        let endpoint = endpoint(&self.path("dmi.sock"), Duration::from_secs(5)).unwrap();
        loop {
            if let Ok(channel) = endpoint.connect().await {
                return DeviceManagerServiceClient::new(channel);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn register(&self, name: &str, protocol: &str) -> Vec<String> {
        let address = self.path(&format!("{name}.sock"));
        let request = registration(name, protocol, address.to_str().unwrap());
        let answer = self.client().await.mapper_register(request).await.unwrap().into_inner();
        answer.device_list.into_iter().map(|device| device.name).collect()
    }

    fn assign(&self, name: &str, protocol: &str, limit: &str) {
        self.outside.assignments.send(assign(spec(name, protocol, limit, "bar"))).unwrap();
    }

    async fn reading(&mut self) -> Reading {
        timeout(Duration::from_secs(5), self.outside.readings.recv()).await.unwrap().unwrap()
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
        assert!(!self.folder.path().join("dmi.sock").exists());
    }
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let waits = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(5), waits).await.unwrap_or_else(|_| panic!("waited for {what}"));
}

#[tokio::test]
async fn a_mapper_registers_is_called_and_reports_and_a_restart_of_edgecore_changes_nothing_for_it() {
    let mut edge = Running::start();
    let mapper = RealMapper::default();
    let server = mapper.serve(&edge.path("m.sock"));
    edge.assign("a", "rig", "1");
    assert_eq!(edge.register("m", "rig").await, ["a"]);
    edge.assign("b", "rig", "2");
    eventually("b to be registered", || mapper.limit_of("b").as_deref() == Some("2")).await;
    let mut client = edge.client().await;
    client.report_device_status(report("a", vec![twin("pressure", Some("1.5"), None)])).await.unwrap();
    let reading = edge.reading().await;
    assert!(matches!(reading.content, ReadingContent::Property { value, .. } if value == "1.5"));
    let before = mapper.calls().len();

    let edge = edge.restart().await;
    edge.assign("a", "rig", "1");
    edge.assign("b", "rig", "3");
    eventually("b to be updated", || mapper.limit_of("b").as_deref() == Some("3")).await;
    assert_eq!(mapper.calls()[before..], ["update b"], "nothing else was told");
    edge.outside.assignments.send(gone("b")).unwrap();
    eventually("b to be removed", || mapper.limit_of("b").is_none()).await;
    server.abort();
    edge.stop().await;
}

#[tokio::test]
async fn a_mapper_that_starts_together_with_edgecore_is_not_told_that_it_has_no_devices() {
    let edge = Running::start();
    let (told, ()) = tokio::join!(edge.register("m", "rig"), async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        edge.assign("a", "rig", "1");
    });
    assert_eq!(told, ["a"]);
    edge.stop().await;
}

#[tokio::test]
async fn a_mapper_that_never_answers_holds_up_no_other_and_its_reports_are_taken() {
    let mut edge = Running::start();
    let (hanging, good) = (RealMapper { hangs: true, ..RealMapper::default() }, RealMapper::default());
    let servers = [hanging.serve(&edge.path("hanging.sock")), good.serve(&edge.path("good.sock"))];
    edge.register("hanging", "rig").await;
    edge.register("good", "opcua").await;
    edge.assign("a", "rig", "1");
    eventually("the call to hang", || hanging.calls() == ["register a"]).await;
    for limit in 0..20 {
        edge.assign("b", "opcua", &limit.to_string());
    }
    eventually("the other to be told", || good.limit_of("b").as_deref() == Some("19")).await;
    edge.client()
        .await
        .report_device_status(report("a", vec![twin("on", Some("true"), None)]))
        .await
        .unwrap();
    assert_eq!(edge.reading().await.key().1.as_deref(), Some("on"));
    // Whether it knows the device is not known, so it is updated when it is called again.
    eventually("a second try", || hanging.calls().contains(&"update a".to_owned())).await;
    servers.iter().for_each(JoinHandle::abort);
    edge.stop().await;
}

#[tokio::test]
async fn a_mapper_that_was_killed_is_called_as_soon_as_it_is_back() {
    let edge = Running::start();
    // A process that was killed leaves its file.
    drop(std::os::unix::net::UnixListener::bind(edge.path("m.sock")).unwrap());
    edge.register("m", "rig").await;
    edge.assign("a", "rig", "1");
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mapper = RealMapper::default();
    let server = mapper.serve(&edge.path("m.sock"));
    let began = std::time::Instant::now();
    assert_eq!(edge.register("m", "rig").await, ["a"]);
    edge.assign("a", "rig", "2");
    eventually("a to be updated", || mapper.limit_of("a").as_deref() == Some("2")).await;
    assert!(began.elapsed() < Duration::from_millis(200), "{:?}", began.elapsed());
    server.abort();
    edge.stop().await;
}

#[tokio::test]
async fn garbage_is_refused_and_everything_else_goes_on() {
    let mut edge = Running::start();
    edge.assign("a", "rig", "1");
    let mut client = edge.client().await;
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        let mut stream = tokio::net::UnixStream::connect(edge.path("dmi.sock")).await.unwrap();
        stream.write_all(garbage).await.unwrap();
    }
    edge.register("m", "rig").await;
    let wrong =
        client.report_device_status(report("a", vec![twin("limit", Some("warm"), None)])).await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
    assert_eq!(wrong.message(), r#"device default/a, property "limit": "warm" is no number"#);
    let huge = "x".repeat(5 << 20);
    assert!(client.report_device_status(report("a", vec![twin("label", Some(&huge), None)])).await.is_err());
    client.report_device_status(report("a", vec![twin("label", Some("fine"), None)])).await.unwrap();
    assert_eq!(edge.reading().await.key().1.as_deref(), Some("label"));
    edge.stop().await;
}

#[tokio::test]
async fn a_socket_that_cannot_be_is_an_error() {
    let (inbox, outbox, _outside) = pipes();
    let dmi = Dmi::new(Config::new("dmi.sock"), Arc::new(MemoryStore::new()), inbox, outbox);
    let error = dmi.run(CancellationToken::new()).await.unwrap_err();
    assert!(error.to_string().contains("absolute"), "{error}");
}
