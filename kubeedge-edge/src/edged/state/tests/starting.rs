//! From a pod to containers that run.

use super::*;

#[test]
fn a_pod_runs_after_a_few_steps_and_its_events_say_which() {
    let mut world = World::new();
    world.apply("web", app(json!({})));
    world.wait_ms(100);
    assert!(world.is_ready("web"), "{}", world.story());
    let steps: Vec<&str> = world.begun("");
    assert_eq!(
        steps,
        ["prepare web", "run web#0", "inspect web/app", "pull web/app", "create web/app#0", "start web/app"]
    );
    let told: Vec<(&str, &str)> = world
        .events
        .iter()
        .map(|event| (event["reason"].as_str().unwrap(), event["message"].as_str().unwrap()))
        .collect();
    assert_eq!(
        told,
        [
            ("Pulling", "Pulling image \"app:1\""),
            ("Pulled", "Successfully pulled image \"app:1\" in 10ms (10ms including waiting)"),
            ("Created", "Created container: app"),
            ("Started", "Started container app"),
        ]
    );
}

#[test]
fn nothing_is_done_before_the_runtime_was_observed() {
    let mut world = World::new();
    world.runtime.away = true;
    world.apply("web", app(json!({})));
    world.wait(30);
    assert_eq!(world.begun(""), Vec::<&str>::new());
    world.runtime.away = false;
    world.wait(2);
    assert!(world.is_ready("web"));
}

#[test]
fn images_are_fetched_at_once_and_while_the_sandbox_is_made() {
    let mut world = World::new();
    world.script.takes = vec![("pull", 10 * SECOND), ("run", 5 * SECOND)];
    let names = ["a", "b", "c"];
    let containers: Vec<Value> =
        names.iter().map(|name| container(name, json!({ "image": format!("{name}:1") }))).collect();
    world.apply("web", json!({ "containers": containers }));
    world.wait(11);
    assert!(world.is_ready("web"), "{}", world.story());
    assert_eq!(world.begun("start"), ["start web/a", "start web/b", "start web/c"], "in the pod's order");
}

#[test]
fn a_post_start_hook_holds_up_those_behind_it_at_their_first_start() {
    let mut world = World::new();
    world.script.takes = vec![("postStart", 10 * SECOND)];
    let hook = json!({ "lifecycle": { "postStart": { "exec": { "command": ["/ready"] } } } });
    world.apply("web", json!({ "containers": [container("proxy", hook), container("app", json!({}))] }));
    world.wait(9);
    assert_eq!((world.starts("web/proxy"), world.starts("web/app")), (1, 0));
    world.wait(2);
    assert_eq!((world.starts("web/proxy"), world.starts("web/app")), (1, 1));
    assert!(world.is_ready("web"));
}

#[test]
fn a_post_start_hook_that_fails_kills_the_container() {
    let mut world = World::new();
    world.script.fails = vec![("postStart", "exit code 1", 2)];
    let hook = json!({ "lifecycle": { "postStart": { "exec": { "command": ["/ready"] } } } });
    world.apply("web", app(hook));
    world.wait(5);
    assert_eq!(world.messages("FailedPostStartHook"), ["PostStartHook failed: exit code 1"; 2]);
    assert!(world.messages("Killing").contains(&"FailedPostStartHook"));
    assert_eq!(world.starts("web/app"), 2);
    assert_eq!(world.waiting("web", "app"), "CrashLoopBackOff");
    world.wait(10);
    assert!(world.is_ready("web"));
    assert_eq!(world.container("web", "app")["restartCount"], 2);
}

