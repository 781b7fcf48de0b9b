use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kubeedge_core::message::{
    Delivered, Delivery, FromNode, Object, ObjectEvent, Publish, ToNode, UploadId, UploadedPublish,
};
use serde_json::{Value, json};

use super::{
    Config, Limits,
    rules::{Downward, ENDPOINTS, Name, RULES, Rules},
    state::{Outcome, State},
};
use crate::{
    authorization::{Denial, Denials},
    controller::{
        Change,
        testing::{node, object},
    },
};

#[cfg(feature = "standalone")]
mod carried;

fn endpoint(name: &str, kind: &str, properties: &Value) -> Value {
    json!({
        "apiVersion": "rules.kubeedge.io/v1", "kind": "RuleEndpoint",
        "metadata": { "namespace": "default", "name": name, "uid": name, "resourceVersion": "1" },
        "spec": { "ruleEndpointType": kind, "properties": properties },
    })
}

fn rule(name: &str, from: (&str, Value), to: (&str, Value)) -> Value {
    json!({
        "apiVersion": "rules.kubeedge.io/v1", "kind": "Rule",
        "metadata": { "namespace": "default", "name": name, "uid": name, "resourceVersion": "1" },
        "spec": {
            "source": from.0, "sourceResource": from.1, "target": to.0, "targetResource": to.1,
        },
    })
}

fn endpoints() -> [Value; 3] {
    [
        endpoint("rest", "rest", &json!({})),
        endpoint("bus", "eventbus", &json!({})),
        endpoint("service", "servicebus", &json!({ "service_port": "9000" })),
    ]
}

fn up(name: &str, topic: &str, url: &str) -> Value {
    rule(
        name,
        ("bus", json!({ "topic": topic, "node_name": "edge-1" })),
        ("rest", json!({ "resource": url })),
    )
}

fn down(name: &str, path: &str, topic: &str) -> Value {
    rule(name, ("rest", json!({ "path": path })), ("bus", json!({ "topic": topic })))
}

fn rules(objects: &[Value]) -> Rules {
    let mut rules = Rules::default();
    for value in endpoints().iter().chain(objects) {
        rules.apply(&object(value)).unwrap();
    }
    rules
}

fn name(name: &str) -> Name {
    ("default".to_owned(), name.to_owned())
}

// -------------------------------------------------------------------------------------------- what nodes are told

/// What a state tells of its Rules, as node and rule, with a minus before what is gone.
fn told(state: &mut State) -> Vec<String> {
    let events = std::iter::from_fn(|| state.poll_downstream());
    let text = |event: ToNode<ObjectEvent>| match event.message {
        ObjectEvent::Applied(object) => format!("{}: {}", event.node, object.reference.name()),
        ObjectEvent::Deleted { reference, .. } => format!("{}: -{}", event.node, reference.name()),
    };
    events.map(text).collect()
}

#[test]
fn a_node_is_told_of_the_rules_that_begin_on_it_and_of_what_becomes_of_them() {
    let mut state = State::new(Config::default().limits, 2);
    for value in endpoints() {
        state.handle_change(Change::Applied(object(&value)));
    }
    let everywhere = {
        let mut rule = up("everywhere", "b", "http://b");
        rule["spec"]["sourceResource"]["node_name"] = json!("");
        rule
    };
    let mut mine = up("mine", "a", "http://a");
    for value in [&mine, &everywhere, &down("down", "/c", "c")] {
        state.handle_change(Change::Applied(object(value)));
    }
    state.handle_change(Change::Listed(ENDPOINTS));
    state.handle_change(Change::Listed(RULES));
    let names = |objects: Vec<Object>| -> Vec<_> {
        objects.iter().map(|object| object.reference.name().to_owned()).collect()
    };
    assert_eq!(names(state.snapshot(&node("edge-1"))), ["everywhere", "mine"]);
    assert_eq!(names(state.snapshot(&node("edge-2"))), ["everywhere"]);
    assert!(told(&mut state).is_empty(), "the snapshots have said it all");
    // Its counters are no change of a rule.
    mine["status"] = json!({ "successMessages": 7 });
    mine["metadata"]["resourceVersion"] = json!("2");
    state.handle_change(Change::Applied(object(&mine)));
    assert!(told(&mut state).is_empty());
    // It moves to another node.
    mine["spec"]["sourceResource"]["node_name"] = json!("edge-2");
    mine["metadata"]["resourceVersion"] = json!("3");
    state.handle_change(Change::Applied(object(&mine)));
    assert_eq!(told(&mut state), ["edge-1: -mine", "edge-2: mine"]);
    // Without its endpoint no rule has an effect.
    state.handle_change(Change::Deleted(object(&endpoints()[1])));
    assert_eq!(told(&mut state), ["edge-1: -everywhere", "edge-2: -everywhere", "edge-2: -mine"]);
}

