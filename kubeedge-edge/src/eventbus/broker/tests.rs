use std::{sync::Arc, time::Instant};

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::{
    Config, QoS,
    codec::{self, Connect, Incoming, Malformed, Message, Outgoing},
    state::{ConnectionId, Limits, PATIENCE, Refusal, State, Taken, Violation},
};

// ----------------------------------------------------------------------------------------------------- stories

fn limits() -> Limits {
    Limits {
        clients_max: 4,
        sessions_max: 2,
        queue_max: 3,
        queue_bytes_max: 1000,
        inflight_max: 2,
        answers_max: 10,
        filters_max: 3,
        filter_bytes_max: 64,
        retained_max: 2,
        retained_bytes_max: 1000,
    }
}

fn client(name: &str, clean: bool) -> Connect {
    Connect { level: 4, clean, client: name.to_owned(), ..Connect::default() }
}

fn message(topic: &str, text: &str, qos: QoS) -> Message {
    Message { topic: topic.into(), payload: Bytes::copy_from_slice(text.as_bytes()), qos, retain: false }
}

fn retained(topic: &str, text: &str) -> Message {
    Message { retain: true, ..message(topic, text, QoS::AtLeastOnce) }
}

/// Connects and takes the CONNACK; returns whether a session was present.
fn connect(state: &mut State, id: ConnectionId, connect: Connect) -> bool {
    state.handle_connect(id, connect).unwrap();
    match state.poll_packet(id) {
        Some(Outgoing::ConnAck { session_present, code: 0 }) => session_present,
        other => panic!("no CONNACK: {other:?}"),
    }
}

fn subscribe(state: &mut State, id: ConnectionId, filter: &str, qos: QoS) -> u8 {
    state.handle_subscribe(id, 1, &[(filter.to_owned(), Some(qos))]).unwrap();
    match state.poll_packet(id) {
        Some(Outgoing::SubAck { id: 1, codes }) => codes[0],
        other => panic!("no SUBACK: {other:?}"),
    }
}

/// All publishes in line for a connection: payload, packet id, duplicate, retained.
fn received(state: &mut State, id: ConnectionId) -> Vec<(String, u16, bool, bool)> {
    std::iter::from_fn(|| state.poll_packet(id))
        .map(|packet| {
            let Outgoing::Publish { message, id, duplicate } = packet else { panic!("{packet:?}") };
            let text = String::from_utf8(message.payload.to_vec()).unwrap();
            (text, id, duplicate, message.retain)
        })
        .collect()
}

fn texts(state: &mut State, id: ConnectionId) -> Vec<String> {
    received(state, id).into_iter().map(|(text, ..)| text).collect()
}

#[test]
fn a_message_goes_to_those_who_subscribed_and_once_for_overlapping_filters() {
    let mut state = State::new(limits());
    connect(&mut state, 1, client("a", true));
    connect(&mut state, 2, client("b", true));
    assert_eq!(subscribe(&mut state, 1, "room/+", QoS::AtMostOnce), 0);
    assert_eq!(subscribe(&mut state, 1, "room/#", QoS::AtLeastOnce), 1);
    subscribe(&mut state, 2, "other", QoS::AtMostOnce);
    state.handle_publish(message("room/t", "21", QoS::AtLeastOnce), None);
    assert_eq!(received(&mut state, 1), [("21".to_owned(), 1, false, false)]);
    assert_eq!(received(&mut state, 2), []);
}

#[test]
fn a_message_is_sent_with_the_lower_of_its_own_and_the_granted_qos() {
    let mut state = State::new(limits());
    connect(&mut state, 1, client("a", true));
    subscribe(&mut state, 1, "t", QoS::AtMostOnce);
    state.handle_publish(message("t", "x", QoS::AtLeastOnce), None);
    assert_eq!(received(&mut state, 1)[0].1, 0);
}

