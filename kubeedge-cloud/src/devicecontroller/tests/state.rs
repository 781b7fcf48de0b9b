use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use kubeedge_core::{
    id::{DeviceId, NodeName, Uid},
    message::{
        Acked, Delivered, Delivery, DeviceReport, FromNode, Object, ObjectEvent, Report, ToNode, TwinReport,
        TwinValue,
    },
};
use serde_json::{Value, json};

use super::super::{
    Config,
    state::{DEVICES, MODELS, Output, State},
};
use crate::controller::{
    Change, Outcome,
    testing::{node, object},
};

fn device(name: &str, uid: &str, on: &str, model: &str) -> Object {
    object(&json!({
        "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device",
        "metadata": { "namespace": "default", "name": name, "uid": uid },
        "spec": { "nodeName": on, "deviceModelRef": { "name": model } },
    }))
}

fn model(name: &str, uid: &str, unit: &str) -> Object {
    object(&json!({
        "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "DeviceModel",
        "metadata": { "namespace": "default", "name": name, "uid": uid },
        "spec": { "properties": [{ "name": "temperature", "unit": unit }] },
    }))
}

fn every_second() -> Config {
    Config { status_interval: Duration::from_secs(1), status_burst: 1, ..Config::default() }
}

fn listed(config: &Config, objects: &[&Object]) -> State {
    let mut state = State::new(config);
    for kind in [MODELS, DEVICES] {
        state.handle_change(Change::Began(kind));
        for object in objects.iter().filter(|object| object.reference.kind() == kind.kind) {
            state.handle_change(Change::Applied((*object).clone()));
        }
        state.handle_change(Change::Listed(kind));
    }
    state
}

fn told(state: &mut State) -> Vec<String> {
    let mut told = Vec::new();
    while let Some(output) = state.poll_output() {
        let Output::Downstream(ToNode { node, message }) = output else { panic!("{output:?}") };
        let sign = if matches!(message, ObjectEvent::Applied(_)) { '+' } else { '-' };
        told.push(format!("{node} {sign}{} {}", message.key().kind(), message.key().name()));
    }
    told
}

fn acked(state: &mut State) -> Vec<(NodeName, u64)> {
    let mut acked = Vec::new();
    while let Some(output) = state.poll_output() {
        if let Output::Acked(ToNode { node, message: Acked { delivery, .. } }) = output {
            acked.push((node, delivery.number));
        }
    }
    acked
}

fn value(text: &str, timestamp_ms: u64) -> TwinValue {
    let metadata = [("type".to_owned(), "int".to_owned())].into();
    TwinValue { value: text.to_owned(), version: 1, timestamp_ms, metadata }
}

fn report(from: &str, number: u64, name: &str, uid: &str, temperature: &str) -> FromNode<Delivered<Report>> {
    let report = DeviceReport {
        device: DeviceId::new("default", name).unwrap(),
        uid: Uid::new(uid),
        twins: vec![TwinReport {
            property: "temperature".to_owned(),
            reported: Some(value(temperature, 1700)),
            observed_desired: None,
        }],
        state: Some("online".to_owned()),
        last_online: Some("2026-01-01T00:00:00Z".to_owned()),
    };
    let delivery = Delivery { session: 1, number };
    FromNode { node: node(from), message: Delivered { delivery, message: Report::Device(report) } }
}

fn written(state: &mut State, now: Instant, outcome: Outcome) -> Option<Value> {
    let job = state.poll_write(now)?;
    let value = job.patch["status"]["twins"][0]["reported"]["value"].clone();
    state.handle_written(job, outcome, now);
    Some(value)
}

#[test]
fn a_device_goes_to_its_node_behind_its_model_which_leaves_with_the_last_device() {
    let config = Config::default();
    let (one, two) = (device("one", "d1", "edge-1", "meter"), device("two", "d2", "edge-1", "meter"));
    let mut state = listed(&config, &[&one, &two, &model("meter", "m1", "C"), &model("unused", "m2", "C")]);
    assert_eq!(told(&mut state), ["edge-1 +DeviceModel meter", "edge-1 +Device one", "edge-1 +Device two"]);
    assert_eq!(state.snapshot(&node("edge-1")).len(), 3);

    state.handle_change(Change::Applied(device("one", "d1", "edge-2", "meter")));
    assert_eq!(
        told(&mut state),
        ["edge-2 +DeviceModel meter", "edge-1 -Device one", "edge-2 +Device one"],
        "the model stays where another device uses it"
    );
    state.handle_change(Change::Applied(device("two", "d2", "", "meter")));
    assert_eq!(told(&mut state), ["edge-1 -Device two", "edge-1 -DeviceModel meter"]);
}

