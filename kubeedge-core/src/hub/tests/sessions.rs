use std::time::{Duration, Instant};

use super::{
    device_report, node_report, object,
    pair::{Faults, Pair, node},
    pod, pod_report,
};
use crate::{
    hub::{
        Ack, EdgeConfig, EdgeLink, EdgeOutput, Frame, Hello, InventoryPart, Item, NodeConfig, NodeLink,
        NodeOutput, PROTOCOL, Payload, Welcome,
    },
    id::Uid,
    message::{
        Answer, CertificateRequest, Connectivity, Inventory, Lane, LogRequest, Object, ObjectEvent,
        ObjectRef, Query, Request, Response, TunnelId, TunnelRequest, TunnelStep,
    },
};

const SECOND: Duration = Duration::from_secs(1);

/// A pair whose edge holds all that the API has.
fn synchronized() -> Pair {
    let mut pair = Pair::new(1);
    pair.run(SECOND);
    assert_eq!(pair.state(), Connectivity::Synchronized);
    pair
}

fn count(pair: &Pair, name: &str) -> usize {
    pair.sent.iter().filter(|(_, sent, _)| *sent == name).count()
}

// ------------------------------------------------------------------------------------------------ connecting

#[test]
fn a_fresh_node_is_given_everything_and_then_told_that_it_is_in_sync() {
    let mut pair = Pair::new(1);
    for number in 0..500 {
        pair.apply(object(&pod(&format!("pod-{number}")), "u", 1));
    }
    pair.run(5 * SECOND);
    assert_eq!(pair.stored, pair.api);
    let states: Vec<_> = pair.connectivity.iter().map(|(_, state)| *state).collect();
    assert_eq!(states, [Connectivity::Online, Connectivity::Synchronized]);
    assert_eq!(pair.delivered.len(), 500, "each once");
}

#[test]
fn services_arrive_before_the_pods_that_are_told_of_them() {
    let mut pair = Pair::new(1);
    let service = |number: u64| ObjectRef::new("v1", "Service", "default", format!("service-{number}"));
    // More than the window takes at once; a pod's name sorts before a Service's.
    for number in 0..700 {
        pair.apply(object(&pod(&format!("pod-{number}")), "u", 1));
        pair.apply(object(&service(number), "u", 1));
    }
    pair.run(5 * SECOND);
    let kinds: Vec<_> = pair.delivered.iter().map(|event| event.key().kind()).collect();
    let (first, last) =
        (kinds.iter().position(|kind| *kind == "Pod"), kinds.iter().rposition(|kind| *kind == "Service"));
    assert_eq!((first, last, kinds.len()), (Some(700), Some(699), 1400));
    // One that comes while the link is busy with others of a pod's name passes them.
    pair.delivered.clear();
    for number in 0..700 {
        pair.apply(object(&pod(&format!("pod-{number}")), "u", 2));
    }
    pair.apply(object(&service(900), "u", 1));
    pair.apply(object(&pod("pod-699"), "other", 3));
    pair.run(5 * SECOND);
    let place = |of: &dyn Fn(&ObjectEvent) -> bool| pair.delivered.iter().position(of).unwrap();
    let (of_service, of_pod) =
        (place(&|event| event.key().kind() == "Service"), place(&|event| event.uid().as_str() == "other"));
    assert!(of_service < of_pod, "{of_service} and {of_pod}");
}

#[test]
fn a_thousand_changes_for_a_node_that_is_200_ms_away_are_acknowledged_within_two_seconds() {
    let mut pair = synchronized();
    // Five milliseconds each way are in the model already.
    pair.faults.distance_ms = 95;
    let began = pair.elapsed();
    for number in 0..1_000 {
        let object = object(&pod(&format!("pod-{number}")), "u", 1);
        pair.apply(Object { json: vec![b' '; 2_000].into(), ..object });
    }
    let acknowledged = |pair: &Pair| pair.unacknowledged() == 0 && pair.stored.len() == 1_000;
    assert!(pair.run_while_not(10 * SECOND, acknowledged));
    let took = pair.elapsed() - began;
    // Bytes take no time here, so these are the round trips that the windows cost.
    assert!(took < 2 * SECOND, "{took:?}");
}

