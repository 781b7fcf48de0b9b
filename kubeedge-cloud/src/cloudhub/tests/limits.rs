//! What sessions may take, and what one costs the others.

use futures::FutureExt as _;
use kubeedge_core::{hub::Offence, message::Ruling};
use tokio::time::{Instant, sleep};

use super::*;
use crate::cloudhub::gauges::SESSION_BYTES;

impl Stage {
    /// What becomes of a node that says hello and should be refused.
    async fn refused(&self, name: &str) -> (String, Duration) {
        let edge = self.connect(name).await;
        say(&*edge, hello(name, &Inventory::default())).await;
        let Frame::Refusal { reason, retry_after } = next(&*edge).await else { panic!("it was not refused") };
        (reason, retry_after)
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_for_which_there_is_no_memory_is_told_so_and_taken_when_there_is() {
    let config = Config { memory_max: 2 * SESSION_BYTES, ..Config::default() };
    let mut stage = Stage::new(config);
    let first = stage.welcomed("edge-1").await;
    let _second = stage.welcomed("edge-2").await;
    let (reason, retry_after) = stage.refused("edge-3").await;
    assert!(reason.contains("memory"), "{reason}");
    assert_eq!(retry_after, Config::default().retry_after);
    let counts = stage.gauges.counts();
    assert_eq!((counts.sessions, counts.refused, counts.memory), (2, 1, 2 * SESSION_BYTES));

    first.close("leaves").await;
    assert_eq!(stage.session().await, (node("edge-1"), SessionState::Offline));
    sleep(Duration::from_secs(2)).await;
    stage.welcomed("edge-3").await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_sends_more_than_it_may_without_an_acknowledgement_is_refused_and_others_are_not() {
    let link = kubeedge_core::hub::NodeConfig { unacked_bytes_max: 10_000, ..Default::default() };
    let mut stage = Stage::new(Config { link, ..Config::default() });
    let greedy = stage.synchronized("greedy", Vec::new()).await;
    let modest = stage.synchronized("modest", Vec::new()).await;
    let report = |name: &str| {
        let state = kubeedge_core::message::PodState::Status(vec![b' '; 3_000].into());
        let reference = ObjectRef::pod("default", name);
        Payload::Report(Report::Pod(kubeedge_core::message::PodReport {
            reference,
            uid: Uid::new(name),
            state,
        }))
    };
    say(&*modest, item(1, report("pod"))).await;
    for seq in 1..=3 {
        say(&*greedy, item(seq, report(&format!("pod-{seq}")))).await;
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(stage.gauges.counts().sessions, 2, "it may send so much");
    say(&*greedy, item(4, report("pod-4"))).await;
    let Frame::Refusal { reason, .. } = next(&*greedy).await else { panic!("it was not refused") };
    assert!(reason.contains("10000 bytes"), "{reason}");
    sleep(Duration::from_secs(2)).await;
    assert_eq!(stage.gauges.counts().sessions, 1);
    assert!(stage.gauges.counts().memory < SESSION_BYTES + 5_000, "its memory is given back");
}

#[tokio::test(start_paused = true)]
async fn a_session_that_needs_more_memory_than_it_may_have_is_ended_with_a_reason() {
    let link = kubeedge_core::hub::NodeConfig { memory_max: 100_000, ..Default::default() };
    let mut stage = Stage::new(Config { link, ..Config::default() });
    // It takes what is sent and acknowledges nothing, so that names pile up.
    let edge = stage.synchronized("edge-1", Vec::new()).await;
    for number in 0..2_000 {
        let message = ObjectEvent::Applied(object(&format!("pod-{number}"), 1));
        stage.outside.downstream.send(ToNode { node: node("edge-1"), message }).unwrap();
    }
    let reason = loop {
        if let Frame::Refusal { reason, .. } = next(&*edge).await {
            break reason;
        }
    };
    assert!(reason.contains("bytes of memory"), "{reason}");
}

/// In how many rounds of all tasks, at most, several nodes have had what changed for each of them, while another has many
/// large changes or none.
async fn rounds_until_told(changes_of_another: usize) -> usize {
    let mut stage = Stage::new(Config::default());
    let _stalled = stage.synchronized("stalled", Vec::new()).await;
    let mut healthy = Vec::new();
    for name in ["a", "b", "c"] {
        healthy.push((name, stage.synchronized(name, Vec::new()).await));
    }
    let mut most = 0;
    for version in 1..=50 {
        for number in 0..changes_of_another {
            let long =
                Object { json: vec![b' '; 64 << 10].into(), ..object(&format!("pod-{number}"), version) };
            let message = ObjectEvent::Applied(long);
            stage.outside.downstream.send(ToNode { node: node("stalled"), message }).unwrap();
        }
        for (name, _) in &healthy {
            let message = ObjectEvent::Applied(object("pod", version));
            stage.outside.downstream.send(ToNode { node: node(name), message }).unwrap();
        }
        let (mut told, mut rounds) = (0, 0);
        while told < healthy.len() {
            assert!(rounds < 1_000, "version {version} does not come");
            if let Some(frame) = next(&*healthy[told].1).now_or_never() {
                assert_eq!(frame, applied(version, object("pod", version)));
                say(&*healthy[told].1, ack(Lane::Pods, version)).await;
                told += 1;
            } else {
                tokio::task::yield_now().await;
                rounds += 1;
            }
        }
        most = most.max(rounds);
    }
    most
}

#[tokio::test(start_paused = true)]
async fn a_node_that_never_reads_makes_others_wait_no_longer_however_much_there_is_for_it() {
    let (alone, few, many) =
        (rounds_until_told(0).await, rounds_until_told(5).await, rounds_until_told(100).await);
    assert!(few <= alone + 4 && many <= alone + 4, "{alone}, {few}, {many}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_never_reads_costs_a_bounded_amount_and_the_others_no_wait() {
    let mut stage = Stage::new(Config::default());
    let _stalled = stage.synchronized("stalled", Vec::new()).await;
    let healthy = stage.synchronized("healthy", Vec::new()).await;
    let long = |name: &str, version| Object { json: vec![b' '; 64 << 10].into(), ..object(name, version) };
    for version in 1..=200 {
        for name in 0..50 {
            let message = ObjectEvent::Applied(long(&format!("pod-{name}"), version));
            stage.outside.downstream.send(ToNode { node: node("stalled"), message }).unwrap();
        }
        let sent = Instant::now();
        let message = ObjectEvent::Applied(object("pod", version));
        stage.outside.downstream.send(ToNode { node: node("healthy"), message }).unwrap();
        assert_eq!(next(&*healthy).await, applied(version, object("pod", version)));
        say(&*healthy, ack(Lane::Pods, version)).await;
        assert_eq!(sent.elapsed(), Duration::ZERO, "nothing is waited for");
    }
    sleep(Duration::from_millis(10)).await;
    let counts = stage.gauges.counts();
    let pods = counts.lanes.iter().find(|lane| lane.lane == Lane::Pods).unwrap();
    assert_eq!(pods.depth, 50, "one for each key, however often it changed");
    assert!(counts.memory < 2 * SESSION_BYTES + 50 * 300, "{counts:?}");
    drop(healthy);
    sleep(Duration::from_secs(60)).await;
    let counts = stage.gauges.counts();
    assert_eq!((counts.sessions, counts.memory), (0, 0), "a node that says nothing either is given up");
}

#[tokio::test(start_paused = true)]
async fn stopping_sends_the_nodes_elsewhere_one_after_the_other() {
    let drain = Duration::from_secs(2);
    let mut stage = Stage::new(Config { drain, ..Config::default() });
    let mut edges = Vec::new();
    for number in 0..20 {
        edges.push(stage.welcomed(&format!("edge-{number}")).await);
    }
    let began = Instant::now();
    stage.stop.cancel();
    let leaving = edges.iter().map(|edge| async {
        let Frame::Goodbye { reason } = next(&**edge).await else { panic!("no goodbye") };
        assert!(reason.contains("stopping"), "{reason}");
        edge.close("goes elsewhere").await;
        began.elapsed()
    });
    let mut left = futures::future::join_all(leaving).await;
    left.sort();
    assert!(left[0] < drain / 10 && left[19] >= Duration::from_millis(150), "{left:?}");
    assert!(left[19] <= drain, "{left:?}");
    stage.part.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_session_ends_with_the_certificate_that_its_node_has_shown() {
    let mut stage = Stage::new(Config::default());
    let edge = stage.synchronized("edge-1", Vec::new()).await;
    stage.network.end_identities(Duration::MAX);
    say(&*edge, Frame::Ping(1)).await;
    assert_eq!(next(&*edge).await, Frame::Pong(1));

    stage.network.end_identities(Duration::from_secs(1_000_000_000));
    say(&*edge, Frame::Ping(2)).await;
    let Frame::Goodbye { reason } = next(&*edge).await else { panic!("no goodbye") };
    assert!(reason.contains("certificate"), "{reason}");
    assert_eq!(stage.session().await, (node("edge-1"), SessionState::Offline));
    // Nor does one begin with it, should the handshake not have seen it.
    let edge = stage.connect("edge-1").await;
    say(&*edge, hello("edge-1", &Inventory::default())).await;
    let Frame::Goodbye { .. } = next(&*edge).await else { panic!("no goodbye") };
    while edge.recv().await.is_ok_and(|frame| frame.is_some()) {}
    let offences = stage.gauges.counts().offences;
    assert!(offences.contains(&(Offence::Expired, 2)), "{offences:?}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_shut_out_is_told_so_and_gets_no_session_until_it_is_let_in() {
    let mut stage = Stage::new(Config::default());
    let edge = stage.synchronized("edge-1", Vec::new()).await;
    let rule = |message| ToNode { node: node("edge-1"), message };
    stage.outside.lost.send(rule(Ruling::ShutOut)).unwrap();
    let Frame::Refusal { reason, retry_after } = next(&*edge).await else { panic!("no refusal") };
    assert!(reason.contains("shut out"), "{reason}");
    assert_eq!(retry_after, Duration::from_secs(60));
    assert_eq!(stage.session().await, (node("edge-1"), SessionState::Offline));
    assert_eq!(stage.refused("edge-1").await, (reason, retry_after));
    let _other = stage.welcomed("edge-2").await;
    sleep(Duration::from_secs(5)).await;
    let offences = stage.gauges.counts().offences;
    assert!(offences.contains(&(Offence::ShutOut, 2)), "{offences:?}");

    stage.outside.lost.send(rule(Ruling::LetIn)).unwrap();
    sleep(Duration::from_secs(1)).await;
    let _edge = stage.welcomed("edge-1").await;
}