#[test]
fn a_window_of_unacknowledged_messages_holds_back_the_rest_in_order() {
    let mut state = State::new(limits());
    connect(&mut state, 1, client("a", true));
    subscribe(&mut state, 1, "t", QoS::AtLeastOnce);
    for text in ["1", "2"] {
        state.handle_publish(message("t", text, QoS::AtLeastOnce), None);
    }
    assert_eq!(texts(&mut state, 1), ["1", "2"]);
    state.handle_publish(message("t", "3", QoS::AtLeastOnce), None);
    state.handle_publish(message("t", "4", QoS::AtMostOnce), None);
    assert_eq!(texts(&mut state, 1), Vec::<String>::new());
    state.handle_packet(1, Incoming::PubAck(1)).unwrap();
    assert_eq!(texts(&mut state, 1), ["3", "4"]);
}

#[test]
fn a_full_queue_drops_the_oldest_of_qos_0_first_and_counts() {
    let mut state = State::new(limits());
    connect(&mut state, 1, client("a", true));
    subscribe(&mut state, 1, "t", QoS::AtLeastOnce);
    for (text, qos) in [
        ("certain", QoS::AtLeastOnce),
        ("first", QoS::AtMostOnce),
        ("second", QoS::AtMostOnce),
        ("third", QoS::AtMostOnce),
    ] {
        state.handle_publish(message("t", text, qos), None);
    }
    assert_eq!(state.stats().dropped, 1);
    assert_eq!(texts(&mut state, 1), ["certain", "second", "third"]);
}

#[test]
fn who_can_wait_waits_while_a_reader_is_behind_and_no_longer_than_its_patience() {
    let mut state = State::new(limits());
    connect(&mut state, 1, client("a", true));
    subscribe(&mut state, 1, "t", QoS::AtMostOnce);
    let start = Instant::now();
    for text in ["1", "2", "3"] {
        assert!(!state.is_crowded(start), "there is room for {text}");
        state.handle_publish(message("t", text, QoS::AtMostOnce), None);
    }
    assert!(state.is_crowded(start) && !state.is_crowded(start + PATIENCE));
    assert_eq!(texts(&mut state, 1), ["1", "2", "3"]);
    assert!(!state.is_crowded(start), "it has caught up");
    assert_eq!(state.stats().dropped, 0);
}

#[test]
fn a_client_that_never_acknowledges_costs_bounded_memory() {
    let mut state = State::new(limits());
    connect(&mut state, 1, client("a", true));
    subscribe(&mut state, 1, "t", QoS::AtLeastOnce);
    for number in 0..100 {
        state.handle_publish(message("t", &number.to_string(), QoS::AtLeastOnce), None);
        texts(&mut state, 1);
    }
    // Two are in flight and three wait.
    assert_eq!(state.stats().dropped, 95);
    state.handle_packet(1, Incoming::PubAck(1)).unwrap();
    assert_eq!(texts(&mut state, 1), ["97"]);
}

#[test]
fn bytes_in_line_are_bounded_too_and_one_message_may_always_wait() {
    let mut state = State::new(limits());
    connect(&mut state, 1, client("a", true));
    subscribe(&mut state, 1, "t", QoS::AtMostOnce);
    state.handle_publish(message("t", &"a".repeat(600), QoS::AtMostOnce), None);
    state.handle_publish(message("t", &"b".repeat(600), QoS::AtMostOnce), None);
    state.handle_publish(message("t", &"c".repeat(2000), QoS::AtMostOnce), None);
    assert_eq!(state.stats().dropped, 2);
    assert_eq!(texts(&mut state, 1), ["c".repeat(2000)]);
}

#[test]
fn a_retained_message_greets_later_subscribers_and_an_empty_one_removes_it() {
    let mut state = State::new(limits());
    connect(&mut state, 1, client("a", true));
    subscribe(&mut state, 1, "t", QoS::AtMostOnce);
    state.handle_publish(retained("t", "21"), None);
    assert_eq!(received(&mut state, 1), [("21".to_owned(), 0, false, false)]);
    subscribe(&mut state, 1, "#", QoS::AtMostOnce);
    assert_eq!(received(&mut state, 1), [("21".to_owned(), 0, false, true)]);
    state.handle_publish(retained("t", ""), None);
    assert_eq!(state.stats().retained, 0);
}