#[test]
fn a_changed_model_goes_to_every_node_that_uses_it() {
    let config = Config::default();
    let (one, two) = (device("one", "d1", "edge-1", "meter"), device("two", "d2", "edge-2", "meter"));
    let mut state = listed(&config, &[&one, &two, &model("meter", "m1", "C")]);
    told(&mut state);
    state.handle_change(Change::Applied(model("meter", "m1", "F")));
    assert_eq!(told(&mut state), ["edge-1 +DeviceModel meter", "edge-2 +DeviceModel meter"]);
}

#[test]
fn a_status_that_comes_back_by_the_watch_does_not_go_down() {
    let one = device("one", "d1", "edge-1", "meter");
    let mut state = listed(&Config::default(), &[&one]);
    told(&mut state);
    let mut json: Value = serde_json::from_slice(&one.json).unwrap();
    json["status"] = json!({ "twins": [{ "propertyName": "temperature" }] });
    json["metadata"]["resourceVersion"] = "9".into();
    state.handle_change(Change::Applied(object(&json)));
    assert_eq!(told(&mut state), [""; 0]);
}

#[test]
fn a_report_becomes_the_status_of_the_device() {
    let now = Instant::now();
    let mut state = listed(&Config::default(), &[&device("one", "d1", "edge-1", "meter")]);
    state.handle_report(report("edge-1", 1, "one", "d1", "21"), now);
    let metadata = json!({
        "timestamp": "1700", "observedAt": "1970-01-01T00:00:01.700Z", "type": "int", "version": "1",
    });
    let expected = json!({
        "metadata": { "uid": "d1" },
        "status": {
            "twins": [{
                "propertyName": "temperature",
                "reported": { "value": "21", "metadata": metadata },
            }],
            "state": "online",
            "lastOnlineTime": "2026-01-01T00:00:00Z",
        },
    });
    assert_eq!(state.poll_write(now).unwrap().patch, expected);
}

#[test]
fn a_fast_device_is_written_at_once_and_then_once_per_interval_with_its_newest() {
    let start = Instant::now();
    let mut state = listed(&every_second(), &[&device("one", "d1", "edge-1", "meter")]);
    told(&mut state);
    let mut writes = Vec::new();
    for tenth in 0..=20 {
        let now = start + Duration::from_millis(100) * tenth;
        state.handle_report(report("edge-1", tenth.into(), "one", "d1", &tenth.to_string()), now);
        writes.extend(written(&mut state, now, Outcome::Done));
    }
    assert_eq!(writes, ["0", "10", "20"]);
    let numbers: Vec<u64> = acked(&mut state).into_iter().map(|(_, number)| number).collect();
    assert_eq!(numbers, [0, 10, 20], "each acknowledges the reports before it");
    let counts = state.counts();
    assert_eq!((counts.written, counts.passed_over, counts.waiting), (3, 18, 0));
}

#[test]
fn all_devices_together_stay_under_the_cap() {
    let start = Instant::now();
    let config = Config {
        writes_per_second: NonZeroU32::new(5).unwrap(),
        writes_at_once: 1000.try_into().unwrap(),
        ..Config::default()
    };
    let devices: Vec<Object> =
        (0..100).map(|n| device(&format!("d{n}"), &format!("u{n}"), "edge-1", "meter")).collect();
    let mut state = listed(&config, &devices.iter().collect::<Vec<_>>());
    for n in 0..100 {
        state.handle_report(report("edge-1", n, &format!("d{n}"), &format!("u{n}"), "1"), start);
    }
    let mut count = 0;
    for millis in 0..=2000 {
        while written(&mut state, start + Duration::from_millis(millis), Outcome::Done).is_some() {
            count += 1;
        }
    }
    assert!((15..=16).contains(&count), "5 at once, then 5 per second for 2 s: {count}");
}

#[test]
fn what_the_api_already_says_is_acknowledged_and_not_written_again() {
    let mut now = Instant::now();
    let mut state = listed(&Config::default(), &[&device("one", "d1", "edge-1", "meter")]);
    told(&mut state);
    state.handle_report(report("edge-1", 1, "one", "d1", "21"), now);
    assert!(written(&mut state, now, Outcome::Done).is_some());
    now += Duration::from_secs(1);
    state.handle_report(report("edge-1", 2, "one", "d1", "21"), now);
    assert_eq!(written(&mut state, now, Outcome::Done), None);
    assert_eq!(acked(&mut state), [(node("edge-1"), 1), (node("edge-1"), 2)]);

    now += Duration::from_secs(1);
    state.handle_change(Change::Deleted(device("one", "d1", "edge-1", "meter")));
    state.handle_change(Change::Applied(device("one", "d2", "edge-1", "meter")));
    state.handle_report(report("edge-1", 3, "one", "d2", "21"), now);
    assert!(written(&mut state, now, Outcome::Done).is_some(), "a recreated device has no status yet");
}

