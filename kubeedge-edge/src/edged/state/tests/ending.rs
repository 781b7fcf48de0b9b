//! From containers that run to nothing.

use super::*;

#[test]
fn a_pod_that_is_deleted_stops_with_its_hook_says_how_it_ended_and_goes() {
    let mut world = World::new();
    let hook = json!({ "lifecycle": { "preStop": { "exec": { "command": ["/drain"] } } } });
    world.apply("web", app(hook));
    world.wait(1);
    world.delete("web", 20);
    world.wait(5);
    assert_eq!(world.begun("stop web"), ["stop web/app 20s preStop"]);
    assert_eq!(world.messages("Killing"), ["Stopping container app"]);
    let ended = &world.container("web", "app")["state"]["terminated"];
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(143), &json!("Error")));
    assert_eq!(world.status("web")["phase"], "Failed");
    assert!(world.gone.contains("web"));
    assert!(world.runtime.sandboxes.is_empty());
    assert_eq!(world.begun("removeFiles").len(), 1);
}

#[test]
fn sidecars_are_stopped_after_the_others_in_reverse_order_within_one_grace() {
    let mut world = World::new();
    world.script.takes = vec![("stop web/app", 12 * SECOND)];
    let proxies = ["first", "second"].map(|name| container(name, json!({ "restartPolicy": "Always" })));
    let spec = json!({ "initContainers": proxies,
        "containers": [container("app", json!({})), container("other", json!({}))] });
    world.apply("web", spec);
    world.wait(1);
    world.delete("web", 30);
    world.wait(20);
    let stops = world.begun("stop web");
    assert_eq!(stops[..2], ["stop web/app 30s", "stop web/other 30s"]);
    assert!(stops[2].starts_with("stop web/second 17.9"), "{stops:?}");
    assert!(stops[3].starts_with("stop web/first 17.9"), "{stops:?}");
    assert!(world.gone.contains("web"));
}

#[test]
fn a_shorter_grace_overtakes_a_longer_one_and_the_hook_is_not_run_again() {
    let mut world = World::new();
    world.script.deaf.insert("web/app");
    world.apply("web", app(json!({ "lifecycle": { "preStop": { "sleep": { "seconds": 5 } } } })));
    world.wait(1);
    world.delete("web", 600);
    world.wait(10);
    world.delete("web", 0);
    world.wait(5);
    assert_eq!(world.begun("stop web"), ["stop web/app 10m0s preStop", "stop web/app 0s"]);
    assert!(world.gone.contains("web"));
}

#[test]
fn a_pod_removed_by_force_is_stopped_and_leaves_nothing() {
    let mut world = World::new();
    world.apply("web", app(json!({})));
    world.wait(1);
    world.forget("web");
    world.wait(5);
    assert_eq!(world.begun("stop web"), ["stop web/app 30s"]);
    assert!(world.runtime.sandboxes.is_empty());
    assert!(world.state.pods.is_empty());
    assert!(!world.gone.contains("web"), "nobody asks about it any more");
}

#[test]
fn a_delete_does_not_wait_for_a_pull_nor_for_a_hook_that_hangs() {
    let mut world = World::new();
    world.script.takes = vec![("pull slow", 3000 * SECOND), ("postStart", 3000 * SECOND)];
    world.apply("slow", app(json!({})));
    let hook =
        json!({ "lifecycle": { "postStart": { "exec": { "command": ["/hang"] } } }, "image": "other:1" });
    world.apply("hang", app(hook));
    world.wait(10);
    world.delete("slow", 30);
    world.delete("hang", 30);
    world.wait(5);
    assert!(world.gone.contains("slow") && world.gone.contains("hang"), "{}", world.story());
}

#[test]
fn what_keeps_a_pod_from_starting_does_not_keep_it_from_going() {
    let mut world = World::new();
    world.script.fails = vec![("prepare", "no space left", 8)];
    world.apply("web", app(json!({})));
    world.wait(130);
    assert_eq!(world.begun("run").len(), 0);
    world.forget("web");
    world.wait(1);
    assert_eq!(world.begun("removeFiles").len(), 1);
}

#[test]
fn a_pod_past_its_deadline_fails_and_is_stopped() {
    let mut world = World::new();
    let mut spec = app(json!({}));
    spec["activeDeadlineSeconds"] = json!(60);
    world.apply("web", spec);
    world.wait(30);
    // The time it was active is not forgotten.
    world.restart(|| true);
    world.wait(29);
    assert!(world.is_ready("web"));
    world.wait(5);
    let status = world.status("web");
    assert_eq!((&status["phase"], &status["reason"]), (&json!("Failed"), &json!("DeadlineExceeded")));
    assert_eq!(status["message"], "Pod was active on the node longer than the specified deadline");
    assert_eq!(world.runtime.running("web", "app"), 0);
    assert_eq!(world.messages("DeadlineExceeded").len(), 1);
    world.restart(|| true);
    world.wait(600);
    assert_eq!(world.starts("web/app"), 1);
    world.delete("web", 30);
    world.wait(5);
    assert!(world.gone.contains("web"));
}

#[test]
fn an_eviction_ends_the_pod_and_says_so() {
    let mut world = World::new();
    world.apply("web", app(json!({})));
    world.wait(1);
    let verdict = Verdict {
        reason: "Evicted".into(),
        message: "The node was low on resource: memory.".into(),
        grace: Some(Duration::ZERO),
        disruption: Some("TerminationByKubelet"),
    };
    let note = Note::of_pod(crate::edged::events::Kind::Warning, "Evicted", &verdict.message);
    world.state.handle_verdict(&Uid::new("web"), verdict, note);
    world.wait(5);
    assert_eq!(world.status("web")["reason"], "Evicted");
    assert_eq!(world.condition("web", "DisruptionTarget")["reason"], "TerminationByKubelet");
    assert_eq!(world.condition("web", "Ready")["reason"], "PodFailed");
    assert_eq!(world.runtime.running("web", "app"), 0);
    assert_eq!(world.messages("Evicted").len(), 1);
}

#[test]
fn last_words_are_told_with_the_end_of_the_container() {
    let mut world = World::new();
    world.script.exits.insert("web/app", [(SECOND, 1)].into());
    world.script.words.insert("web/app", "disk full\n");
    world.apply("web", app(json!({})));
    world.wait(10);
    let told = &world.told["web"];
    let without = |status: &&Value| {
        let ended = &status["containerStatuses"][0]["state"]["terminated"];
        ended.is_object() && ended["message"] != "disk full\n"
    };
    assert_eq!(told.iter().find(without), None);
    assert_eq!(world.container("web", "app")["lastState"]["terminated"]["message"], "disk full\n");
}
