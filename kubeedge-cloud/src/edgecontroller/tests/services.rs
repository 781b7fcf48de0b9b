//! Services, which pods do not name and are told of all the same.

use kubeedge_core::message::{Answer, FromNode, Object, ObjectRef, Query};
use serde_json::{Value, json};

use super::{
    super::state::{Plan, SERVICES, State},
    state::{listed, told},
};
use crate::controller::{
    Change,
    testing::{node, object},
};

fn service_in(namespace: &str, name: &str, uid: &str, spec: &Value) -> Object {
    object(&json!({
        "apiVersion": "v1", "kind": "Service", "spec": spec,
        "metadata": { "namespace": namespace, "name": name, "uid": uid },
    }))
}

fn service(name: &str, uid: &str, port: u16) -> Object {
    let spec = json!({ "clusterIP": "10.0.0.7", "ports": [{ "port": port }] });
    service_in("default", name, uid, &spec)
}

fn pod(name: &str, uid: &str, on: &str, links: &Value) -> Object {
    object(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": "default", "name": name, "uid": uid },
        "spec": { "nodeName": on, "enableServiceLinks": links, "containers": [{ "name": "main" }] },
    }))
}

fn apply(state: &mut State, object: &Object) -> Vec<String> {
    state.handle_change(Change::Applied(object.clone()));
    told(state)
}

fn delete(state: &mut State, object: &Object) -> Vec<String> {
    state.handle_change(Change::Deleted(object.clone()));
    told(state)
}

#[test]
fn services_go_to_a_node_before_its_first_pod_of_their_namespace_and_leave_with_the_last() {
    let elsewhere =
        service_in("other", "far", "s9", &json!({ "clusterIP": "10.0.0.9", "ports": [{ "port": 1 }] }));
    let mut state = listed(&[&service("db", "s1", 5432), &service("web", "s2", 80), &elsewhere]);
    let (first, second) = (pod("a", "p1", "edge-1", &json!(true)), pod("b", "p2", "edge-1", &Value::Null));
    assert_eq!(
        apply(&mut state, &first),
        ["edge-1 +Service db s1", "edge-1 +Service web s2", "edge-1 +Pod a p1"]
    );
    assert_eq!(apply(&mut state, &second), ["edge-1 +Pod b p2"]);
    assert_eq!(apply(&mut state, &service("db", "s1", 5433)), ["edge-1 +Service db s1"]);
    assert_eq!(apply(&mut state, &service("queue", "s3", 1)), ["edge-1 +Service queue s3"]);
    assert_eq!(delete(&mut state, &service("web", "s2", 80)), ["edge-1 -Service web s2"]);
    let names: Vec<_> = state.snapshot(&node("edge-1")).iter().map(|o| o.reference.to_string()).collect();
    assert_eq!(names, ["Service default/db", "Service default/queue", "Pod default/a", "Pod default/b"]);

    assert_eq!(delete(&mut state, &first), ["edge-1 -Pod a p1"]);
    assert_eq!(
        delete(&mut state, &second),
        ["edge-1 -Pod b p2", "edge-1 -Service db s1", "edge-1 -Service queue s3"]
    );
    assert!(state.snapshot(&node("edge-1")).is_empty());
}

#[test]
fn the_first_service_of_a_namespace_finds_the_nodes_that_have_pods_there() {
    let mut state =
        listed(&[&pod("a", "p1", "edge-1", &json!(true)), &pod("b", "p2", "edge-2", &json!(false))]);
    told(&mut state);
    assert_eq!(apply(&mut state, &service("web", "s1", 80)), ["edge-1 +Service web s1"]);
    assert_eq!(delete(&mut state, &service("web", "s1", 80)), ["edge-1 -Service web s1"]);
    assert_eq!(apply(&mut state, &pod("c", "p3", "edge-2", &json!(true))), ["edge-2 +Pod c p3"]);
    assert_eq!(
        apply(&mut state, &service("web", "s2", 80)),
        ["edge-1 +Service web s2", "edge-2 +Service web s2"]
    );
}

#[test]
fn a_service_recreated_under_one_name_is_two_services() {
    let mut state = listed(&[&service("web", "s1", 80), &pod("a", "p1", "edge-1", &json!(true))]);
    told(&mut state);
    let expected = ["edge-1 -Service web s1", "edge-1 +Service web s2"];
    assert_eq!(apply(&mut state, &service("web", "s2", 80)), expected, "the deletion was not seen");
    assert_eq!(delete(&mut state, &service("web", "s1", 80)), [""; 0], "it is not the second's");
    assert_eq!(apply(&mut state, &service("web", "s2", 80)), [""; 0]);
}

