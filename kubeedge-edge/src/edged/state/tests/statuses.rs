//! What a pod's status says, word by word.

use super::*;

#[test]
fn a_crash_loop_reads_as_the_kubelets() {
    let mut world = World::new();
    world.script.exits.insert("web/app", [(SECOND, 2), (SECOND, 2), (SECOND, 2), (SECOND, 2)].into());
    world.apply("web", app(json!({})));
    world.wait(5);
    let status = world.container("web", "app");
    assert_eq!(status["state"]["waiting"]["reason"], "CrashLoopBackOff");
    let message = "back-off 10s restarting failed container=app pod=web_default(web)";
    assert_eq!(status["state"]["waiting"]["message"], message);
    let last = &status["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["reason"]), (&json!(2), &json!("Error")));
    assert!(
        last["containerID"].is_string() && last["startedAt"].is_string() && last["finishedAt"].is_string()
    );
    assert_eq!((&status["ready"], &status["restartCount"]), (&json!(false), &json!(1)));
    assert_eq!(world.status("web")["phase"], "Running");
    assert_eq!(
        world.messages("BackOff"),
        ["Back-off restarting failed container app in pod web_default(web)"]
    );
    world.wait(20);
    assert!(world.status("web").to_string().contains("back-off 20s restarting"));
}

#[test]
fn the_phase_follows_the_containers() {
    let ends = [("Always", 0, "Running"), ("OnFailure", 0, "Succeeded"), ("OnFailure", 1, "Running")];
    let never = [("Never", 0, "Succeeded"), ("Never", 1, "Failed")];
    for (policy, code, phase) in ends.into_iter().chain(never) {
        let mut world = World::new();
        world.script.exits.insert("web/app", [(SECOND, code), (600 * SECOND, code)].into());
        let mut spec = app(json!({}));
        spec["restartPolicy"] = json!(policy);
        world.apply("web", spec);
        world.wait(5);
        assert_eq!(world.status("web")["phase"], phase, "{policy} {code}");
    }
}

#[test]
fn a_pod_without_a_sandbox_says_that_it_waits() {
    let mut world = World::new();
    world.script.takes = vec![("run", 10 * SECOND)];
    world.apply_with("web", app(json!({})), &json!({ "generation": 3 }));
    world.wait(5);
    let status = world.status("web");
    assert_eq!(status["phase"], "Pending");
    assert_eq!(world.waiting("web", "app"), "ContainerCreating");
    assert_eq!(world.condition("web", "PodReadyToStartContainers")["status"], "False");
    assert_eq!(world.condition("web", "PodScheduled")["status"], "True");
    assert_eq!(status["observedGeneration"], 3);
    assert_eq!(world.condition("web", "PodScheduled")["observedGeneration"], 3);
    assert_eq!((&status["hostIP"], &status["qosClass"]), (&json!("192.0.2.7"), &json!("BestEffort")));
    world.wait(10);
    assert_eq!(world.condition("web", "PodReadyToStartContainers")["status"], "True");
    assert!(world.status("web")["podIPs"][0]["ip"].is_string());
}

#[test]
fn a_container_that_the_runtime_lost_is_told_as_unknown_and_started_again() {
    let mut world = World::new();
    world.apply("web", app(json!({})));
    world.wait(5);
    world.runtime.sandboxes[0].containers.clear();
    world.wait(5);
    let status = world.container("web", "app");
    assert_eq!(status["lastState"]["terminated"]["reason"], "ContainerStatusUnknown");
    assert_eq!(status["restartCount"], 1);
    assert!(world.is_ready("web"));
}