#[test]
fn a_status_that_failed_is_written_later_and_only_then_acknowledged() {
    let now = Instant::now();
    let mut state = listed(&Config::default(), &[&device("one", "d1", "edge-1", "meter")]);
    told(&mut state);
    state.handle_report(report("edge-1", 1, "one", "d1", "21"), now);
    assert!(written(&mut state, now, Outcome::Retry("503".to_owned())).is_some());
    assert_eq!(acked(&mut state), []);
    let later = state.poll_timeout().unwrap();
    assert!(written(&mut state, later, Outcome::Done).is_some());
    assert_eq!(acked(&mut state), [(node("edge-1"), 1)]);
}

#[test]
fn a_report_of_another_nodes_device_or_of_an_earlier_one_is_dropped_and_acknowledged() {
    let now = Instant::now();
    let mut state = listed(&Config::default(), &[&device("one", "d2", "edge-1", "meter")]);
    told(&mut state);
    state.handle_report(report("edge-2", 1, "one", "d2", "21"), now);
    state.handle_report(report("edge-1", 2, "one", "d1", "21"), now);
    state.handle_report(report("edge-1", 3, "none", "d3", "21"), now);
    assert_eq!(written(&mut state, now, Outcome::Done), None);
    assert_eq!(acked(&mut state), [(node("edge-2"), 1), (node("edge-1"), 2), (node("edge-1"), 3)]);
}

#[test]
fn a_report_waits_until_it_is_known_which_devices_exist() {
    let now = Instant::now();
    let mut state = State::new(&Config::default());
    state.handle_report(report("edge-1", 1, "one", "d1", "21"), now);
    assert!(state.poll_write(now).is_none());
    assert_eq!((acked(&mut state), state.poll_timeout(), state.is_complete()), (vec![], None, false));
}

fn with_status(device: &Object, patch: &Value) -> Object {
    let mut json: Value = serde_json::from_slice(&device.json).unwrap();
    json["status"] = patch["status"].clone();
    object(&json)
}

#[test]
fn a_status_that_somebody_deleted_is_written_again_without_a_new_report() {
    let mut now = Instant::now();
    let second = Duration::from_secs(1);
    let one = device("one", "d1", "edge-1", "meter");
    let mut state = listed(&every_second(), &[&one]);
    told(&mut state);
    state.handle_report(report("edge-1", 1, "one", "d1", "21"), now);
    let job = state.poll_write(now).unwrap();
    let full = with_status(&one, &job.patch);
    state.handle_written(job, Outcome::Done, now);
    assert_eq!(acked(&mut state), [(node("edge-1"), 1)]);
    now += second;
    state.handle_change(Change::Applied(full));
    assert_eq!(written(&mut state, now, Outcome::Done), None, "the API has it");

    state.handle_change(Change::Applied(one.clone()));
    assert_eq!(written(&mut state, now, Outcome::Retry("503".to_owned())), Some("21".into()));
    now += second;
    assert_eq!(written(&mut state, now, Outcome::Done), Some("21".into()));
    assert_eq!(acked(&mut state), [], "it was acknowledged before");

    now += second;
    state.handle_change(Change::Applied(one.clone()));
    state.handle_report(report("edge-1", 2, "one", "d1", "21"), now);
    assert_eq!(written(&mut state, now, Outcome::Done), Some("21".into()), "though it repeats the last");
    assert_eq!(acked(&mut state), [(node("edge-1"), 2)]);

    now += second;
    state.handle_change(Change::Applied(device("one", "d1", "edge-2", "meter")));
    assert_eq!(written(&mut state, now, Outcome::Done), None, "it is on another node now");
}

#[test]
fn a_change_during_a_write_does_not_bring_back_an_older_status() {
    let mut now = Instant::now();
    let one = device("one", "d1", "edge-1", "meter");
    let mut state = listed(&every_second(), &[&one]);
    state.handle_report(report("edge-1", 1, "one", "d1", "21"), now);
    assert_eq!(written(&mut state, now, Outcome::Done), Some("21".into()));
    now += Duration::from_secs(1);
    state.handle_report(report("edge-1", 2, "one", "d1", "22"), now);
    let job = state.poll_write(now).unwrap();
    state.handle_change(Change::Applied(with_status(&one, &job.patch)));
    assert!(state.poll_write(now).is_none());
    state.handle_written(job, Outcome::Done, now);
    now += Duration::from_secs(1);
    assert_eq!(written(&mut state, now, Outcome::Done), None, "the watch was only faster than the answer");

    state.handle_report(report("edge-1", 3, "one", "d1", "23"), now);
    let job = state.poll_write(now).unwrap();
    state.handle_change(Change::Applied(one));
    assert!(state.poll_write(now).is_none());
    state.handle_written(job, Outcome::Done, now);
    now += Duration::from_secs(1);
    assert_eq!(written(&mut state, now, Outcome::Done), Some("23".into()), "the newest");
}