#[test]
fn a_node_that_holds_everything_is_in_sync_with_four_frames() {
    let mut pair = Pair::new(1);
    for number in 0..100 {
        let held = object(&pod(&format!("pod-{number}")), "u", 1);
        pair.stored.insert(held.reference.clone(), held.clone());
        pair.apply(held);
    }
    pair.run(SECOND);
    let frames: Vec<_> = pair.sent.iter().map(|(_, name, _)| *name).collect();
    assert_eq!(frames, ["hello", "welcome", "synchronized", "synchronized"]);
    assert_eq!(pair.state(), Connectivity::Synchronized);
}

#[test]
fn a_node_is_sent_the_difference_and_nothing_else() {
    let mut pair = Pair::new(1);
    let held = [object(&pod("same"), "u", 1), object(&pod("changed"), "u", 1), object(&pod("gone"), "u", 1)];
    pair.stored.extend(held.map(|object| (object.reference.clone(), object)));
    // A status write has moved the version of an object that is otherwise the same.
    let mut same = object(&pod("same"), "u", 1);
    same.resource_version.0 = 7;
    let changed = object(&pod("changed"), "u", 2);
    let recreated = object(&pod("recreated"), "other", 3);
    pair.stored.insert(pod("recreated"), object(&pod("recreated"), "u", 9));
    for object in [same, changed.clone(), recreated.clone()] {
        pair.api.insert(object.reference.clone(), object);
    }
    pair.faults.storing_ms = 0;
    pair.stale = Some(pair.api.values().cloned().collect());
    pair.run(SECOND);
    let gone = ObjectEvent::Deleted { reference: pod("gone"), uid: Uid::new("u") };
    assert_eq!(pair.delivered, [gone, ObjectEvent::Applied(changed), ObjectEvent::Applied(recreated)]);
    assert_eq!(pair.state(), Connectivity::Synchronized);
}

#[test]
fn a_cloud_with_an_old_cache_does_not_take_the_edge_back() {
    let mut pair = Pair::new(1);
    pair.stored.insert(pod("a"), object(&pod("a"), "u", 5));
    pair.stale = Some(vec![object(&pod("a"), "u", 4)]);
    pair.run(SECOND);
    assert_eq!((pair.delivered.len(), pair.state()), (0, Connectivity::Synchronized));
    // The cache catches up, and the change goes out as a change.
    pair.apply(object(&pod("a"), "u", 6));
    pair.run(SECOND);
    assert_eq!(pair.stored, pair.api);
}

#[test]
fn what_no_controller_of_this_cloud_speaks_for_stays_at_the_node() {
    let config = NodeConfig { kinds_left_alone: vec!["Pod".into()], ..NodeConfig::default() };
    let mut pair = Pair::with(7, EdgeConfig::default(), config);
    pair.stored.insert(pod("a"), object(&pod("a"), "u", 5));
    let surplus = ObjectRef::config_map("default", "surplus");
    pair.stored.insert(surplus.clone(), object(&surplus, "u", 5));
    pair.run(SECOND);
    assert_eq!(pair.stored.keys().collect::<Vec<_>>(), [&pod("a")]);
    assert_eq!(pair.state(), Connectivity::Synchronized);
}

#[test]
fn a_large_inventory_comes_in_parts_and_survives_their_loss() {
    let edge = EdgeConfig { inventory_part: 10, ..EdgeConfig::default() };
    let mut pair = Pair::with(7, edge, NodeConfig::default());
    for number in 0..95 {
        let held = object(&pod(&format!("pod-{number}")), "u", 1);
        pair.stored.insert(held.reference.clone(), held.clone());
        pair.apply(held);
    }
    pair.apply(object(&pod("lacking"), "u", 1));
    pair.faults = Faults { lost: 200, jitter_ms: 50, reorder: true, ..Faults::default() };
    assert!(pair.run_while_not(60 * SECOND, |pair| pair.stored == pair.api));
    assert_eq!(pair.delivered.len(), 1, "the parts said all that the edge holds");
}

