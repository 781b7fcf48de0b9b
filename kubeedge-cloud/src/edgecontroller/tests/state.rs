use std::time::{Duration, Instant};

use jiff::Timestamp;
use kubeedge_core::{
    id::{NodeName, Uid},
    message::{
        Acked, Answer, ClockOffset, Delivered, Delivery, FromNode, NodeReport, Object, ObjectEvent,
        ObjectRef, PodReport, PodState, Query, Report, SessionState, ToNode, TokenRequest, UploadedEvent,
    },
};
use serde_json::{Value, json};

use super::super::{
    Config,
    state::{CONFIG_MAPS, Job, NODES, Output, PODS, Plan, Reported, State, WATCHED, Wanted, Write, Written},
};
use crate::controller::{
    Change, Outcome,
    testing::{node, object},
};

pub(super) fn pod(name: &str, uid: &str, on: &str, maps: &[&str]) -> Object {
    let env: Vec<Value> = maps.iter().map(|map| json!({ "configMapRef": { "name": map } })).collect();
    object(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": "default", "name": name, "uid": uid, "resourceVersion": "1" },
        "spec": { "nodeName": on, "containers": [{ "name": "main", "envFrom": env }] },
    }))
}

fn changed(object: &Object, change: impl FnOnce(&mut Value)) -> Object {
    let mut json: Value = serde_json::from_slice(&object.json).unwrap();
    change(&mut json);
    Object::from_json(json.to_string()).unwrap()
}

fn map(name: &str, uid: &str, value: &str) -> Object {
    object(&json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "namespace": "default", "name": name, "uid": uid },
        "data": { "key": value },
    }))
}

pub(super) fn listed(objects: &[&Object]) -> State {
    let mut state = State::new(&Config::default());
    list(&mut state, objects);
    list_nodes(&mut state);
    state
}

/// As of an API without Nodes.
fn list_nodes(state: &mut State) {
    state.handle_node(Change::Began(NODES));
    state.handle_node(Change::Listed(NODES));
}

pub(super) fn list(state: &mut State, objects: &[&Object]) {
    for kind in WATCHED {
        state.handle_change(Change::Began(kind));
        for object in objects.iter().filter(|object| object.reference.kind() == kind.kind) {
            state.handle_change(Change::Applied((*object).clone()));
        }
        state.handle_change(Change::Listed(kind));
    }
}

/// Answers what is asked for out of these objects; gives the names of what was asked for.
fn fetch(state: &mut State, objects: &[&Object]) -> Vec<String> {
    let now = Instant::now();
    let mut asked = Vec::new();
    while let Some((_, reference)) = state.poll_fetch(now) {
        let object = objects.iter().find(|object| object.reference == reference);
        asked.push(reference.name().to_owned());
        state.handle_fetched(&reference, Ok(object.map(|object| (*object).clone())), now);
    }
    asked
}

#[test]
fn what_nothing_refers_to_is_not_held() {
    let (used, unused) = (map("used", "c1", "1"), map("unused", "c2", "1"));
    let web = pod("web", "p1", "edge-1", &["used"]);
    let mut state = listed(&[&web, &used, &unused]);
    let held = |state: &State, object: &Object| state.placement().get(&object.reference).is_some();
    assert_eq!((held(&state, &used), held(&state, &unused)), (true, false));
    assert_eq!(fetch(&mut state, &[]), [""; 0], "what was listed is not asked for");
    state.handle_change(Change::Applied(unused.clone()));
    assert!(!held(&state, &unused));
    state.handle_change(Change::Deleted(web));
    assert!(!held(&state, &used), "with the last reference it goes");
}

#[test]
fn a_pod_waits_no_longer_for_what_cannot_be_read_for_long_and_is_given_it_in_the_end() {
    let (settings, mut now) = (map("settings", "c1", "1"), Instant::now());
    let mut state = listed(&[]);
    state.handle_change(Change::Applied(pod("web", "p1", "edge-1", &["settings"])));
    for _ in 0..4 {
        assert_eq!(told(&mut state), [""; 0]);
        let (_, reference) = state.poll_fetch(now).unwrap();
        state.handle_fetched(&reference, Err("down".to_owned()), now);
        now += Duration::from_secs(60);
    }
    assert_eq!(told(&mut state), ["edge-1 +Pod web p1"]);
    let edge = node("edge-1");
    assert_eq!(
        state.unknown(&edge),
        [settings.reference.clone()].into(),
        "nothing is taken away all the same"
    );
    let (_, reference) = state.poll_fetch(now).unwrap();
    state.handle_fetched(&reference, Ok(Some(settings)), now);
    assert_eq!(told(&mut state), ["edge-1 +ConfigMap settings c1"]);
    assert!(state.is_settled(&edge) && state.unknown(&edge).is_empty());
}

/// The API refuses what is asked for, for so long that nobody waits for it.
fn refuse(state: &mut State, now: &mut Instant) {
    for _ in 0..4 {
        let (_, reference) = state.poll_fetch(*now).unwrap();
        state.handle_fetched(&reference, Err("403: forbidden".to_owned()), *now);
        *now += Duration::from_secs(60);
    }
}