/// A report of one value, with its version and time.
fn versioned(number: u64, text: &str, version: u64, timestamp_ms: u64) -> FromNode<Delivered<Report>> {
    let mut from = report("edge-1", number, "one", "d1", text);
    let Report::Device(report) = &mut from.message.message else { unreachable!() };
    report.twins[0].reported = Some(TwinValue { version, ..value(text, timestamp_ms) });
    from
}

#[test]
fn an_older_version_never_takes_the_place_of_a_newer() {
    let now = Instant::now();
    let one = device("one", "d1", "edge-1", "meter");
    let mut state = listed(&Config::default(), &[&one]);
    told(&mut state);
    state.handle_report(versioned(1, "21", 5, 1_000), now);
    let job = state.poll_write(now).unwrap();
    let full = with_status(&one, &job.patch);
    state.handle_written(job, Outcome::Done, now);
    // The node lost its power before this version was on its disk, and says what it has.
    state.handle_report(versioned(2, "19", 3, 900), now);
    assert_eq!(written(&mut state, now, Outcome::Done), None);
    assert_eq!(acked(&mut state), [(node("edge-1"), 1), (node("edge-1"), 2)]);

    // Another DeviceController knows it from the object alone.
    let mut state = listed(&Config::default(), &[&full]);
    told(&mut state);
    state.handle_report(versioned(1, "19", 3, 2_000), now);
    assert_eq!(
        state.poll_output().map(|output| matches!(output, Output::Downstream(_))),
        Some(true),
        "it is reminded"
    );
    state.handle_report(versioned(2, "21", 5, 1_000), now);
    assert_eq!(written(&mut state, now, Outcome::Done), None, "a replay changes nothing");
    assert_eq!(acked(&mut state), [(node("edge-1"), 1), (node("edge-1"), 2)]);
    state.handle_report(versioned(3, "22", 1_004, 800), now);
    assert_eq!(written(&mut state, now, Outcome::Done), Some("22".into()), "whatever its clock says");
}

#[test]
fn what_an_earlier_session_left_behind_changes_nothing() {
    let now = Instant::now();
    let mut state = listed(&Config::default(), &[&device("one", "d1", "edge-1", "meter")]);
    told(&mut state);
    state.handle_report(versioned(7, "22", 0, 0), now);
    state.handle_report(versioned(6, "21", 0, 0), now);
    assert_eq!(written(&mut state, now, Outcome::Done), Some("22".into()));
    state.handle_report(versioned(5, "20", 0, 0), now);
    assert_eq!(written(&mut state, now, Outcome::Done), None);
}

/// The device, which the cloud wants to be at `target`.
fn desired(name: &str, uid: &str, target: &str) -> Object {
    let mut json: Value = serde_json::from_slice(&device(name, uid, "edge-1", "meter").json).unwrap();
    json["spec"]["properties"] = json!([{ "name": "temperature", "desired": { "value": target } }]);
    object(&json)
}

#[test]
fn an_answer_to_a_desired_value_and_a_lost_connection_wait_neither_for_their_interval_nor_behind_values() {
    let start = Instant::now();
    let names: Vec<String> = (0..400).map(|n| format!("d{n}")).collect();
    let devices: Vec<Object> = names.iter().map(|name| desired(name, name, "25")).collect();
    let mut state = listed(&Config::default(), &devices.iter().collect::<Vec<_>>());
    told(&mut state);
    let mut now = start;
    let mut number = 0;
    let mut say = |state: &mut State, now: Instant, name: &str, value: &str, connection: &str| {
        number += 1;
        let mut from = report("edge-1", number, name, name, value);
        let Report::Device(report) = &mut from.message.message else { unreachable!() };
        report.state = Some(connection.to_owned());
        state.handle_report(from, now);
    };
    // All devices are noisy, more than there are turns for.
    for step in 0..20 {
        for name in &names {
            say(&mut state, now, name, &format!("0.{step}"), "online");
        }
        while written(&mut state, now, Outcome::Done).is_some() {}
        now += Duration::from_secs(1);
    }
    assert!(state.counts().waiting > 100, "{:?}", state.counts());
    say(&mut state, now, "d7", "25", "online");
    say(&mut state, now, "d8", "0.1", "offline");
    let mut jobs = Vec::new();
    while let Some(job) = state.poll_write(now) {
        jobs.push(job.key.1.name().to_owned());
        state.handle_written(job, Outcome::Done, now);
    }
    assert_eq!(jobs[..2], ["d7", "d8"]);
    let counts = state.counts();
    assert!(counts.written <= 50 * 22, "{counts:?}");
}
