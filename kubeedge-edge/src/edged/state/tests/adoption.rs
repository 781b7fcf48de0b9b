//! Restarts, reboots, and sandboxes of which nobody has heard.

use kubeedge_core::{
    message::ObjectEvent,
    runtime::{ObservedSandbox, SandboxId},
};

use super::*;

/// A world in which `web` runs already, and is not known.
fn left() -> World {
    let mut world = World::new();
    world.apply("web", app(json!({})));
    world.wait(2);
    let mut second = World::offline();
    second.runtime = world.runtime;
    second
}

#[test]
fn a_restart_adopts_what_runs_and_starts_nothing_twice() {
    let mut world = World::new();
    for name in ["one", "two", "three"] {
        world.apply(name, app(json!({})));
    }
    world.wait(2);
    let before = world.status("one").clone();
    world.restart(|| true);
    world.wait(60);
    for name in ["one", "two", "three"] {
        assert_eq!(world.starts(&format!("{name}/app")), 1);
    }
    assert_eq!(*world.status("one"), before, "no time has moved");
}

#[test]
fn counts_and_last_states_survive_a_restart_a_reboot_and_a_runtime_that_forgot() {
    let mut world = World::new();
    world.script.exits.insert("web/app", [(SECOND, 3), (SECOND, 4)].into());
    world.apply("web", app(json!({})));
    world.wait(30);
    assert_eq!(world.container("web", "app")["restartCount"], 2);
    world.restart(|| true);
    world.wait(5);
    let status = world.container("web", "app");
    assert_eq!(status["restartCount"], 2);
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 4);
    world.connect(Connectivity::Offline);
    world.runtime.power_cycle(world.now);
    world.restart(|| true);
    world.wait(5);
    let status = world.container("web", "app");
    assert_eq!((&status["restartCount"], &status["ready"]), (&json!(3), &json!(true)));
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 137);
    assert_eq!(world.messages("SandboxChanged").len(), 1);
    world.runtime.sandboxes.clear();
    world.restart(|| true);
    world.wait(5);
    assert_eq!(world.container("web", "app")["restartCount"], 4);
    assert!(world.is_ready("web"));
}

#[test]
fn what_has_completed_is_not_run_again_when_the_runtime_forgot_it() {
    let mut world = World::new();
    for (name, policy) in [("once", "Never"), ("job", "OnFailure")] {
        let mut spec = app(json!({}));
        spec["restartPolicy"] = json!(policy);
        world.script.exits.insert(if name == "once" { "once/app" } else { "job/app" }, [(SECOND, 0)].into());
        world.apply(name, spec);
    }
    world.wait(5);
    world.runtime.sandboxes.clear();
    world.restart(|| true);
    world.wait(60);
    for name in ["once", "job"] {
        assert_eq!(world.status(name)["phase"], "Succeeded");
        assert_eq!(world.starts(&format!("{name}/app")), 1);
    }
}

#[test]
fn one_of_two_containers_that_has_completed_rests_in_the_sandbox_after_a_reboot() {
    let mut world = World::new();
    world.script.exits.insert("web/task", [(SECOND, 0)].into());
    let spec = json!({ "restartPolicy": "OnFailure",
        "containers": [container("task", json!({})), container("app", json!({}))] });
    world.apply("web", spec);
    world.wait(5);
    world.runtime.power_cycle(world.now);
    world.wait(10);
    assert_eq!((world.starts("web/task"), world.starts("web/app")), (1, 2), "{}", world.story());
}

#[test]
fn a_container_that_was_created_and_never_started_is_started() {
    let mut world = World::new();
    world.script.takes = vec![("start", 10 * SECOND)];
    world.apply("web", app(json!({})));
    world.wait(1);
    world.restart(|| false);
    world.wait(15);
    assert_eq!((world.begun("create").len(), world.starts("web/app")), (1, 1));
}

