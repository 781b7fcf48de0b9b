//! The watch against an API server of few words: each request takes the next answer of a script.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{Stream, StreamExt};
use http::{Request, Response};
use kube::{Client, client::Body};

use super::{Change, Kind, Timing, watch, watch_in};
use crate::controller::{Backoff, Sight};

const MAPS: Kind = Kind { api_version: "v1", kind: "ConfigMap", plural: "configmaps", optional: false };
const SERVICES: Kind = Kind { api_version: "v1", kind: "Service", plural: "services", optional: true };
const DEVICES: Kind =
    Kind { api_version: "devices.kubeedge.io/v1beta1", kind: "Device", plural: "devices", optional: true };

/// An API server that gives these answers, then 503 for ever; and what it was asked.
fn scripted(answers: Vec<(u16, String)>) -> (Client, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let answers = Arc::new(Mutex::new(VecDeque::from(answers)));
    let log = asked.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        log.lock().unwrap().push(request.uri().to_string());
        let (code, body) = answers.lock().unwrap().pop_front().unwrap_or((503, "down".to_owned()));
        let body = http_body_util::Full::new(bytes::Bytes::from(body));
        async move { Ok::<_, Infallible>(Response::builder().status(code).body(body).unwrap()) }
    });
    (Client::new(service, "default"), asked)
}