#[test]
fn retained_messages_are_bounded_by_number_and_bytes() {
    let mut state = State::new(limits());
    state.handle_publish(retained("a", "1"), None);
    state.handle_publish(retained("b", &"x".repeat(2000)), None);
    state.handle_publish(retained("c", "3"), None);
    state.handle_publish(retained("d", "4"), None);
    state.handle_publish(retained("a", "5"), None);
    assert_eq!((state.stats().retained, state.stats().dropped), (2, 2));
    connect(&mut state, 1, client("a", true));
    subscribe(&mut state, 1, "+", QoS::AtMostOnce);
    assert_eq!(texts(&mut state, 1), ["5", "3"]);
}

#[test]
fn a_will_is_published_when_the_client_is_lost_and_not_when_it_takes_leave() {
    let mut state = State::new(limits());
    let will = Some(message("gone", "a", QoS::AtMostOnce));
    connect(&mut state, 1, Connect { will: will.clone(), ..client("a", true) });
    assert_eq!(state.handle_end(1, false), will);
    connect(&mut state, 2, Connect { will, ..client("a", true) });
    assert_eq!(state.handle_end(2, true), None);
    assert_eq!(state.handle_end(2, false), None);
}

#[test]
fn a_session_is_taken_over_with_the_old_connection_closed_and_its_will_published() {
    let mut state = State::new(limits());
    let will = Some(message("gone", "a", QoS::AtMostOnce));
    connect(&mut state, 1, Connect { will: will.clone(), ..client("a", false) });
    subscribe(&mut state, 1, "t", QoS::AtLeastOnce);
    state.handle_publish(message("t", "x", QoS::AtLeastOnce), None);
    assert_eq!(received(&mut state, 1), [("x".to_owned(), 1, false, false)]);
    assert_eq!(state.handle_connect(2, client("a", false)), Ok(will));
    assert_eq!(state.poll_close(), Some(1));
    assert_eq!(state.poll_packet(1), None);
    assert_eq!(state.poll_packet(2), Some(Outgoing::ConnAck { session_present: true, code: 0 }));
    assert_eq!(received(&mut state, 2), [("x".to_owned(), 1, true, false)]);
    // The end of the old connection, seen late, does not touch the new one.
    assert_eq!(state.handle_end(1, false), None);
    assert_eq!(state.stats().clients, 1);
}

#[test]
fn a_kept_session_collects_certain_messages_while_its_client_is_away() {
    let mut state = State::new(limits());
    connect(&mut state, 1, client("a", false));
    subscribe(&mut state, 1, "t", QoS::AtLeastOnce);
    state.handle_end(1, true);
    state.handle_publish(message("t", "uncertain", QoS::AtMostOnce), None);
    state.handle_publish(message("t", "certain", QoS::AtLeastOnce), None);
    assert!(connect(&mut state, 2, client("a", false)));
    assert_eq!(texts(&mut state, 2), ["certain"]);
    state.handle_end(2, true);
    assert!(!connect(&mut state, 3, client("a", true)));
    state.handle_end(3, true);
    assert!(!connect(&mut state, 4, client("a", false)));
}

#[test]
fn kept_sessions_are_bounded_and_the_one_unused_for_longest_goes() {
    let mut state = State::new(limits());
    for (id, name) in [(1, "a"), (2, "b"), (3, "c")] {
        connect(&mut state, id, client(name, false));
        state.handle_end(id, true);
    }
    assert_eq!(state.stats().sessions, 2);
    assert!(!connect(&mut state, 4, client("a", true)));
    assert!(connect(&mut state, 5, client("c", false)));
}

#[test]
fn who_may_not_connect_is_told_why() {
    let mut state = State::new(limits());
    let level = Connect { level: 3, ..client("a", true) };
    assert_eq!(state.handle_connect(1, level), Err(Refusal::Version));
    assert_eq!(state.handle_connect(1, client("", false)), Err(Refusal::Identifier));
    for id in 1..=4 {
        connect(&mut state, id, client("", true));
    }
    assert_eq!(state.handle_connect(5, client("e", true)), Err(Refusal::Full));
    assert_eq!([Refusal::Version, Refusal::Identifier, Refusal::Full].map(Refusal::code), [1, 2, 3],);
}

