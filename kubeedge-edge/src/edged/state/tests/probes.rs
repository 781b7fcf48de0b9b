//! Probes: when they are made, and what follows.

use super::*;

fn failure(why: &str) -> ProbeResult {
    ProbeResult::Failure(why.to_owned())
}

#[test]
fn a_pod_is_ready_when_its_readiness_probe_says_so_as_often_as_it_must() {
    let mut world = World::new();
    let probe = json!({ "httpGet": { "port": 80 }, "periodSeconds": 5, "initialDelaySeconds": 10,
        "successThreshold": 2, "failureThreshold": 3 });
    world.apply("web", app(json!({ "readinessProbe": probe })));
    world.wait(9);
    assert!(!world.is_ready("web"));
    assert_eq!(world.condition("web", "Ready")["reason"], "ContainersNotReady");
    assert_eq!(world.condition("web", "Ready")["message"], "containers with unready status: [app]");
    assert_eq!(world.container("web", "app")["started"], true);
    world.wait(8);
    assert!(world.is_ready("web"), "after two successes");
    let since = world.condition("web", "Ready")["lastTransitionTime"].clone();
    world
        .script
        .probes
        .insert(("web/app", ProbeKind::Readiness), failure("HTTP probe failed with statuscode: 503"));
    world.wait(9);
    assert!(world.is_ready("web"), "two failures are not three");
    world.wait(6);
    assert!(!world.is_ready("web"));
    assert_ne!(world.condition("web", "Ready")["lastTransitionTime"], since);
    assert_eq!(world.starts("web/app"), 1, "readiness kills nobody");
    assert_eq!(
        world.messages("Unhealthy")[0],
        "Readiness probe failed: HTTP probe failed with statuscode: 503"
    );
    world.script.probes.clear();
    world.wait(11);
    assert!(world.is_ready("web"));
}

#[test]
fn a_liveness_probe_that_fails_restarts_the_container_with_the_probes_own_grace() {
    let mut world = World::new();
    let probe =
        json!({ "exec": { "command": ["/alive"] }, "periodSeconds": 10, "terminationGracePeriodSeconds": 7 });
    world.apply("web", app(json!({ "livenessProbe": probe })));
    world.wait(60);
    assert!(world.is_ready("web"));
    world.script.probes.insert(("web/app", ProbeKind::Liveness), failure("dead"));
    world.wait(31);
    assert_eq!(world.begun("stop web"), ["stop web/app 7s"]);
    assert_eq!(world.messages("Killing"), ["Container app failed liveness probe, will be restarted"]);
    assert_eq!(world.messages("Unhealthy").last(), Some(&"Liveness probe failed: dead"));
    world.script.probes.clear();
    world.wait(60);
    assert_eq!(world.container("web", "app")["restartCount"], 1);
    assert_eq!(world.starts("web/app"), 2);
    assert!(world.is_ready("web"));
}

#[test]
fn a_startup_probe_holds_back_the_others_and_restarts_what_does_not_start() {
    let mut world = World::new();
    world.script.probes.insert(("web/app", ProbeKind::Startup), failure("starting"));
    world.script.probes.insert(("web/app", ProbeKind::Liveness), failure("dead"));
    let startup = json!({ "tcpSocket": { "port": 80 }, "periodSeconds": 1, "failureThreshold": 30 });
    let liveness = json!({ "tcpSocket": { "port": 80 }, "periodSeconds": 1 });
    world.apply("web", app(json!({ "startupProbe": startup, "livenessProbe": liveness })));
    world.wait(25);
    assert_eq!(world.starts("web/app"), 1, "liveness does not count yet");
    assert_eq!(world.container("web", "app")["started"], false);
    assert!(!world.is_ready("web"));
    world.wait(10);
    assert_eq!(world.starts("web/app"), 2);
    assert_eq!(world.messages("Killing"), ["Container app failed startup probe, will be restarted"]);
    world.script.probes.clear();
    world.wait(3);
    assert!(world.is_ready("web"));
    assert_eq!(world.container("web", "app")["started"], true);
}

