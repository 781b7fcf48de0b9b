//! The loop: serves plugins that register, watches their devices, and asks them what containers get.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{
    FutureExt, Stream, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream, FuturesUnordered, SelectAll},
};
use kubeedge_core::{
    device_plugin::proto::{
        self, device_plugin_client::DevicePluginClient, registration_server::RegistrationServer,
    },
    dmi::{Socket, SocketError, endpoint},
    id::Uid,
    pipe::{self, Call, Callee},
    store::{Batch, MetaStore},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Server};
use tracing::{info, warn};

use super::{
    Answer, Devices, Error, Grant, Inventory, Limits, Question, Wanted, answer, record,
    service::Service,
    state::{Choice, Dial, State},
};

/// How long a plugin may take for one answer. 30 s, as the kubelet gives it to prepare a container.
const PLUGIN_DEADLINE: Duration = Duration::from_secs(30);

/// How long plugins' calls that are under way may take when the part is stopped.
const LAST_MOMENTS: Duration = Duration::from_secs(2);

/// How many connections plugins may have at once. Each needs one, for a moment.
const CONNECTIONS_MAX: usize = 32;

/// How often the socket is tried again that cannot be had.
const LISTEN_AGAIN: Duration = Duration::from_secs(10);

type Client = DevicePluginClient<Channel>;
type Registrations = Callee<proto::RegisterRequest, Result<(), String>>;

pub(super) async fn run(devices: Devices, stop: CancellationToken) -> Result<(), Error> {
    let (caller, registrations) = pipe::calls("device_registrations", 16);
    let socket = devices.config.folder.join("kubelet.sock");
    let server = serve(socket, Service { registrations: caller }, stop.clone());
    let mut server = std::pin::pin!(server);
    let part = Loop::begin(devices).await?.run(registrations, stop);
    let mut part = std::pin::pin!(part);
    tokio::select! {
        () = &mut part => {
            let _ = timeout(LAST_MOMENTS, server).await;
        }
        ended = &mut server => {
            ended?;
            part.await;
        }
    }
    Ok(())
}

/// Serves on the socket, which is tried again for as long as it takes.
async fn serve(socket: PathBuf, service: Service, stop: CancellationToken) -> Result<(), Error> {
    loop {
        match Socket::listen(&socket, CONNECTIONS_MAX) {
            Ok(socket) => {
                let served = Server::builder()
                    .serve_with_incoming_shutdown(
                        RegistrationServer::new(service).max_decoding_message_size(64 << 10),
                        socket.connections(),
                        stop.cancelled(),
                    )
                    .await;
                if let Err(error) = served {
                    warn!(%error, "device plugins are not served any more");
                    stop.cancelled().await;
                }
                return Ok(());
            }
            Err(error @ SocketError::Path { .. }) => return Err(Error::Socket(error)),
            Err(error) => warn!(%error, retry_in = ?LISTEN_AGAIN, "device plugins cannot be served"),
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(LISTEN_AGAIN) => {}
        }
    }
}

/// What of a plugin is heard.
enum Event {
    Connected(Dial, Client),
    Listed(Dial, Vec<proto::Device>),
    Gone(Dial, String),
}

/// What answers to questions are made from.
struct Shared {
    limits: Limits,
    store: Arc<dyn MetaStore>,
    known: Mutex<Known>,
}

struct Known {
    state: State,
    /// The plugin that serves each resource.
    clients: BTreeMap<String, Client>,
}

struct Loop {
    shared: Arc<Shared>,
    folder: PathBuf,
    questions: Callee<Question, Answer>,
    inventory: watch::Sender<Inventory>,
    plugins: SelectAll<BoxStream<'static, Event>>,
    /// Ends what is heard of an earlier connection.
    watches: BTreeMap<String, CancellationToken>,
    /// Devices are chosen for one container after the other.
    waiting: VecDeque<Call<Question, Answer>>,
    choosing: Option<BoxFuture<'static, ()>>,
    answers: FuturesUnordered<BoxFuture<'static, ()>>,
}

impl Loop {
    async fn begin(devices: Devices) -> Result<Self, Error> {
        let Devices { config, store, inbox, outbox } = devices;
        let mut state = State::new(config.limits.clone());
        let (plugins, held) = record::read(store.as_ref()).await?;
        state.restore(plugins, held, std::time::Instant::now());
        let known = Mutex::new(Known { state, clients: BTreeMap::new() });
        Ok(Self {
            shared: Arc::new(Shared { limits: config.limits, store, known }),
            folder: config.folder,
            questions: inbox.questions,
            inventory: outbox.inventory,
            plugins: SelectAll::new(),
            watches: BTreeMap::new(),
            waiting: VecDeque::new(),
            choosing: None,
            answers: FuturesUnordered::new(),
        })
    }