#[test]
fn an_object_that_is_refused_for_ever_keeps_no_node_waiting_and_is_left_as_the_node_has_it() {
    let (plain, edge, mut now) = (map("plain", "c2", "1"), node("edge-1"), Instant::now());
    let mut state = listed(&[]);
    state.handle_change(Change::Applied(pod("web", "p1", "edge-1", &["plain", "secret"])));
    state.handle_change(Change::Applied(pod("other", "p2", "edge-1", &["plain"])));
    assert!(!state.is_settled(&edge));
    let (_, reference) = state.poll_fetch(now).unwrap();
    state.handle_fetched(&reference, Ok(Some(plain)), now);
    assert_eq!(told(&mut state), ["edge-1 +ConfigMap plain c2", "edge-1 +Pod other p2"]);
    assert_eq!((state.is_settled(&edge), state.unread()), (false, 0), "it may yet be read");
    refuse(&mut state, &mut now);
    assert_eq!(told(&mut state), ["edge-1 +Pod web p1"]);
    assert_eq!((state.is_settled(&edge), state.unread()), (true, 1));
    assert_eq!(state.snapshot(&edge).len(), 3);
    assert_eq!(state.unknown(&edge), [ObjectRef::config_map("default", "secret")].into());
    // Other nodes do not refer to it.
    assert!(state.is_settled(&node("edge-2")) && state.unknown(&node("edge-2")).is_empty());
    // It is asked for on and on, also after a list, and nobody waits again.
    list(&mut state, &[&pod("web", "p1", "edge-1", &["plain", "secret"]), &map("plain", "c2", "1")]);
    assert!(state.is_settled(&edge) && state.poll_fetch(now).is_some());
}

#[test]
fn what_could_not_be_read_and_is_not_there_or_is_needed_no_more_is_taken_from_the_node() {
    for needed in [true, false] {
        let mut now = Instant::now();
        let mut state = listed(&[]);
        let web = pod("web", "p1", "edge-1", &["secret"]);
        state.handle_change(Change::Applied(web.clone()));
        refuse(&mut state, &mut now);
        assert_eq!(told(&mut state), ["edge-1 +Pod web p1"]);
        if needed {
            let (_, reference) = state.poll_fetch(now).unwrap();
            state.handle_fetched(&reference, Ok(None), now);
            assert_eq!(told(&mut state), ["edge-1 -ConfigMap secret "], "whichever the node has");
        } else {
            state.handle_change(Change::Deleted(web));
            assert_eq!(told(&mut state), ["edge-1 -Pod web p1", "edge-1 -ConfigMap secret "]);
        }
        assert_eq!((state.unread(), state.unknown(&node("edge-1")).len()), (0, 0));
    }
}

#[test]
fn an_object_that_is_needed_again_while_it_is_refused_keeps_its_pods_waiting_no_longer_than_before() {
    let (mut state, mut now) = (listed(&[]), Instant::now());
    let web = pod("web", "p1", "edge-1", &["secret"]);
    state.handle_change(Change::Applied(web.clone()));
    refuse(&mut state, &mut now);
    state.handle_change(Change::Deleted(web.clone()));
    state.handle_change(Change::Applied(web));
    told(&mut state);
    // The failures of before are not forgotten.
    let (_, reference) = state.poll_fetch(now).unwrap();
    state.handle_fetched(&reference, Err("403: forbidden".to_owned()), now);
    assert_eq!(told(&mut state), ["edge-1 +Pod web p1"]);
    assert!(state.is_settled(&node("edge-1")));
}

#[test]
fn the_secrets_that_storage_is_reached_with_go_with_it() {
    let volume = object(&json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": "v", "uid": "v1" },
        "spec": {
            "claimRef": { "namespace": "apps", "name": "data" },
            "csi": {
                "nodePublishSecretRef": { "namespace": "storage", "name": "publish" },
                "nodeStageSecretRef": { "namespace": "storage", "name": "stage" },
                "nodeExpandSecretRef": { "namespace": "storage", "name": "expand" },
                "controllerPublishSecretRef": { "namespace": "storage", "name": "controllers" },
                "controllerExpandSecretRef": { "namespace": "storage", "name": "controllers" },
            },
            "rbd": { "secretRef": { "name": "rbd" } },
            "azureFile": { "secretName": "azure", "secretNamespace": null },
        },
    }));
    let placed = crate::controller::references::place(&volume);
    let names: Vec<_> = placed.references.iter().map(|of| (of.namespace(), of.name())).collect();
    let expected = [
        ("apps", "azure"),
        ("apps", "rbd"),
        ("storage", "expand"),
        ("storage", "publish"),
        ("storage", "stage"),
    ];
    assert_eq!(names, expected);
}