#[test]
fn init_containers_run_in_order_and_the_pod_says_for_which_it_waits() {
    let mut world = World::new();
    world.script.exits.insert("web/first", [(3 * SECOND, 1), (3 * SECOND, 0)].into());
    world.script.exits.insert("web/second", [(3 * SECOND, 0)].into());
    let init = [container("first", json!({})), container("second", json!({}))];
    let spec = json!({ "initContainers": init, "containers": [container("app", json!({}))] });
    world.apply("web", spec);
    world.wait(2);
    assert_eq!(world.status("web")["phase"], "Pending");
    assert_eq!(world.waiting("web", "app"), "PodInitializing");
    assert_eq!(world.waiting("web", "second"), "PodInitializing");
    let initialized = world.condition("web", "Initialized");
    assert_eq!(initialized["reason"], "ContainersNotInitialized");
    assert_eq!(initialized["message"], "containers with incomplete status: [first second]");
    world.wait(6);
    assert_eq!(
        world.condition("web", "Initialized")["message"],
        "containers with incomplete status: [second]"
    );
    world.wait(5);
    assert!(world.is_ready("web"));
    assert_eq!(
        world.begun("start"),
        ["start web/first", "start web/first", "start web/second", "start web/app"]
    );
    let first = world.container("web", "first");
    assert_eq!(
        (&first["ready"], &first["state"]["terminated"]["reason"]),
        (&json!(true), &json!("Completed"))
    );
}

#[test]
fn an_init_container_that_fails_ends_a_pod_that_may_not_restart() {
    let mut world = World::new();
    world.script.exits.insert("web/first", [(SECOND, 3)].into());
    let spec = json!({ "restartPolicy": "Never", "initContainers": [container("first", json!({}))],
        "containers": [container("app", json!({}))] });
    world.apply("web", spec);
    world.wait(10);
    assert_eq!(world.status("web")["phase"], "Failed");
    assert_eq!((world.starts("web/first"), world.starts("web/app")), (1, 0));
    assert_eq!(world.begun("stopSandbox").len(), 1);
}

#[test]
fn a_sidecar_starts_before_the_others_and_its_startup_probe_holds_them_up() {
    let mut world = World::new();
    let failing = ProbeResult::Failure("not yet".into());
    world.script.probes.insert(("web/proxy", ProbeKind::Startup), failing);
    let proxy = json!({ "restartPolicy": "Always",
        "startupProbe": { "tcpSocket": { "port": 1 }, "periodSeconds": 1, "failureThreshold": 100 } });
    let spec =
        json!({ "initContainers": [container("proxy", proxy)], "containers": [container("app", json!({}))] });
    world.apply("web", spec);
    world.wait(20);
    assert_eq!((world.starts("web/proxy"), world.starts("web/app")), (1, 0));
    assert_eq!(world.status("web")["phase"], "Pending");
    assert_eq!(world.container("web", "proxy")["started"], false);
    world.script.probes.clear();
    world.wait(2);
    assert!(world.is_ready("web"));
    // It is started again beside the others when it ends.
    let id = world.runtime.sandboxes[0].containers.iter().find(|one| one.name == "proxy").unwrap().id.clone();
    world.runtime.exit(&id, 0, world.now);
    world.wait(3);
    assert_eq!((world.starts("web/proxy"), world.starts("web/app")), (2, 1));
    assert!(world.is_ready("web"));
}

#[test]
fn a_pod_with_a_sidecar_completes_when_its_main_containers_have() {
    let mut world = World::new();
    world.script.exits.insert("job/app", [(5 * SECOND, 0)].into());
    let proxies = ["first", "second"].map(|name| container(name, json!({ "restartPolicy": "Always" })));
    let spec = json!({ "restartPolicy": "OnFailure", "initContainers": proxies,
        "containers": [container("app", json!({}))] });
    world.apply("job", spec);
    world.wait(4);
    assert_eq!(world.status("job")["phase"], "Running");
    world.wait(6);
    assert_eq!(world.status("job")["phase"], "Succeeded");
    let stops = world.begun("stop job");
    assert_eq!(stops[0], "stop job/second 30s");
    assert!(stops[1].starts_with("stop job/first 29.98"), "{stops:?}");
    assert_eq!(world.condition("job", "Ready")["reason"], "PodCompleted");
    assert_eq!(world.condition("job", "Initialized")["reason"], "PodCompleted");
    world.wait(600);
    assert_eq!(world.starts("job/app"), 1);
}