    async fn run(mut self, mut registrations: Registrations, stop: CancellationToken) {
        loop {
            let now = std::time::Instant::now();
            let dials = self.shared.lock().state.poll_dials(now);
            dials.into_iter().for_each(|dial| self.watch(dial));
            self.report();
            self.choose();
            let wake = self.shared.lock().state.poll_timeout(now);
            let wake = Instant::from_std(wake.unwrap_or(now + Duration::from_secs(3600)));
            tokio::select! {
                () = stop.cancelled() => return,
                Some(call) = registrations.recv() => {
                    let (request, reply) = call.split();
                    reply.answer(self.register(&request).await);
                }
                Some(event) = self.plugins.next(), if !self.plugins.is_empty() => self.heard(event),
                Some(call) = self.questions.recv() => self.question(call),
                () = ready(&mut self.choosing) => self.choosing = None,
                Some(()) = self.answers.next(), if !self.answers.is_empty() => {}
                () = sleep_until(wake) => {}
            }
        }
    }

    async fn register(&mut self, request: &proto::RegisterRequest) -> Result<(), String> {
        let registered = self.shared.lock().state.handle_registration(request);
        let (dial, plugin) = match registered {
            Ok(registered) => registered,
            Err(why) => {
                warn!(resource = request.resource_name, why, "a device plugin is refused");
                return Err(why);
            }
        };
        info!(resource = dial.resource, endpoint = dial.endpoint, "a device plugin has registered");
        let mut batch = Batch::new();
        let put = record::put_plugin(&mut batch, &dial.resource, &plugin);
        // Without its record it has to register again after a restart, as plugins do anyway.
        if let Err(error) = put.and(self.shared.store.commit(batch).await) {
            warn!(%error, "a device plugin is not remembered");
        }
        self.watch(dial);
        Ok(())
    }

    fn watch(&mut self, dial: Dial) {
        let until = CancellationToken::new();
        if let Some(earlier) = self.watches.insert(dial.resource.clone(), until.clone()) {
            earlier.cancel();
        }
        let path = self.folder.join(&dial.endpoint);
        let heard = listen(path, dial, self.shared.limits.message_bytes);
        self.plugins.push(heard.take_until(until.cancelled_owned()).boxed());
    }

    fn heard(&mut self, event: Event) {
        let mut known = self.shared.lock();
        match event {
            Event::Connected(dial, client) => drop(known.clients.insert(dial.resource, client)),
            Event::Listed(dial, devices) => {
                if let Err(why) = known.state.handle_list(&dial, &devices) {
                    warn!(resource = dial.resource, why, "what a device plugin lists is passed over");
                }
            }
            Event::Gone(dial, why) => {
                if known.state.handle_gone(&dial, std::time::Instant::now())
                    && known.clients.remove(&dial.resource).is_some()
                {
                    warn!(resource = dial.resource, why, "a device plugin is gone");
                }
            }
        }
    }

    fn report(&self) {
        let inventory = self.shared.lock().state.inventory();
        self.inventory.send_if_modified(|told| {
            let changed = *told != inventory;
            *told = inventory;
            changed
        });
    }

    fn question(&mut self, call: Call<Question, Answer>) {
        let has_all = match &call.question {
            Question::Allocate { .. } => false,
            Question::Grant { uid, wanted } => self.shared.lock().state.of_container(uid, wanted).is_some(),
        };
        if has_all {
            self.answers.push(Arc::clone(&self.shared).answer(call).boxed());
        } else {
            self.waiting.push_back(call);
        }
    }