#[test]
fn without_a_link_a_quiet_pipe_is_no_reason_to_remove_what_runs() {
    let mut world = left();
    for connectivity in [Connectivity::Offline, Connectivity::Online, Connectivity::Offline] {
        world.connect(connectivity);
        world.wait(600);
        assert_eq!(world.begun(""), Vec::<&str>::new());
    }
    world.connect(Connectivity::Synchronized);
    world.wait(1);
    assert_eq!(world.begun(""), Vec::<&str>::new());
    // Losing the link again does not make unknown what was told.
    world.connect(Connectivity::Offline);
    world.wait(5);
    assert!(world.runtime.sandboxes.is_empty());
    assert_eq!(world.begun("stop web"), ["stop web/app 30s"]);
}

#[test]
fn a_pod_that_the_cloud_tells_again_after_the_store_was_lost_runs_on() {
    let mut world = left();
    world.wait(60);
    world.connect(Connectivity::Synchronized);
    world.wait(1);
    world.apply("web", app(json!({})));
    world.wait(60);
    assert_eq!(world.begun(""), ["prepare web"]);
    assert!(world.is_ready("web"));
}

#[test]
fn a_pod_that_becomes_known_while_it_is_removed_as_nobodys_runs_again() {
    let mut world = left();
    world.script.takes = vec![("stop", 5 * SECOND)];
    world.connect(Connectivity::Synchronized);
    world.wait(14);
    assert_eq!(world.begun("stop web").len(), 1);
    world.apply("web", app(json!({})));
    world.wait(60);
    assert!(world.is_ready("web"), "{}", world.story());
    assert_eq!(world.runtime.running("web", "app"), 1);
}

#[test]
fn hostile_names_of_an_orphan_lead_to_no_directory() {
    let mut world = World::new();
    world.runtime.sandboxes.push(ObservedSandbox {
        id: SandboxId("s".into()),
        name: "web".into(),
        namespace: "default".into(),
        uid: Uid::new("../../etc"),
        attempt: 0,
        ready: true,
        ips: vec![],
        created_at_ms: 0,
        containers: vec![],
    });
    world.wait(60);
    assert!(world.runtime.sandboxes.is_empty());
    assert_eq!(world.removed, [Vec::<std::path::PathBuf>::new()]);
}

#[test]
fn a_pod_is_replaced_by_another_of_its_name() {
    let mut world = World::new();
    world.apply("web", app(json!({})));
    world.wait(1);
    let second = json!({ "uid": "web-2" });
    world.apply_with("web", app(json!({})), &second);
    world.wait(3);
    assert_eq!((world.runtime.running("web", "app"), world.runtime.running("web-2", "app")), (0, 1));
    // A third came and went before it was heard of: its end is all that is heard.
    let reference = ObjectRef::pod("default", "web");
    world.state.handle_object(ObjectEvent::Deleted { reference, uid: Uid::new("web-3") }, world.now);
    world.wait(3);
    assert!(world.runtime.sandboxes.is_empty());
    assert!(world.state.pods.is_empty());
}

#[test]
fn a_config_map_is_gone_by_whatever_uid_its_end_is_told() {
    let mut world = World::new();
    world.store(json!({ "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "settings", "namespace": "default", "uid": "1" } }));
    let reference = ObjectRef::config_map("default", "settings");
    world.state.handle_object(ObjectEvent::Deleted { reference, uid: Uid::new("2") }, world.now);
    assert!(world.state.objects.is_empty());
}

#[test]
fn a_runtime_that_was_away_is_used_again_as_soon_as_it_is_back() {
    let mut world = World::new();
    world.apply("web", app(json!({})));
    world.wait(2);
    world.runtime.away = true;
    world.apply("new", app(json!({ "image": "new:1" })));
    world.delete("web", 30);
    world.wait(300);
    assert!(!world.gone.contains("web"));
    world.runtime.away = false;
    world.wait(3);
    assert!(world.is_ready("new"), "{}", world.story());
    assert!(world.gone.contains("web"));
    assert_eq!(world.starts("web/app"), 1);
}
