//! What is held of nodes that are none of the edge's, and what Nodes say in the API.

use std::time::Instant;

use jiff::Timestamp;
use kubeedge_core::message::{FromNode, Object, ObjectRef, Query, Ruling, SessionState, ToNode};
use serde_json::{Value, json};

use super::state::{api_node, from, listed, node_report, pod, session};
use crate::{
    controller::{Change, testing::node},
    edgecontroller::state::{PODS, Plan, State},
};

fn edge_label() -> Value {
    json!({ "node-role.kubernetes.io/edge": "" })
}

fn holds(state: &State, pod: &Object) -> bool {
    state.placement().get(&pod.reference).is_some()
}

fn list_pods(state: &mut State, pods: &[&Object]) {
    state.handle_change(Change::Began(PODS));
    pods.iter().for_each(|pod| state.handle_change(Change::Applied((*pod).clone())));
    state.handle_change(Change::Listed(PODS));
}

#[test]
fn the_pods_of_nodes_that_are_none_of_the_edges_are_not_held_nor_what_they_refer_to() {
    let (early, late) = (pod("early", "p1", "worker-7", &["a"]), pod("late", "p2", "worker-7", &["b"]));
    let edges = pod("edges", "p3", "edge-1", &["c"]);
    let mut state = listed(&[&early, &edges]);
    assert!(holds(&state, &early), "what its node is, is not known yet");
    state.handle_node(Change::Applied(api_node("worker-7", 1, &json!({}), &json!({}))));
    state.handle_node(Change::Applied(api_node("edge-1", 1, &edge_label(), &json!({}))));
    state.handle_change(Change::Applied(late.clone()));
    state.handle_change(Change::Applied(pod("more", "p4", "edge-1", &["d"])));
    assert_eq!([&early, &late, &edges].map(|pod| holds(&state, pod)), [false, false, true]);
    let now = Instant::now();
    let (_, asked) = state.poll_fetch(now).unwrap();
    assert_eq!((asked.name(), state.poll_fetch(now)), ("d", None));
    assert!(!state.poll_list_pods(), "nothing is to be known of them");
}

#[test]
fn when_a_node_becomes_the_edges_its_pods_are_listed_before_it_is_told_what_it_has() {
    let (web, other) = (pod("web", "p1", "worker-7", &[]), pod("other", "p2", "worker-8", &[]));
    for by_session in [false, true] {
        let mut state = listed(&[&web, &other]);
        for worker in ["worker-7", "worker-8"] {
            state.handle_node(Change::Applied(api_node(worker, 1, &json!({}), &json!({}))));
        }
        if by_session {
            let session = FromNode { node: node("worker-7"), message: SessionState::Online };
            state.handle_session(session, Instant::now(), Timestamp::UNIX_EPOCH);
        } else {
            state.handle_node(Change::Applied(api_node("worker-7", 2, &edge_label(), &json!({}))));
        }
        assert!(!state.is_settled(&node("worker-7")), "a snapshot would take away what it runs");
        assert!(state.is_settled(&node("edge-1")));
        assert!(state.poll_list_pods());
        assert!(!state.poll_list_pods(), "once");
        list_pods(&mut state, &[&web, &other]);
        assert!(state.is_settled(&node("worker-7")));
        assert_eq!([&web, &other].map(|pod| holds(&state, pod)), [true, false]);
        assert!(!state.poll_list_pods());
    }
}