#[test]
fn a_change_that_comes_before_the_inventory_overrides_the_snapshot() {
    let mut pair = Pair::new(1);
    pair.faults.storing_ms = 0;
    pair.stale = Some(vec![object(&pod("a"), "u", 1), object(&pod("b"), "u", 1)]);
    pair.snapshots = false;
    pair.run(SECOND);
    pair.api.insert(pod("b"), object(&pod("b"), "u", 1));
    pair.apply(object(&pod("a"), "u", 2));
    pair.delete(&pod("b"));
    let old = vec![object(&pod("a"), "u", 1), object(&pod("b"), "u", 1)];
    pair.run(SECOND);
    pair.cloud.as_mut().unwrap().handle_snapshot(old);
    pair.run(SECOND);
    assert_eq!(pair.stored, pair.api);
    assert_eq!(pair.delivered, [ObjectEvent::Applied(object(&pod("a"), "u", 2))]);
}

#[test]
fn a_name_that_was_deleted_made_again_and_deleted_again_is_gone_at_the_edge() {
    let mut pair = synchronized();
    pair.apply(object(&pod("a"), "first", 1));
    pair.run(SECOND);
    // All three while the lane waits for another item of the same name.
    pair.stuck.insert(pod("a"));
    pair.apply(object(&pod("a"), "first", 2));
    pair.run(SECOND);
    pair.delete(&pod("a"));
    pair.run(SECOND);
    pair.apply(object(&pod("a"), "second", 3));
    pair.run(SECOND);
    pair.delete(&pod("a"));
    pair.run(SECOND);
    pair.stuck.clear();
    pair.run(5 * SECOND);
    assert_eq!(pair.stored, pair.api);
}

#[test]
fn a_node_is_not_asked_what_it_holds_while_it_stores_what_the_last_session_brought() {
    let mut pair = synchronized();
    pair.stuck.insert(pod("a"));
    pair.apply(object(&pod("a"), "u", 1));
    pair.run(SECOND);
    pair.cut();
    pair.run(SECOND / 2);
    assert_eq!(count(&pair, "hello"), 1, "it waits");
    pair.stuck.clear();
    pair.run(SECOND);
    assert_eq!(count(&pair, "hello"), 2);
    assert_eq!((pair.delivered.len(), pair.state()), (1, Connectivity::Synchronized));
}

#[test]
fn what_an_earlier_session_brought_and_is_stored_after_the_inventory_is_compared_again() {
    let mut pair = synchronized();
    pair.stuck.insert(pod("a"));
    pair.apply(object(&pod("a"), "u", 1));
    pair.run(SECOND);
    pair.cut();
    pair.run(SECOND / 2);
    pair.delete(&pod("a"));
    pair.run(5 * SECOND);
    // The store was waited for in vain, and without the object both sides hold the same.
    assert_eq!(pair.state(), Connectivity::Synchronized);
    pair.stuck.clear();
    pair.run(5 * SECOND);
    assert_eq!((&pair.stored, pair.state()), (&pair.api, Connectivity::Synchronized));
    assert!(pair.closed.iter().any(|reason| reason.contains("was stored late")), "{:?}", pair.closed);
}

// ---------------------------------------------------------------------------------------- liveness, dialling

#[test]
fn both_sides_say_offline_within_three_heartbeats() {
    let mut pair = synchronized();
    let cut = pair.elapsed();
    pair.faults.partition = true;
    pair.run(45 * SECOND);
    let (at, state) = *pair.connectivity.last().unwrap();
    assert_eq!(state, Connectivity::Offline);
    assert!(at - cut <= 45 * SECOND, "{:?}", at - cut);
    assert!(pair.cloud.is_none());
    assert!(pair.closed.iter().any(|reason| reason.starts_with("the edge has been silent for ")));
}

#[test]
fn an_idle_session_costs_one_small_ping_and_pong_per_heartbeat() {
    let mut pair = synchronized();
    pair.sent.clear();
    pair.run(150 * SECOND);
    assert_eq!(
        (count(&pair, "ping"), count(&pair, "pong"), pair.sent.len()),
        (10, 10, 20),
        "{:?}",
        pair.sent
    );
    let bytes: usize = pair.sent.iter().map(|(_, _, bytes)| bytes).sum();
    assert!(bytes <= 10 * 12, "{bytes} bytes");
}

