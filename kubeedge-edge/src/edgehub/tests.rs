use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use kubeedge_core::{
    hub::{Ack, Frame, Hello, Item, PROTOCOL, Payload, Welcome},
    id::{ResourceVersion, Uid},
    message::{
        Acked, Answer, Connectivity, Fingerprint, Inventory, Lane, LogChunk, LogRequest, NodeReport, Object,
        ObjectEvent, ObjectRef, Publish, Query, Report, Request, Response, ServiceRequest, Upload, UploadId,
        UploadedPublish,
    },
    transport::{
        Connection, Listener, Transport, TransportError,
        memory::{self, MemoryListener, MemoryNetwork, MemoryTransport},
    },
    wire::{Codec, Native},
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Config, EdgeHub, Error, Outside, pipes};

/// EdgeHub in its running, with a cloud that a test plays by hand.
struct Stage {
    network: MemoryNetwork,
    listener: MemoryListener,
    outside: Outside,
    renewals: watch::Sender<u64>,
    stop: CancellationToken,
    part: JoinHandle<Result<(), Error>>,
}

impl Stage {
    fn new() -> Self {
        Self::with(|transport| transport)
    }

    /// With a transport made from the one in memory.
    fn with<T: Transport>(make: impl FnOnce(MemoryTransport) -> T) -> Self {
        let (network, listener) = memory::network();
        let node = "edge-1".parse().unwrap();
        let transport = Arc::new(make(network.transport("edge-1".parse().unwrap())));
        let (inbox, outbox, outside) = pipes();
        let stop = CancellationToken::new();
        let renewals = watch::Sender::new(0);
        let hub =
            EdgeHub::new(Config::new(node), transport, inbox, outbox).with_renewals(renewals.subscribe());
        let part = tokio::spawn(hub.run(stop.clone()));
        Self { network, listener, outside, renewals, stop, part }
    }

    /// Takes a session as a cloud does that has nothing to compare.
    async fn session(&mut self) -> (Box<dyn Connection>, Hello) {
        let connection = self.listener.accept().await.unwrap();
        let asked = self.outside.inventory.recv().await.unwrap();
        asked.answer(Inventory::default());
        let Frame::Hello(hello) = next(&*connection).await else { panic!("no hello") };
        let welcome = Welcome {
            nonce: hello.nonce,
            session: 1,
            heartbeat: Duration::from_secs(15),
            certificates: true,
        };
        say(&*connection, Frame::Welcome(welcome)).await;
        (connection, hello)
    }

    async fn wait_for(&mut self, state: Connectivity) {
        let changed = self.outside.connectivity.wait_for(|now| *now == state);
        timeout(Duration::from_secs(60), changed).await.unwrap().unwrap();
    }
}

async fn next(connection: &dyn Connection) -> Frame {
    loop {
        let received = timeout(Duration::from_secs(60), connection.recv()).await.unwrap();
        let (lane, bytes) = received.unwrap().unwrap();
        let frame = Native.decode(lane, &bytes).unwrap();
        if !matches!(frame, Frame::Ping(_)) {
            return frame;
        }
    }
}

async fn say(connection: &dyn Connection, frame: Frame) {
    connection.send(frame.lane(), Native.encode(&frame)).await.unwrap();
}

fn object(name: &str) -> ObjectEvent {
    ObjectEvent::Applied(Object {
        reference: ObjectRef::pod("default", name),
        uid: Uid::new(name),
        resource_version: ResourceVersion(1),
        fingerprint: Fingerprint(1),
        json: "{}".into(),
    })
}

fn item(seq: u64, payload: Payload) -> Frame {
    Frame::Item(Item { lane: payload.lane().unwrap(), seq, payload })
}

fn node_report(json: &'static str) -> Report {
    Report::Node(NodeReport { json: json.into() })
}

fn ack(lane: Lane, upto: u64) -> Frame {
    Frame::Ack(Ack { lane, upto, beyond: Vec::new() })
}

#[tokio::test(start_paused = true)]
async fn a_session_begins_with_what_the_node_holds() {
    let mut stage = Stage::new();
    let (connection, hello) = stage.session().await;
    assert_eq!((hello.protocol, hello.node.as_str(), hello.objects), (PROTOCOL, "edge-1", 0));
    assert_eq!(hello.digest, Inventory::default().digest());
    stage.wait_for(Connectivity::Online).await;
    say(&*connection, Frame::Synchronized).await;
    stage.wait_for(Connectivity::Synchronized).await;
    let (lane, answer) = connection.recv().await.unwrap().unwrap();
    assert_eq!(Native.decode(lane, &answer).unwrap(), Frame::Synchronized);
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let said = u128::from(Native.clock(&answer).unwrap());
    assert!(clock - said < 60_000, "it says what the clock shows: {said}, not {clock}");
}