#[test]
fn a_node_that_becomes_the_edges_while_pods_are_listed_has_them_listed_once_more() {
    let (first, second) = (pod("first", "p1", "worker-7", &[]), pod("second", "p2", "worker-8", &[]));
    let mut state = listed(&[&first, &second]);
    for worker in ["worker-7", "worker-8"] {
        state.handle_node(Change::Applied(api_node(worker, 1, &json!({}), &json!({}))));
    }
    state.handle_node(Change::Applied(api_node("worker-7", 2, &edge_label(), &json!({}))));
    assert!(state.poll_list_pods());
    state.handle_change(Change::Began(PODS));
    state.handle_change(Change::Applied(second.clone()));
    state.handle_node(Change::Applied(api_node("worker-8", 2, &edge_label(), &json!({}))));
    state.handle_change(Change::Applied(first.clone()));
    state.handle_change(Change::Listed(PODS));
    assert!(state.is_settled(&node("worker-7")) && !state.is_settled(&node("worker-8")));
    assert!(state.poll_list_pods());
    list_pods(&mut state, &[&first, &second]);
    assert!(state.is_settled(&node("worker-8")));
    assert_eq!([&first, &second].map(|pod| holds(&state, pod)), [true, true]);
}

#[test]
fn a_policy_holds_for_a_node_that_is_away_as_well() {
    let now = Instant::now();
    let mut state = listed(&[&pod("web", "p1", "edge-1", &[])]);
    assert!(state.poll_toleration(now).is_none(), "what is to become of them is not known");
    state.handle_node(Change::Applied(api_node("edge-1", 1, &edge_label(), &json!({}))));
    let (pod_of, patch) = state.poll_toleration(now).unwrap();
    assert_eq!(patch["metadata"]["annotations"], json!({ "node.kubeedge.io/autonomy": "keep" }));
    state.handle_tolerated(pod_of, crate::controller::Outcome::Done, now);
    let mut kept = pod("web", "p1", "edge-1", &[]);
    let mut json: Value = serde_json::from_slice(&kept.json).unwrap();
    json["metadata"]["annotations"] = patch["metadata"]["annotations"].clone();
    json["spec"]["tolerations"] = patch["spec"]["tolerations"].clone();
    kept = Object::from_json(json.to_string()).unwrap();
    state.handle_change(Change::Applied(kept));
    assert!(state.poll_toleration(now).is_none());
    let evict = json!({ "node.kubeedge.io/autonomy": "evict" });
    state.handle_node(Change::Applied(api_node("edge-1", 2, &edge_label(), &evict)));
    let (_, patch) = state.poll_toleration(now).unwrap();
    assert_eq!(patch["spec"]["tolerations"][0]["tolerationSeconds"], 300);
}

#[test]
fn a_node_is_shut_out_and_takes_and_tells_nothing_while_its_node_is_annotated_so() {
    let now = Instant::now();
    let mut state = listed(&[&pod("web", "p1", "edge-1", &[])]);
    session(&mut state, SessionState::Online, now);
    let says = |state: &mut State, version, annotations: Value| {
        state.handle_node(Change::Applied(api_node("edge-1", version, &edge_label(), &annotations)));
        state.poll_ruling()
    };
    let ruling = |message| Some(ToNode { node: node("edge-1"), message });
    let asks = |state: &State| {
        let message = Query::Get(ObjectRef::node("edge-1"));
        matches!(state.plan(&FromNode { node: node("edge-1"), message }), Plan::Ask(..))
    };
    assert_eq!(says(&mut state, 1, json!({})), None);
    assert!(asks(&state));

    let stolen = json!({ "node.kubeedge.io/shut-out": "stolen" });
    assert_eq!(says(&mut state, 2, stolen.clone()), ruling(Ruling::ShutOut));
    assert_eq!(says(&mut state, 3, stolen.clone()), None, "once is enough");
    assert!(state.is_shut_out(&node("edge-1")) && !asks(&state));
    state.handle_report(from("edge-1", 1, node_report()), now);
    assert!(state.poll_write(now).is_none());

    assert_eq!(says(&mut state, 4, json!({})), ruling(Ruling::LetIn));
    assert!(asks(&state));
    state.handle_report(from("edge-1", 2, node_report()), now);
    assert!(state.poll_write(now).is_some());
    assert_eq!(says(&mut state, 5, stolen), ruling(Ruling::ShutOut));
    state.handle_node(Change::Deleted(api_node("edge-1", 6, &edge_label(), &json!({}))));
    assert_eq!(state.poll_ruling(), ruling(Ruling::LetIn));
}
