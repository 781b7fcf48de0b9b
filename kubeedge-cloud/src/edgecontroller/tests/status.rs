use jiff::Timestamp;
use kubeedge_core::id::Uid;
use serde_json::{Value, json};

use super::super::status::{
    name_of, node_away, node_metadata, node_status, node_to_create, pod_status, read_node,
};
use crate::{
    authorization::{Denial, Denials},
    controller::testing::node,
};

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn report() -> Value {
    json!({
        "metadata": {
            "name": "edge-1",
            "labels": {
                "node-role.kubernetes.io/edge": "", "kubernetes.io/arch": "arm64", "site": "north",
                "node-role.kubernetes.io/control-plane": "", "node-restriction.kubernetes.io/secure": "yes",
                "topology.kubernetes.io/zone": "a", "made-up.kubernetes.io/x": "",
            },
            "annotations": { "note": "1" },
        },
        "spec": { "taints": [{ "key": "edge", "effect": "NoSchedule" }], "podCIDR": "10.0.0.0/24" },
        "status": {
            "capacity": { "cpu": "4" },
            "conditions": [
                { "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" },
            ],
        },
    })
}

fn read(json: &Value) -> Value {
    read_node(json.to_string().as_bytes(), &node("edge-1"), &Denials::default()).unwrap()
}

#[test]
fn a_report_says_which_node_it_is_of() {
    assert_eq!(name_of(report().to_string().as_bytes()).as_deref(), Some("edge-1"));
    assert_eq!(name_of(b"{}"), None);
    assert_eq!(name_of(b"["), None);
    assert!(read_node(b"[", &node("edge-1"), &Denials::default()).is_err());
}

#[test]
fn whatever_a_node_says_of_itself_is_read_or_refused() {
    let odd = [
        json!(null),
        json!("x"),
        json!(1),
        json!(true),
        json!([]),
        json!({}),
        json!(["x", 1, null, {}]),
        json!({ "a": [] }),
    ];
    let places = [
        "/metadata",
        "/metadata/labels",
        "/metadata/annotations",
        "/spec",
        "/spec/taints",
        "/status",
        "/status/conditions",
        "/status/conditions/0",
        "/status/capacity",
    ];
    let mut read = 0;
    for (place, odd) in places.iter().flat_map(|place| odd.iter().map(move |odd| (place, odd))) {
        let mut json = report();
        *json.pointer_mut(place).unwrap() = odd.clone();
        let name = name_of(json.to_string().as_bytes());
        assert_eq!(name.is_none(), *place == "/metadata", "{place} {odd}");
        let Ok(reported) = read_node(json.to_string().as_bytes(), &node("edge-1"), &Denials::default())
        else {
            assert!(["/metadata", "/status"].contains(place), "{place} {odd}");
            continue;
        };
        let created = node_to_create(&reported, &node("edge-1"));
        let _ = node_metadata(&created, &reported);
        let _ = node_status(&created, &reported, &[], at("2026-01-01T00:00:00Z"));
        let _ = pod_status(&created, &Uid::new("p"), odd.to_string().as_bytes(), at("2026-01-01T00:00:00Z"));
        read += 1;
    }
    assert_eq!(read, 7 * 8 + 2 + 3, "all but a metadata or a status that is no object");
}

#[test]
fn a_node_is_created_with_its_taints_and_with_the_labels_that_it_may_set() {
    let denials = Denials::default();
    let mut json = report();
    json["metadata"]["annotations"]["node.kubeedge.io/autonomy"] = "evict".into();
    let reported = read_node(json.to_string().as_bytes(), &node("edge-1"), &denials).unwrap();
    let created = node_to_create(&reported, &node("edge-1"));
    let labels: Vec<_> = created["metadata"]["labels"].as_object().unwrap().keys().collect();
    let expected =
        ["kubernetes.io/arch", "node-role.kubernetes.io/edge", "site", "topology.kubernetes.io/zone"];
    assert_eq!(labels, expected);
    assert_eq!(created["metadata"]["annotations"], json!({ "note": "1" }));
    assert_eq!(created["spec"], json!({ "taints": [{ "key": "edge", "effect": "NoSchedule" }] }));
    assert_eq!((denials.of(Denial::Label), denials.of(Denial::Annotation)), (3, 1));
}

#[test]
fn a_node_that_has_all_that_is_reported_is_not_written() {
    let report = || read(&report());
    let mut existing = report();
    existing["metadata"]["labels"]["of-the-user"] = "kept".into();
    let now = at("2026-02-01T00:00:00Z");
    assert_eq!(node_metadata(&existing, &report()), None);
    existing["status"] = node_status(&existing, &report(), &[], now).unwrap()["status"].take();
    existing["status"]["capacity"] = json!({ "cpu": "4" });
    assert_eq!(node_status(&existing, &report(), &[], now), None, "the link is told of once");
    existing["metadata"]["labels"]["site"] = "south".into();
    assert_eq!(
        node_metadata(&existing, &report()),
        Some(json!({ "metadata": { "labels": { "site": "north" } } }))
    );
}