#[test]
fn a_ping_whose_lane_is_busy_keeps_no_timer_in_the_past_and_leaves_when_the_lane_is_free() {
    let mut pair = synchronized();
    let (opened, mut cloud) = (pair.now(), pair.cloud.take().unwrap());
    // Nobody polls for frames from here on, as when every lane is full.
    let (mut at, mut woken) = (opened, 0);
    while at < opened + 20 * SECOND {
        at = pair.edge.poll_timeout().unwrap();
        pair.edge.handle_timeout(at);
        assert!(pair.edge.poll_timeout().unwrap() > at, "the edge would not sleep");
        woken += 1;
    }
    assert_eq!(woken, 2, "once per heartbeat");
    assert_eq!(pair.edge.poll_transmit(Lane::Heartbeat, at), Some(Frame::Ping(2)));
    assert_eq!(
        pair.edge.poll_transmit(Lane::Heartbeat, at),
        None,
        "one ping, however long the lane was busy"
    );

    at = opened;
    while at < opened + 20 * SECOND {
        at = cloud.poll_timeout().unwrap();
        cloud.handle_timeout(at);
        assert!(cloud.poll_timeout().unwrap() > at, "the cloud would not sleep");
    }
    assert!(matches!(cloud.poll_transmit(Lane::Heartbeat, at), Some(Frame::Ping(_))));
    assert_eq!(cloud.poll_transmit(Lane::Heartbeat, at), None);
}

#[test]
fn all_is_in_sync_five_seconds_after_the_network_is_back() {
    let mut pair = synchronized();
    pair.faults.partition = true;
    pair.run(300 * SECOND);
    pair.apply(object(&pod("a"), "u", 1));
    pair.report(node_report(1));
    pair.faults.partition = false;
    pair.run(5 * SECOND);
    assert_eq!((&pair.stored, pair.state()), (&pair.api, Connectivity::Synchronized));
    assert_eq!(pair.api_reports.len(), 1);
}

fn dialled(link: &mut EdgeLink, now: Instant) -> bool {
    link.handle_timeout(now);
    std::iter::from_fn(|| link.poll_output()).any(|output| output == EdgeOutput::Dial)
}

#[test]
fn the_pauses_between_attempts_double_up_to_a_limit_and_differ_between_nodes() {
    let pauses = |seed| {
        let mut now = Instant::now();
        let mut link = EdgeLink::new(EdgeConfig::default(), node(), seed, now);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            assert!(dialled(&mut link, now));
            link.handle_disconnected("nobody answers", now);
            let at = link.poll_timeout().unwrap();
            pauses.push(at - now);
            now = at;
        }
        pauses
    };
    let (one, two) = (pauses(1), pauses(2));
    assert_ne!(one, two);
    for (pause, most) in one.iter().zip([100, 200, 400, 800, 1500, 1500, 1500, 1500]) {
        let most = Duration::from_millis(most);
        assert!(*pause <= most && *pause >= most * 3 / 4, "{pause:?} of {most:?}");
    }
}

#[test]
fn a_node_that_is_refused_stays_away_as_long_as_it_was_told_or_up_to_half_as_long_again() {
    let now = Instant::now();
    let mut link = EdgeLink::new(EdgeConfig::default(), node(), 1, now);
    assert!(dialled(&mut link, now));
    link.handle_connected(now);
    link.handle_inventory(&Inventory::default(), now);
    link.handle_frame(Frame::Refusal { reason: "full".to_owned(), retry_after: 30 * SECOND }, now);
    let retry_in = link.poll_timeout().unwrap() - now;
    assert!((30 * SECOND..=45 * SECOND).contains(&retry_in), "{retry_in:?}");
    let outputs: Vec<_> = std::iter::from_fn(|| link.poll_output()).collect();
    let reason = "the cloud refused the session: full".to_owned();
    assert!(outputs.contains(&EdgeOutput::Closed { reason, retry_in }), "{outputs:?}");
}