#[tokio::test(start_paused = true)]
async fn an_object_is_acknowledged_only_after_the_part_has_echoed_its_delivery() {
    let mut stage = Stage::new();
    let (connection, _) = stage.session().await;
    say(&*connection, item(1, Payload::Object(object("a")))).await;
    let delivered = stage.outside.objects.recv().await.unwrap();
    assert_eq!(delivered.message, object("a"));
    let early = timeout(Duration::from_secs(10), next(&*connection)).await;
    assert!(early.is_err(), "acknowledged before it was durable: {early:?}");
    let key = delivered.message.key().clone();
    stage.outside.acked.send(Acked { key, delivery: delivered.delivery }).unwrap();
    assert_eq!(next(&*connection).await, ack(Lane::Pods, 1));
}

#[tokio::test(start_paused = true)]
async fn a_report_that_was_not_acknowledged_is_sent_in_the_next_session() {
    let mut stage = Stage::new();
    let (connection, _) = stage.session().await;
    stage.outside.reports.send(node_report("1")).unwrap();
    assert_eq!(next(&*connection).await, item(1, Payload::Report(node_report("1"))));
    connection.close("maintenance").await;
    stage.wait_for(Connectivity::Offline).await;
    stage.outside.reports.send(node_report("2")).unwrap();
    let (connection, _) = stage.session().await;
    assert_eq!(next(&*connection).await, item(1, Payload::Report(node_report("2"))));
    say(&*connection, ack(Lane::Pods, 1)).await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    stage.network.drop_connections();
    stage.wait_for(Connectivity::Offline).await;
    // What was acknowledged is not kept: nothing but pings comes in the third session.
    let (connection, _) = stage.session().await;
    assert!(timeout(Duration::from_secs(20), next(&*connection)).await.is_err());
}

fn upload(publish: Publish) -> Upload {
    Upload::Publish(UploadedPublish { id: UploadId { run: 1, number: 1 }, publish })
}

#[tokio::test(start_paused = true)]
async fn a_part_learns_that_the_cloud_has_its_upload_and_the_cloud_publishes_on_the_node() {
    let mut stage = Stage::new();
    let (connection, _) = stage.session().await;
    stage.wait_for(Connectivity::Online).await;
    let publish = Publish { topic: "t".to_owned(), payload: "x".into() };
    stage.outside.uploads.send(upload(publish.clone())).unwrap();
    assert_eq!(next(&*connection).await, item(1, Payload::Upload(upload(publish.clone()))));
    let early = timeout(Duration::from_millis(10), stage.outside.uploaded.recv()).await;
    assert!(early.is_err(), "{early:?}");
    say(&*connection, Frame::Ack(Ack { lane: Lane::Bulk, upto: 1, beyond: Vec::new() })).await;
    assert_eq!(stage.outside.uploaded.recv().await, Some(UploadId { run: 1, number: 1 }));
    let request = Request::Publish(publish.clone());
    say(&*connection, Frame::Request { id: 5, deadline: Duration::from_secs(5), request }).await;
    let call = stage.outside.cloud_messages.recv().await.unwrap();
    assert_eq!(call.question, publish);
    call.answer(Response::Published);
    assert_eq!(next(&*connection).await, Frame::Response { id: 5, response: Response::Published });
}