#[test]
fn conditions_of_other_writers_stay_and_a_transition_is_not_older_than_the_one_before() {
    let existing = json!({
        "metadata": { "resourceVersion": "5" },
        "status": { "conditions": [
            { "type": "Ready", "status": "Unknown", "lastTransitionTime": "2026-01-09T00:00:00Z" },
            { "type": "NetworkUnavailable", "status": "False" },
        ] },
    });
    let patch = node_status(&existing, &report(), &[], at("2026-01-10T00:00:00Z")).unwrap();
    let expected = json!({
        "metadata": { "resourceVersion": "5" },
        "status": {
            "capacity": { "cpu": "4" },
            "conditions": [
                { "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-10T00:00:00Z" },
                { "type": "NetworkUnavailable", "status": "False" },
                { "type": "EdgeLinkReady", "status": "True", "reason": "SessionEstablished",
                  "message": "The edge has a session with the cloud.",
                  "lastTransitionTime": "2026-01-10T00:00:00Z" },
            ],
        },
    });
    assert_eq!(patch, expected);
}

#[test]
fn a_node_that_is_away_is_unknown_since_then_and_says_so_once() {
    let mut existing = report();
    existing["status"]["conditions"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "type": "Custom", "status": "True" }));
    let patch = node_away(&existing, at("2026-01-02T03:04:05.678Z"), at("2026-01-02T03:05:00Z")).unwrap();
    let conditions = &patch["status"]["conditions"];
    let ready = json!({
        "type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown",
        "message": "The edge has been away since 2026-01-02T03:04:05Z.",
        "lastTransitionTime": "2026-01-02T03:05:00Z",
    });
    assert_eq!(conditions[0], ready);
    assert_eq!(conditions[1]["status"], "True", "another's condition is not touched");
    let link = json!({
        "type": "EdgeLinkReady", "status": "False", "reason": "SessionLost",
        "message": "The edge has been away since 2026-01-02T03:04:05Z.",
        "lastTransitionTime": "2026-01-02T03:04:05Z",
    });
    assert_eq!(conditions[2], link);
    existing["status"]["conditions"] = conditions.clone();
    assert_eq!(node_away(&existing, at("2026-01-03T00:00:00Z"), at("2026-01-03T00:00:00Z")), None);
}

#[test]
fn a_pod_status_keeps_conditions_of_others_and_clears_an_old_message() {
    let existing = json!({ "status": {
        "message": "old", "qosClass": "Burstable",
        "conditions": [{ "type": "PodScheduled", "status": "True" }],
    } });
    let reported = br#"{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}"#;
    let patch = pod_status(&existing, &Uid::new("p1"), reported, Timestamp::UNIX_EPOCH).unwrap();
    let expected = json!({
        "metadata": { "uid": "p1" },
        "status": {
            "phase": "Running", "message": null,
            "conditions": [{ "type": "Ready", "status": "True" }, { "type": "PodScheduled", "status": "True" }],
        },
    });
    assert_eq!(patch, expected);
    assert!(pod_status(&existing, &Uid::new("p1"), b"[]", Timestamp::UNIX_EPOCH).is_err());
}

#[test]
fn a_condition_about_resizing_vanishes_when_the_node_reports_it_no_longer() {
    let pending = json!({ "type": "PodResizePending", "status": "True", "reason": "Infeasible" });
    let existing = json!({ "status": { "conditions": [pending, { "type": "Custom", "status": "True" }] } });
    let uid = Uid::new("u-1");
    let kinds = |reported: &Value| {
        let patch = pod_status(&existing, &uid, reported.to_string().as_bytes(), at("2026-01-10T00:00:00Z"));
        let conditions = patch.unwrap()["status"]["conditions"].as_array().unwrap().clone();
        conditions.into_iter().map(|one| one["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let ready = json!({ "type": "Ready", "status": "True" });
    assert_eq!(kinds(&json!({ "conditions": [ready, pending] })), ["Ready", "PodResizePending", "Custom"]);
    assert_eq!(kinds(&json!({ "conditions": [ready] })), ["Ready", "Custom"]);
}

#[test]
fn what_the_cloud_sees_of_a_node_is_a_condition_that_no_node_can_set() {
    let forged = json!([
        { "type": "EdgeClockSynced", "status": "True" }, { "type": "EdgeVersionSupported", "status": "True" },
        { "type": "Ready", "status": "True" },
    ]);
    let mut json = report();
    json["status"]["conditions"] = forged;
    let reported = read(&json);
    let seen = |status: &str| [json!({ "type": "EdgeClockSynced", "status": status, "message": status })];
    let of = |existing: &Value, status: &str, now: &str| {
        let patch = node_status(existing, &reported, &seen(status), at(now)).unwrap();
        let all = patch["status"]["conditions"].as_array().unwrap().clone();
        assert_eq!(all.iter().filter(|condition| condition["type"] == "EdgeVersionSupported").count(), 0);
        let clock = all.into_iter().find(|condition| condition["type"] == "EdgeClockSynced");
        clock.map(|clock| (clock["status"].clone(), clock["lastTransitionTime"].clone())).unwrap()
    };
    let first = of(&json!({}), "False", "2026-01-01T00:00:00Z");
    assert_eq!(first, (json!("False"), json!("2026-01-01T00:00:00Z")));
    let has = json!({ "status": { "conditions": [
        { "type": "EdgeClockSynced", "status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z" },
    ] } });
    assert_eq!(of(&has, "False", "2026-01-02T00:00:00Z").1, "2026-01-01T00:00:00Z");
    assert_eq!(of(&has, "True", "2026-01-02T00:00:00Z").1, "2026-01-02T00:00:00Z");
}