#[test]
fn two_nodes_that_share_a_name_do_not_throw_each_other_out_without_a_pause() {
    let mut pair = synchronized();
    pair.run(10 * SECOND);
    let mut pauses = Vec::new();
    for _ in 0..6 {
        let before = pair.elapsed();
        pair.cloud.as_mut().unwrap().handle_close("a newer connection of the node took over");
        pair.pump();
        let came_back = pair.run_while_not(5 * SECOND, |pair| {
            pair.connectivity.last().is_some_and(|(at, state)| state.is_online() && *at > before)
        });
        assert!(came_back);
        pauses.push(pair.elapsed() - before);
    }
    assert!(pauses[5] > SECOND, "{pauses:?}");
}

// ------------------------------------------------------------------------------------------------- reports

#[test]
fn a_report_is_kept_until_the_api_has_it_and_sent_once_to_each_session() {
    let mut pair = synchronized();
    pair.faults.partition = true;
    for number in 1..100 {
        pair.report(pod_report("a", number));
        pair.report(device_report("d", number));
    }
    pair.run(60 * SECOND);
    pair.faults.partition = false;
    pair.run(5 * SECOND);
    assert_eq!(pair.delivered_reports, [pod_report("a", 99), device_report("d", 99)]);
    pair.cut();
    pair.run(5 * SECOND);
    assert_eq!(pair.delivered_reports.len(), 2, "what the API has is not sent again");
}

// ------------------------------------------------------------------------------------------------ questions

fn query() -> Query {
    Query::Get(ObjectRef::config_map("default", "a"))
}

fn request() -> Request {
    Request::Logs(LogRequest::default())
}

#[test]
fn every_query_is_answered_even_if_the_session_ends() {
    let mut pair = synchronized();
    let now = pair.now();
    let first = pair.edge.handle_query(query(), now);
    let second = pair.edge.handle_query(query(), now);
    pair.run(SECOND);
    let asked = pair.queried.clone();
    pair.cloud.as_mut().unwrap().handle_answer(asked[0], Answer::NotFound);
    pair.run(SECOND);
    assert_eq!(pair.answers, [(first, Answer::NotFound)]);
    pair.cut();
    pair.run(SECOND / 10);
    assert_eq!(pair.answers[1], (second, Answer::Refused("the link to the cloud was lost".to_owned())));
}

#[test]
fn a_node_that_knows_no_tunnels_is_not_asked_for_one_and_keeps_its_session() {
    let now = Instant::now();
    let mut link = NodeLink::new(NodeConfig::default(), node(), 1, now);
    let asked = |link: &mut NodeLink, tunnels: bool| {
        link.handle_frame(Frame::Hello(Hello { tunnels, ..hello("edge-1", 0) }), now);
        let tunnel = TunnelRequest { tunnel: TunnelId(7), step: TunnelStep::Open };
        link.handle_request(Request::Tunnel(tunnel), SECOND, now);
        std::iter::from_fn(|| link.poll_output()).last()
    };
    let refused = asked(&mut link, false);
    let Some(NodeOutput::Responded { response: Response::Failed { code: 501, message }, .. }) = refused
    else {
        panic!("{refused:?}");
    };
    assert!(message.contains("older than this cloud"), "{message}");
    assert_eq!(link.poll_transmit(Lane::Bulk, now), None);
    let mut link = NodeLink::new(NodeConfig::default(), node(), 1, now);
    assert_eq!(asked(&mut link, true), Some(NodeOutput::NeedSnapshot), "nothing is refused");
    assert!(matches!(link.poll_transmit(Lane::Bulk, now), Some(Frame::Request { .. })));
}

