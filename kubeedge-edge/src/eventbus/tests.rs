use bytes::Bytes;
use kubeedge_core::message::{Publish, Upload, UploadId, UploadedPublish};

use super::{
    Config, External, Secret,
    broker::{Intake, Offer},
    outbox::{Pending, WINDOW},
    pipes,
    route::{Destination, FILTERS, route},
    topic,
};

fn upload(publish: Publish) -> Upload {
    Upload::Publish(UploadedPublish { id: UploadId::default(), publish })
}

fn publish(topic: &str, text: &str) -> Publish {
    Publish { topic: topic.to_owned(), payload: Bytes::copy_from_slice(text.as_bytes()) }
}

#[test]
fn messages_about_devices_and_the_node_go_to_the_twin_and_others_to_the_cloud() {
    for twin in [
        "$hw/events/device/default/sensor-1/twin/update",
        "$hw/events/device/default/sensor-1/twin/get",
        "$hw/events/device/default/sensor-1/state/update",
        "$hw/events/node/edge-1/membership/get",
    ] {
        assert_eq!(route(twin), Destination::Twin, "{twin}");
    }
    for cloud in ["$hw/events/upload/a/b", "$hw/events/upload", "SYS/dis/upload_records", "default/user/x/y"]
    {
        assert_eq!(route(cloud), Destination::Cloud, "{cloud}");
    }
    for nobody in [
        "room/temperature",
        "$hw/events/device/default/sensor-1/twin/update/result",
        "$hw/events/device/default/sensor-1/twin/cloud_updated",
        "$hw/events/device/default/sensor-1/state/update/result",
        "$SYS/user/x",
        "$hw/user/x",
    ] {
        assert_eq!(route(nobody), Destination::Nobody, "{nobody}");
    }
    assert!(FILTERS.iter().all(|filter| topic::is_filter(filter)));
}

#[test]
fn a_full_pipe_is_said_to_be_full_and_a_part_that_is_gone_holds_nobody_up() {
    let (_inbox, outbox, mut outside) = pipes();
    let message = publish("a/user/b", "x");
    while outbox.offer(&message) == Offer::Taken {}
    assert_eq!(outbox.offer(&message), Offer::Full);
    assert_eq!(outside.uploads.try_recv(), Some(upload(message.clone())));
    assert_eq!(outbox.offer(&message), Offer::Taken);
    drop(outside);
    assert_eq!(outbox.offer(&message), Offer::NotMine);
    assert_eq!(outbox.offer(&publish("room/t", "x")), Offer::NotMine);
}

#[test]
fn passwords_do_not_show() {
    let external = External {
        password: Some(Secret::new("hunter2")),
        username: Some("u".into()),
        ..External::default()
    };
    let config = Config { external, ..Config::default() };
    assert!(!format!("{config:?}").contains("hunter2"));
}

fn sent(pending: &mut Pending) -> Vec<String> {
    std::iter::from_fn(|| pending.poll_publish())
        .map(|publish| String::from_utf8(publish.payload.to_vec()).unwrap())
        .collect()
}

#[test]
fn what_the_broker_did_not_acknowledge_is_sent_again_in_order() {
    let mut pending = Pending::new(10, 10_000);
    ["1", "2", "3"].iter().for_each(|text| pending.push(publish("t", text)));
    assert_eq!(sent(&mut pending), ["1", "2", "3"]);
    [7, 8, 9].iter().for_each(|packet| pending.handle_sent(*packet));
    pending.handle_acknowledged(8);
    pending.push(publish("t", "4"));
    pending.handle_disconnected();
    assert_eq!(sent(&mut pending), ["1", "3", "4"]);
    // An identifier of the earlier connection means nothing now.
    pending.handle_acknowledged(7);
    assert_eq!(pending.len(), 3);
}

#[test]
fn what_waits_for_the_broker_is_bounded_and_the_oldest_goes() {
    let mut pending = Pending::new(3, 10_000);
    ["1", "2", "3", "4"].iter().for_each(|text| pending.push(publish("t", text)));
    assert_eq!((pending.len(), pending.dropped()), (3, 1));
    assert_eq!(sent(&mut pending), ["2", "3", "4"]);
    let mut pending = Pending::new(100, 1000);
    ["a", "b", "c"].iter().for_each(|text| pending.push(publish("t", &text.repeat(400))));
    assert_eq!(sent(&mut pending), ["b".repeat(400), "c".repeat(400)]);
}

#[test]
fn a_window_bounds_what_is_unacknowledged() {
    let mut pending = Pending::new(100, 10_000);
    (0..WINDOW + 1).for_each(|_| pending.push(publish("t", "x")));
    assert_eq!(sent(&mut pending).len(), WINDOW);
    pending.handle_sent(1);
    pending.handle_acknowledged(1);
    assert_eq!(sent(&mut pending).len(), 1);
}

#[test]
fn a_message_that_cannot_be_sent_is_dropped_and_does_not_end_connections_for_ever() {
    let mut pending = Pending::new(10, 10 << 20);
    pending.push(publish("with/+/wildcard", "x"));
    pending.push(publish("t", &"x".repeat(1 << 20)));
    assert_eq!((pending.len(), pending.dropped()), (0, 2));
    pending.push(publish("t", "poison"));
    pending.push(publish("t", "good"));
    for _ in 0..10 {
        assert_eq!(sent(&mut pending), ["poison", "good"]);
        pending.handle_disconnected();
    }
    assert_eq!(sent(&mut pending), ["good"]);
}