/// What goes down, as `node +kind name uid` or `node -kind name uid`.
pub(super) fn told(state: &mut State) -> Vec<String> {
    let mut told = Vec::new();
    while let Some(output) = state.poll_output() {
        let Output::Downstream(ToNode { node, message }) = output else { panic!("{output:?}") };
        let sign = if matches!(message, ObjectEvent::Applied(_)) { '+' } else { '-' };
        let key = message.key();
        told.push(format!("{node} {sign}{} {} {}", key.kind(), key.name(), message.uid()));
    }
    told
}

#[test]
fn a_pod_goes_to_its_node_and_what_it_refers_to_goes_before_it() {
    let settings = map("settings", "c1", "1");
    let mut state = listed(&[]);
    state.handle_change(Change::Applied(settings.clone()));
    state.handle_change(Change::Applied(pod("web", "p1", "edge-1", &["settings", "later"])));
    assert_eq!(told(&mut state), [""; 0], "the pod waits for what it is made of");
    assert!(!state.is_settled(&node("edge-1")), "a snapshot would take away what is not known yet");
    assert_eq!(fetch(&mut state, &[&settings]), ["later", "settings"]);
    assert_eq!(told(&mut state), ["edge-1 +ConfigMap settings c1", "edge-1 +Pod web p1"]);
    assert!(state.is_settled(&node("edge-1")));

    state.handle_change(Change::Applied(map("later", "c3", "1")));
    assert_eq!(told(&mut state), ["edge-1 +ConfigMap later c3"], "it is sent when it appears");
}

#[test]
fn every_way_to_refer_to_a_config_map_or_a_secret_counts() {
    let pod = object(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": "default", "name": "web", "uid": "p1" },
        "spec": {
            "nodeName": "edge-1",
            "imagePullSecrets": [{ "name": "s-pull" }],
            "volumes": [
                { "configMap": { "name": "c-volume" } },
                { "secret": { "secretName": "s-volume" } },
                { "projected": { "sources": [
                    { "configMap": { "name": "c-projected" } }, { "secret": { "name": "s-projected" } },
                    { "serviceAccountToken": { "path": "token" } },
                ] } },
                { "csi": { "nodePublishSecretRef": { "name": "s-csi" } } },
                { "emptyDir": {} },
            ],
            "initContainers": [{ "env": [
                { "name": "A", "valueFrom": { "configMapKeyRef": { "name": "c-init", "key": "a" } } },
                { "name": "B", "value": "b" },
            ] }],
            "containers": [
                { "env": [{ "name": "A", "valueFrom": { "secretKeyRef": { "name": "s-env", "key": "a" } } }] },
                { "envFrom": [{ "secretRef": { "name": "s-from" } }, { "configMapRef": { "name": "c-from" } }] },
            ],
            "ephemeralContainers": null,
        },
    }));
    let placed = crate::controller::references::place(&pod);
    assert_eq!(placed.node, Some(node("edge-1")));
    let names: Vec<_> = placed.references.iter().map(ObjectRef::name).collect();
    let expected = [
        "c-from",
        "c-init",
        "c-projected",
        "c-volume",
        "s-csi",
        "s-env",
        "s-from",
        "s-projected",
        "s-pull",
        "s-volume",
    ];
    assert_eq!(names, expected);
}

#[test]
fn a_config_map_is_withdrawn_with_the_last_reference_to_it() {
    let (web, api) =
        (pod("web", "p1", "edge-1", &["shared"]), pod("api", "p2", "edge-1", &["shared", "own"]));
    let mut state = listed(&[&web, &api, &map("shared", "c1", "1"), &map("own", "c2", "1")]);
    told(&mut state);
    state.handle_change(Change::Applied(pod("api", "p2", "edge-1", &["shared"])));
    assert_eq!(told(&mut state), ["edge-1 +Pod api p2", "edge-1 -ConfigMap own c2"]);
    state.handle_change(Change::Deleted(web));
    assert_eq!(told(&mut state), ["edge-1 -Pod web p1"]);
    state.handle_change(Change::Deleted(api));
    assert_eq!(told(&mut state), ["edge-1 -Pod api p2", "edge-1 -ConfigMap shared c1"]);
    assert_eq!(state.snapshot(&node("edge-1")), []);
}

#[test]
fn a_pod_without_a_node_goes_nowhere_until_it_is_given_one() {
    let settings = map("settings", "c1", "1");
    let mut state = listed(&[&settings]);
    state.handle_change(Change::Applied(pod("web", "p1", "", &["settings"])));
    assert_eq!(told(&mut state), [""; 0]);
    state.handle_change(Change::Applied(pod("web", "p1", "edge-1", &["settings"])));
    fetch(&mut state, &[&settings]);
    assert_eq!(told(&mut state), ["edge-1 +ConfigMap settings c1", "edge-1 +Pod web p1"]);
}

#[test]
fn a_pod_recreated_on_another_node_leaves_the_old_one_with_all_it_referred_to() {
    let mut state = listed(&[&pod("web", "p1", "edge-1", &["settings"]), &map("settings", "c1", "1")]);
    told(&mut state);
    state.handle_change(Change::Applied(pod("web", "p2", "edge-2", &["settings"])));
    let expected = [
        "edge-2 +ConfigMap settings c1",
        "edge-1 -Pod web p1",
        "edge-2 +Pod web p2",
        "edge-1 -ConfigMap settings c1",
    ];
    assert_eq!(told(&mut state), expected);
}

