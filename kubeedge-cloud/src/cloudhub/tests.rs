use std::{sync::Arc, time::Duration};

use kubeedge_core::{
    hub::{Ack, Frame, Hello, InventoryPart, Item, NodeLink, PROTOCOL, Payload},
    id::{NodeName, ResourceVersion, Uid},
    message::{
        Acked, Answer, Fingerprint, FromNode, Inventory, Lane, LogRequest, NodeReport, Object, ObjectEvent,
        ObjectRef, Publish, Query, Report, Request, Response, SessionState, Snapshot, ToNode, Upload,
        UploadId, UploadedEvent, UploadedPublish,
    },
    pipe,
    transport::{
        Connection, Listener as _, Transport,
        memory::{self, MemoryNetwork},
    },
    wire::{Codec, Line, Native},
};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    CloudHub, Config, Error, Gauges, Outside, pipes,
    session::{Admitted, Session, now},
};

mod limits;

/// CloudHub in its running, with nodes that a test plays by hand.
struct Stage {
    network: MemoryNetwork,
    outside: Outside,
    gauges: Gauges,
    stop: CancellationToken,
    part: JoinHandle<Result<(), Error>>,
}

impl Stage {
    fn new(config: Config) -> Self {
        let (network, listener) = memory::network();
        let (inbox, outbox, outside) = pipes();
        let stop = CancellationToken::new();
        let hub = CloudHub::new(config, vec![Box::new(listener)], inbox, outbox);
        let gauges = hub.gauges();
        let part = tokio::spawn(hub.run(stop.clone()));
        Self { network, outside, gauges, stop, part }
    }

    async fn connect(&self, name: &str) -> Box<dyn Connection> {
        self.network.transport(node(name)).connect().await.unwrap()
    }

    /// A node without objects that has been welcomed.
    async fn welcomed(&mut self, name: &str) -> Box<dyn Connection> {
        let connection = self.connect(name).await;
        say(&*connection, hello(name, &Inventory::default())).await;
        let Frame::Welcome(_) = next(&*connection).await else { panic!("no welcome") };
        assert_eq!(self.session().await, (node(name), SessionState::Online));
        connection
    }

    /// A node for which the cloud has these objects, and that holds them all.
    async fn synchronized(&mut self, name: &str, objects: Vec<Object>) -> Box<dyn Connection> {
        let connection = self.connect(name).await;
        let inventory = objects.iter().map(Object::entry).collect();
        say(&*connection, hello(name, &inventory)).await;
        let Frame::Welcome(_) = next(&*connection).await else { panic!("no welcome") };
        assert_eq!(self.session().await, (node(name), SessionState::Online));
        let asked = self.outside.snapshots.recv().await.unwrap();
        assert_eq!(asked.question, node(name));
        asked.answer(objects.into());
        assert_eq!(next(&*connection).await, Frame::Synchronized);
        say(&*connection, Frame::Synchronized).await;
        connection
    }