    fn choose(&mut self) {
        if self.choosing.is_none()
            && let Some(call) = self.waiting.pop_front()
        {
            self.choosing = Some(Arc::clone(&self.shared).answer(call).boxed());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Known> {
        // No code of others runs under the lock, so what it guards is whole also after a panic.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(self: Arc<Self>, call: Call<Question, Answer>) {
        let (question, reply) = call.split();
        let answer = match question {
            Question::Allocate { uid, containers, active } => {
                self.free(&active).await;
                self.allocate(&uid, &containers).await.map(|()| Grant::default())
            }
            Question::Grant { uid, wanted } => self.grant(&uid, wanted).await,
        };
        reply.answer(answer);
    }

    async fn free(&self, active: &BTreeSet<Uid>) {
        let ended = self.lock().state.keep_only(active);
        let mut batch = Batch::new();
        let put: Result<Vec<()>, _> =
            ended.iter().map(|uid| record::put_holder(&mut batch, uid, None)).collect();
        if ended.is_empty() {
            return;
        }
        // A record that stays is one of a pod that has ended, and goes with the next question.
        if let Err(error) = put.and(self.store.commit(batch).await) {
            warn!(%error, "it is not remembered that devices are free");
        }
    }

    async fn grant(&self, uid: &Uid, wanted: Wanted) -> Answer {
        self.allocate(uid, std::slice::from_ref(&wanted)).await?;
        let held = self.lock().state.of_container(uid, &wanted).ok_or("the devices were given to nobody")?;
        let mut all = Grant::default();
        for (name, held) in held {
            if self.lock().state.wants_pre_start(&name) {
                let request = proto::PreStartContainerRequest { devices_ids: held.ids.into_iter().collect() };
                let mut client = self.client(&name)?;
                within(&name, "PreStartContainer", client.pre_start_container(request)).await?;
            }
            all.env.extend(held.grant.env);
            all.mounts.extend(held.grant.mounts);
            all.devices.extend(held.grant.devices);
            all.annotations.extend(held.grant.annotations);
            all.cdi_devices.extend(held.grant.cdi_devices);
        }
        Ok(all)
    }

    /// Sees to it that containers have devices of every resource that they want, and that the store says so.
    async fn allocate(&self, uid: &Uid, containers: &[Wanted]) -> Result<(), String> {
        let mut changed = false;
        for wanted in containers {
            for (name, count) in &wanted.counts {
                let choice = self.lock().state.choose(uid, wanted, name, *count)?;
                let Some(choice) = choice else { continue };
                let ids = self.chosen(name, choice).await?;
                let grant = self.ask(name, &ids).await?;
                self.lock().state.hold(uid, wanted, name, ids, grant);
                changed = true;
            }
        }
        if !changed {
            return Ok(());
        }
        let mut batch = Batch::new();
        let put = record::put_holder(&mut batch, uid, self.lock().state.of_pod(uid));
        let kept = match put {
            Ok(()) => self.store.commit(batch).await,
            Err(error) => Err(error),
        };
        kept.map_err(|error| format!("it cannot be remembered who has which device: {error}"))
    }

    async fn chosen(&self, name: &str, choice: Choice) -> Result<BTreeSet<String>, String> {
        if !choice.ask {
            return Ok(choice.made(None));
        }
        let request = proto::ContainerPreferredAllocationRequest {
            available_device_i_ds: choice.free.iter().cloned().collect(),
            must_include_device_i_ds: choice.must.iter().cloned().collect(),
            allocation_size: i32::try_from(choice.count).unwrap_or(i32::MAX),
        };
        let request = proto::PreferredAllocationRequest { container_requests: vec![request] };
        let mut client = self.client(name)?;
        let answer = within(name, "GetPreferredAllocation", client.get_preferred_allocation(request)).await?;
        let preferred = answer.container_responses.into_iter().next();
        let preferred = preferred.map(|one| one.device_i_ds.into_iter().collect());
        Ok(choice.made(preferred))
    }

    async fn ask(&self, name: &str, ids: &BTreeSet<String>) -> Result<Grant, String> {
        let request = proto::ContainerAllocateRequest { devices_ids: ids.iter().cloned().collect() };
        let request = proto::AllocateRequest { container_requests: vec![request] };
        let mut client = self.client(name)?;
        let answer = within(name, "Allocate", client.allocate(request)).await?;
        let answer = answer.container_responses.into_iter().next();
        let answer = answer.ok_or_else(|| format!("the plugin of {name} answers Allocate with nothing"))?;
        answer::grant(answer, &self.limits)
            .map_err(|why| format!("the plugin of {name} answers Allocate: {why}"))
    }

    fn client(&self, name: &str) -> Result<Client, String> {
        let client = self.lock().clients.get(name).cloned();
        client.ok_or_else(|| format!("the device plugin of {name} is not there"))
    }
}

/// Waits for a plugin, and says in words what it has not done.
async fn within<T>(
    name: &str,
    call: &str,
    answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, String> {
    match timeout(PLUGIN_DEADLINE, answer).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => {
            let (code, why) = (status.code(), status.message());
            Err(format!("rpc error: the plugin of {name} answers {call} with {code:?}: {why}"))
        }
        Err(_) => Err(format!("the plugin of {name} does not answer {call} within {PLUGIN_DEADLINE:?}")),
    }
}

/// All that is heard of a plugin until it is gone.
fn listen(path: PathBuf, dial: Dial, message_bytes: usize) -> impl Stream<Item = Event> + Send {
    let dialled = dial.clone();
    let connect = async move {
        let endpoint = endpoint(&path, PLUGIN_DEADLINE).map_err(|error| error.to_string())?;
        let channel = endpoint.connect().await.map_err(|error| error.to_string())?;
        let mut client = DevicePluginClient::new(channel).max_decoding_message_size(message_bytes);
        let list = within(&dialled.resource, "ListAndWatch", client.list_and_watch(proto::Empty {})).await?;
        Ok((client, list))
    };
    connect.into_stream().flat_map(move |connected: Result<_, String>| {
        let dial = dial.clone();
        match connected {
            Ok((client, list)) => {
                let connected = stream::once(std::future::ready(Event::Connected(dial.clone(), client)));
                let (listed, gone) = (dial.clone(), dial);
                let lists = list.map(move |list| match list {
                    Ok(list) => Event::Listed(listed.clone(), list.devices),
                    Err(status) => Event::Gone(listed.clone(), status.message().to_owned()),
                });
                let end = async move { Event::Gone(gone, "it has ended its list".to_owned()) };
                connected.chain(lists).chain(end.into_stream()).boxed()
            }
            Err(why) => stream::once(std::future::ready(Event::Gone(dial, why))).boxed(),
        }
    })
}

/// Waits for what is under way; for ever if nothing is.
async fn ready(work: &mut Option<BoxFuture<'static, ()>>) {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}
