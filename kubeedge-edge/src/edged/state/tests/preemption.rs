//! Critical pods for which others have to go.

use super::*;

fn asks(cpu: &str, priority: i32) -> Value {
    let mut spec = app(json!({ "resources": { "requests": { "cpu": cpu } } }));
    spec["priority"] = json!(priority);
    spec["terminationGracePeriodSeconds"] = json!(10);
    spec
}

const CRITICAL: i32 = 2_000_001_000;

/// A node of two processors, of which `small` has a half, `large` one, and `free` nothing.
fn full() -> World {
    let mut world = World::new();
    world.offer(2000, 1024);
    world.apply("small", asks("500m", 0));
    world.apply("large", asks("1", 0));
    world.apply("free", app(json!({})));
    world.wait(20);
    assert!(world.is_ready("small") && world.is_ready("large") && world.is_ready("free"));
    world
}

#[test]
fn a_critical_pod_takes_the_place_of_as_few_others_as_will_do_and_waits_until_they_have_gone() {
    let mut world = full();
    world.script.takes = vec![("stop large", 5 * SECOND)];
    world.apply("critical", asks("1500m", CRITICAL));
    world.wait(3);
    let gone = world.status("large");
    assert_eq!((&gone["phase"], &gone["reason"]), (&json!("Failed"), &json!("Preempting")));
    assert_eq!(gone["message"], "Preempted in order to admit critical pod");
    assert_eq!(world.condition("large", "DisruptionTarget")["reason"], "TerminationByKubelet");
    assert_eq!(world.messages("Preempting"), ["Preempted in order to admit critical pod"]);
    assert_eq!(world.begun("run critical"), Vec::<&str>::new(), "what it needs is not free yet");
    world.wait(10);
    assert!(world.is_ready("critical"), "{}", world.story());
    assert!(world.is_ready("small") && world.is_ready("free"), "nobody has gone for nothing");
}

#[test]
fn nobody_goes_for_a_pod_that_is_not_critical_or_that_would_not_fit_even_so() {
    let mut world = full();
    world.apply("usual", asks("1500m", 1000));
    world.apply("huge", asks("3", CRITICAL));
    world.wait(5);
    assert_eq!(world.status("usual")["reason"], "OutOfcpu");
    assert_eq!(world.status("huge")["reason"], "OutOfcpu");
    assert!(world.is_ready("small") && world.is_ready("large"));
    assert_eq!(world.messages("Preempting"), Vec::<&str>::new());
}

#[test]
fn one_critical_pod_does_not_take_the_place_of_another_of_its_priority() {
    let mut world = World::new();
    world.offer(2000, 1024);
    world.apply("first", asks("1500m", CRITICAL));
    world.wait(20);
    world.apply("second", asks("1500m", CRITICAL));
    world.wait(5);
    assert!(world.is_ready("first"));
    assert_eq!(world.status("second")["reason"], "OutOfcpu");
}