#[test]
fn an_object_recreated_under_one_name_is_two_objects() {
    let (old, web) = (map("settings", "c1", "1"), pod("web", "p1", "edge-1", &["settings"]));
    let mut state = listed(&[&old, &web]);
    told(&mut state);
    state.handle_change(Change::Deleted(old.clone()));
    state.handle_change(Change::Applied(map("settings", "c2", "1")));
    assert_eq!(told(&mut state), ["edge-1 -ConfigMap settings c1", "edge-1 +ConfigMap settings c2"]);
    state.handle_change(Change::Deleted(old));
    assert_eq!(told(&mut state), [""; 0], "the deletion of the first does not touch the second");
    state.handle_change(Change::Applied(pod("web", "p2", "edge-1", &["settings"])));
    assert_eq!(told(&mut state), ["edge-1 -Pod web p1", "edge-1 +Pod web p2"], "the deletion was not seen");
}

#[test]
fn a_status_write_does_not_go_down_and_a_label_does() {
    let web = pod("web", "p1", "edge-1", &[]);
    let mut state = listed(&[&web]);
    told(&mut state);
    let running = changed(&web, |json| {
        json["status"] = json!({ "phase": "Running" });
        json["metadata"]["resourceVersion"] = "7".into();
    });
    state.handle_change(Change::Applied(running.clone()));
    assert_eq!(told(&mut state), [""; 0]);
    assert_eq!(
        state.snapshot(&node("edge-1")),
        std::slice::from_ref(&running),
        "a snapshot has the newest all the same"
    );
    let labelled = changed(&running, |json| json["metadata"]["labels"] = json!({ "tier": "front" }));
    state.handle_change(Change::Applied(labelled));
    assert_eq!(told(&mut state), ["edge-1 +Pod web p1"]);
}

#[test]
fn a_relist_finds_the_deletions_that_were_missed() {
    let (web, api) = (pod("web", "p1", "edge-1", &["settings"]), pod("api", "p2", "edge-1", &[]));
    let mut state = listed(&[&web, &api, &map("settings", "c1", "1")]);
    told(&mut state);
    list(&mut state, &[&api, &map("settings", "c1", "1")]);
    assert_eq!(told(&mut state), ["edge-1 -Pod web p1", "edge-1 -ConfigMap settings c1"]);
}

#[test]
fn a_list_that_began_again_halfway_deletes_nothing_that_the_second_attempt_tells() {
    let web = pod("web", "p1", "edge-1", &[]);
    let mut state = listed(&[&web]);
    told(&mut state);
    state.handle_change(Change::Began(PODS));
    state.handle_change(Change::Began(PODS));
    state.handle_change(Change::Applied(web));
    state.handle_change(Change::Listed(PODS));
    assert_eq!(told(&mut state), [""; 0]);
}

#[test]
fn nothing_is_complete_before_all_kinds_were_listed() {
    let mut state = State::new(&Config::default());
    for kind in WATCHED {
        assert!(!state.is_complete());
        state.handle_change(Change::Began(kind));
        assert!(!state.is_complete());
        state.handle_change(Change::Listed(kind));
    }
    assert!(!state.is_complete(), "who is shut out is not known");
    state.handle_node(Change::Began(NODES));
    assert!(!state.is_complete());
    state.handle_node(Change::Listed(NODES));
    assert!(state.is_complete());
}

// ------------------------------------------------------------------------------------------------- upstream

pub(super) fn delivered(number: u64, report: Report) -> Delivered<Report> {
    Delivered { delivery: Delivery { session: 1, number }, message: report }
}

pub(super) fn from(name: &str, number: u64, report: Report) -> FromNode<Delivered<Report>> {
    FromNode { node: node(name), message: delivered(number, report) }
}

pub(super) fn pod_report(name: &str, uid: &str, state: PodState) -> Report {
    Report::Pod(PodReport { reference: ObjectRef::pod("default", name), uid: Uid::new(uid), state })
}