#[test]
fn a_cloud_that_knows_no_certificates_is_not_asked_for_one_and_a_request_too_long_goes_to_none() {
    let now = Instant::now();
    let certificate =
        |length: usize| Query::Certificate(CertificateRequest { pkcs10: vec![0; length].into() });
    let mut pair = synchronized();
    for (query, why) in
        [(certificate(CertificateRequest::MAX + 1), Some("longer than 8 KiB")), (certificate(8), None)]
    {
        pair.edge.handle_query(query, pair.now());
        let told = std::iter::from_fn(|| pair.edge.poll_output()).last();
        match (told, why) {
            (None, None) => {}
            (Some(EdgeOutput::Answered { answer: Answer::Refused(told), .. }), Some(why)) => {
                assert!(told.contains(why), "{told}");
            }
            other => panic!("{other:?}"),
        }
    }
    let mut older = EdgeLink::new(EdgeConfig::default(), node(), 1, now);
    assert!(dialled(&mut older, now));
    older.handle_connected(now);
    older.handle_inventory(&Inventory::default(), now);
    let Some(Frame::Hello(Hello { nonce, .. })) = older.poll_transmit(Lane::Heartbeat, now) else {
        panic!("no hello");
    };
    let welcome = Welcome { nonce, session: 1, heartbeat: SECOND, certificates: false };
    older.handle_frame(Frame::Welcome(welcome), now);
    while older.poll_output().is_some() {}
    older.handle_query(certificate(8), now);
    let Some(EdgeOutput::Answered { answer: Answer::Refused(why), .. }) = older.poll_output() else {
        panic!("nothing is refused");
    };
    assert!(why.contains("older than this node"), "{why}");
    assert_eq!(older.poll_transmit(Lane::Bulk, now), None);
}

#[test]
fn a_query_fails_at_its_deadline_and_an_answer_after_it_is_dropped() {
    let mut pair = synchronized();
    pair.edge.handle_query(query(), pair.now());
    pair.run(11 * SECOND);
    assert_eq!(pair.answers.len(), 1);
    let asked = pair.queried[0];
    pair.cloud.as_mut().unwrap().handle_answer(asked, Answer::NotFound);
    pair.run(SECOND);
    assert_eq!(pair.answers.len(), 1);
}

#[test]
fn queries_are_bounded() {
    let mut pair = synchronized();
    for _ in 0..65 {
        pair.edge.handle_query(query(), pair.now());
    }
    pair.pump();
    let refused = Answer::Refused("too many queries wait for the cloud already".to_owned());
    assert_eq!(pair.answers, [(65, refused)]);
}

#[test]
fn a_request_beyond_what_the_node_works_on_is_refused_and_the_others_are_answered() {
    let mut pair = synchronized();
    let now = pair.now();
    for _ in 0..33 {
        pair.cloud.as_mut().unwrap().handle_request(request(), 10 * SECOND, now);
    }
    pair.run(SECOND);
    assert_eq!(pair.asked.len(), 32);
    assert!(matches!(pair.responses[..], [(33, Response::Failed { code: 503, .. })]), "{:?}", pair.responses);
    pair.edge.handle_response(pair.asked[3], Response::Logs(Default::default()));
    pair.run(SECOND);
    assert_eq!(pair.responses[1], (4, Response::Logs(Default::default())));
    pair.run(10 * SECOND);
    assert_eq!(pair.responses.len(), 33, "the rest were late");
    pair.edge.handle_response(pair.asked[4], Response::Logs(Default::default()));
    pair.run(SECOND);
    assert_eq!(pair.responses.len(), 33);
}

// ----------------------------------------------------------------------------------------------------- flow

#[test]
fn an_object_that_the_edge_cannot_store_holds_up_no_other() {
    let mut pair = synchronized();
    pair.stuck.insert(pod("stuck"));
    pair.apply(object(&pod("stuck"), "u", 1));
    for number in 0..500 {
        pair.apply(object(&pod(&format!("pod-{number}")), "u", 1));
    }
    pair.run(5 * SECOND);
    assert_eq!(pair.stored.len(), 500);
    pair.stuck.clear();
    pair.run(60 * SECOND);
    assert_eq!(pair.stored, pair.api);
}

#[test]
fn an_object_too_long_for_its_lane_is_given_up_and_the_others_arrive() {
    let mut pair = Pair::new(1);
    let mut long = object(&pod("long"), "u", 1);
    long.json = vec![b' '; Lane::Pods.frame_limit()].into();
    pair.apply(long);
    pair.apply(object(&pod("short"), "u", 1));
    pair.run(5 * SECOND);
    assert_eq!(pair.undeliverable, ["Pod default/long"]);
    assert_eq!(pair.stored.keys().collect::<Vec<_>>(), [&pod("short")]);
    assert_eq!(pair.state(), Connectivity::Synchronized);
}