#[test]
fn a_subscription_too_many_or_without_sense_fails_alone() {
    let mut state = State::new(limits());
    connect(&mut state, 1, client("a", true));
    assert_eq!(subscribe(&mut state, 1, "a/#/b", QoS::AtMostOnce), 0x80);
    assert_eq!(subscribe(&mut state, 1, &"x".repeat(65), QoS::AtMostOnce), 0x80);
    for filter in ["a", "b", "c"] {
        assert_eq!(subscribe(&mut state, 1, filter, QoS::AtMostOnce), 0);
    }
    assert_eq!(subscribe(&mut state, 1, "d", QoS::AtMostOnce), 0x80);
    assert_eq!(subscribe(&mut state, 1, "a", QoS::AtLeastOnce), 1);
    state.handle_packet(1, Incoming::Unsubscribe { id: 9, filters: vec!["a".into()] }).unwrap();
    assert_eq!(state.poll_packet(1), Some(Outgoing::UnsubAck(9)));
    state.handle_publish(message("a", "x", QoS::AtMostOnce), None);
    assert_eq!(state.poll_packet(1), None);
}

#[test]
fn a_client_that_sends_and_does_not_read_is_ended() {
    let mut state = State::new(limits());
    connect(&mut state, 1, client("a", true));
    let ended = (0..20).find_map(|_| state.handle_packet(1, Incoming::PingReq).err());
    assert_eq!(ended, Some(Violation::Deaf));
    let again = Incoming::Connect(client("a", true));
    assert_eq!(state.handle_packet(1, again), Err(Violation::SecondConnect));
}

#[test]
fn all_who_have_something_to_read_are_woken() {
    let mut state = State::new(limits());
    connect(&mut state, 1, client("a", true));
    connect(&mut state, 2, client("b", true));
    subscribe(&mut state, 2, "t", QoS::AtMostOnce);
    while state.poll_wake().is_some() {}
    state.handle_publish(message("t", "x", QoS::AtMostOnce), None);
    assert_eq!((state.poll_wake(), state.poll_wake()), (Some(2), None));
}

#[test]
fn a_message_of_qos_2_is_taken_once_until_it_is_released() {
    let mut state = State::new(limits());
    connect(&mut state, 1, client("a", false));
    assert!(!state.has_received(1, 7));
    state.handle_taken(1, 7, true).unwrap();
    assert_eq!(state.poll_packet(1), Some(Outgoing::PubRec(7)));
    // The session remembers it over connections.
    state.handle_end(1, false);
    connect(&mut state, 2, client("a", false));
    assert!(state.has_received(2, 7));
    state.handle_packet(2, Incoming::PubRel(7)).unwrap();
    assert_eq!(state.poll_packet(2), Some(Outgoing::PubComp(7)));
    assert!(!state.has_received(2, 7));
}

#[test]
fn a_kept_session_is_not_given_to_another_user() {
    let mut state = State::new(limits());
    let user = |name: &str| Connect { user: Some(name.to_owned()), ..client("a", false) };
    connect(&mut state, 1, user("ann"));
    state.handle_end(1, true);
    assert!(!connect(&mut state, 2, user("bob")));
    state.handle_end(2, true);
    assert!(connect(&mut state, 3, user("bob")));
}

#[test]
fn a_writer_waits_for_a_reader_who_is_behind_and_only_for_so_long() {
    let mut state = State::new(limits());
    connect(&mut state, 1, client("reader", true));
    subscribe(&mut state, 1, "t", QoS::AtLeastOnce);
    let start = Instant::now();
    let publish =
        |state: &mut State, at| state.handle_publish(message("t", "x", QoS::AtLeastOnce), Some((9, at)));
    for _ in 0..3 {
        assert_eq!(publish(&mut state, start), Taken::Delivered);
    }
    assert_eq!(publish(&mut state, start), Taken::Crowded);
    assert_eq!(state.stats().dropped, 0);
    state.poll_relieved();
    // The reader takes two, and one is left.
    texts(&mut state, 1);
    assert!(!state.poll_relieved());
    state.handle_packet(1, Incoming::PubAck(1)).unwrap();
    texts(&mut state, 1);
    assert!(state.poll_relieved());
    for _ in 0..2 {
        assert_eq!(publish(&mut state, start), Taken::Delivered);
    }
    assert_eq!(publish(&mut state, start), Taken::Crowded);
    // It does not catch up within the time that it has.
    assert_eq!(publish(&mut state, start + PATIENCE), Taken::Delivered);
    assert_eq!(state.stats().dropped, 2);
    assert_eq!(texts(&mut state, 1).len(), 0);
}

