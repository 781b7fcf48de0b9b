//! Whose the devices are, and a plugin over its socket.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::stream::BoxStream;
use kubeedge_core::{
    device_plugin::proto::{
        self,
        device_plugin_server::{DevicePlugin, DevicePluginServer},
        registration_client::RegistrationClient,
    },
    dmi::{Socket, endpoint},
    pipe::{self, Caller},
    store::memory::MemoryStore,
};
use proptest::prelude::*;
use tokio_util::sync::DropGuard;
use tonic::{Request, Response, Status, async_trait, transport::Server};

use super::{answer::grant, state::State, *};

const CAMERA: &str = "example.com/camera";

fn request(resource: &str, endpoint: &str) -> proto::RegisterRequest {
    let options =
        proto::DevicePluginOptions { pre_start_required: true, get_preferred_allocation_available: true };
    proto::RegisterRequest {
        version: "v1beta1".to_owned(),
        endpoint: endpoint.to_owned(),
        resource_name: resource.to_owned(),
        options: Some(options),
    }
}

fn device(id: &str, healthy: bool) -> proto::Device {
    proto::Device { id: id.to_owned(), health: if healthy { "Healthy" } else { "Unhealthy" }.to_owned() }
}

fn wanted(container: &str, count: u32) -> Wanted {
    let counts = [(CAMERA.to_owned(), count)].into();
    Wanted { container: container.to_owned(), ends_before_others: container.starts_with("init"), counts }
}

fn uid(number: u8) -> Uid {
    Uid::new(format!("pod-{number}"))
}

/// A node with cameras of these names.
fn with_cameras(ids: &[&str]) -> (State, super::state::Dial) {
    let mut state = State::new(Limits::default());
    let (dial, _) = state.handle_registration(&request(CAMERA, "camera.sock")).unwrap();
    let devices: Vec<_> = ids.iter().map(|id| device(id, true)).collect();
    state.handle_list(&dial, &devices).unwrap();
    (state, dial)
}

/// Chooses as the loop does. Returns the devices that the container has then.
fn take(state: &mut State, uid: &Uid, wanted: &Wanted) -> Result<BTreeSet<String>, String> {
    for (name, count) in &wanted.counts {
        if let Some(choice) = state.choose(uid, wanted, name, *count)? {
            state.hold(uid, wanted, name, choice.made(None), Grant::default());
        }
    }
    let held = state.of_container(uid, wanted).ok_or("it has none")?;
    Ok(held.into_iter().flat_map(|(_, held)| held.ids).collect())
}

#[test]
fn a_plugin_with_a_wrong_name_version_or_socket_is_refused_in_words() {
    let mut state = State::new(Limits { resources: 1, ..Limits::default() });
    for (wrong, why) in [
        (request("camera", "c.sock"), "it has no domain"),
        (request("kubernetes.io/camera", "c.sock"), "Kubernetes' own"),
        (request("example.com/a/b", "c.sock"), "not a name that Kubernetes takes"),
        (request(CAMERA, "../c.sock"), "not the name of a socket"),
        (request(CAMERA, "kubelet.sock"), "not the name of a socket"),
        (request(CAMERA, ""), "not the name of a socket"),
        (proto::RegisterRequest { version: "v1".to_owned(), ..request(CAMERA, "c.sock") }, "not v1beta1"),
    ] {
        let refused = state.handle_registration(&wrong).unwrap_err();
        assert!(refused.contains(why), "{refused}");
    }
    state.handle_registration(&request(CAMERA, "c.sock")).unwrap();
    state.handle_registration(&request(CAMERA, "d.sock")).expect("it registers again");
    let refused = state.handle_registration(&request("example.com/lidar", "l.sock")).unwrap_err();
    assert_eq!(refused, "there are 1 resources already");
}

