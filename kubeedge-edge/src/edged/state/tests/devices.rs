//! Pods that want devices of plugins.

use super::*;
use crate::edged::devices::Question;

fn with_cameras(count: u32) -> Value {
    app(json!({ "resources": { "limits": { "example.com/camera": count.to_string() } } }))
}

/// A node with two cameras.
fn node() -> World {
    let mut world = World::new();
    world.offer(2000, 1024);
    world
}

#[test]
fn devices_are_chosen_before_a_pod_starts_and_asked_for_with_each_container() {
    let mut world = node();
    world.apply("web", with_cameras(1));
    world.wait(20);
    assert!(world.is_ready("web"), "{}", world.story());
    let Some(Question::Allocate { uid, containers, active }) = world.asked_devices.first() else {
        panic!("{:?}", world.asked_devices)
    };
    let counts = [("example.com/camera".to_owned(), 1)].into();
    assert_eq!((uid.as_str(), active.contains(uid)), ("web", true));
    assert_eq!((containers.len(), &containers[0].counts), (1, &counts));
    assert_eq!(world.begun("create"), ["create web/app#0 with devices"]);
    // A pod without devices has nothing to wait for.
    world.apply("plain", app(json!({})));
    world.wait(1);
    assert!(world.is_ready("plain"));
    assert_eq!(world.asked_devices.len(), 1);
}

#[test]
fn a_pod_whose_devices_cannot_be_had_fails_as_the_kubelet_has_it() {
    let mut world = node();
    world.script.no_devices.insert("web", "no healthy devices present; cannot allocate unhealthy devices x");
    world.apply("web", with_cameras(1));
    world.wait(20);
    assert_eq!(world.status("web")["phase"], "Failed");
    assert_eq!(world.status("web")["reason"], "UnexpectedAdmissionError");
    let why = "Pod was rejected: Allocate failed due to no healthy devices present; cannot allocate unhealthy \
               devices x, which is unexpected";
    assert_eq!(world.status("web")["message"], why);
    assert_eq!(world.begun("run"), Vec::<&str>::new());
}

#[test]
fn more_devices_than_there_are_do_not_fit() {
    let mut world = node();
    world.apply("first", with_cameras(1));
    world.apply_with("second", with_cameras(2), &json!({ "creationTimestamp": "2026-01-01T00:00:00Z" }));
    world.wait(20);
    assert!(world.is_ready("first"));
    assert_eq!(world.status("second")["reason"], "OutOfexample.com/camera");
    // The first one ends, so that there is room.
    world.delete("first", 1);
    world.wait(10);
    world.forget_gone();
    world.apply("third", with_cameras(2));
    world.wait(10);
    assert!(world.is_ready("third"), "{}", world.status("third"));
    let Some(Question::Allocate { active, .. }) = world.asked_devices.last() else {
        panic!("it was not asked")
    };
    assert!(!active.contains(&Uid::new("first")), "{active:?}");
}