pub(super) fn running() -> PodState {
    PodState::Status(r#"{"phase":"Running"}"#.into())
}

pub(super) fn node_report() -> Report {
    Report::Node(NodeReport { json: r#"{"metadata":{"name":"edge-1"}}"#.into() })
}

pub(super) fn acked(state: &mut State) -> Vec<(NodeName, u64)> {
    let mut acked = Vec::new();
    while let Some(output) = state.poll_output() {
        if let Output::Acked(ToNode { node, message: Acked { delivery, .. } }) = output {
            acked.push((node, delivery.number));
        }
    }
    acked
}

pub(super) fn finish(state: &mut State, job: Job, outcome: Outcome, now: Instant) {
    state.handle_written(job.key, job.wanted, Written::Tried(outcome), now);
}

#[test]
fn a_status_is_acknowledged_when_the_api_has_it_and_not_before() {
    let now = Instant::now();
    let mut state = listed(&[&pod("web", "p1", "edge-1", &[])]);
    state.handle_report(from("edge-1", 1, pod_report("web", "p1", running())), now);
    let job = state.poll_write(now).unwrap();
    assert!(matches!(&job.write, Write::PodStatus { .. }), "{job:?}");
    assert_eq!(acked(&mut state), []);
    finish(&mut state, job, Outcome::Done, now);
    assert_eq!(acked(&mut state), [(node("edge-1"), 1)]);
}

#[test]
fn a_failed_write_is_tried_again_with_the_newest_and_does_not_hold_up_others() {
    let now = Instant::now();
    let mut state = listed(&[&pod("web", "p1", "edge-1", &[]), &pod("api", "p2", "edge-1", &[])]);
    state.handle_report(from("edge-1", 1, pod_report("web", "p1", running())), now);
    let job = state.poll_write(now).unwrap();
    finish(&mut state, job, Outcome::Retry("503".to_owned()), now);
    state.handle_report(from("edge-1", 2, pod_report("api", "p2", running())), now);
    state.handle_report(from("edge-1", 3, pod_report("web", "p1", running())), now);
    let job = state.poll_write(now).unwrap();
    finish(&mut state, job, Outcome::Done, now);
    assert_eq!(acked(&mut state), [(node("edge-1"), 2)]);
    assert!(state.poll_write(now).is_none());

    let later = state.poll_timeout().unwrap();
    assert_eq!(later, now + Duration::from_secs(1));
    let job = state.poll_write(later).unwrap();
    finish(&mut state, job, Outcome::Done, later);
    assert_eq!(acked(&mut state), [(node("edge-1"), 3)]);
}

#[test]
fn what_the_api_refuses_for_good_is_acknowledged_so_that_it_does_not_come_for_ever() {
    let now = Instant::now();
    let mut state = listed(&[&pod("web", "p1", "edge-1", &[])]);
    state.handle_report(from("edge-1", 1, pod_report("web", "p1", running())), now);
    let job = state.poll_write(now).unwrap();
    finish(&mut state, job, Outcome::Refused("422".to_owned()), now);
    assert_eq!(acked(&mut state), [(node("edge-1"), 1)]);
}

#[test]
fn a_report_of_another_nodes_pod_or_of_an_earlier_pod_is_dropped_and_acknowledged() {
    let now = Instant::now();
    let mut state = listed(&[&pod("web", "p2", "edge-1", &[])]);
    state.handle_report(from("edge-2", 1, pod_report("web", "p2", running())), now);
    state.handle_report(from("edge-1", 2, pod_report("web", "p1", PodState::Gone)), now);
    state.handle_report(from("edge-1", 3, pod_report("nothing", "p3", running())), now);
    assert!(state.poll_write(now).is_none());
    assert_eq!(acked(&mut state), [(node("edge-2"), 1), (node("edge-1"), 2), (node("edge-1"), 3)]);
}

#[test]
fn a_report_waits_until_it_is_known_which_pods_exist_and_who_is_shut_out() {
    let now = Instant::now();
    let mut state = State::new(&Config::default());
    state.handle_report(from("edge-1", 1, pod_report("web", "p1", running())), now);
    assert!(state.poll_write(now).is_none());
    assert_eq!((acked(&mut state), state.poll_timeout()), (vec![], None));
    list(&mut state, &[&pod("web", "p1", "edge-1", &[])]);
    assert!(state.poll_write(now).is_none());
    assert_eq!((acked(&mut state), state.poll_timeout()), (vec![], None));
    list_nodes(&mut state);
    assert!(state.poll_write(now).is_some());
}

pub(super) fn session(state: &mut State, message: SessionState, now: Instant) {
    state.handle_session(FromNode { node: node("edge-1"), message }, now, Timestamp::UNIX_EPOCH);
}

#[test]
fn the_lease_is_renewed_for_as_long_as_there_is_a_session() {
    let mut now = Instant::now();
    let mut state = listed(&[]);
    session(&mut state, SessionState::Online, now);
    for _ in 0..3 {
        assert_eq!(state.poll_renewal(now), Some(node("edge-1")));
        state.handle_renewed(node("edge-1"), Outcome::Done, now);
        assert_eq!(state.poll_renewal(now), None);
        now += Duration::from_secs(10);
        assert_eq!(state.poll_timeout(), Some(now));
    }
    assert_eq!(state.poll_renewal(now), Some(node("edge-1")));
    session(&mut state, SessionState::Offline, now);
    state.handle_renewed(node("edge-1"), Outcome::Retry("503".to_owned()), now);
    now += Duration::from_secs(60);
    assert_eq!(state.poll_renewal(now), None, "not even a renewal that failed is tried again");
}

#[test]
fn a_node_may_ask_for_itself_its_pods_and_what_they_refer_to_and_nothing_else() {
    let web = pod("web", "p1", "edge-1", &["settings", "later"]);
    let settings = map("settings", "c1", "1");
    let state = listed(&[&web, &settings, &map("other", "c2", "1"), &pod("api", "p2", "edge-2", &[])]);
    let plan = |reference| state.plan(&FromNode { node: node("edge-1"), message: Query::Get(reference) });
    let refused = |reference| matches!(plan(reference), Plan::Answer(Answer::Refused(_)));
    assert_eq!(plan(web.reference.clone()), Plan::Answer(Answer::Object(web.clone())));
    assert_eq!(plan(settings.reference.clone()), Plan::Answer(Answer::Object(settings.clone())));
    let later = ObjectRef::config_map("default", "later");
    assert_eq!(plan(later.clone()), Plan::Ask(CONFIG_MAPS, later), "it may exist by now");
    assert!(matches!(plan(ObjectRef::node("edge-1")), Plan::Ask(..)));
    assert!(refused(ObjectRef::node("edge-2")));
    assert!(refused(ObjectRef::config_map("default", "other")));
    assert!(refused(ObjectRef::pod("default", "api")));
    assert!(refused(ObjectRef::secret("default", "settings")));

    let odd = listed(&[&pod("web", "p1", "edge-1", &["../../nodes"])]);
    let message = Query::Get(ObjectRef::config_map("default", "../../nodes"));
    let plan = odd.plan(&FromNode { node: node("edge-1"), message });
    assert_eq!(plan, Plan::Answer(Answer::NotFound), "a name that is no name does not reach a path");
}

#[test]
fn a_node_gets_tokens_only_such_as_its_pods_mount() {
    let token =
        json!({ "serviceAccountToken": { "path": "t", "audience": "vault", "expirationSeconds": 600 } });
    let web = changed(&pod("web", "p1", "edge-1", &[]), |pod| {
        pod["spec"]["serviceAccountName"] = "robot".into();
        pod["spec"]["volumes"] = json!([{ "name": "v", "projected": { "sources": [token] } }]);
    });
    let state = listed(&[&web]);
    let request = TokenRequest {
        namespace: "default".into(),
        service_account: "robot".into(),
        pod: "web".into(),
        pod_uid: Uid::new("p1"),
        audience: "vault".into(),
        expiration_seconds: 600,
    };
    let plan = |on: &str, request: &TokenRequest| {
        state.plan(&FromNode { node: node(on), message: Query::Token(request.clone()) })
    };
    assert_eq!(plan("edge-1", &request), Plan::Issue(request.clone()));
    let refused = |on: &str, change: fn(&mut TokenRequest)| {
        let mut request = request.clone();
        change(&mut request);
        matches!(plan(on, &request), Plan::Answer(Answer::Refused(_)))
    };
    assert!(refused("edge-2", |_| {}));
    assert!(refused("edge-1", |request| request.pod_uid = Uid::new("p0")));
    assert!(refused("edge-1", |request| request.pod = "other".into()));
    assert!(refused("edge-1", |request| request.service_account = "admin".into()));
    assert!(refused("edge-1", |request| request.audience = String::new()));
    assert!(refused("edge-1", |request| request.expiration_seconds = 1 << 40));
}

#[test]
fn an_event_is_taken_only_about_the_node_itself_and_its_pods() {
    let state = listed(&[&pod("web", "p1", "edge-1", &[])]);
    let read = |from: &str, kind: &str, name: &str, namespace: &str| {
        let event = json!({
            "metadata": { "name": "web.1", "namespace": namespace },
            "involvedObject": { "kind": kind, "namespace": "default", "name": name },
        });
        let message = UploadedEvent { json: event.to_string().into() };
        state.read_event(&FromNode { node: node(from), message })
    };
    assert_eq!(read("edge-1", "Pod", "web", "default").unwrap()["source"]["host"], "edge-1");
    assert!(read("edge-1", "Node", "edge-1", "default").is_ok());
    assert!(read("edge-2", "Pod", "web", "default").is_err());
    assert!(read("edge-1", "Pod", "web", "kube-system").is_err());
    assert!(read("edge-1", "Node", "edge-2", "default").is_err());
    assert!(read("edge-1", "Secret", "web", "default").is_err());
}

#[test]
fn an_event_about_a_pod_of_the_same_name_and_another_uid_is_not_the_nodes_but_that_of_its_file_is() {
    let of_file = changed(&pod("static", "p2", "edge-1", &[]), |json| {
        json["metadata"]["annotations"] = json!({ "kubernetes.io/config.mirror": "f1" });
    });
    let state = listed(&[&pod("web", "p1", "edge-1", &[]), &of_file]);
    let read = |name: &str, uid: &str| {
        let event = json!({
            "metadata": { "name": "e.1", "namespace": "default" },
            "involvedObject": { "kind": "Pod", "namespace": "default", "name": name, "uid": uid },
        });
        let message = UploadedEvent { json: event.to_string().into() };
        state.read_event(&FromNode { node: node("edge-1"), message })
    };
    for (name, uid) in [("web", "p1"), ("web", ""), ("static", "p2"), ("static", "f1")] {
        assert!(read(name, uid).is_ok(), "{name} {uid}");
    }
    for (name, uid) in [("web", "p0"), ("web", "f1"), ("static", "p1")] {
        assert_eq!(
            read(name, uid).unwrap_err(),
            crate::authorization::Denial::NoSuchObject.to_string(),
            "{name} {uid}"
        );
    }
}

/// The Node as the API has it at a version, if it is an edge's or not.
pub(super) fn api_node(name: &str, version: u64, labels: &Value, annotations: &Value) -> Object {
    object(&json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name, "uid": "n1", "resourceVersion": version.to_string(),
            "labels": labels, "annotations": annotations,
        },
    }))
}