#[test]
fn too_few_devices_are_refused_in_the_kubelets_words() {
    let (mut state, dial) = with_cameras(&["a", "b"]);
    assert_eq!(take(&mut state, &uid(1), &wanted("app", 1)).unwrap(), ["a".to_owned()].into());
    assert_eq!(
        take(&mut state, &uid(1), &wanted("app", 1)).unwrap(),
        ["a".to_owned()].into(),
        "it has it already"
    );
    let refused = take(&mut state, &uid(2), &wanted("app", 2)).unwrap_err();
    assert_eq!(
        refused,
        "requested number of devices unavailable for example.com/camera. Requested: 2, Available: 1"
    );
    // A device that is not well is not given away.
    state.handle_list(&dial, &[device("a", true), device("b", false)]).unwrap();
    assert_eq!(state.inventory()[CAMERA], Stock { all: 2, healthy: 1 });
    assert!(take(&mut state, &uid(2), &wanted("app", 1)).is_err());
    state.keep_only(&[uid(2)].into());
    assert_eq!(take(&mut state, &uid(2), &wanted("app", 1)).unwrap(), ["a".to_owned()].into());
}

#[test]
fn an_init_container_passes_its_devices_on_to_those_behind_it() {
    let (mut state, _) = with_cameras(&["a", "b"]);
    let first = take(&mut state, &uid(1), &wanted("init-1", 1)).unwrap();
    assert_eq!(take(&mut state, &uid(1), &wanted("app", 1)).unwrap(), first);
    assert_eq!(take(&mut state, &uid(2), &wanted("app", 1)).unwrap(), ["b".to_owned()].into());
    assert!(take(&mut state, &uid(1), &wanted("sidecar", 2)).is_err(), "the others' are not its own");
}

#[test]
fn a_plugin_that_is_gone_is_dialled_for_five_minutes_and_then_has_no_devices() {
    let (mut state, dial) = with_cameras(&["a", "b"]);
    let begin = Instant::now();
    let at = |seconds: u64| begin + Duration::from_secs(seconds);
    assert_eq!(state.poll_dials(begin), []);
    assert!(state.handle_gone(&dial, begin));
    assert_eq!(state.inventory()[CAMERA], Stock { all: 2, healthy: 0 });
    let again = state.poll_dials(at(2)).pop().unwrap();
    assert!(!state.handle_gone(&dial, at(3)), "the earlier connection is not the present one");
    assert!(state.handle_gone(&again, at(3)));
    let again = state.poll_dials(at(6)).pop().unwrap();
    state.handle_list(&again, &[device("a", true)]).unwrap();
    assert_eq!(state.inventory()[CAMERA], Stock { all: 1, healthy: 1 });
    assert_eq!(state.poll_timeout(at(7)), None);
    assert!(state.handle_gone(&again, at(10)));
    assert_eq!(state.poll_dials(at(310)), []);
    assert_eq!(state.inventory()[CAMERA], Stock { all: 0, healthy: 0 });
}

#[test]
fn what_a_plugin_says_is_bounded_and_checked() {
    let limits = Limits { devices: 2, id_bytes: 4, grant_entries: 2, ..Limits::default() };
    let mut state = State::new(limits.clone());
    let (dial, _) = state.handle_registration(&request(CAMERA, "c.sock")).unwrap();
    assert!(state.handle_list(&dial, &[device("a", true), device("b", true), device("c", true)]).is_err());
    assert!(state.handle_list(&dial, &[device("abcde", true)]).is_err());
    assert!(state.handle_list(&dial, &[device("", true)]).is_err());
    assert_eq!(state.inventory()[CAMERA], Stock::default());
    let spec = |host: &str, permissions: &str| proto::ContainerAllocateResponse {
        devices: vec![proto::DeviceSpec {
            container_path: "/dev/camera".to_owned(),
            host_path: host.to_owned(),
            permissions: permissions.to_owned(),
        }],
        ..Default::default()
    };
    assert!(grant(spec("/dev/video0", "rw"), &limits).is_ok());
    for (host, permissions, why) in [
        ("dev/video0", "rw", "devices.host_path: \"dev/video0\" is not an absolute path"),
        ("/dev/../etc", "rw", "devices.host_path: \"/dev/../etc\" is not an absolute path"),
        ("/dev/video0", "x", "devices.permissions: \"x\" are not some of r, w and m"),
    ] {
        assert_eq!(grant(spec(host, permissions), &limits).unwrap_err(), why);
    }
    let envs = (0..3).map(|number| (format!("E{number}"), String::new())).collect();
    let many = proto::ContainerAllocateResponse { envs, ..Default::default() };
    assert_eq!(grant(many, &limits).unwrap_err(), "it has 3 entries, and 2 may be");
}

