use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use kubeedge_core::{
    message::{Publish, Response},
    pipe,
};

use super::{
    Config, External, Secret, Uploads,
    pending::{Pending, WINDOW},
    route::{Destination, Routes},
    rules::RuleTopics,
    topic,
};

fn publish(topic: &str, text: &str) -> Publish {
    Publish { topic: topic.to_owned(), payload: Bytes::copy_from_slice(text.as_bytes()) }
}

#[test]
fn messages_about_devices_and_the_node_go_to_the_twin_and_others_to_the_cloud() {
    let routes = Routes::new(Uploads::default().topics, Arc::new(RuleTopics::new(BTreeSet::new())));
    for twin in [
        "$hw/events/device/default/sensor-1/twin/update",
        "$hw/events/device/default/sensor-1/twin/get",
        "$hw/events/device/default/sensor-1/state/update",
        "$hw/events/node/edge-1/membership/get",
    ] {
        assert_eq!(routes.of(twin), Destination::Twin, "{twin}");
    }
    for cloud in [
        "$hw/events/upload/a/b",
        "$hw/events/upload",
        "SYS/dis/upload_records",
        "site/user/x/y",
        "default/up1",
    ] {
        assert_eq!(routes.of(cloud), Destination::Cloud, "{cloud}");
    }
    for nobody in [
        "room/temperature",
        "$hw/events/device/default/sensor-1/twin/update/result",
        "$hw/events/device/default/sensor-1/twin/cloud_updated",
        "$hw/events/device/default/sensor-1/state/update/result",
        "$SYS/user/x",
        "$hw/user/x",
    ] {
        assert_eq!(routes.of(nobody), Destination::Nobody, "{nobody}");
    }
    assert!(routes.filters().iter().all(|filter| topic::is_filter(filter)));
    assert_eq!(
        Routes::new(vec!["a/#/b".into()], Arc::new(RuleTopics::new(BTreeSet::new()))).filters().len(),
        3,
        "what is no filter is not subscribed to"
    );
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
    ["1", "2", "3"].iter().for_each(|text| pending.push(publish("t", text), None));
    assert_eq!(sent(&mut pending), ["1", "2", "3"]);
    [7, 8, 9].iter().for_each(|packet| pending.handle_sent(*packet));
    pending.handle_acknowledged(8);
    pending.push(publish("t", "4"), None);
    pending.handle_disconnected();
    assert_eq!(sent(&mut pending), ["1", "3", "4"]);
    // An identifier of the earlier connection means nothing now.
    pending.handle_acknowledged(7);
    assert_eq!(pending.len(), 3);
}

#[test]
fn what_waits_for_the_broker_is_bounded_and_the_oldest_goes() {
    let mut pending = Pending::new(3, 10_000);
    ["1", "2", "3", "4"].iter().for_each(|text| pending.push(publish("t", text), None));
    assert_eq!((pending.len(), pending.dropped()), (3, 1));
    assert_eq!(sent(&mut pending), ["2", "3", "4"]);
    let mut pending = Pending::new(100, 1000);
    ["a", "b", "c"].iter().for_each(|text| pending.push(publish("t", &text.repeat(400)), None));
    assert_eq!(sent(&mut pending), ["b".repeat(400), "c".repeat(400)]);
}

#[test]
fn a_window_bounds_what_is_unacknowledged() {
    let mut pending = Pending::new(100, 10_000);
    (0..WINDOW + 1).for_each(|_| pending.push(publish("t", "x"), None));
    assert_eq!(sent(&mut pending).len(), WINDOW);
    pending.handle_sent(1);
    pending.handle_acknowledged(1);
    assert_eq!(sent(&mut pending).len(), 1);
}

#[test]
fn a_message_that_cannot_be_sent_is_dropped_and_does_not_end_connections_for_ever() {
    let mut pending = Pending::new(10, 10 << 20);
    pending.push(publish("with/+/wildcard", "x"), None);
    pending.push(publish("t", &"x".repeat(1 << 20)), None);
    assert_eq!((pending.len(), pending.dropped()), (0, 2));
    pending.push(publish("t", "poison"), None);
    pending.push(publish("t", "good"), None);
    for _ in 0..10 {
        assert_eq!(sent(&mut pending), ["poison", "good"]);
        pending.handle_disconnected();
    }
    assert_eq!(sent(&mut pending), ["good"]);
}

#[tokio::test]
async fn who_asks_for_a_message_learns_that_the_broker_has_it_or_that_it_is_given_up() {
    let (caller, mut callee) = pipe::calls("cloud_messages", 4);
    let ask = |text: &'static str| {
        let caller = caller.clone();
        async move { caller.call(publish("t", text), std::time::Duration::from_secs(5)).await.unwrap() }
    };
    let mut pending = Pending::new(2, 10_000);
    let serve = async {
        for _ in 0..3 {
            let (publish, asker) = callee.recv().await.unwrap().split();
            pending.push(publish, Some(asker));
        }
        assert_eq!(sent(&mut pending), ["2", "3"]);
        pending.handle_sent(7);
        pending.handle_acknowledged(7);
    };
    let (first, second, ()) = tokio::join!(ask("1"), ask("2"), async {
        tokio::select! { () = serve => {}, _ = ask("3") => {} }
    });
    assert!(matches!(first, Response::Failed { code: 503, .. }), "{first:?}");
    assert_eq!(second, Response::Published);
}