fn again(state: &mut State, now: Instant) -> Option<Job> {
    state.poll_renewal(now).expect("a renewal is due");
    state.handle_renewed(node("edge-1"), Outcome::Done, now);
    state.poll_write(now)
}

#[test]
fn what_the_api_took_of_a_node_is_told_again_when_the_node_has_changed_there_and_not_after_the_session() {
    let mut now = Instant::now();
    let mut state = listed(&[]);
    session(&mut state, SessionState::Online, now);
    assert!(again(&mut state, now).is_none(), "nothing is known yet");
    state.handle_report(from("edge-1", 1, node_report()), now);
    let job = state.poll_write(now).unwrap();
    finish(&mut state, job, Outcome::Done, now);
    assert_eq!(acked(&mut state), [(node("edge-1"), 1)]);

    now += Duration::from_secs(10);
    assert!(again(&mut state, now).is_none(), "nobody has changed it");
    let changed = api_node("edge-1", 2, &json!({}), &json!({}));
    for (change, outcome) in [
        (Change::Applied(changed.clone()), Outcome::Done),
        (Change::Deleted(changed), Outcome::Retry("the node does not exist".to_owned())),
    ] {
        now += Duration::from_secs(10);
        state.handle_node(change);
        state.poll_renewal(now).unwrap();
        state.handle_renewed(node("edge-1"), outcome, now);
        let job = state.poll_write(now).unwrap();
        assert!(matches!(&job.write, Write::Node(..)), "{job:?}");
        finish(&mut state, job, Outcome::Done, now);
        assert_eq!(acked(&mut state), [], "it was acknowledged before");
    }

    now += Duration::from_secs(10);
    state.poll_renewal(now).unwrap();
    session(&mut state, SessionState::Offline, now);
    state.handle_renewed(node("edge-1"), Outcome::Done, now);
    now += Config::default().away_grace;
    let job = state.poll_write(now).unwrap();
    assert!(matches!(&job.write, Write::Away { .. }), "{job:?}");
    finish(&mut state, job, Outcome::Done, now);
    assert!(state.poll_write(now).is_none());
}

