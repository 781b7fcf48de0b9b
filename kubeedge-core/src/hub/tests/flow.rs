use std::time::{Duration, Instant};

use super::{
    node_report,
    pair::{Pair, number},
};
use crate::{
    hub::{
        Ack, EdgeConfig, EdgeLink, Flow,
        incoming::{Incoming, OutOfWindow, Seen},
        outgoing::{NeverSent, Outgoing, SPAN},
    },
    message::{Lane, Publish, Report, Upload, UploadId, UploadedEvent, UploadedPublish},
};

fn outgoing(window_items: usize) -> Outgoing<u64, Report> {
    Outgoing::new(Flow { window_items, ..Flow::default() })
}

/// The numbers and values that may leave.
fn sent(outgoing: &mut Outgoing<u64, Report>, now: Instant) -> Vec<(u64, u64)> {
    let next = || outgoing.poll_transmit(now).map(|(seq, value)| (seq, number(&value.unwrap())));
    std::iter::from_fn(next).collect()
}

fn ack(upto: u64, beyond: &[(u64, u64)]) -> Ack {
    Ack { lane: Lane::Pods, upto, beyond: beyond.to_vec() }
}

#[test]
fn the_edge_takes_uploads_up_to_a_number_and_up_to_a_weight() {
    let upload = |length| {
        let publish = Publish { topic: "t".into(), payload: vec![0; length].into() };
        Upload::Publish(UploadedPublish { id: Default::default(), publish })
    };
    for (length, fits) in [(0, 5), (600, 2)] {
        let config = EdgeConfig { uploads_max: 5, uploads_bytes_max: 1000, ..EdgeConfig::default() };
        let mut edge = EdgeLink::new(config, "edge-1".parse().unwrap(), 1, Instant::now());
        let mut taken = 0;
        while edge.takes_uploads() {
            edge.handle_upload(upload(length));
            taken += 1;
        }
        assert_eq!(taken, fits, "of {length} bytes");
    }
}

#[test]
fn events_that_the_api_does_not_take_fill_their_own_window_and_hold_up_no_message() {
    let mut pair = Pair::new(1);
    pair.writes_events = false;
    pair.run(Duration::from_secs(1));
    let event = |number: u64| Upload::Event(UploadedEvent { json: number.to_string().into() });
    let mut events = 0;
    while pair.edge.takes_events() {
        events += 1;
        pair.edge.handle_upload(event(events));
    }
    assert_eq!(events, 32, "what a cloud has to hold of a node is bounded");
    // Far more messages than numbers may be ahead of one that is not acknowledged.
    for number in 1..=3 * SPAN {
        let publish = Publish { topic: "t".into(), payload: "x".into() };
        let id = UploadId { run: 1, number };
        pair.edge.handle_upload(Upload::Publish(UploadedPublish { id, publish }));
        pair.pump();
    }
    pair.run(Duration::from_secs(5));
    assert_eq!(pair.uploaded.len() as u64, 3 * SPAN);
    assert!(!pair.edge.takes_events());
    // They come again in the next session, and are let go when the API has them.
    (pair.writes_events, pair.api_uploads) = (true, Vec::new());
    pair.cut();
    pair.run(Duration::from_secs(5));
    assert_eq!(pair.api_uploads, (1..=events).map(event).collect::<Vec<_>>());
    assert!(pair.edge.takes_events());
}

#[test]
fn only_the_newest_value_of_a_key_leaves_and_one_at_a_time() {
    let (mut states, now) = (outgoing(10), Instant::now());
    states.set(1, node_report(1));
    states.set(1, node_report(2));
    assert_eq!(sent(&mut states, now), [(1, 2)]);
    states.set(1, node_report(3));
    states.set(1, node_report(4));
    assert_eq!(sent(&mut states, now), [], "one of this key is on its way");
    assert_eq!(states.handle_ack(&ack(1, &[]), now), Ok(vec![1]));
    assert_eq!(sent(&mut states, now), [(2, 4)]);
    states.handle_ack(&ack(2, &[]), now).unwrap();
    assert_eq!((states.len(), states.poll_timeout()), (0, None), "nothing is kept of what has arrived");
}