proptest! {
    #[test]
    fn whatever_happens_no_device_is_two_pods(steps in prop::collection::vec((0..4u8, 0..5u8, 0..4u32), 1..60)) {
        let all = ["a", "b", "c", "d"];
        let (mut state, mut dial) = with_cameras(&all);
        let mut alive = BTreeSet::new();
        for (what, pod, number) in steps {
            match what {
                0 => {
                    if take(&mut state, &uid(pod), &wanted("app", number + 1)).is_ok() {
                        alive.insert(uid(pod));
                    }
                }
                1 => {
                    alive.remove(&uid(pod));
                    state.keep_only(&alive);
                }
                2 => {
                    let listed: Vec<_> = all.iter().map(|id| device(id, *id != all[number as usize])).collect();
                    state.handle_list(&dial, &listed).unwrap();
                }
                _ => {
                    let held: BTreeMap<Uid, _> = alive.iter()
                        .filter_map(|uid| Some((uid.clone(), state.of_pod(uid)?.clone()))).collect();
                    let json = serde_json::to_vec(&held).unwrap();
                    let (mut next, next_dial) = with_cameras(&all);
                    next.restore(BTreeMap::new(), serde_json::from_slice(&json).unwrap(), Instant::now());
                    (state, dial) = (next, next_dial);
                }
            }
            let held = alive.iter().filter_map(|uid| state.of_pod(uid)).flat_map(BTreeMap::values);
            let ids: Vec<_> = held.flat_map(BTreeMap::values).flat_map(|held| &held.ids).collect();
            let different: BTreeSet<_> = ids.iter().collect();
            prop_assert_eq!(ids.len(), different.len());
        }
    }
}

// ---------------------------------------------------------------------------------------------- over sockets

/// A plugin that notes what it is asked.
#[derive(Debug, Clone, Default)]
struct Plugin {
    calls: Arc<Mutex<Vec<String>>>,
    /// Ends its lists, as its process would with its end.
    ended: CancellationToken,
}

impl Plugin {
    fn note(&self, what: &str, ids: &[String]) {
        self.calls.lock().unwrap().push(format!("{what} {}", ids.join(",")));
    }

    /// Serves beside `kubelet.sock` until the guard is dropped.
    fn serve(&self, folder: &Path) -> DropGuard {
        let stop = CancellationToken::new();
        let socket = Socket::listen(&folder.join("camera.sock"), 8).unwrap();
        let service = DevicePluginServer::new(Self { ended: stop.clone(), ..self.clone() });
        let ended = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                served = Server::builder().serve_with_incoming(service, socket.connections()) => served.unwrap(),
                () = ended.cancelled() => {}
            }
        });
        stop.drop_guard()
    }
}

#[async_trait]
impl DevicePlugin for Plugin {
    async fn get_device_plugin_options(
        &self,
        _: Request<proto::Empty>,
    ) -> Result<Response<proto::DevicePluginOptions>, Status> {
        Ok(Response::new(proto::DevicePluginOptions::default()))
    }

    type ListAndWatchStream = BoxStream<'static, Result<proto::ListAndWatchResponse, Status>>;

    async fn list_and_watch(
        &self,
        _: Request<proto::Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        use futures::StreamExt;
        let devices = vec![device("left", true), device("right", true)];
        let list = futures::stream::once(async { Ok(proto::ListAndWatchResponse { devices }) });
        let ended = self.ended.clone().cancelled_owned();
        Ok(Response::new(list.chain(futures::stream::pending()).take_until(ended).boxed()))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<proto::PreferredAllocationRequest>,
    ) -> Result<Response<proto::PreferredAllocationResponse>, Status> {
        let request = request.into_inner().container_requests.remove(0);
        self.note("prefer", &request.available_device_i_ds);
        let chosen = proto::ContainerPreferredAllocationResponse { device_i_ds: vec!["right".to_owned()] };
        Ok(Response::new(proto::PreferredAllocationResponse { container_responses: vec![chosen] }))
    }