#[test]
fn back_off_doubles_to_five_minutes_and_ten_good_minutes_end_it() {
    let mut world = World::new();
    let crashes = [(SECOND, 1); 9].into_iter().chain([(700 * SECOND, 1), (SECOND, 1)]);
    world.script.exits.insert("web/app", crashes.collect());
    world.apply("web", app(json!({})));
    world.wait(3600);
    let starts: Vec<u64> =
        world.trace.iter().filter(|(_, text)| text.starts_with("create")).map(|(at, _)| at / 1000).collect();
    let gaps: Vec<u64> = starts.windows(2).map(|pair| pair[1] - pair[0] - 1).collect();
    // A second that passes before it is seen is within the wait.
    let expected = [0, 10, 20, 40, 80, 160, 300, 300, 300, 699, 10];
    for (gap, expected) in gaps.iter().zip(expected) {
        assert!(gap.abs_diff(expected) <= 1, "{gaps:?}");
    }
    assert_eq!(gaps.len(), 11);
}

#[test]
fn a_step_that_fails_is_taken_again_later_and_the_status_says_why() {
    let mut world = World::new();
    world.script.fails = vec![("run", "no address left", 3), ("create", "no such device", 2)];
    world.apply("web", app(json!({})));
    world.wait_ms(500);
    assert!(world.status("web").to_string().contains("no address left"));
    assert_eq!(world.waiting("web", "app"), "ContainerCreating");
    world.wait(7);
    assert_eq!(world.waiting("web", "app"), "CreateContainerError");
    world.wait(7);
    assert!(world.is_ready("web"), "{}", world.story());
    assert_eq!(world.messages("FailedCreatePodSandBox").len(), 3);
    assert_eq!(world.messages("Failed"), ["Error: no such device"; 2]);
}

#[test]
fn a_pull_that_fails_is_told_in_the_kubelets_words_and_does_not_hold_up_the_other_container() {
    let mut world = World::new();
    world.script.fails = vec![("pull web/app", "no such host", 2)];
    let other = container("other", json!({ "image": "other:1" }));
    world.apply("web", json!({ "containers": [container("app", json!({})), other] }));
    world.wait(1);
    assert_eq!(world.waiting("web", "app"), "ErrImagePull");
    assert!(world.container("web", "other")["ready"] == true);
    world.wait(5);
    let waiting = &world.container("web", "app")["state"]["waiting"];
    assert_eq!(waiting["reason"], "ImagePullBackOff");
    assert_eq!(waiting["message"], "Back-off pulling image \"app:1\": ErrImagePull: no such host");
    assert_eq!(world.status("web")["phase"], "Pending");
    assert_eq!(world.messages("BackOff"), ["Back-off pulling image \"app:1\""]);
    assert_eq!(
        world.messages("Failed"),
        ["Failed to pull image \"app:1\": no such host", "Error: ErrImagePull", "Error: ImagePullBackOff"]
    );
    world.wait(30);
    assert!(world.is_ready("web"), "{}", world.story());
}

#[test]
fn images_that_cannot_be_are_told_apart() {
    let mut world = World::new();
    world.apply("never", app(json!({ "imagePullPolicy": "Never" })));
    world.apply("wrong", app(json!({ "image": "App:1" })));
    world.apply(
        "config",
        app(json!({ "env": [{ "name": "A", "valueFrom":
        { "configMapKeyRef": { "name": "absent", "key": "a" } } }] })),
    );
    world.wait(1);
    assert_eq!(world.waiting("never", "app"), "ErrImageNeverPull");
    assert_eq!(world.waiting("wrong", "app"), "InvalidImageName");
    assert_eq!(world.waiting("config", "app"), "CreateContainerConfigError");
    world.runtime.images.insert("app:1".into());
    world.wait(15);
    assert!(world.is_ready("never"));
    world.store(json!({ "apiVersion": "v1", "kind": "ConfigMap", "data": { "a": "1" },
        "metadata": { "name": "absent", "namespace": "default", "uid": "absent" } }));
    world.wait(1);
    assert!(world.is_ready("config"));
}