#[test]
fn the_lease_of_a_new_node_is_made_as_soon_as_its_node_is() {
    let now = Instant::now();
    let mut state = listed(&[]);
    session(&mut state, SessionState::Online, now);
    assert_eq!(state.poll_renewal(now), Some(node("edge-1")));
    state.handle_renewed(node("edge-1"), Outcome::Retry("the node does not exist".to_owned()), now);
    assert_eq!(state.poll_renewal(now), None);
    state.handle_report(from("edge-1", 1, node_report()), now);
    let job = state.poll_write(now).unwrap();
    finish(&mut state, job, Outcome::Done, now);
    assert_eq!(state.poll_renewal(now), Some(node("edge-1")));
    state.handle_renewed(node("edge-1"), Outcome::Done, now);
    state.handle_report(from("edge-1", 2, node_report()), now);
    let job = state.poll_write(now).unwrap();
    finish(&mut state, job, Outcome::Done, now);
    assert_eq!(state.poll_renewal(now), None, "it has its time again");
}

#[test]
fn a_node_that_is_lost_to_another_cloud_is_not_taken_back_because_its_node_was_just_written() {
    let mut now = Instant::now();
    let mut state = listed(&[]);
    session(&mut state, SessionState::Online, now);
    state.poll_renewal(now).unwrap();
    state.handle_renewed(node("edge-1"), Outcome::Retry("503".to_owned()), now);
    now += Duration::from_secs(5);
    assert_eq!(state.poll_renewal(now), Some(node("edge-1")));
    state.handle_report(from("edge-1", 1, node_report()), now);
    let job = state.poll_write(now).unwrap();
    finish(&mut state, job, Outcome::Done, now);
    state.handle_lost(&node("edge-1"));
    assert_eq!(state.poll_renewal(now + Duration::from_secs(60)), None);
}