// --------------------------------------------------------------------------------------------------------- rules

#[test]
fn a_message_is_for_the_rules_of_its_node_and_topic() {
    let rules =
        rules(&[up("a", "user/a", "http://a"), up("b", "/user/+/", "http://b"), up("c", "#", "http://c")]);
    let urls = |of: &str, topic: &str| -> Vec<String> {
        rules.of_message(&node(of), topic).unwrap().into_iter().map(|(_, url)| url).collect()
    };
    assert_eq!(urls("edge-1", "default/user/a"), ["http://a", "http://b", "http://c"]);
    assert_eq!(urls("edge-1", "default/user/a/b"), ["http://c"]);
    assert_eq!(urls("edge-1", "other/user/a"), [] as [&str; 0]);
    assert_eq!(rules.of_message(&node("edge-2"), "default/user/a"), Err(Denial::OtherRule));
}

#[test]
fn a_request_is_for_the_most_specific_rule_and_what_follows_is_passed_on() {
    let service = rule("s", ("rest", json!({ "path": "/svc" })), ("service", json!({ "path": "api" })));
    let rules =
        rules(&[down("a", "/a", "ta"), down("ab", "a/b/", "tab"), down("any", "/a/{x}", "tany"), service]);
    let target =
        |path: &str| rules.of_request(path).map(|request| (request.node.to_string(), request.target));
    let topic = |topic: &str| Ok(("edge-1".to_owned(), Downward::Topic(topic.to_owned())));
    assert_eq!(target("/edge-1/default/a"), topic("ta"));
    assert_eq!(target("/edge-1/default/a/b"), topic("tab"));
    assert_eq!(target("/edge-1/default/a/b/c/d"), topic("tab/c/d"));
    assert_eq!(target("/edge-1/default/a/z/c"), topic("tany/c"));
    let service = Downward::Service { port: 9000, path: "/api/v1".to_owned() };
    assert_eq!(target("/edge-1/default/svc/v1"), Ok(("edge-1".to_owned(), service)));
    for wrong in ["/", "/edge-1", "/edge-1/other/a", "/edge-1/default/b", "/Edge!/default/a"] {
        assert!(target(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_rule_works_once_its_endpoints_are_there_and_only_so_long() {
    let mut rules = Rules::default();
    rules.apply(&object(&up("a", "t", "http://a"))).unwrap();
    assert_eq!(rules.of_message(&node("edge-1"), "default/t"), Ok(vec![]));
    for value in &endpoints() {
        rules.apply(&object(value)).unwrap();
    }
    assert_eq!(rules.of_message(&node("edge-1"), "default/t").unwrap().len(), 1);
    rules.delete(&object(&endpoints()[0]));
    assert_eq!(rules.of_message(&node("edge-1"), "default/t"), Ok(vec![]));
}

#[test]
fn a_rule_that_says_nothing_or_garbage_is_named_and_hurts_no_other() {
    let mut rules = rules(&[up("good", "t", "http://a")]);
    let mut wrong = up("wrong", "t", "http://b");
    wrong["spec"]["sourceResource"] = json!(7);
    assert!(rules.apply(&object(&wrong)).unwrap_err().contains("wrong"));
    for (from, to) in [("rest", "rest"), ("bus", "bus"), ("bus", "nowhere"), ("bus", "service")] {
        rules.apply(&object(&rule("odd", (from, json!({})), (to, json!({}))))).unwrap();
    }
    assert_eq!(rules.of_message(&node("edge-1"), "default/t").unwrap().len(), 1);
}

#[test]
fn rules_stay_in_force_while_they_are_told_again_and_those_that_are_not_are_gone() {
    let mut rules = rules(&[up("a", "t", "http://a"), up("b", "t", "http://b")]);
    let known = |rules: &Rules| rules.of_message(&node("edge-1"), "default/t").unwrap().len();
    rules.begin(RULES);
    assert_eq!(known(&rules), 2);
    rules.apply(&object(&up("b", "t", "http://b"))).unwrap();
    assert_eq!(known(&rules), 2);
    rules.finish(RULES);
    assert_eq!(known(&rules), 1);
}

// ------------------------------------------------------------------------------------------------------ messages

fn state(objects: &[Value]) -> State {
    let limits = Limits { give_up_after: Duration::from_secs(60), ..Config::default().limits };
    let mut state = State::new(limits, 2);
    for kind in [RULES, ENDPOINTS] {
        state.handle_change(Change::Began(kind));
    }
    for value in endpoints().iter().chain(objects) {
        state.handle_change(Change::Applied(object(value)));
    }
    for kind in [RULES, ENDPOINTS] {
        assert!(!state.takes_messages());
        state.handle_change(Change::Listed(kind));
    }
    assert!(state.takes_messages());
    state
}

fn message(session: u64, number: u64, topic: &str) -> FromNode<Delivered<UploadedPublish>> {
    let publish = Publish { topic: topic.to_owned(), payload: number.to_string().into() };
    let message = UploadedPublish { id: UploadId { run: 7, number }, publish };
    let delivery = Delivery { session, number };
    FromNode { node: node("edge-1"), message: Delivered { delivery, message } }
}

fn taken(state: &mut State) -> Vec<Delivery> {
    std::iter::from_fn(|| state.poll_taken()).map(|ToNode { message, .. }| message).collect()
}

#[test]
fn a_message_without_a_rule_is_taken_at_once_and_counted() {
    let mut state = state(&[]);
    state.handle_message(message(1, 1, "default/t"));
    assert_eq!(taken(&mut state), [Delivery { session: 1, number: 1 }]);
    assert_eq!(state.without_rule(), 1);
}

#[test]
fn a_message_on_the_topic_of_another_nodes_rule_goes_nowhere_and_is_counted() {
    let denials = Denials::default();
    let mut state = state(&[up("a", "t", "http://a")]).counting(denials.clone());
    let mut foreign = message(1, 1, "default/t");
    foreign.node = node("edge-2");
    state.handle_message(foreign);
    assert_eq!(state.poll_job(Instant::now()), None);
    assert_eq!(taken(&mut state), [Delivery { session: 1, number: 1 }], "sending it again would help nobody");
    assert_eq!((denials.of(Denial::OtherRule), state.without_rule()), (1, 1));
}

#[test]
fn a_message_is_taken_when_all_its_rules_are_through_with_it() {
    let mut state = state(&[up("a", "t", "http://a"), up("b", "t", "http://b")]);
    let now = Instant::now();
    state.handle_message(message(1, 1, "default/t"));
    let jobs: Vec<_> = std::iter::from_fn(|| state.poll_job(now)).collect();
    assert_eq!(jobs.iter().map(|job| job.url.as_str()).collect::<Vec<_>>(), ["http://a", "http://b"]);
    state.handle_outcome(&jobs[0], Outcome::Delivered, now);
    assert_eq!(taken(&mut state), []);
    state.handle_outcome(&jobs[1], Outcome::Refused("no".into()), now);
    assert_eq!(taken(&mut state), [Delivery { session: 1, number: 1 }]);
    assert_eq!(state.uncounted(&name("a")).unwrap().success_messages, 1);
    let failed = state.uncounted(&name("b")).unwrap();
    assert_eq!((failed.fail_messages, failed.errors.as_slice()), (1, &["no".to_owned()][..]));
}

#[test]
fn messages_of_a_node_for_a_rule_stay_in_order_and_a_failing_one_is_tried_until_its_time_is_over() {
    let mut state = state(&[up("a", "t", "http://a")]);
    let mut now = Instant::now();
    state.handle_message(message(1, 1, "default/t"));
    state.handle_message(message(1, 2, "default/t"));
    let begun = now;
    let mut attempts = 0;
    let second = loop {
        let job = state.poll_job(now).unwrap();
        if job.id.number == 2 {
            break job;
        }
        assert_eq!(state.poll_job(now), None, "the second waits for the first");
        attempts += 1;
        state.handle_outcome(&job, Outcome::Retry("down".into()), now);
        now = state.poll_timeout().unwrap_or(now);
    };
    assert!(now - begun >= Duration::from_secs(60) && attempts > 5, "{attempts} in {:?}", now - begun);
    // Its server is taken for dead: the next has one attempt, and is not tried for as long again.
    state.handle_outcome(&second, Outcome::Retry("down".into()), now);
    assert_eq!(taken(&mut state), [1, 2].map(|number| Delivery { session: 1, number }));
    assert_eq!(state.uncounted(&name("a")).unwrap().fail_messages, 2);
}

#[test]
fn a_message_that_comes_again_is_not_delivered_again_and_taken_in_its_new_session() {
    let mut state = state(&[up("a", "t", "http://a")]);
    let now = Instant::now();
    state.handle_message(message(1, 1, "default/t"));
    let job = state.poll_job(now).unwrap();
    // The link broke, and the node sends it again while it is being delivered.
    state.handle_message(message(2, 1, "default/t"));
    assert_eq!(state.poll_job(now), None);
    state.handle_outcome(&job, Outcome::Delivered, now);
    assert_eq!(taken(&mut state), [Delivery { session: 2, number: 1 }]);
    // And once more, because that word was lost as well.
    state.handle_message(message(3, 1, "default/t"));
    assert_eq!(state.poll_job(now), None);
    assert_eq!(taken(&mut state), [Delivery { session: 3, number: 1 }]);
}

#[test]
fn what_was_counted_of_a_rule_is_told_until_it_is_in_its_status_and_only_once() {
    let mut state = state(&[up("a", "t", "http://a")]);
    state.count(&name("a"), None);
    state.count(&name("a"), Some("down".to_owned()));
    let counted = state.uncounted(&name("a")).unwrap().clone();
    state.count(&name("a"), None);
    state.handle_counted(&name("a"), &counted);
    let left = state.uncounted(&name("a")).unwrap().clone();
    assert_eq!((left.success_messages, left.fail_messages, left.errors.len()), (1, 0, 0));
    state.handle_counted(&name("a"), &left);
    assert_eq!(state.uncounted(&name("a")), None);
}

#[test]
fn what_waits_is_bounded() {
    let limits = Limits { messages_max: 2, ..Config::default().limits };
    let mut state = State::new(limits, 0);
    for value in endpoints().iter().chain(&[up("a", "t", "http://a")]) {
        state.handle_change(Change::Applied(Object::clone(&object(value))));
    }
    for number in 1..=2 {
        assert!(state.takes_messages());
        state.handle_message(message(1, number, "default/t"));
    }
    assert!(!state.takes_messages());
    let job = state.poll_job(Instant::now()).unwrap();
    assert_eq!(Arc::strong_count(&job.publish), 2);
}