#[test]
fn many_pods_start_a_few_at_a_time_and_each_is_finished_before_the_next() {
    let mut world = World::new();
    world.script.takes = vec![("run", SECOND), ("create", SECOND), ("start", SECOND)];
    for number in 0..20 {
        world.apply(&format!("pod-{number:02}"), app(json!({})));
    }
    world.wait_ms(500);
    assert_eq!(world.begun("run").len(), 8);
    world.wait_ms(3000);
    let ready = (0..20).filter(|number| world.is_ready(&format!("pod-{number:02}"))).count();
    assert_eq!(ready, 8, "{}", world.story());
    world.wait(10);
    assert!((0..20).all(|number| world.is_ready(&format!("pod-{number:02}"))));
}

#[test]
fn another_image_replaces_the_container_in_its_sandbox() {
    let mut world = World::new();
    world.apply("web", app(json!({})));
    world.wait(1);
    world.apply("web", app(json!({ "image": "app:2" })));
    world.wait(3);
    assert_eq!(world.messages("Killing"), ["Container app definition changed, will be restarted"]);
    assert_eq!(world.container("web", "app")["image"], "app:2");
    assert_eq!(world.begun("run").len(), 1);
    assert!(world.is_ready("web"));
}

#[test]
fn a_pod_that_is_held_starts_when_it_is_released() {
    let mut world = World::new();
    let held = json!({ "annotations": { "edge.kubeedge.io/hold-upgrade": "true" } });
    world.apply_with("web", app(json!({})), &held);
    world.wait(10);
    assert_eq!(world.begun(""), Vec::<&str>::new());
    let condition = world.condition("web", "HeldUpgrade");
    assert_eq!((&condition["status"], &condition["reason"]), (&json!("True"), &json!("HoldUpgradeEnabled")));
    assert_eq!(world.status("web")["phase"], "Pending");
    assert!(!world.state.handle_release(&ObjectRef::pod("default", "other")));
    world.restart(|| true);
    world.wait(5);
    assert!(world.state.handle_release(&ObjectRef::pod("default", "web")));
    world.wait(1);
    assert!(world.is_ready("web"));
    assert_eq!(world.condition("web", "HeldUpgrade")["status"], "False");
    world.apply_with("other", app(json!({})), &held);
    world.wait(1);
    world.apply_with("other", app(json!({})), &json!({}));
    world.wait(1);
    assert!(world.is_ready("other"), "without the annotation it is not held");
}

#[test]
fn a_pod_that_comes_while_the_runtime_has_said_nothing_yet_says_why_it_does_not_run() {
    let mut world = World::offline();
    world.runtime.away = true;
    world.connect(Connectivity::Synchronized);
    world.apply("web", app(json!({})));
    world.wait(5);
    let waiting = world.container("web", "app")["state"]["waiting"].clone();
    assert_eq!(waiting["reason"], "ContainerCreating");
    assert!(waiting["message"].as_str().unwrap().contains("unavailable"), "{waiting}");
    assert_eq!(world.told["web"].len(), 1, "it is said once");
    world.runtime.away = false;
    world.wait(5);
    assert!(world.is_ready("web"), "{}", world.story());
    // After a restart nothing is said of a pod that may run.
    world.runtime.away = true;
    world.restart(|| true);
    let told = world.told["web"].len();
    world.wait(5);
    assert_eq!(world.told["web"].len(), told, "{}", world.story());
}
