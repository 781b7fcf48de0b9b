//! Pods that run and are to have other resources.

use super::*;

fn asks(cpu: &str, memory: &str) -> Value {
    json!({ "requests": { "cpu": cpu, "memory": memory }, "limits": { "cpu": "1", "memory": "512Mi" } })
}

fn sized(resources: Value) -> Value {
    app(json!({ "resources": resources }))
}

/// A node of two processors and 1 GiB where one pod runs that has 500m and 64Mi.
fn running() -> World {
    let mut world = World::new();
    world.offer(2000, 1024);
    world.apply("web", sized(asks("500m", "64Mi")));
    world.wait(20);
    assert!(world.is_ready("web"), "{}", world.story());
    world
}

fn pending(world: &World, uid: &str) -> (Value, Value) {
    let condition = world.condition(uid, "PodResizePending");
    (condition["reason"].clone(), condition["message"].clone())
}

#[test]
fn a_container_that_runs_is_given_what_its_pod_asks_for_without_a_restart() {
    let mut world = running();
    let before = world.container("web", "app");
    assert_eq!(before["allocatedResources"], json!({ "cpu": "500m", "memory": "64Mi" }));
    assert_eq!(before["resources"], asks("500m", "64Mi"));
    world.script.takes = vec![("resize", SECOND)];
    world.apply("web", sized(asks("800m", "128Mi")));
    world.wait_ms(500);
    assert_eq!(world.condition("web", "PodResizeInProgress")["status"], "True");
    let during = world.container("web", "app");
    assert_eq!(during["allocatedResources"], json!({ "cpu": "800m", "memory": "128Mi" }));
    assert_eq!(during["resources"], asks("500m", "64Mi"), "it has not been given them yet");
    world.wait(2);
    assert_eq!(world.begun("resize"), ["resize web/app 819 512Mi"]);
    assert_eq!(world.container("web", "app")["resources"], asks("800m", "128Mi"));
    assert_eq!(world.condition("web", "PodResizeInProgress"), Value::Null);
    assert_eq!((world.starts("web/app"), world.begun("stop").len()), (1, 0));
    assert!(world.is_ready("web"));
}

#[test]
fn what_the_node_can_never_give_is_infeasible_and_says_so() {
    let mut world = running();
    world.apply("web", sized(asks("500m", "2Gi")));
    world.wait(5);
    let why = "Node didn't have enough capacity: memory, requested: 2147483648, capacity: 1073741824";
    assert_eq!(pending(&world, "web"), (json!("Infeasible"), json!(why)));
    assert_eq!(world.messages("ResizeInfeasible"), [why], "it is said once");
    assert_eq!(world.begun("resize"), Vec::<&str>::new());
    assert_eq!(world.container("web", "app")["allocatedResources"]["memory"], "64Mi");
    // Taken back, nothing is pending.
    world.apply("web", sized(asks("500m", "64Mi")));
    world.wait(1);
    assert_eq!(pending(&world, "web"), (Value::Null, Value::Null));
}

#[test]
fn what_cannot_be_changed_is_refused_by_the_member_that_it_is_about() {
    let mut world = running();
    let without = json!({ "requests": { "cpu": "500m", "memory": "64Mi" }, "limits": { "cpu": "1" } });
    let storage = json!({ "requests": { "cpu": "500m", "memory": "64Mi", "ephemeral-storage": "1Gi" },
        "limits": { "cpu": "1", "memory": "512Mi" } });
    let qos =
        json!({ "requests": { "cpu": "1", "memory": "512Mi" }, "limits": { "cpu": "1", "memory": "512Mi" } });
    let cases = [
        (without, "spec.containers[0].resources.limits.memory: resource limits cannot be removed"),
        (
            storage,
            "spec.containers[0].resources.requests[ephemeral-storage]: only cpu and memory of a pod that runs can \
             be changed",
        ),
        (
            qos,
            "spec.containers: Pod QOS Class may not change as a result of resizing: it is Burstable and would be \
             Guaranteed",
        ),
    ];
    for (resources, why) in cases {
        world.apply("web", sized(resources));
        world.wait(1);
        assert_eq!(pending(&world, "web"), (json!("Infeasible"), json!(why)));
    }
    assert_eq!(world.begun("resize"), Vec::<&str>::new());
}