    async fn allocate(
        &self,
        request: Request<proto::AllocateRequest>,
    ) -> Result<Response<proto::AllocateResponse>, Status> {
        let ids = request.into_inner().container_requests.remove(0).devices_ids;
        self.note("allocate", &ids);
        let envs = [("CAMERA".to_owned(), ids.join(","))].into();
        let answer = proto::ContainerAllocateResponse { envs, ..Default::default() };
        Ok(Response::new(proto::AllocateResponse { container_responses: vec![answer] }))
    }

    async fn pre_start_container(
        &self,
        request: Request<proto::PreStartContainerRequest>,
    ) -> Result<Response<proto::PreStartContainerResponse>, Status> {
        self.note("prepare", &request.into_inner().devices_ids);
        Ok(Response::new(proto::PreStartContainerResponse {}))
    }
}

/// The part over a folder and a store.
struct Part {
    questions: Caller<Question, Answer>,
    inventory: watch::Receiver<Inventory>,
    _stop: DropGuard,
}

impl Part {
    fn start(folder: &Path, store: &MemoryStore) -> Self {
        let (questions, questions_rx) = pipe::calls("device_questions", 16);
        let (inventory_tx, inventory) = watch::channel(Inventory::new());
        let stop = CancellationToken::new();
        let part = Devices::new(
            Config::new(folder),
            Arc::new(store.clone()),
            Inbox { questions: questions_rx },
            Outbox { inventory: inventory_tx },
        );
        tokio::spawn(part.run(stop.clone()));
        Self { questions, inventory, _stop: stop.drop_guard() }
    }

    async fn ask(&self, question: Question) -> Answer {
        self.questions.call(question, Duration::from_secs(10)).await.unwrap()
    }

    async fn wait_for(&mut self, all: u32, healthy: u32) {
        let stock = Stock { all, healthy };
        let waited = self.inventory.wait_for(|inventory| inventory.get(CAMERA) == Some(&stock));
        tokio::time::timeout(Duration::from_secs(20), waited).await.unwrap().unwrap();
    }
}

async fn register(folder: &Path) {
    let socket: PathBuf = folder.join("kubelet.sock");
    while !socket.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let channel = endpoint(&socket, Duration::from_secs(5)).unwrap().connect().await.unwrap();
    RegistrationClient::new(channel).register(request(CAMERA, "camera.sock")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_is_asked_as_the_kubelet_asks_and_nothing_is_forgotten_over_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let (folder, store) = (folder.path(), MemoryStore::new());
    let plugin = Plugin::default();
    let serving = plugin.serve(folder);
    let mut part = Part::start(folder, &store);
    register(folder).await;
    part.wait_for(2, 2).await;
    let allocate = |number: u8, count: u32, active: &[u8]| Question::Allocate {
        uid: uid(number),
        containers: vec![wanted("app", count)],
        active: active.iter().map(|number| uid(*number)).collect(),
    };
    let camera = |answer: Answer| answer.map(|grant| grant.env["CAMERA"].clone());
    let grant = |number: u8| Question::Grant { uid: uid(number), wanted: wanted("app", 1) };
    part.ask(allocate(1, 1, &[1])).await.unwrap();
    assert_eq!(camera(part.ask(grant(1)).await).unwrap(), "right", "the plugin prefers it");
    let calls = plugin.calls.lock().unwrap().clone();
    assert_eq!(calls, ["prefer left,right", "allocate right", "prepare right"]);
    assert!(part.ask(allocate(2, 2, &[1, 2])).await.unwrap_err().contains("Requested: 2, Available: 1"));

    // Another process finds the plugin by itself, and what was given stays given.
    drop(part);
    let mut part = Part::start(folder, &store);
    part.wait_for(2, 2).await;
    assert_eq!(camera(part.ask(grant(1)).await).unwrap(), "right");
    part.ask(allocate(3, 1, &[1, 3])).await.unwrap();
    assert_eq!(camera(part.ask(grant(3)).await).unwrap(), "left");

    // A plugin that is gone has devices that are not well, and comes back without registering.
    drop(serving);
    part.wait_for(2, 0).await;
    assert!(part.ask(grant(1)).await.unwrap_err().contains("is not there"), "it has to be prepared");
    let _serving = plugin.serve(folder);
    part.wait_for(2, 2).await;
    assert_eq!(camera(part.ask(grant(1)).await).unwrap(), "right");
    part.ask(allocate(4, 2, &[4])).await.expect("what the others had is free");
}