#[test]
fn a_pod_without_links_is_given_no_service_and_takes_none_from_others() {
    let mut state = listed(&[&service("web", "s1", 80)]);
    let (without, with) = (pod("a", "p1", "edge-1", &json!(false)), pod("b", "p2", "edge-1", &json!(true)));
    assert_eq!(apply(&mut state, &without), ["edge-1 +Pod a p1"]);
    assert_eq!(apply(&mut state, &with), ["edge-1 +Service web s1", "edge-1 +Pod b p2"]);
    assert_eq!(delete(&mut state, &without), ["edge-1 -Pod a p1"]);
    let again = pod("b", "p3", "edge-1", &json!(false));
    assert_eq!(
        apply(&mut state, &again),
        ["edge-1 -Pod b p2", "edge-1 +Pod b p3", "edge-1 -Service web s1"],
        "another pod of the name wants none"
    );
}

#[test]
fn a_pod_that_moves_takes_its_services_along() {
    let mut state = listed(&[&service("web", "s1", 80), &pod("a", "p1", "edge-1", &json!(true))]);
    told(&mut state);
    let expected =
        ["edge-1 -Pod a p1", "edge-2 +Service web s1", "edge-2 +Pod a p2", "edge-1 -Service web s1"];
    assert_eq!(apply(&mut state, &pod("a", "p2", "edge-2", &json!(true))), expected);
}

#[test]
fn what_has_no_address_and_the_service_of_the_api_itself_go_nowhere() {
    let ports = json!([{ "port": 80 }]);
    let headless = json!({ "clusterIP": "None", "ports": ports });
    let outside = json!({ "type": "ExternalName", "clusterIP": "10.0.0.1", "externalName": "db.example" });
    let kubernetes = json!({ "clusterIP": "10.0.0.1", "ports": ports });
    let mut state = listed(&[
        &service_in("default", "headless", "s1", &headless),
        &service_in("default", "pending", "s2", &json!({ "ports": ports })),
        &service_in("default", "outside", "s3", &outside),
        &service_in("default", "kubernetes", "s4", &kubernetes),
        &pod("a", "p1", "edge-1", &json!(true)),
    ]);
    assert_eq!(told(&mut state), ["edge-1 +Pod a p1"]);
    let given = json!({ "clusterIP": "10.0.0.2", "ports": ports });
    let given = service_in("default", "pending", "s2", &given);
    assert_eq!(apply(&mut state, &given), ["edge-1 +Service pending s2"]);
    let taken = service_in("default", "pending", "s2", &headless);
    assert_eq!(apply(&mut state, &taken), ["edge-1 -Service pending s2"]);
}

#[test]
fn a_list_finds_the_services_that_are_gone() {
    let mut state = listed(&[
        &service("db", "s1", 1),
        &service("web", "s2", 80),
        &pod("a", "p1", "edge-1", &json!(true)),
    ]);
    told(&mut state);
    state.handle_change(Change::Began(SERVICES));
    state.handle_change(Change::Applied(service("web", "s2", 80)));
    assert_eq!(told(&mut state), [""; 0]);
    state.handle_change(Change::Listed(SERVICES));
    assert_eq!(told(&mut state), ["edge-1 -Service db s1"]);
}

#[test]
fn a_node_may_ask_for_the_services_that_its_pods_are_told_of_and_no_others() {
    let web = service("web", "s1", 80);
    let far = service_in("other", "far", "s2", &json!({ "clusterIP": "10.0.0.9" }));
    let (with, without) = (pod("a", "p1", "edge-1", &json!(true)), pod("b", "p2", "edge-2", &json!(false)));
    let state = listed(&[&web, &far, &with, &without]);
    let plan = |of: &str, reference: &ObjectRef| {
        state.plan(&FromNode { node: node(of), message: Query::Get(reference.clone()) })
    };
    let refused = |of, reference| matches!(plan(of, reference), Plan::Answer(Answer::Refused(_)));
    assert_eq!(plan("edge-1", &web.reference), Plan::Answer(Answer::Object(web.clone())));
    assert!(refused("edge-1", &far.reference));
    assert!(refused("edge-2", &web.reference), "its pod wants none");
    assert!(refused("edge-3", &web.reference));
}