#[test]
fn what_others_have_is_waited_for() {
    let mut world = running();
    world.apply("other", sized(asks("1", "64Mi")));
    world.wait(1);
    assert!(world.is_ready("other"));
    world.apply(
        "web",
        sized(json!({ "requests": { "cpu": "1200m", "memory": "64Mi" },
        "limits": { "cpu": "2", "memory": "512Mi" } })),
    );
    world.wait(5);
    let why = "Node didn't have enough resource: cpu, requested: 1200, used: 1000, capacity: 2000";
    assert_eq!(pending(&world, "web"), (json!("Deferred"), json!(why)));
    world.delete("other", 1);
    world.wait(5);
    assert_eq!(pending(&world, "web"), (Value::Null, Value::Null));
    assert_eq!(world.begun("resize"), ["resize web/app 1228 512Mi"]);
}

#[test]
fn a_container_whose_policy_says_so_is_started_again_with_what_it_gets() {
    let mut world = World::new();
    world.offer(2000, 1024);
    let spec = |memory: &str| {
        app(json!({ "resources": asks("500m", memory),
            "resizePolicy": [{ "resourceName": "memory", "restartPolicy": "RestartContainer" },
                             { "resourceName": "cpu", "restartPolicy": "NotRequired" }] }))
    };
    world.apply("web", spec("64Mi"));
    world.wait(1);
    world.apply("web", spec("128Mi"));
    world.wait(5);
    assert_eq!(world.messages("Killing"), ["Container app resize requires restart"]);
    assert_eq!((world.starts("web/app"), world.begun("resize").len()), (2, 0));
    assert_eq!(world.container("web", "app")["resources"], asks("500m", "128Mi"));
    assert_eq!(world.condition("web", "PodResizeInProgress"), Value::Null);
}

#[test]
fn a_runtime_that_cannot_is_told_in_the_condition_and_tried_again() {
    let mut world = running();
    world.script.fails = vec![("resize", "memory is in use", 2)];
    world.apply("web", sized(asks("500m", "128Mi")));
    world.wait(1);
    let condition = world.condition("web", "PodResizeInProgress");
    let said = (condition["reason"].clone(), condition["message"].clone());
    assert_eq!(said, (json!("Error"), json!("container app: memory is in use")));
    assert_eq!(world.messages("ResizeError"), ["container app: memory is in use"]);
    assert!(world.is_ready("web"), "it runs on");
    world.wait(60);
    assert_eq!(world.begun("resize").len(), 3);
    assert_eq!(world.condition("web", "PodResizeInProgress"), Value::Null);
}

#[test]
fn a_restart_forgets_neither_what_was_allotted_nor_what_is_wanted() {
    let mut world = running();
    world.apply("web", sized(asks("500m", "2Gi")));
    world.wait(1);
    world.restart(|| false);
    world.wait(20);
    assert_eq!(pending(&world, "web").0, "Infeasible");
    assert_eq!(world.container("web", "app")["allocatedResources"]["memory"], "64Mi");
    // One that was under way is brought to its end.
    world.script.takes = vec![("resize", 10 * SECOND)];
    world.apply("web", sized(asks("500m", "128Mi")));
    world.wait(1);
    assert_eq!(world.begun("resize").len(), 1);
    world.restart(|| false);
    world.wait(30);
    assert_eq!(world.begun("resize").len(), 2);
    assert_eq!(world.container("web", "app")["resources"], asks("500m", "128Mi"));
    assert_eq!(world.starts("web/app"), 1);
}

#[test]
fn pods_that_share_the_processors_have_together_what_they_are_promised() {
    let mut world = running();
    world.apply("other", app(json!({ "resources": { "requests": { "cpu": "250m" } } })));
    world.apply("best", app(json!({ "resources": { "limits": { "cpu": "100m", "memory": "1Mi" } } })));
    world.wait(20);
    world.apply("web", sized(asks("800m", "64Mi")));
    world.wait(5);
    world.delete("other", 1);
    world.wait(40);
    assert_eq!(world.shares, [500, 750, 1050, 800], "{}", world.story());
}