#[test]
fn a_message_of_qos_0_takes_no_certain_ones_place() {
    let mut state = State::new(limits());
    connect(&mut state, 1, client("a", true));
    subscribe(&mut state, 1, "t", QoS::AtLeastOnce);
    for text in ["1", "2", "3"] {
        state.handle_publish(message("t", text, QoS::AtLeastOnce), None);
    }
    state.handle_publish(message("t", "uncertain", QoS::AtMostOnce), None);
    assert_eq!(state.stats().dropped, 1);
    assert_eq!(texts(&mut state, 1), ["1", "2"]);
}

// ------------------------------------------------------------------------------------------------------- codec

fn decode(bytes: &[u8]) -> Result<Option<Incoming>, Malformed> {
    codec::decode(&mut BytesMut::from(bytes), Config::default().packet_bytes_max)
}

fn encoded(packet: &Outgoing) -> BytesMut {
    let mut buffer = BytesMut::new();
    codec::encode(packet, &mut buffer);
    buffer
}

#[test]
fn a_connect_is_read_with_its_will_and_its_credentials() {
    let mut bytes =
        b"\x10\x26\x00\x04MQTT\x04\xee\x00\x3c\x00\x01a\x00\x04gone\x00\x02hi\x00\x04user\x00\x06secret"
            .to_vec();
    bytes[1] = u8::try_from(bytes.len() - 2).unwrap();
    let will = Message { retain: true, ..message("gone", "hi", QoS::AtLeastOnce) };
    let (user, password) = (Some("user".to_owned()), Some("secret".into()));
    let expected = Connect { keep_alive: 60, will: Some(will), user, password, ..client("a", true) };
    assert_eq!(decode(&bytes), Ok(Some(Incoming::Connect(expected))));
}

#[test]
fn what_is_wrong_with_a_packet_is_said() {
    let cases: &[(&[u8], Malformed)] = &[
        (b"\x00\x00", Malformed::Type(0)),
        (b"\x20\x00", Malformed::Type(2)),
        (b"\x50\x02\x00\x01", Malformed::Type(5)),
        (b"\x60\x02\x00\x01", Malformed::Flags("PUBREL")),
        (b"\x34\x05\x00\x01a\x00\x00", Malformed::Identifier("PUBLISH")),
        (b"\x36\x05\x00\x01a\x00\x01", Malformed::QoS(3)),
        (b"\x38\x03\x00\x01a", Malformed::Flags("PUBLISH")),
        (b"\x30\x03\x00\x01#", Malformed::Topic("PUBLISH")),
        (b"\x30\x02\x00\x00", Malformed::Topic("PUBLISH")),
        (b"\x30\x03\x00\x01\xff", Malformed::Text),
        (b"\x30\x02\x00\x05", Malformed::Short("PUBLISH")),
        (b"\x32\x05\x00\x01a\x00\x00", Malformed::Identifier("PUBLISH")),
        (b"\x80\x02\x00\x01", Malformed::Flags("SUBSCRIBE")),
        (b"\x82\x02\x00\x01", Malformed::NoFilter("SUBSCRIBE")),
        (b"\xa2\x02\x00\x01", Malformed::NoFilter("UNSUBSCRIBE")),
        (b"\x82\x06\x00\x01\x00\x01a\x03", Malformed::QoS(3)),
        (b"\xc0\x01\x00", Malformed::Trailing("PINGREQ")),
        (b"\x10\x06\x00\x04MOTT", Malformed::Protocol),
        (b"\x10\x0c\x00\x04MQTT\x04\x08\x00\x00\x00\x00", Malformed::ConnectFlags),
        (b"\x10\x0c\x00\x04MQTT\x04\x01\x00\x00\x00\x00", Malformed::ConnectFlags),
        (b"\x10\x0c\x00\x04MQTT\x04\x40\x00\x00\x00\x00", Malformed::ConnectFlags),
        (b"\x30\xff\xff\xff\xff\x01", Malformed::Length),
        (b"\x30\xff\xff\xff\x7f", Malformed::TooLong { length: 268_435_460, limit: 1 << 20 }),
    ];
    for (bytes, expected) in cases {
        assert_eq!(decode(bytes), Err(*expected), "{bytes:02x?}");
    }
}