#[tokio::test(start_paused = true)]
async fn a_lane_on_which_the_cloud_is_slow_holds_up_no_other() {
    let mut stage = Stage::new();
    let (connection, _) = stage.session().await;
    stage.wait_for(Connectivity::Online).await;
    // Nobody reads, so lane bulk fills up to its brim.
    for _ in 0..40 {
        let publish = Publish { topic: "t".to_owned(), payload: vec![0; 64 << 10].into() };
        let _ = stage.outside.uploads.send(upload(publish));
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    stage.outside.reports.send(node_report("1")).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    // The report is there although only a few uploads fit.
    let mut uploads = 0;
    while next(&*connection).await != item(1, Payload::Report(node_report("1"))) {
        uploads += 1;
    }
    assert!(uploads < 10, "{uploads} uploads came before the report");
}

#[tokio::test(start_paused = true)]
async fn garbage_ends_the_session_with_a_reason_and_the_next_one_begins() {
    let mut stage = Stage::new();
    let (connection, _) = stage.session().await;
    stage.wait_for(Connectivity::Online).await;
    connection.send(Lane::Pods, "garbage".into()).await.unwrap();
    let Frame::Goodbye { reason } = next(&*connection).await else { panic!("no goodbye") };
    assert!(reason.contains("Pods is no frame"), "{reason}");
    stage.wait_for(Connectivity::Offline).await;
    let _connection = stage.session().await;
    stage.wait_for(Connectivity::Online).await;
}

#[tokio::test(start_paused = true)]
async fn a_query_is_answered_by_the_cloud_and_refused_at_once_without_one() {
    let mut stage = Stage::new();
    let query = || Query::Get(ObjectRef::config_map("default", "a"));
    let minute = Duration::from_secs(60);
    let offline = stage.outside.queries.call(query(), minute).await.unwrap();
    assert_eq!(offline, Answer::Refused("the node has no session with the cloud".to_owned()));
    let (connection, _) = stage.session().await;
    stage.wait_for(Connectivity::Online).await;
    let (answer, ()) = tokio::join!(stage.outside.queries.call(query(), minute), async {
        let Frame::Query { id, query: Query::Get(_) } = next(&*connection).await else { panic!("no query") };
        say(&*connection, Frame::Answer { id, answer: Answer::NotFound }).await;
    });
    assert_eq!(answer.unwrap(), Answer::NotFound);
}

#[tokio::test(start_paused = true)]
async fn requests_go_to_the_part_that_can_answer_and_come_back_with_their_number() {
    let mut stage = Stage::new();
    let (connection, _) = stage.session().await;
    let deadline = Duration::from_secs(5);
    let logs = Request::Logs(LogRequest::default());
    say(&*connection, Frame::Request { id: 7, deadline, request: logs }).await;
    let service = ServiceRequest {
        port: 80,
        method: "GET".to_owned(),
        path: "/".to_owned(),
        headers: Vec::new(),
        body: "".into(),
    };
    say(&*connection, Frame::Request { id: 8, deadline, request: Request::Service(service) }).await;
    let call = stage.outside.logs.recv().await.unwrap();
    call.answer(Response::Logs(LogChunk::default()));
    let response = Response::Logs(LogChunk::default());
    assert_eq!(next(&*connection).await, Frame::Response { id: 7, response });
    // The part that calls HTTP servers takes the question and is gone.
    drop(stage.outside.services.recv().await.unwrap());
    let Frame::Response { id: 8, response: Response::Failed { code: 503, .. } } = next(&*connection).await
    else {
        panic!("no failure");
    };
}

#[tokio::test(start_paused = true)]
async fn a_silent_cloud_is_offline_within_three_heartbeats() {
    let mut stage = Stage::new();
    let (_connection, _) = stage.session().await;
    stage.wait_for(Connectivity::Online).await;
    stage.network.cut();
    let changed = stage.outside.connectivity.wait_for(|now| *now == Connectivity::Offline);
    timeout(Duration::from_secs(45), changed).await.expect("offline within 45 s").unwrap();
}

#[tokio::test(start_paused = true)]
async fn stopping_says_goodbye() {
    let mut stage = Stage::new();
    let (connection, _) = stage.session().await;
    stage.wait_for(Connectivity::Online).await;
    stage.stop.cancel();
    let Frame::Goodbye { reason } = next(&*connection).await else { panic!("no goodbye") };
    assert_eq!(reason, "the edge is stopping");
    stage.part.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_part_goes_on_when_the_senders_of_its_inbox_are_gone() {
    let (network, listener) = memory::network();
    let transport = Arc::new(network.transport("edge-1".parse().unwrap()));
    let (inbox, outbox, outside) = pipes();
    let Outside { mut inventory, objects, logs, services, mut connectivity, .. } = outside;
    let stop = CancellationToken::new();
    let hub = EdgeHub::new(Config::new("edge-1".parse().unwrap()), transport, inbox, outbox);
    let part = tokio::spawn(hub.run(stop.clone()));
    let connection = listener.accept().await.unwrap();
    inventory.recv().await.unwrap().answer(Inventory::default());
    let Frame::Hello(Hello { nonce, .. }) = next(&*connection).await else { panic!("no hello") };
    say(
        &*connection,
        Frame::Welcome(Welcome { nonce, session: 1, heartbeat: Duration::from_secs(15), certificates: true }),
    )
    .await;
    connectivity.wait_for(|now| now.is_online()).await.unwrap();
    stop.cancel();
    part.await.unwrap().unwrap();
    drop((objects, logs, services));
}

/// A transport whose handshake takes this long, and that counts its attempts.
#[derive(Debug)]
struct Slow {
    inner: MemoryTransport,
    takes: Duration,
    running: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

/// Counts down when an attempt ends or is dropped.
struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Transport for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }

    fn connect<'a, 'b>(&'a self) -> BoxFuture<'b, Result<Box<dyn Connection>, TransportError>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async {
            let now = self.running.fetch_add(1, Ordering::SeqCst) + 1;
            let _running = Running(self.running.clone());
            self.most.fetch_max(now, Ordering::SeqCst);
            tokio::time::sleep(self.takes).await;
            self.inner.connect().await
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_takes_longer_than_the_interval_succeeds_and_the_other_attempts_are_dropped() {
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let takes = Duration::from_secs(5);
    let mut stage = Stage::with(|inner| Slow { inner, takes, running: running.clone(), most: most.clone() });
    let (_connection, _) =
        timeout(Duration::from_secs(6), stage.session()).await.expect("the first attempt wins");
    stage.wait_for(Connectivity::Online).await;
    assert_eq!((running.load(Ordering::SeqCst), most.load(Ordering::SeqCst)), (0, 3));
}

#[tokio::test(start_paused = true)]
async fn attempts_that_never_end_are_bounded_and_given_up_one_by_one() {
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let takes = Duration::from_secs(3600);
    let stage = Stage::with(|inner| Slow { inner, takes, running: running.clone(), most: most.clone() });
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(running.load(Ordering::SeqCst) >= 4, "it goes on");
    assert_eq!(most.load(Ordering::SeqCst), 5);
    stage.stop.cancel();
    stage.part.await.unwrap().unwrap();
    assert_eq!(running.load(Ordering::SeqCst), 0);
}

/// A transport whose configuration cannot work.
#[derive(Debug)]
struct Misconfigured;

impl Transport for Misconfigured {
    fn name(&self) -> &'static str {
        "misconfigured"
    }

    fn connect<'a, 'b>(&'a self) -> BoxFuture<'b, Result<Box<dyn Connection>, TransportError>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async { Err(TransportError::Config("no certificate".to_owned())) })
    }
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_can_never_connect_ends_the_part() {
    let (inbox, outbox, _outside) = pipes();
    let hub = EdgeHub::new(Config::new("edge-1".parse().unwrap()), Arc::new(Misconfigured), inbox, outbox);
    let error = hub.run(CancellationToken::new()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the node cannot dial the cloud: the transport's configuration is wrong: no certificate"
    );
}

/// A transport that is refused when it is told to be.
#[derive(Debug)]
struct Refusable {
    inner: MemoryTransport,
    refused: Arc<AtomicBool>,
}

impl Transport for Refusable {
    fn name(&self) -> &'static str {
        "refusable"
    }

    fn connect<'a, 'b>(&'a self) -> BoxFuture<'b, Result<Box<dyn Connection>, TransportError>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async {
            if self.refused.load(Ordering::SeqCst) {
                let (peer, reason) = ("the cloud".to_owned(), "a certificate of a stranger".to_owned());
                return Err(TransportError::Refused { peer, reason });
            }
            self.inner.connect().await
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewed_certificate_is_shown_by_another_session_and_the_one_before_goes_on_until_then() {
    let refused = Arc::new(AtomicBool::new(false));
    let mut stage = Stage::with(|inner| Refusable { inner, refused: refused.clone() });
    let (first, _) = stage.session().await;
    stage.wait_for(Connectivity::Online).await;
    // This cloud does not believe in the next certificate yet, and nothing is lost by it.
    refused.store(true, Ordering::SeqCst);
    stage.renewals.send_modify(|shown| *shown += 1);
    tokio::time::sleep(Duration::from_secs(5)).await;
    stage.outside.reports.send(node_report("{}")).unwrap();
    assert_eq!(next(&*first).await, item(1, Payload::Report(node_report("{}"))));

    refused.store(false, Ordering::SeqCst);
    let since = Instant::now();
    let (second, _) = stage.session().await;
    assert!(since.elapsed() < Duration::from_secs(31), "{:?}", since.elapsed());
    let Frame::Goodbye { reason } = next(&*first).await else { panic!("no goodbye") };
    assert!(reason.contains("next certificate"), "{reason}");
    // What the first session has not brought to the API is in the second.
    assert_eq!(next(&*second).await, item(1, Payload::Report(node_report("{}"))));
    stage.wait_for(Connectivity::Online).await;

    // What is renewed without a session is shown by the next, and needs no other.
    stage.network.drop_connections();
    stage.wait_for(Connectivity::Offline).await;
    stage.renewals.send_modify(|shown| *shown += 1);
    let (third, _) = stage.session().await;
    let silent = async {
        loop {
            let frame = next(&*third).await;
            assert!(matches!(frame, Frame::Item(_)), "{frame:?}");
        }
    };
    assert!(timeout(Duration::from_secs(20), silent).await.is_err());
}