fn list(version: u32, next: &str, items: &[&str]) -> (u16, String) {
    let metadata = format!(r#"{{"resourceVersion":"{version}","continue":"{next}"}}"#);
    (200, format!(r#"{{"kind":"ConfigMapList","metadata":{metadata},"items":[{}]}}"#, items.join(",")))
}

fn map(name: &str, version: u32) -> String {
    format!(
        r#"{{"metadata":{{"name":"{name}","uid":"u-{name}","resourceVersion":"{version}"}},"newer":{{}}}}"#
    )
}

fn event(kind: &str, object: &str) -> String {
    // The object first: a server may send the members in any order.
    format!("{{\"object\":{object},\"type\":\"{kind}\"}}\n")
}

fn missing() -> (u16, String) {
    (404, "404 page not found".to_owned())
}

fn denied() -> (u16, String) {
    (403, r#"{"kind":"Status","status":"Failure","code":403,"message":"not yours"}"#.to_owned())
}

async fn tell(changes: &mut (impl Stream<Item = Change> + Unpin), count: usize) -> Vec<String> {
    let told = changes.take(count).map(|change| match change {
        Change::Began(kind) => format!("began {}", kind.kind),
        Change::Listed(kind) => format!("listed {}", kind.kind),
        Change::Applied(object) => format!("+{} {}", object.reference, object.resource_version),
        Change::Deleted(object) => format!("-{}", object.reference),
    });
    told.collect().await
}

#[tokio::test(start_paused = true)]
async fn all_pages_are_listed_and_then_watched_from_the_version_of_the_list() {
    let watched =
        event("ADDED", &map("c", 6)) + &event("BOOKMARK", r#"{"metadata":{"resourceVersion":"9"}}"#);
    let (client, asked) = scripted(vec![
        list(5, "more", &[&map("a", 1)]),
        list(5, "", &[&map("b", 2)]),
        (200, watched),
        (200, event("DELETED", &map("a", 10))),
    ]);
    let mut changes = watch(client, MAPS, Timing::default()).boxed();
    let told = tell(&mut changes, 6).await;
    let expected = [
        "began ConfigMap",
        "+ConfigMap a 1",
        "+ConfigMap b 2",
        "listed ConfigMap",
        "+ConfigMap c 6",
        "-ConfigMap a",
    ];
    assert_eq!(told, expected);
    let asked = asked.lock().unwrap();
    assert!(asked[0].contains("limit=500") && !asked[0].contains("continue"), "{asked:?}");
    assert!(asked[1].contains("continue=more"), "{asked:?}");
    assert!(asked[2].contains("watch=true") && asked[2].contains("resourceVersion=5"), "{asked:?}");
    assert!(asked[2].contains("allowWatchBookmarks=true"), "{asked:?}");
    assert!(asked[3].contains("resourceVersion=9"), "the bookmark is where it goes on: {asked:?}");
}

#[tokio::test(start_paused = true)]
async fn the_next_page_comes_while_a_page_is_taken_unless_both_may_be_large() {
    let large =
        format!(r#"{{"metadata":{{"name":"a","uid":"u"}},"data":{{"a":"{}"}}}}"#, "a".repeat(5 << 20));
    for (first, ahead) in [(map("a", 1), 2), (large, 1)] {
        let (client, asked) = scripted(vec![list(5, "more", &[&first]), list(5, "", &[&map("b", 2)])]);
        let mut changes = watch(client, MAPS, Timing::default()).boxed();
        tell(&mut changes, 1).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(asked.lock().unwrap().len(), ahead);
        assert_eq!(tell(&mut changes, 3).await[1..], ["+ConfigMap b 2", "listed ConfigMap"]);
    }
}

#[tokio::test]
async fn an_object_keeps_its_bytes() {
    let text = map("a", 1);
    let (client, _) = scripted(vec![list(5, "", &[&text])]);
    let mut changes = watch(client, MAPS, Timing::default()).boxed();
    changes.next().await;
    let Some(Change::Applied(object)) = changes.next().await else { panic!("no object") };
    assert_eq!(object.json, text);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_too_old_is_listed_again() {
    for gone in [
        (
            200,
            event(
                "ERROR",
                r#"{"kind":"Status","status":"Failure","code":410,"reason":"Expired","message":"old"}"#,
            ),
        ),
        (
            410,
            r#"{"kind":"Status","status":"Failure","code":410,"reason":"Expired","message":"old"}"#
                .to_owned(),
        ),
    ] {
        let (client, _) = scripted(vec![list(5, "", &[&map("a", 1)]), gone, list(8, "", &[&map("b", 7)])]);
        let mut changes = watch(client, MAPS, Timing::default()).boxed();
        let told = tell(&mut changes, 6).await;
        let expected = [
            "began ConfigMap",
            "+ConfigMap a 1",
            "listed ConfigMap",
            "began ConfigMap",
            "+ConfigMap b 7",
            "listed ConfigMap",
        ];
        assert_eq!(told, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_that_fails_between_pages_goes_on_with_the_page_that_failed() {
    let (client, asked) = scripted(vec![
        list(5, "more", &[&map("a", 1)]),
        (500, "oops".to_owned()),
        (429, "too many".to_owned()),
        (200, "<html>".to_owned()),
        list(5, "last", &[&map("b", 2)]),
        (503, "down".to_owned()),
        list(5, "", &[&map("c", 3)]),
    ]);
    let begun = tokio::time::Instant::now();
    let mut changes = watch(client, MAPS, Timing::default()).boxed();
    let told = tell(&mut changes, 5).await;
    let expected =
        ["began ConfigMap", "+ConfigMap a 1", "+ConfigMap b 2", "+ConfigMap c 3", "listed ConfigMap"];
    assert_eq!(told, expected);
    assert_eq!(begun.elapsed().as_secs(), 1 + 2 + 4 + 1, "each page has its own back-off");
    let asked = asked.lock().unwrap();
    assert!(asked[1..5].iter().all(|page| page.contains("continue=more")), "{asked:?}");
    assert!(asked[5..].iter().all(|page| page.contains("continue=last")), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_list_whose_token_the_api_refuses_begins_again() {
    for code in [400, 404, 410] {
        let (client, asked) = scripted(vec![
            list(5, "more", &[&map("a", 1)]),
            (code, String::new()),
            list(6, "", &[&map("a", 1), &map("b", 2)]),
        ]);
        let mut changes = watch(client, MAPS, Timing::default()).boxed();
        let told = tell(&mut changes, 6).await;
        let expected = [
            "began ConfigMap",
            "+ConfigMap a 1",
            "began ConfigMap",
            "+ConfigMap a 1",
            "+ConfigMap b 2",
            "listed ConfigMap",
        ];
        assert_eq!(told, expected);
        assert!(!asked.lock().unwrap()[2].contains("continue"), "{asked:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_that_always_breaks_off_is_asked_for_ever_more_rarely() {
    let broken = (0..50).flat_map(|_| [list(5, "more", &[&map("a", 1)]), (410, String::new())]);
    let (client, asked) = scripted(broken.collect());
    let mut changes = watch(client, MAPS, Timing::default()).boxed();
    let told = tokio::time::timeout(Duration::from_secs(130), tell(&mut changes, 1000)).await;
    assert!(told.is_err());
    // Two pages at 0, 1, 3, 7, 15, 31 s, and then every 30 s.
    assert_eq!(asked.lock().unwrap().len(), 2 * 9);
}

#[tokio::test(start_paused = true)]
async fn an_api_that_is_down_is_asked_ever_more_rarely() {
    let (client, asked) = scripted(vec![]);
    let mut changes = watch(client, MAPS, Timing::default()).boxed();
    let waited = tokio::time::timeout(Duration::from_secs(130), changes.next()).await;
    assert!(waited.is_err(), "nothing is told: {waited:?}");
    // At 0, 1, 3, 7, 15, 31 s, and then every 30 s.
    assert_eq!(asked.lock().unwrap().len(), 9);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_every_watch_at_once_is_not_asked_without_pause() {
    let ended = (0..50).map(|_| (200, String::new()));
    let (client, asked) = scripted([list(5, "", &[])].into_iter().chain(ended).collect());
    let mut changes = watch(client, MAPS, Timing::default()).boxed();
    let told = tokio::time::timeout(Duration::from_secs(60), tell(&mut changes, 3)).await;
    assert!(told.is_err());
    assert!(asked.lock().unwrap().len() < 10);
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_the_api_lacks_counts_as_empty_after_a_while_if_a_crd_defines_it() {
    let backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(30) };
    let timing = Timing { backoff, ..Timing::default() };
    let null = (200, r#"{"metadata":{"resourceVersion":"4"},"items":null}"#.to_owned());
    let gone = (410, String::new());
    let found = list(5, "", &[&map("a", 1)]);
    let answers = (0..4).map(|_| missing()).chain([null, gone, found]).collect();
    let (client, _) = scripted(answers);
    let mut changes = watch(client, DEVICES, timing).boxed();
    let told = tell(&mut changes, 7).await;
    assert_eq!(told[..4], ["began Device", "listed Device", "began Device", "listed Device"]);
    assert_eq!(told[4..], ["began Device", "+Device a 1", "listed Device"]);

    let (client, _) = scripted((0..4).map(|_| denied()).collect());
    let sight = Sight::default();
    sight.note_listed();
    let mut changes = watch_in(client, SERVICES, timing, sight).boxed();
    assert_eq!(tell(&mut changes, 2).await, ["began Service", "listed Service"], "not every role has it");

    let (client, _) = scripted((0..20).map(|_| missing()).collect());
    let mut changes = watch(client, MAPS, timing).boxed();
    let told = tokio::time::timeout(Duration::from_secs(300), changes.next()).await;
    assert!(told.is_err(), "ConfigMaps always exist: who says otherwise is not the API");
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_is_denied_often_enough_counts_as_empty_once_whatever_else_fails_between() {
    let down = || (503, "down".to_owned());
    let (client, _) = scripted(vec![
        missing(),
        missing(),
        missing(),
        down(),
        down(),
        missing(),
        missing(),
        list(5, "", &[&map("a", 1)]),
    ]);
    let mut changes = watch(client, DEVICES, Timing::default()).boxed();
    let told = tell(&mut changes, 5).await;
    assert_eq!(told, ["began Device", "listed Device", "began Device", "+Device a 1", "listed Device"]);
}

#[tokio::test(start_paused = true)]
async fn denials_before_a_good_answer_do_not_count() {
    let (client, _) = scripted(vec![
        missing(),
        missing(),
        missing(),
        list(5, "more", &[&map("a", 1)]),
        missing(),
        missing(),
        missing(),
        list(6, "", &[&map("b", 2)]),
    ]);
    let mut changes = watch(client, DEVICES, Timing::default()).boxed();
    let told = tell(&mut changes, 5).await;
    assert_eq!(told, ["began Device", "+Device a 1", "began Device", "+Device b 2", "listed Device"]);
}

#[tokio::test(start_paused = true)]
async fn a_forbidden_kind_does_not_count_as_empty_while_nothing_at_all_may_be_listed() {
    let sight = Sight::default();
    let (client, asked) = scripted((0..50).map(|_| denied()).collect());
    let mut changes = watch_in(client, SERVICES, Timing::default(), sight.clone()).boxed();
    let told = tokio::time::timeout(Duration::from_secs(300), changes.next()).await;
    assert!(told.is_err(), "the API does not know yet who may do what: {told:?}");
    let before = asked.lock().unwrap().len();

    let (client, _) = scripted(vec![list(5, "", &[])]);
    let mut others = watch_in(client, MAPS, Timing::default(), sight).boxed();
    tell(&mut others, 2).await;
    assert_eq!(tell(&mut changes, 2).await, ["began Service", "listed Service"]);
    assert_eq!(asked.lock().unwrap().len(), before + 1, "the next answer decides");
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_forbidden_halfway_is_given_up_whole() {
    let (client, asked) = scripted(vec![
        list(5, "more", &[&map("a", 1)]),
        denied(),
        denied(),
        denied(),
        denied(),
        list(6, "", &[&map("b", 2)]),
    ]);
    let sight = Sight::default();
    sight.note_listed();
    let mut changes = watch_in(client, SERVICES, Timing::default(), sight).boxed();
    let told = tell(&mut changes, 7).await;
    assert_eq!(told[..4], ["began Service", "+Service a 1", "began Service", "listed Service"]);
    assert_eq!(told[4..], ["began Service", "+Service b 2", "listed Service"]);
    let asked = asked.lock().unwrap();
    assert!(asked[4].contains("continue=more") && !asked[5].contains("continue"), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_fails_again_is_out_of_sight_until_it_is_watched() {
    let (client, _) = scripted(vec![denied(), denied(), denied(), list(5, "", &[])]);
    let sight = Sight::default();
    let mut seen = sight.subscribe();
    let mut changes = watch_in(client, MAPS, Timing::default(), sight).boxed();
    let told = tokio::spawn(async move { tell(&mut changes, 2).await });
    seen.changed().await.unwrap();
    assert!(seen.borrow_and_update()["ConfigMap"].contains("not yours"));
    seen.changed().await.unwrap();
    assert!(seen.borrow_and_update().is_empty());
    assert_eq!(told.await.unwrap(), ["began ConfigMap", "listed ConfigMap"]);
}

#[tokio::test(start_paused = true)]
async fn one_failure_and_a_kind_that_may_be_missing_are_no_loss_of_sight() {
    let missing =
        || (404, r#"{"kind":"Status","status":"Failure","code":404,"message":"no such kind"}"#.to_owned());
    for (kind, answers) in [
        (MAPS, vec![(500, "oops".to_owned()), list(5, "", &[])]),
        (DEVICES, vec![missing(), missing(), missing(), missing()]),
    ] {
        let (client, _) = scripted(answers);
        let sight = Sight::default();
        let seen = sight.subscribe();
        let mut changes = watch_in(client, kind, Timing::default(), sight).boxed();
        tell(&mut changes, 2).await;
        assert!(!seen.has_changed().unwrap(), "{:?}", seen.borrow());
    }
}
