//! The adapter against a runtime that answers what the test says.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    path::Path,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use futures::{FutureExt, future::BoxFuture, stream};
use tokio::net::UnixListener;
use tonic::{body::Body, codegen::Service, codegen::http, server::UnaryService};
use tonic_prost::ProstCodec;

use super::{
    config::{POD_NAME, POD_NAMESPACE, POD_UID},
    *,
};
use crate::runtime::ContainerState;

/// A runtime whose lists always work, and which can describe nothing that is in `broken`.
#[derive(Debug, Clone, Default)]
struct Runtime {
    sandboxes: Vec<cri::PodSandbox>,
    containers: Vec<cri::Container>,
    broken: BTreeSet<String>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Runtime {
    fn describe<T>(&self, id: String, described: impl FnOnce(String) -> T) -> Result<T, Status> {
        self.asked.lock().unwrap().push(id.clone());
        if self.broken.contains(&id) {
            return Err(Status::unknown("ttrpc: closed"));
        }
        Ok(described(id))
    }

    fn container(&self, id: String) -> Result<cri::ContainerStatusResponse, Status> {
        let state = self.containers.iter().find(|one| one.id == id).map_or(0, |one| one.state);
        self.describe(id, |id| cri::ContainerStatusResponse {
            status: Some(cri::ContainerStatus {
                id,
                state,
                exit_code: 3,
                started_at: 7_000_000,
                log_path: "/log".into(),
                ..cri::ContainerStatus::default()
            }),
        })
    }

    fn sandbox(&self, id: String) -> Result<cri::PodSandboxStatusResponse, Status> {
        let network = cri::PodSandboxNetworkStatus { ip: "10.0.0.9".into(), ..Default::default() };
        self.describe(id, |id| cri::PodSandboxStatusResponse {
            status: Some(cri::PodSandboxStatus { id, network: Some(network), ..Default::default() }),
        })
    }

    /// Serves it on the socket for as long as the test runs.
    fn listen(&self, socket: &Path) -> Containerd {
        let listener = UnixListener::bind(socket).unwrap();
        let incoming = stream::unfold(listener, async |listener| {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        tokio::spawn(
            tonic::transport::Server::builder().serve_with_incoming(self.clone(), Box::pin(incoming)),
        );
        Containerd::new(Config { socket: socket.to_owned(), ..Config::default() }).unwrap()
    }
}

/// Answers one call by a function of the runtime and the request.
struct Answer<Q, A>(Runtime, fn(&Runtime, Q) -> Result<A, Status>);

impl<Q, A: Send + 'static> UnaryService<Q> for Answer<Q, A> {
    type Response = A;
    type Future = std::future::Ready<Result<Response<A>, Status>>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        std::future::ready((self.1)(&self.0, request.into_inner()).map(Response::new))
    }
}

async fn unary<Q, A>(
    runtime: Runtime,
    request: http::Request<Body>,
    answer: fn(&Runtime, Q) -> Result<A, Status>,
) -> Result<http::Response<Body>, Infallible>
where
    Q: prost::Message + Default + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let codec = ProstCodec::<A, Q>::default();
    Ok(tonic::server::Grpc::new(codec).unary(Answer(runtime, answer), request).await)
}

impl Service<http::Request<Body>> for Runtime {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let runtime = self.clone();
        let path = request.uri().path().to_owned();
        match path.rsplit('/').next().unwrap() {
            "ListPodSandbox" => unary(runtime, request, |runtime, _: cri::ListPodSandboxRequest| {
                Ok(cri::ListPodSandboxResponse { items: runtime.sandboxes.clone() })
            })
            .boxed(),
            "ListContainers" => unary(runtime, request, |runtime, _: cri::ListContainersRequest| {
                Ok(cri::ListContainersResponse { containers: runtime.containers.clone() })
            })
            .boxed(),
            "ContainerStatus" => unary(runtime, request, |runtime, asked: cri::ContainerStatusRequest| {
                runtime.container(asked.container_id)
            })
            .boxed(),
            "PodSandboxStatus" => unary(runtime, request, |runtime, asked: cri::PodSandboxStatusRequest| {
                runtime.sandbox(asked.pod_sandbox_id)
            })
            .boxed(),
            other => panic!("nobody should call {other}"),
        }
    }
}

fn sandbox(id: &str) -> cri::PodSandbox {
    let labels = [(POD_NAME, id), (POD_NAMESPACE, "default"), (POD_UID, id)];
    cri::PodSandbox {
        id: id.into(),
        state: cri::PodSandboxState::SandboxReady.into(),
        labels: labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        ..Default::default()
    }
}

fn container(sandbox: &str, name: &str, state: cri::ContainerState) -> cri::Container {
    cri::Container {
        id: name.into(),
        pod_sandbox_id: sandbox.into(),
        metadata: Some(cri::ContainerMetadata { name: name.into(), attempt: 0 }),
        state: state.into(),
        created_at: 5_000_000,
        ..Default::default()
    }
}

#[tokio::test]
async fn what_the_runtime_cannot_describe_is_what_its_list_says_and_all_else_is_seen() {
    use cri::ContainerState::{ContainerCreated, ContainerExited, ContainerRunning};
    let directory = tempfile::tempdir().unwrap();
    let runtime = Runtime {
        sandboxes: vec![sandbox("dead"), sandbox("well")],
        containers: vec![
            container("dead", "a-created", ContainerCreated),
            container("dead", "b-ended", ContainerExited),
            container("dead", "c-runs", ContainerRunning),
            container("well", "app", ContainerRunning),
        ],
        broken: ["dead", "a-created", "b-ended", "c-runs"].map(str::to_owned).into(),
        ..Runtime::default()
    };
    let adapter = runtime.listen(&directory.path().join("cri.sock"));
    for _ in 0..2 {
        let all = adapter.observe().await.unwrap();
        let [dead, well] = &all[..] else { panic!("{all:?}") };
        assert!(dead.ready && dead.ips.is_empty(), "{dead:?}");
        let states: Vec<_> = dead.containers.iter().map(|one| one.state.clone()).collect();
        let ended = ContainerState::Exited {
            exit_code: None,
            reason: String::new(),
            message: String::new(),
            started_at_ms: 5,
            finished_at_ms: 5,
        };
        assert_eq!(states, [ContainerState::Created, ended, ContainerState::Running { started_at_ms: 5 }]);
        assert_eq!(well.ips, ["10.0.0.9"]);
        assert_eq!(well.containers[0].state, ContainerState::Running { started_at_ms: 7 });
    }
    let asked = runtime.asked.lock().unwrap();
    let times = |id: &str| asked.iter().filter(|one| *one == id).count();
    assert_eq!((times("c-runs"), times("dead")), (2, 2), "it is asked for again");
    assert_eq!((times("app"), times("well")), (1, 1), "what is known is not");
}

#[tokio::test]
async fn of_what_is_no_pod_nothing_is_asked() {
    let directory = tempfile::tempdir().unwrap();
    let mut foreign = sandbox("foreign");
    foreign.labels.clear();
    let runtime = Runtime {
        sandboxes: vec![foreign, sandbox("web")],
        containers: vec![container("foreign", "theirs", cri::ContainerState::ContainerRunning)],
        ..Runtime::default()
    };
    let adapter = runtime.listen(&directory.path().join("cri.sock"));
    let all = adapter.observe().await.unwrap();
    assert_eq!((all.len(), all[0].name.as_str()), (1, "web"));
    assert_eq!(*runtime.asked.lock().unwrap(), ["web"]);
}