#[test]
fn a_probe_that_cannot_be_made_changes_nothing() {
    let mut world = World::new();
    let probe = json!({ "exec": { "command": ["/alive"] }, "periodSeconds": 1 });
    world.apply("web", app(json!({ "livenessProbe": probe.clone(), "readinessProbe": probe })));
    world.wait(5);
    assert!(world.is_ready("web"));
    for kind in ProbeKind::ALL {
        world.script.probes.insert(("web/app", kind), ProbeResult::Errored("the runtime is away".into()));
    }
    world.wait(60);
    assert!(world.is_ready("web"));
    assert_eq!(world.starts("web/app"), 1);
}

#[test]
fn a_probe_that_hangs_ends_by_its_timeout_and_holds_up_nothing() {
    let mut world = World::new();
    world.script.probe_takes = Some(1_000_000 * SECOND);
    world.script.probes.insert(("web/app", ProbeKind::Readiness), failure("timed out"));
    let probe = json!({ "tcpSocket": { "port": 80 }, "periodSeconds": 2, "timeoutSeconds": 3 });
    world.apply("web", app(json!({ "readinessProbe": probe })));
    world.apply("other", app(json!({})));
    world.wait(30);
    assert!(world.is_ready("other"));
    assert!(!world.is_ready("web"));
    assert!(
        world.messages("Unhealthy").len() >= 9,
        "one after the other: {}",
        world.messages("Unhealthy").len()
    );
    world.delete("web", 5);
    world.wait(2);
    assert!(world.gone.contains("web"));
}

#[test]
fn a_restart_does_not_make_unready_what_was_ready() {
    let mut world = World::new();
    let probe = json!({ "tcpSocket": { "port": 80 }, "periodSeconds": 10 });
    let startup = json!({ "tcpSocket": { "port": 80 }, "periodSeconds": 10, "failureThreshold": 30 });
    world.apply("web", app(json!({ "readinessProbe": probe, "startupProbe": startup })));
    world.wait(30);
    assert!(world.is_ready("web"));
    let told = world.told["web"].len();
    world.script.probe_takes = Some(Duration::from_millis(900));
    world.restart(|| true);
    world.wait(60);
    let ready = |status: &Value| {
        let conditions = status["conditions"].as_array().unwrap().clone();
        conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    };
    assert!(world.told["web"][told..].iter().all(ready));
    assert_eq!(world.starts("web/app"), 1);
    // What has become unwell meanwhile is found out.
    world.script.probes.insert(("web/app", ProbeKind::Readiness), failure("503"));
    world.restart(|| true);
    world.wait(40);
    assert!(!world.is_ready("web"));
}

#[test]
fn pods_that_began_together_are_not_probed_together() {
    let mut world = World::new();
    let probe = json!({ "tcpSocket": { "port": 80 }, "periodSeconds": 10 });
    for number in 0..8 {
        world.apply(&format!("pod-{number}"), app(json!({ "readinessProbe": probe })));
    }
    world.wait(25);
    let next: std::collections::BTreeSet<Instant> =
        world.state.pods.values().filter_map(|entry| entry.probes.next()).collect();
    let (first, last) = (next.first().unwrap(), next.last().unwrap());
    assert!(last.duration_since(*first) > Duration::from_millis(500), "{next:?}");
}

#[test]
fn a_readiness_gate_holds_back_ready_but_not_the_containers() {
    let mut world = World::new();
    let mut spec = app(json!({}));
    spec["readinessGates"] = json!([{ "conditionType": "example.com/lb" }]);
    world.apply("web", spec.clone());
    world.wait(1);
    assert_eq!(world.condition("web", "ContainersReady")["status"], "True");
    assert_eq!(world.condition("web", "Ready")["reason"], "ReadinessGatesNotReady");
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "spec": spec,
        "metadata": { "name": "web", "namespace": "default", "uid": "web" },
        "status": { "conditions": [{ "type": "example.com/lb", "status": "True" }] } });
    world.store(pod);
    world.wait(1);
    assert!(world.is_ready("web"));
}