    async fn session(&mut self) -> (NodeName, SessionState) {
        let FromNode { node, message } =
            timeout(Duration::from_secs(60), self.outside.sessions.recv()).await.unwrap().unwrap();
        (node, message)
    }
}

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn hello(name: &str, inventory: &Inventory) -> Frame {
    Frame::Hello(Hello {
        protocol: PROTOCOL,
        node: name.to_owned(),
        nonce: 1,
        digest: inventory.digest(),
        objects: u32::try_from(inventory.len()).unwrap(),
        software: "test".to_owned(),
        tunnels: true,
    })
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

fn object(name: &str, version: u64) -> Object {
    Object {
        reference: ObjectRef::pod("default", name),
        uid: Uid::new(name),
        resource_version: ResourceVersion(version),
        fingerprint: Fingerprint(version),
        json: "{}".into(),
    }
}

fn item(seq: u64, payload: Payload) -> Frame {
    Frame::Item(Item { lane: payload.lane().unwrap(), seq, payload })
}

fn applied(seq: u64, object: Object) -> Frame {
    item(seq, Payload::Object(ObjectEvent::Applied(object)))
}

fn node_report(json: &'static str) -> Report {
    Report::Node(NodeReport { json: json.into() })
}

fn ack(lane: Lane, upto: u64) -> Frame {
    Frame::Ack(Ack { lane, upto, beyond: Vec::new() })
}

#[tokio::test(start_paused = true)]
async fn a_node_is_sent_what_it_lacks_and_then_told_that_it_is_in_sync() {
    let mut stage = Stage::new(Config::default());
    let edge = stage.connect("edge-1").await;
    let held: Inventory = [object("kept", 1).entry(), object("gone", 1).entry()].into_iter().collect();
    say(&*edge, hello("edge-1", &held)).await;
    let Frame::Welcome(welcome) = next(&*edge).await else { panic!("no welcome") };
    assert_eq!((welcome.nonce, welcome.heartbeat), (1, Duration::from_secs(15)));
    let asked = stage.outside.snapshots.recv().await.unwrap();
    asked.answer(vec![object("kept", 1), object("lacking", 2)].into());
    assert_eq!(next(&*edge).await, Frame::InventoryRequest { from_part: 0 });
    let entries = held.iter().cloned().collect();
    say(&*edge, Frame::InventoryPart(InventoryPart { part: 0, last: true, entries })).await;
    let gone = ObjectEvent::Deleted { reference: ObjectRef::pod("default", "gone"), uid: Uid::new("gone") };
    assert_eq!(next(&*edge).await, item(1, Payload::Object(gone)));
    assert_eq!(next(&*edge).await, applied(2, object("lacking", 2)));
    say(&*edge, ack(Lane::Pods, 2)).await;
    assert_eq!(next(&*edge).await, Frame::Synchronized);
}

#[tokio::test(start_paused = true)]
async fn what_a_controller_does_not_know_stays_with_the_node_until_it_does() {
    let mut stage = Stage::new(Config::default());
    let edge = stage.connect("edge-1").await;
    let names = ["kept", "gone", "open", "found"];
    let held: Inventory = names.iter().map(|name| object(name, 1).entry()).collect();
    say(&*edge, hello("edge-1", &held)).await;
    let Frame::Welcome(_) = next(&*edge).await else { panic!("no welcome") };
    let pod = |name: &str| ObjectRef::pod("default", name);
    let asked = stage.outside.snapshots.recv().await.unwrap();
    let unknown = ["open", "found", "not-held"].map(pod).into();
    asked.answer(Snapshot { objects: vec![object("kept", 1)], unknown });
    assert_eq!(next(&*edge).await, Frame::InventoryRequest { from_part: 0 });
    let entries = held.iter().cloned().collect();
    say(&*edge, Frame::InventoryPart(InventoryPart { part: 0, last: true, entries })).await;
    let gone = |name: &str| ObjectEvent::Deleted { reference: pod(name), uid: Uid::new(name) };
    assert_eq!(next(&*edge).await, item(1, Payload::Object(gone("gone"))));
    say(&*edge, ack(Lane::Pods, 1)).await;
    assert_eq!(next(&*edge).await, Frame::Synchronized, "the node waits for nothing");
    say(&*edge, Frame::Synchronized).await;

    // The controller knows by now, but not which of that name the node has.
    let send = |message| stage.outside.downstream.send(ToNode { node: node("edge-1"), message }).unwrap();
    for name in ["not-held", "open"] {
        send(ObjectEvent::Deleted { reference: pod(name), uid: Uid::default() });
    }
    send(ObjectEvent::Applied(object("found", 2)));
    assert_eq!(next(&*edge).await, item(2, Payload::Object(gone("open"))));
    assert_eq!(next(&*edge).await, applied(3, object("found", 2)));
}

#[tokio::test(start_paused = true)]
async fn a_change_goes_to_the_session_of_its_node_and_to_no_other() {
    let mut stage = Stage::new(Config::default());
    let one = stage.synchronized("edge-1", Vec::new()).await;
    let two = stage.synchronized("edge-2", Vec::new()).await;
    let message = ObjectEvent::Applied(object("a", 1));
    stage.outside.downstream.send(ToNode { node: node("edge-9"), message: message.clone() }).unwrap();
    stage.outside.downstream.send(ToNode { node: node("edge-2"), message }).unwrap();
    assert_eq!(next(&*two).await, applied(1, object("a", 1)));
    assert!(timeout(Duration::from_secs(10), next(&*one)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_change_that_comes_while_the_snapshot_is_being_made_is_not_lost() {
    let mut stage = Stage::new(Config::default());
    let edge = stage.welcomed("edge-1").await;
    let asked = stage.outside.snapshots.recv().await.unwrap();
    // The controller has read its cache, and a change comes before its answer does.
    let message = ObjectEvent::Applied(object("a", 2));
    stage.outside.downstream.send(ToNode { node: node("edge-1"), message }).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    asked.answer(vec![object("a", 1)].into());
    assert_eq!(next(&*edge).await, Frame::InventoryRequest { from_part: 0 });
    say(&*edge, Frame::InventoryPart(InventoryPart { part: 0, last: true, entries: Vec::new() })).await;
    assert_eq!(next(&*edge).await, applied(1, object("a", 2)));
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_does_not_answer_is_asked_again_while_the_session_lives() {
    let mut stage = Stage::new(Config::default());
    let edge = stage.welcomed("edge-1").await;
    let dropped = stage.outside.snapshots.recv().await.unwrap();
    drop(dropped);
    let late = stage.outside.snapshots.recv().await.unwrap();
    let answered = timeout(Duration::from_secs(15), stage.outside.snapshots.recv()).await.unwrap().unwrap();
    drop(late);
    answered.answer(Snapshot::default());
    assert_eq!(next(&*edge).await, Frame::Synchronized);
}

#[tokio::test(start_paused = true)]
async fn a_node_for_which_there_is_no_room_is_refused_before_it_is_welcomed() {
    let mut stage = Stage::new(Config { max_sessions: 1, ..Config::default() });
    // Both have connected while there was room.
    let (late, first) = (stage.connect("edge-2").await, stage.connect("edge-1").await);
    say(&*first, hello("edge-1", &Inventory::default())).await;
    let Frame::Welcome(_) = next(&*first).await else { panic!("no welcome") };
    assert_eq!(stage.session().await, (node("edge-1"), SessionState::Online));
    say(&*late, hello("edge-2", &Inventory::default())).await;
    let frame = next(&*late).await;
    let Frame::Refusal { retry_after, .. } = frame else { panic!("{frame:?}") };
    assert!(retry_after > Duration::ZERO);
    assert_eq!(stage.gauges.counts().refused, 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_that_a_node_says_is_heard_before_its_session_is_the_one_of_its_node() {
    let (network, listener) = memory::network();
    let edge = network.transport(node("edge-1")).connect().await.unwrap();
    let line = Line::new(listener.accept().await.unwrap(), Arc::new(Native));
    let (_inbox, outbox, mut outside) = pipes();
    let config = Config::default();
    let link = NodeLink::new(config.link.clone(), node("edge-1"), 1, now());
    let (asks, mut asked) = mpsc::channel(1);
    let (config, outbox) = (Arc::new(config), Arc::new(outbox));
    let session = Session::new(config, link, line, outbox, None, asks, CancellationToken::new());
    tokio::spawn(Box::new(session).run(CancellationToken::new()));

    // Both at once, as a node does that has waited for the cloud.
    say(&*edge, hello("edge-1", &Inventory::default())).await;
    say(&*edge, item(1, Payload::Report(node_report("{}")))).await;
    let admission = asked.recv().await.unwrap();
    let early = timeout(Duration::from_secs(1), outside.statuses.recv()).await;
    assert!(early.is_err(), "the hub does not know the session: {early:?}");
    let _ = admission.admitted.send(Admitted::Yes);
    let Frame::Welcome(_) = next(&*edge).await else { panic!("no welcome") };
    let heard = timeout(Duration::from_secs(1), outside.statuses.recv()).await.unwrap().unwrap();
    assert_eq!(heard.node, node("edge-1"));
}

#[tokio::test(start_paused = true)]
async fn a_report_is_acknowledged_only_after_a_controller_has_echoed_its_delivery() {
    let mut stage = Stage::new(Config::default());
    let edge = stage.synchronized("edge-1", Vec::new()).await;
    say(&*edge, item(1, Payload::Report(node_report("1")))).await;
    let from = stage.outside.statuses.recv().await.unwrap();
    assert_eq!((from.node.as_str(), &from.message.message), ("edge-1", &node_report("1")));
    let early = timeout(Duration::from_secs(10), next(&*edge)).await;
    assert!(early.is_err(), "acknowledged before the API had it: {early:?}");
    let message = Acked { key: from.message.message.key(), delivery: from.message.delivery };
    stage.outside.acked.send(ToNode { node: from.node, message }).unwrap();
    assert_eq!(next(&*edge).await, ack(Lane::Pods, 1));
}

#[tokio::test(start_paused = true)]
async fn an_event_is_acknowledged_when_its_receiver_has_it_in_the_api_also_if_its_pipe_was_full() {
    let mut stage = Stage::new(Config::default());
    let edges = [
        (stage.synchronized("edge-1", Vec::new()).await, 1020),
        (stage.synchronized("edge-2", Vec::new()).await, 10),
    ];
    let event = |number: u64| UploadedEvent { json: number.to_string().into() };
    // The pipe has room for 1,024.
    for (edge, count) in &edges {
        for seq in 1..=*count {
            say(&**edge, item(seq, Payload::Upload(Upload::Event(event(seq))))).await;
            if seq % 100 == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let early = timeout(Duration::from_secs(10), next(&**edge)).await;
        assert!(early.is_err(), "acknowledged before the API had it: {early:?}");
    }
    for (edge, count) in &edges {
        for seq in 1..=*count {
            let from = stage.outside.events.recv().await.unwrap();
            assert_eq!(from.message.message, event(seq));
            let taken = ToNode { node: from.node, message: from.message.delivery };
            stage.outside.taken.send(taken).unwrap();
        }
        let mut upto = 0;
        while upto < *count {
            let Frame::Ack(ack) = next(&**edge).await else { panic!("no acknowledgement") };
            (upto, _) = (ack.upto, assert_eq!(ack.lane, Lane::Config));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_is_acknowledged_when_its_receiver_says_that_it_has_been_taken() {
    let mut stage = Stage::new(Config::default());
    let one = stage.synchronized("edge-1", Vec::new()).await;
    for number in 1..=3 {
        let publish = Publish { topic: "a/user/b".to_owned(), payload: number.to_string().into() };
        let upload = UploadedPublish { id: UploadId { run: 7, number }, publish };
        say(&*one, item(number, Payload::Upload(Upload::Publish(upload)))).await;
    }
    let mut deliveries = Vec::new();
    for number in 1..=3 {
        let message = stage.outside.messages.recv().await.unwrap();
        assert_eq!(message.message.message.id, UploadId { run: 7, number });
        deliveries.push(ToNode { node: message.node, message: message.message.delivery });
    }
    let early = timeout(Duration::from_secs(10), next(&*one)).await;
    assert!(early.is_err(), "acknowledged before it was taken: {early:?}");
    stage.outside.taken.send(deliveries[1].clone()).unwrap();
    assert_eq!(next(&*one).await, Frame::Ack(Ack { lane: Lane::Bulk, upto: 0, beyond: vec![(2, 2)] }));
    stage.outside.taken.send(deliveries[0].clone()).unwrap();
    assert_eq!(next(&*one).await, ack(Lane::Bulk, 2));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_claims_the_name_of_another_is_refused() {
    let stage = Stage::new(Config::default());
    let edge = stage.connect("edge-1").await;
    say(&*edge, hello("edge-2", &Inventory::default())).await;
    let Frame::Refusal { reason, retry_after } = next(&*edge).await else { panic!("no refusal") };
    assert_eq!(reason, "the certificate is of node edge-1, and the hello says \"edge-2\"");
    assert_eq!(retry_after, Duration::from_secs(60));
    assert!(edge.recv().await.is_err() || edge.recv().await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn garbage_ends_the_session_that_sent_it_and_no_other() {
    let mut stage = Stage::new(Config::default());
    let bad = stage.synchronized("edge-1", Vec::new()).await;
    let good = stage.synchronized("edge-2", Vec::new()).await;
    bad.send(Lane::Bulk, "garbage".into()).await.unwrap();
    let Frame::Goodbye { reason } = next(&*bad).await else { panic!("no goodbye") };
    assert!(reason.contains("Bulk is no frame"), "{reason}");
    assert_eq!(stage.session().await, (node("edge-1"), SessionState::Offline));
    let message = ObjectEvent::Applied(object("a", 1));
    stage.outside.downstream.send(ToNode { node: node("edge-2"), message }).unwrap();
    assert_eq!(next(&*good).await, applied(1, object("a", 1)));
}

#[tokio::test(start_paused = true)]
async fn a_newer_connection_takes_over_and_the_node_is_not_called_offline() {
    let mut stage = Stage::new(Config::default());
    let old = stage.synchronized("edge-1", Vec::new()).await;
    let new = stage.synchronized("edge-1", Vec::new()).await;
    let Frame::Goodbye { reason } = next(&*old).await else { panic!("no goodbye") };
    assert_eq!(reason, "a newer connection of the node took over");
    drop(old);
    let quiet = timeout(Duration::from_secs(10), stage.outside.sessions.recv()).await;
    assert!(quiet.is_err(), "the node has a session: {quiet:?}");
    let message = ObjectEvent::Applied(object("a", 1));
    stage.outside.downstream.send(ToNode { node: node("edge-1"), message }).unwrap();
    assert_eq!(next(&*new).await, applied(1, object("a", 1)));
    drop(new);
    assert_eq!(stage.session().await, (node("edge-1"), SessionState::Offline));
}

#[tokio::test(start_paused = true)]
async fn a_node_beyond_the_limit_is_refused_for_a_while_and_one_that_is_known_may_renew() {
    let config = Config { max_sessions: 1, ..Config::default() };
    let mut stage = Stage::new(config);
    let _first = stage.synchronized("edge-1", Vec::new()).await;
    let second = stage.connect("edge-2").await;
    let Frame::Refusal { retry_after, .. } = next(&*second).await else { panic!("no refusal") };
    assert_eq!(retry_after, Duration::from_secs(30));
    drop(second);
    tokio::time::sleep(Duration::from_secs(2)).await;
    stage.synchronized("edge-1", Vec::new()).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_hello_is_closed() {
    let stage = Stage::new(Config::default());
    let edge = stage.connect("edge-1").await;
    let Frame::Goodbye { reason } = next(&*edge).await else { panic!("no goodbye") };
    assert_eq!(reason, "the edge did not say hello in time");
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_is_offline_within_three_heartbeats() {
    let mut stage = Stage::new(Config::default());
    let _edge = stage.synchronized("edge-1", Vec::new()).await;
    stage.network.cut();
    let state = timeout(Duration::from_secs(45), stage.outside.sessions.recv()).await.unwrap().unwrap();
    assert_eq!(state, FromNode { node: node("edge-1"), message: SessionState::Offline });
}

#[tokio::test(start_paused = true)]
async fn what_another_cloud_asks_is_answered_by_the_node_and_goes_no_further_without_one() {
    let (network, listener) = memory::network();
    let (inbox, mut outbox, outside) = pipes();
    let (elsewhere, mut elsewhere_rx) = pipe::calls("elsewhere", 1);
    outbox.elsewhere = Some(elsewhere);
    let stop = CancellationToken::new();
    let hub = CloudHub::new(Config::default(), vec![Box::new(listener)], inbox, outbox);
    let gauges = hub.gauges();
    let part = tokio::spawn(hub.run(stop.clone()));
    let mut stage = Stage { network, outside, gauges, stop, part };
    let edge = stage.synchronized("edge-1", Vec::new()).await;
    let to = |name: &str| ToNode { node: node(name), message: Request::Logs(LogRequest::default()) };
    let long = Duration::from_secs(60);

    let relayed = stage.outside.relayed.clone();
    let (answer, ()) = tokio::join!(relayed.call(to("edge-1"), long), async {
        let Frame::Request { id, .. } = next(&*edge).await else { panic!("no request") };
        say(&*edge, Frame::Response { id, response: Response::Published }).await;
    });
    assert_eq!(answer, Ok(Some(Response::Published)));
    assert_eq!(relayed.call(to("edge-2"), long).await, Ok(None));

    // What a part of this cloud asks goes elsewhere, and is answered from there.
    let requests = stage.outside.requests.clone();
    let (answer, ()) = tokio::join!(requests.call(to("edge-2"), long), async {
        let call = elsewhere_rx.recv().await.unwrap();
        assert_eq!(call.question, to("edge-2"));
        call.answer(Response::Published);
    });
    assert_eq!(answer, Ok(Response::Published));
    // One waits already.
    let (waits, full) = tokio::join!(requests.call(to("edge-2"), Duration::from_secs(1)), async {
        tokio::task::yield_now().await;
        requests.call(to("edge-2"), long).await
    });
    assert!(waits.is_err());
    let Ok(Response::Failed { code: 503, message }) = full else { panic!("{full:?}") };
    assert!(message.contains("too many requests"), "{message}");
    drop(elsewhere_rx);
    let Ok(Response::Failed { code: 503, message }) = requests.call(to("edge-2"), long).await else {
        panic!()
    };
    assert_eq!(message, "node edge-2 is not connected");
}

#[tokio::test(start_paused = true)]
async fn a_request_is_answered_by_its_node_or_fails_with_a_status() {
    let mut stage = Stage::new(Config::default());
    let edge = stage.synchronized("edge-1", Vec::new()).await;
    let ask = |name: &str| {
        let message = Request::Logs(LogRequest::default());
        let requests = stage.outside.requests.clone();
        let to = ToNode { node: node(name), message };
        async move { requests.call(to, Duration::from_secs(60)).await.unwrap() }
    };
    let (response, ()) = tokio::join!(ask("edge-1"), async {
        let Frame::Request { id, deadline, .. } = next(&*edge).await else { panic!("no request") };
        assert_eq!(deadline, Duration::from_secs(30));
        let response = Response::Failed { code: 404, message: "no such pod".to_owned() };
        say(&*edge, Frame::Response { id, response }).await;
    });
    assert_eq!(response, Response::Failed { code: 404, message: "no such pod".to_owned() });
    let elsewhere = ask("edge-2").await;
    assert!(matches!(elsewhere, Response::Failed { code: 503, .. }), "{elsewhere:?}");
    // The node answers pings and nothing else.
    let (late, ()) = tokio::join!(ask("edge-1"), async {
        for nonce in 0..4 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            say(&*edge, Frame::Ping(nonce)).await;
        }
    });
    assert!(matches!(late, Response::Failed { code: 504, .. }), "{late:?}");
    let (lost, ()) = tokio::join!(ask("edge-1"), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        stage.network.drop_connections();
    });
    assert!(matches!(lost, Response::Failed { code: 503, .. }), "{lost:?}");
}

#[tokio::test(start_paused = true)]
async fn a_query_goes_to_the_controller_with_the_name_of_its_node() {
    let mut stage = Stage::new(Config::default());
    let edge = stage.synchronized("edge-1", Vec::new()).await;
    let wanted = ObjectRef::config_map("default", "a");
    say(&*edge, Frame::Query { id: 5, query: Query::Get(wanted.clone()) }).await;
    let call = stage.outside.queries.recv().await.unwrap();
    assert_eq!(call.question, FromNode { node: node("edge-1"), message: Query::Get(wanted) });
    call.answer(Answer::NotFound);
    assert_eq!(next(&*edge).await, Frame::Answer { id: 5, answer: Answer::NotFound });
}

#[tokio::test(start_paused = true)]
async fn stopping_says_goodbye_to_every_node() {
    let mut stage = Stage::new(Config::default());
    let edge = stage.synchronized("edge-1", Vec::new()).await;
    stage.stop.cancel();
    let Frame::Goodbye { reason } = next(&*edge).await else { panic!("no goodbye") };
    assert_eq!(reason, "the cloud is stopping");
    stage.part.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_part_fails_when_its_listener_does() {
    let stage = Stage::new(Config::default());
    // Another listener takes the place of the part's.
    let _other = stage.network.listen();
    let error = stage.part.await.unwrap().unwrap_err();
    assert!(error.to_string().starts_with("no connections are accepted on memory any more"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_clock_is_wrong_is_found_out_at_its_first_word_and_again_while_its_session_lives() {
    let mut stage = Stage::new(Config::default());
    let edge = stage.connect("edge-1").await;
    say(&*edge, hello("edge-1", &Inventory::default())).await;
    let Frame::Welcome(_) = next(&*edge).await else { panic!("no welcome") };
    stage.outside.snapshots.recv().await.unwrap().answer(Snapshot::default());
    assert_eq!(next(&*edge).await, Frame::Synchronized);
    for (frame, hours) in [(Frame::Synchronized, 1), (Frame::Ping(7), -5)] {
        let clock = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(hours);
        let clock_ms = u64::try_from(clock.as_millisecond()).unwrap();
        edge.send(Lane::Heartbeat, Native.encode_with_clock(&frame, clock_ms)).await.unwrap();
        let measured = timeout(Duration::from_secs(60), stage.outside.clocks.recv()).await.unwrap().unwrap();
        assert_eq!(measured.node, node("edge-1"));
        let wrong = measured.message.ms - hours * 3_600_000;
        assert!(wrong.abs() < 30_000, "{} ms", measured.message.ms);
    }
}