#[test]
fn what_goes_first_passes_what_is_queued_and_changes_in_its_place() {
    let (mut states, now) = (outgoing(2), Instant::now());
    for key in 1..=4 {
        states.set(key, node_report(key));
    }
    assert_eq!(sent(&mut states, now), [(1, 1), (2, 2)], "the window is full");
    states.set_first(9, node_report(9));
    states.set_first(9, node_report(10));
    states.handle_ack(&ack(2, &[]), now).unwrap();
    assert_eq!(sent(&mut states, now), [(3, 10), (4, 3)]);
    states.handle_ack(&ack(4, &[]), now).unwrap();
    assert_eq!(sent(&mut states, now), [(5, 4)]);
}

#[test]
fn a_repetition_carries_the_newest_value_but_an_acknowledgement_counts_for_the_first() {
    let (mut states, now) = (outgoing(10), Instant::now());
    states.set(1, node_report(1));
    assert_eq!(sent(&mut states, now), [(1, 1)]);
    states.set(1, node_report(2));
    let later = now + Duration::from_secs(1);
    states.handle_timeout(later);
    assert_eq!(sent(&mut states, later), [(1, 2)], "the same number");
    // The peer may have stored the first copy and passed over the second.
    states.handle_ack(&ack(1, &[]), later).unwrap();
    assert_eq!(sent(&mut states, later), [(2, 2)]);
}

#[test]
fn the_window_counts_items_and_bytes_and_lets_one_item_of_any_length_through() {
    let now = Instant::now();
    let mut states = outgoing(3);
    (1..=5).for_each(|key| states.set(key, node_report(key)));
    assert_eq!(sent(&mut states, now).len(), 3);
    states.handle_ack(&ack(1, &[(3, 3)]), now).unwrap();
    assert_eq!(sent(&mut states, now), [(4, 4), (5, 5)]);

    let mut narrow: Outgoing<u64, Report> = Outgoing::new(Flow { window_bytes: 10, ..Flow::default() });
    (1..=2).for_each(|key| narrow.set(key, node_report(key)));
    assert_eq!(sent(&mut narrow, now), [(1, 1)]);
    narrow.handle_ack(&ack(1, &[]), now).unwrap();
    assert_eq!(sent(&mut narrow, now), [(2, 2)]);
}

#[test]
fn silence_repeats_one_item_at_a_time_ever_more_slowly_and_progress_makes_it_quick_again() {
    let (mut states, mut now) = (outgoing(10), Instant::now());
    (1..=3).for_each(|key| states.set(key, node_report(key)));
    assert_eq!(sent(&mut states, now).len(), 3);
    let mut pauses = Vec::new();
    let mut repeated = Vec::new();
    for _ in 0..6 {
        let at = states.poll_timeout().unwrap();
        pauses.push((at - now).as_secs());
        now = at;
        states.handle_timeout(now);
        repeated.extend(sent(&mut states, now).iter().map(|(seq, _)| *seq));
    }
    assert_eq!((pauses, repeated), (vec![1, 2, 4, 8, 16, 30], vec![1, 2, 3, 1, 2, 3]));
    states.handle_ack(&ack(1, &[]), now).unwrap();
    assert_eq!(states.poll_timeout(), Some(now + Duration::from_secs(1)));
}

#[test]
fn the_next_session_begins_with_what_was_on_its_way() {
    let (mut states, now) = (outgoing(2), Instant::now());
    (1..=4).for_each(|key| states.set(key, node_report(key)));
    assert_eq!(sent(&mut states, now), [(1, 1), (2, 2)]);
    states.set(1, node_report(9));
    states.reset();
    assert_eq!(sent(&mut states, now), [(1, 9), (2, 2)]);
    states.handle_ack(&ack(2, &[]), now).unwrap();
    assert_eq!(sent(&mut states, now), [(3, 3), (4, 4)]);
}

#[test]
fn what_cannot_be_carried_leaves_its_number_empty_and_is_given_up() {
    let (mut states, now) = (outgoing(10), Instant::now());
    states.set(1, node_report(1));
    states.set(2, node_report(2));
    assert_eq!(sent(&mut states, now).len(), 2);
    assert_eq!(states.handle_too_long(1), Some(1));
    assert_eq!(states.poll_transmit(now), Some((1, None)));
    states.handle_ack(&ack(2, &[]), now).unwrap();
    assert_eq!(states.len(), 0);
}