// -------------------------------------------------------------------------------------- peers that misbehave

fn hello(name: &str, objects: u32) -> Hello {
    Hello {
        protocol: PROTOCOL,
        node: name.to_owned(),
        nonce: 1,
        digest: [0; 32],
        objects,
        software: String::new(),
        tunnels: false,
    }
}

/// What the cloud says last to an edge that sends these frames, the first of which may be a hello.
fn last_words(frames: Vec<Frame>) -> Option<Frame> {
    let now = Instant::now();
    let mut link = NodeLink::new(NodeConfig::default(), node(), 1, now);
    for frame in frames {
        link.handle_frame(frame, now);
        while let Some(output) = link.poll_output() {
            if output == NodeOutput::NeedSnapshot {
                link.handle_snapshot(vec![object(&pod("a"), "u", 1)]);
            }
        }
    }
    std::iter::from_fn(|| link.poll_transmit(Lane::Heartbeat, now)).last()
}

fn reason(frame: Option<Frame>) -> String {
    match frame {
        Some(Frame::Goodbye { reason } | Frame::Refusal { reason, .. }) => reason,
        other => panic!("no reason: {other:?}"),
    }
}

#[test]
fn an_edge_that_is_not_who_it_says_or_speaks_another_version_is_refused() {
    let other = Frame::Hello(hello("edge-2", 0));
    assert_eq!(
        reason(last_words(vec![other])),
        "the certificate is of node edge-1, and the hello says \"edge-2\""
    );
    let newer = Frame::Hello(Hello { protocol: 2, ..hello("edge-1", 0) });
    assert_eq!(reason(last_words(vec![newer])), "the cloud speaks version 1 of the link, and the edge 2");
    let full = Frame::Hello(hello("edge-1", 100_001));
    assert_eq!(
        reason(last_words(vec![full])),
        "the cloud takes 100000 objects of a node, and it holds 100001"
    );
}

#[test]
fn an_edge_that_breaks_the_rules_is_told_which() {
    let hello = || Frame::Hello(hello("edge-1", 1));
    let item = |seq, payload: Payload| Frame::Item(Item { lane: payload.lane().unwrap(), seq, payload });
    let entry = |name: &str| object(&pod(name), "u", 1).entry();
    let part = InventoryPart { part: 0, last: true, entries: vec![entry("a"), entry("b")] };
    let cases = [
        (vec![Frame::Ping(1)], "the edge sent a frame before its hello: ping"),
        (vec![hello(), Frame::InventoryPart(part)], "the edge names more objects than its hello said"),
        (vec![hello(), item(1025, Payload::Report(node_report(1)))], "item 1025 of Pods is far beyond 0"),
        (
            vec![hello(), item(1, Payload::Object(ObjectEvent::Applied(object(&pod("a"), "u", 1))))],
            "the edge sent what only the cloud sends: an object",
        ),
        (
            vec![hello(), Frame::Ack(Ack { lane: Lane::Pods, upto: 9, beyond: Vec::new() })],
            "the edge acknowledged item 9 of Pods, which was never sent",
        ),
        (
            vec![hello(), Frame::InventoryRequest { from_part: 0 }],
            "the edge sent a frame that only the cloud sends: inventory request",
        ),
        (
            vec![hello(), Frame::Hello(Hello { nonce: 2, ..self::hello("edge-1", 1) })],
            "the edge said hello twice",
        ),
    ];
    for (frames, expected) in cases {
        assert_eq!(reason(last_words(frames)), expected);
    }
}

#[test]
fn stopping_the_edge_says_goodbye_and_dials_no_more() {
    let mut pair = synchronized();
    let now = pair.now();
    pair.edge.handle_stop(now);
    pair.run(SECOND);
    assert!(
        pair.closed.contains(&"the edge ended the session: the edge is stopping".to_owned()),
        "{:?}",
        pair.closed
    );
    pair.run(60 * SECOND);
    assert_eq!(count(&pair, "hello"), 1);
}