#[test]
fn a_packet_is_taken_only_when_it_is_all_there() {
    let whole = b"\x32\x07\x00\x01a\x00\x09hi\xc0\x00";
    for end in 0..9 {
        assert_eq!(decode(&whole[..end]), Ok(None), "{end}");
    }
    let mut buffer = BytesMut::from(&whole[..]);
    let first = codec::decode(&mut buffer, 100).unwrap();
    assert_eq!(
        first,
        Some(Incoming::Publish { message: message("a", "hi", QoS::AtLeastOnce), id: 9, exactly_once: false })
    );
    assert_eq!(codec::decode(&mut buffer, 100), Ok(Some(Incoming::PingReq)));
    assert_eq!(codec::decode(&mut buffer, 100), Ok(None));
}

#[test]
fn answers_look_as_the_standard_draws_them() {
    assert_eq!(&encoded(&Outgoing::ConnAck { session_present: true, code: 0 })[..], b"\x20\x02\x01\x00");
    assert_eq!(&encoded(&Outgoing::PubAck(258))[..], b"\x40\x02\x01\x02");
    assert_eq!(&encoded(&Outgoing::SubAck { id: 1, codes: vec![0, 0x80] })[..], b"\x90\x04\x00\x01\x00\x80");
    assert_eq!(&encoded(&Outgoing::UnsubAck(1))[..], b"\xb0\x02\x00\x01");
    assert_eq!(&encoded(&Outgoing::PingResp)[..], b"\xd0\x00");
}

proptest! {
    #[test]
    fn garbage_is_refused_and_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut buffer = BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = codec::decode(&mut buffer, 256) {}
    }

    #[test]
    fn a_packet_of_any_type_with_a_garbage_body_never_panics(
        first: u8, body in proptest::collection::vec(any::<u8>(), 0..120),
    ) {
        let mut bytes = vec![first, u8::try_from(body.len()).unwrap()];
        bytes.extend(body);
        let _ = decode(&bytes);
    }

    #[test]
    fn a_publish_reads_back_as_it_was_written(
        topic in "[a-z$/é]{1,40}", payload in proptest::collection::vec(any::<u8>(), 0..20_000),
        certain: bool, retain: bool, duplicate: bool, id in 1u16..,
    ) {
        let qos = if certain { QoS::AtLeastOnce } else { QoS::AtMostOnce };
        let message = Message { topic: Arc::from(topic), payload: payload.into(), qos, retain };
        let (id, duplicate) = if certain { (id, duplicate) } else { (0, false) };
        let bytes = encoded(&Outgoing::Publish { message: message.clone(), id, duplicate });
        prop_assert_eq!(decode(&bytes), Ok(Some(Incoming::Publish { message, id, exactly_once: false })));
    }

    #[test]
    fn whatever_a_client_sends_the_state_stays_within_its_limits(
        steps in proptest::collection::vec((0u64..8, 0u8..8, 0u8..4), 0..200),
    ) {
        let mut state = State::new(limits());
        for (id, action, which) in steps {
            let topic = format!("t/{which}");
            match action {
                0 => { let _ = state.handle_connect(id + 100 * u64::from(which), client(&format!("c{id}"), which % 2 == 0)); }
                1 => { state.handle_end(id, which == 0); }
                2 => { let _ = state.handle_subscribe(id, 1, &[(topic, Some(QoS::AtLeastOnce))]); }
                3 => { state.handle_publish(message(&topic, "x", QoS::AtLeastOnce), None); }
                4 => { state.handle_publish(retained(&topic, "x"), None); }
                5 => { let _ = state.handle_packet(id, Incoming::PubAck(which.into())); }
                6 => { state.poll_packet(id); }
                _ => { let _ = state.handle_packet(id, Incoming::PingReq); }
            }
            let stats = state.stats();
            prop_assert!(stats.clients <= 4 && stats.sessions <= 6 && stats.retained <= 2);
        }
    }
}