#[test]
fn an_acknowledgement_of_what_was_never_sent_is_an_error() {
    let (mut states, now) = (outgoing(10), Instant::now());
    states.set(1, node_report(1));
    assert_eq!(sent(&mut states, now).len(), 1);
    assert_eq!(states.handle_ack(&ack(2, &[]), now), Err(NeverSent(2)));
    assert_eq!(states.handle_ack(&ack(0, &[(1, 7)]), now), Err(NeverSent(7)));
    assert_eq!(states.len(), 1);
}

#[test]
fn an_item_that_is_never_stored_holds_up_the_others_only_at_the_end_of_the_span() {
    let (mut states, now) = (outgoing(10), Instant::now());
    states.set(0, node_report(0));
    assert_eq!(sent(&mut states, now), [(1, 0)]);
    let mut last = 1;
    for key in 1..=2 * SPAN {
        states.set(key, node_report(key));
        if let Some((seq, _)) = states.poll_transmit(now) {
            last = seq;
            states.handle_ack(&ack(0, &[(2, seq)]), now).unwrap();
        }
    }
    assert_eq!(last, SPAN);
    states.handle_ack(&ack(SPAN, &[]), now).unwrap();
    assert!(!sent(&mut states, now).is_empty());
}

#[test]
fn what_was_received_is_acknowledged_when_it_is_durable_and_not_before() {
    let mut incoming: Incoming<&str> = Incoming::new();
    for (seq, key, number) in [(1, "a", 1), (2, "b", 2), (3, "c", 3)] {
        assert_eq!(incoming.handle_seq(seq), Ok(Seen::First));
        incoming.deliver(seq, key, number, 10);
    }
    assert_eq!(incoming.poll_ack(Lane::Pods), None);
    incoming.handle_durable(&"b", 2);
    assert_eq!(incoming.poll_ack(Lane::Pods), Some(ack(0, &[(2, 2)])));
    incoming.handle_durable(&"a", 1);
    assert_eq!(incoming.poll_ack(Lane::Pods), Some(ack(2, &[])));
    assert_eq!(incoming.poll_ack(Lane::Pods), None, "once is enough");
}

#[test]
fn an_echo_covers_earlier_deliveries_of_its_key_and_no_later_ones() {
    let mut incoming: Incoming<&str> = Incoming::new();
    for (seq, number) in [(1, 10), (2, 20), (3, 30)] {
        incoming.handle_seq(seq).unwrap();
        incoming.deliver(seq, "a", number, 10);
    }
    incoming.handle_durable(&"a", 20);
    assert_eq!(incoming.poll_ack(Lane::Pods), Some(ack(2, &[])));
}

#[test]
fn a_repetition_is_not_delivered_and_one_of_what_is_durable_is_acknowledged_again() {
    let mut incoming: Incoming<&str> = Incoming::new();
    incoming.handle_seq(1).unwrap();
    incoming.deliver(1, "a", 1, 10);
    assert_eq!(incoming.handle_seq(1), Ok(Seen::Again));
    assert_eq!(incoming.poll_ack(Lane::Pods), None, "it is not durable");
    incoming.handle_durable(&"a", 1);
    assert_eq!(incoming.poll_ack(Lane::Pods), Some(ack(1, &[])));
    assert_eq!(incoming.handle_seq(1), Ok(Seen::Again));
    assert_eq!(incoming.poll_ack(Lane::Pods), Some(ack(1, &[])));
}

#[test]
fn a_number_beyond_what_the_peer_may_use_is_an_error() {
    let mut incoming: Incoming<&str> = Incoming::new();
    assert_eq!(incoming.handle_seq(SPAN), Ok(Seen::First));
    assert_eq!(incoming.handle_seq(SPAN + 1), Err(OutOfWindow { seq: SPAN + 1, upto: 0 }));
    assert_eq!(incoming.handle_seq(0), Err(OutOfWindow { seq: 0, upto: 0 }));
}

#[test]
fn an_acknowledgement_stays_small_whatever_is_missing() {
    let mut incoming: Incoming<u64> = Incoming::new();
    for seq in (2..SPAN).step_by(2) {
        incoming.handle_seq(seq).unwrap();
        incoming.skip(seq);
    }
    assert_eq!(incoming.poll_ack(Lane::Pods).unwrap().beyond.len(), 64);
}