#[test]
fn a_newer_report_is_never_replaced_by_what_is_told_again() {
    let mut now = Instant::now();
    let newer = |number| {
        let json = r#"{"metadata":{"name":"edge-1"},"status":{"phase":"newer"}}"#;
        from("edge-1", number, Report::Node(NodeReport { json: json.into() }))
    };
    let mut state = listed(&[]);
    session(&mut state, SessionState::Online, now);
    state.handle_report(from("edge-1", 1, node_report()), now);
    let job = state.poll_write(now).unwrap();
    finish(&mut state, job, Outcome::Done, now);

    state.handle_report(newer(2), now);
    let job = state.poll_write(now).unwrap();
    state.handle_node(Change::Applied(api_node("edge-1", 2, &json!({}), &json!({}))));
    assert!(again(&mut state, now).is_none(), "one at a time");
    finish(&mut state, job, Outcome::Retry("503".to_owned()), now);
    now += Duration::from_secs(5);
    let job = state.poll_write(now).unwrap();
    assert_eq!(
        job.wanted,
        Wanted::Report(Box::new(Reported::new(newer(2).message))),
        "the failed report comes first"
    );
    finish(&mut state, job, Outcome::Done, now);

    now += Duration::from_secs(5);
    state.handle_node(Change::Applied(api_node("edge-1", 3, &json!({}), &json!({}))));
    let job = again(&mut state, now).unwrap();
    let Write::Node(report, _) = &job.write else { panic!("{job:?}") };
    assert!(std::str::from_utf8(&report.json).unwrap().contains("newer"));
}

#[test]
fn a_pods_status_that_another_has_changed_is_told_again_with_the_next_renewal() {
    let mut now = Instant::now();
    let web = pod("web", "p1", "edge-1", &[]);
    let with = |ready: &str| {
        let conditions = json!([{ "type": "Ready", "status": ready }]);
        changed(&web, |json| json["status"] = json!({ "phase": "Running", "conditions": conditions }))
    };
    let mut state = listed(&[&web]);
    session(&mut state, SessionState::Online, now);
    let status = r#"{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}"#;
    state.handle_report(from("edge-1", 1, pod_report("web", "p1", PodState::Status(status.into()))), now);
    let job = state.poll_write(now).unwrap();
    finish(&mut state, job, Outcome::Done, now);
    state.handle_change(Change::Applied(with("True")));
    assert!(again(&mut state, now).is_none(), "the API has it");

    now += Duration::from_secs(10);
    state.handle_change(Change::Applied(with("False")));
    let job = again(&mut state, now).unwrap();
    assert!(matches!(&job.write, Write::PodStatus { status: told, .. } if *told == status), "{job:?}");
    finish(&mut state, job, Outcome::Done, now);

    now += Duration::from_secs(10);
    state.handle_change(Change::Applied(with("False")));
    state.handle_change(Change::Applied(pod("web", "p2", "edge-1", &[])));
    assert!(again(&mut state, now).is_none(), "the next pod of that name has nothing to get back");
}

#[test]
fn a_status_of_an_earlier_session_is_not_told_again_because_another_cloud_may_have_been_told_a_newer_one() {
    let mut now = Instant::now();
    let web = pod("web", "p1", "edge-1", &[]);
    let is = |phase: &str| changed(&web, |json| json["status"] = json!({ "phase": phase }));
    let mut state = listed(&[&web]);
    session(&mut state, SessionState::Online, now);
    let running = PodState::Status(r#"{"phase":"Running"}"#.into());
    state.handle_report(from("edge-1", 1, pod_report("web", "p1", running)), now);
    let job = state.poll_write(now).unwrap();
    finish(&mut state, job, Outcome::Done, now);
    state.handle_change(Change::Applied(is("Running")));

    now += Duration::from_secs(1);
    session(&mut state, SessionState::Offline, now);
    state.handle_change(Change::Applied(is("Succeeded")));
    now += Duration::from_secs(1);
    session(&mut state, SessionState::Online, now);
    assert!(again(&mut state, now).is_none(), "the node has not spoken yet");
    // Nor if the watch tells of it late.
    state.handle_change(Change::Applied(is("Succeeded")));
    now += Duration::from_secs(10);
    assert!(again(&mut state, now).is_none());
}

#[test]
fn a_clock_that_is_wrong_is_told_once_a_second_of_it_changes_and_one_that_is_right_once() {
    let now = Instant::now();
    let mut state = listed(&[]);
    let from = |message| FromNode { node: node("edge-1"), message };
    state.handle_session(from(SessionState::Online), now, Timestamp::UNIX_EPOCH);
    let node_report = NodeReport { json: br#"{"metadata":{"name":"edge-1"}}"#.as_slice().into() };
    let delivery = Delivery { session: 1, number: 1 };
    let message = Delivered { delivery, message: Report::Node(node_report) };
    state.handle_report(FromNode { node: node("edge-1"), message }, now);
    let job = state.poll_write(now).unwrap();
    assert!(matches!(job.write, Write::Node(_, None)), "{job:?}");
    finish(&mut state, job, Outcome::Done, now);
    for (ms, told) in [(3, true), (900, false), (20_000, true), (20_400, false), (21_400, true), (5, true)] {
        let clock = ClockOffset { ms };
        state.handle_clock(&FromNode { node: node("edge-1"), message: clock }, now);
        let job = state.poll_write(now);
        assert_eq!(job.is_some(), told, "{ms}");
        if let Some(job) = job {
            assert!(matches!(job.write, Write::Node(_, Some(told)) if told == clock), "{job:?}");
            finish(&mut state, job, Outcome::Done, now);
        }
    }
}
