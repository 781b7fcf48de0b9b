//! Stories of the plan: observations and outcomes in, actions out.

use kubeedge_core::{
    message::PodState,
    runtime::{ContainerId, ContainerState, ObservedContainer, SandboxId},
};
use serde_json::{Value, json};

use super::*;
use crate::edged::{action::Failure, make, pod};

struct Story {
    state: State,
    now: Moment,
}

impl Story {
    fn new() -> Self {
        let now = Moment { at: Instant::now(), unix_ms: 1_700_000_000_000 };
        let config = Config::new("edge-1".parse().unwrap());
        let state = State::new(config, Capacity { cpu_milli: 2000, memory_bytes: 1 << 30 }, now);
        Self { state, now }
    }

    fn pass(&mut self, seconds: u64) {
        self.now.at += Duration::from_secs(seconds);
        self.now.unix_ms += seconds * 1000;
    }

    fn apply(&mut self, name: &str, image: &str) {
        self.apply_with(name, &json!({ "containers": [{ "name": "app", "image": image }] }));
    }

    fn apply_with(&mut self, name: &str, spec: &Value) {
        let metadata = json!({ "name": name, "namespace": "default", "uid": name });
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec });
        let object = Object::from_json(pod.to_string()).unwrap();
        self.state.handle_object(ObjectEvent::Applied(object), self.now);
    }

    /// What the state asks for by now: its actions as their names, and whether it wants to observe.
    fn outputs(&mut self) -> (Vec<(String, Action)>, bool, Vec<PodReport>) {
        self.state.handle_timeout(self.now);
        let (mut actions, mut observe, mut reports) = (Vec::new(), false, Vec::new());
        while let Some(output) = self.state.poll_output() {
            match output {
                Output::Do(uid, action) => actions.push((uid.to_string(), action)),
                Output::Abort(uid) => panic!("abort of {uid}"),
                Output::Observe => observe = true,
                Output::Report(Report::Pod(report)) => reports.push(report),
                Output::Report(other) => panic!("{other:?}"),
            }
        }
        (actions, observe, reports)
    }

    fn one(&mut self) -> Action {
        let (mut actions, _, _) = self.outputs();
        assert_eq!(actions.len(), 1, "{actions:?}");
        actions.remove(0).1
    }

    fn nothing(&mut self) {
        let (actions, _, _) = self.outputs();
        assert!(actions.is_empty(), "{actions:?}");
    }

    /// An observation that begins and ends here; one that had begun before is forgotten.
    fn observe(&mut self, sandboxes: Vec<ObservedSandbox>) {
        self.state.observing = None;
        self.state.observe_at = self.now.at;
        self.state.handle_timeout(self.now);
        self.state.handle_observed(Ok(sandboxes), self.now);
    }

    fn connect(&mut self, connectivity: Connectivity) {
        self.state.handle_connectivity(connectivity, self.now);
    }

    fn done(&mut self, name: &str) {
        self.state.handle_done(&Uid::new(name), Outcome::Done, self.now);
    }
}

fn sandbox(name: &str, attempt: u32, ready: bool, containers: Vec<ObservedContainer>) -> ObservedSandbox {
    ObservedSandbox {
        id: SandboxId(format!("{name}-{attempt}")),
        name: name.into(),
        namespace: "default".into(),
        uid: Uid::new(name),
        attempt,
        ready,
        ips: vec!["10.0.0.2".into()],
        created_at_ms: 1_700_000_000_000,
        containers,
    }
}

fn container(attempt: u32, image: &str, state: ContainerState) -> ObservedContainer {
    let made_from = pod::Container { name: "app".into(), image: image.into(), ..pod::Container::default() };
    ObservedContainer {
        id: ContainerId(format!("app-{attempt}")),
        name: "app".into(),
        attempt,
        image: image.into(),
        image_id: "sha256:1".into(),
        spec_hash: make::spec_hash(&made_from),
        state,
        log: None,
        ..ObservedContainer::default()
    }
}

const RUNNING: ContainerState = ContainerState::Running { started_at_ms: 1_700_000_000_000 };

fn exited(code: i32) -> ContainerState {
    ContainerState::Exited {
        exit_code: Some(code),
        reason: String::new(),
        message: String::new(),
        started_at_ms: 1_700_000_000_000,
        finished_at_ms: 1_700_000_001_000,
    }
}

#[test]
fn nothing_is_done_before_the_runtime_was_observed() {
    let mut story = Story::new();
    story.apply("web", "app:1");
    let (actions, observe, _) = story.outputs();
    assert!(actions.is_empty() && observe);
    story.state.handle_observed(Ok(vec![]), story.now);
    assert!(matches!(story.one(), Action::Prepare(_)));
}

#[test]
fn a_new_pod_takes_one_step_after_the_other() {
    let mut story = Story::new();
    story.observe(vec![]);
    story.apply("web", "app:1");
    assert!(matches!(story.one(), Action::Prepare(_)));
    story.nothing();
    story.done("web");
    let Action::RunSandbox(config) = story.one() else { panic!() };
    assert_eq!((config.attempt, config.hostname.as_str()), (0, "web"));
    story.done("web");
    story.observe(vec![sandbox("web", 0, true, vec![])]);
    assert!(matches!(
        story.one(),
        Action::Pull { policy: crate::edged::action::PullPolicy::IfNotPresent, .. }
    ));
    story.done("web");
    let Action::Start { config, .. } = story.one() else { panic!() };
    assert_eq!((config.attempt, config.log_path.to_str().unwrap()), (0, "app/0.log"));
    story.done("web");
    story.observe(vec![sandbox("web", 0, true, vec![container(0, "app:1", RUNNING)])]);
    let (actions, _, reports) = story.outputs();
    assert!(actions.is_empty(), "{actions:?}");
    let PodState::Status(status) = &reports.last().unwrap().state else { panic!() };
    assert!(std::str::from_utf8(status).unwrap().contains(r#""phase":"Running""#));
}

#[test]
fn an_observation_that_began_before_a_step_ended_says_nothing_about_it() {
    let mut story = Story::new();
    story.observe(vec![]);
    story.apply("web", "app:1");
    story.one();
    story.done("web");
    assert!(matches!(story.one(), Action::RunSandbox(_)));
    // This observation begins while the sandbox is being made, and ends after it was.
    story.pass(1);
    let (_, observe, _) = story.outputs();
    assert!(observe);
    story.done("web");
    story.state.handle_observed(Ok(vec![]), story.now);
    let (actions, observe, _) = story.outputs();
    assert!(actions.is_empty(), "a second sandbox: {actions:?}");
    assert!(observe, "it has to look again at once");
    story.state.handle_observed(Ok(vec![sandbox("web", 0, true, vec![])]), story.now);
    assert!(matches!(story.one(), Action::Pull { .. }));
}

#[test]
fn what_runs_already_is_left_alone() {
    let mut story = Story::new();
    story.observe(vec![sandbox("web", 3, true, vec![container(7, "app:1", RUNNING)])]);
    story.nothing();
    story.apply("web", "app:1");
    assert!(matches!(story.one(), Action::Prepare(_)), "its files are looked at");
    story.done("web");
    story.pass(3600);
    story.nothing();
}

#[test]
fn a_container_that_was_created_and_never_started_is_started() {
    let mut story = Story::new();
    story.observe(vec![sandbox("web", 0, true, vec![container(0, "app:1", ContainerState::Created)])]);
    story.apply("web", "app:1");
    story.one();
    story.done("web");
    assert!(matches!(story.one(), Action::StartCreated { .. }));
}

#[test]
fn another_image_replaces_the_container_in_its_sandbox() {
    let mut story = Story::new();
    story.observe(vec![sandbox("web", 0, true, vec![container(0, "app:1", RUNNING)])]);
    story.apply("web", "app:2");
    story.one();
    story.done("web");
    assert!(matches!(story.one(), Action::Stop { .. }));
    story.done("web");
    story.observe(vec![sandbox("web", 0, true, vec![container(0, "app:1", exited(143))])]);
    assert!(matches!(story.one(), Action::Pull { image, .. } if image == "app:2"));
    story.done("web");
    assert!(matches!(story.one(), Action::Start { config, .. } if config.attempt == 1));
}

#[test]
fn back_off_doubles_to_five_minutes_and_ten_good_minutes_end_it() {
    let mut story = Story::new();
    story.observe(vec![sandbox("web", 0, true, vec![container(0, "app:1", exited(1))])]);
    story.apply("web", "app:1");
    story.one();
    story.done("web");
    let mut waits = Vec::new();
    for attempt in 0..9 {
        story.observe(vec![sandbox("web", 0, true, vec![container(attempt, "app:1", exited(1))])]);
        let mut waited = 0;
        while story.outputs().0.is_empty() {
            story.pass(1);
            waited += 1;
            story.state.handle_observed(
                Ok(vec![sandbox("web", 0, true, vec![container(attempt, "app:1", exited(1))])]),
                story.now,
            );
        }
        waits.push(waited);
        story.done("web");
        assert!(matches!(story.one(), Action::Start { .. }));
        story.done("web");
    }
    assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300, 300]);
    let ran_long = ContainerState::Exited {
        exit_code: Some(1),
        reason: String::new(),
        message: String::new(),
        started_at_ms: 1_700_000_000_000,
        finished_at_ms: 1_700_000_000_000 + 600_000,
    };
    story.observe(vec![sandbox("web", 0, true, vec![container(9, "app:1", ran_long)])]);
    assert!(matches!(story.one(), Action::Pull { .. }), "at once");
}

#[test]
fn a_dead_sandbox_is_replaced_and_removed_afterwards() {
    let mut story = Story::new();
    let dead = || sandbox("web", 0, false, vec![container(0, "app:1", exited(255))]);
    story.observe(vec![dead()]);
    story.apply("web", "app:1");
    story.one();
    story.done("web");
    assert!(matches!(story.one(), Action::RunSandbox(config) if config.attempt == 1));
    story.done("web");
    story.observe(vec![dead(), sandbox("web", 1, true, vec![])]);
    story.one();
    story.done("web");
    assert!(matches!(story.one(), Action::Start { config, .. } if config.attempt == 1));
    story.done("web");
    story.observe(vec![dead(), sandbox("web", 1, true, vec![container(1, "app:1", RUNNING)])]);
    assert!(matches!(story.one(), Action::RemoveSandbox(id) if id.0 == "web-0"));
}

#[test]
fn a_pod_that_is_gone_is_forgotten_when_its_name_is_used_again() {
    let mut story = Story::new();
    story.observe(vec![]);
    let pod = |uid: &str, deleted: Value| {
        let metadata =
            json!({ "name": "web", "namespace": "default", "uid": uid, "deletionTimestamp": deleted });
        let spec = json!({ "containers": [{ "name": "app", "image": "app:1" }] });
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec });
        ObjectEvent::Applied(Object::from_json(pod.to_string()).unwrap())
    };
    story.state.handle_object(pod("old", json!("2026-01-01T00:00:00Z")), story.now);
    assert!(matches!(story.one(), Action::RemoveFiles { .. }));
    story.done("old");
    story.state.handle_object(pod("new", Value::Null), story.now);
    let known: Vec<&str> = story.state.pods.keys().map(Uid::as_str).collect();
    assert_eq!(known, ["new"]);
}

#[test]
fn the_end_of_a_pod_that_was_never_heard_of_ends_the_one_of_its_name_that_runs() {
    let mut story = Story::new();
    story.observe(vec![sandbox("web", 0, true, vec![container(0, "app:1", RUNNING)])]);
    story.apply("web", "app:1");
    story.apply("other", "app:1");
    assert_eq!(story.outputs().0.len(), 2);
    story.done("web");
    let reference = ObjectRef::pod("default", "web");
    story.state.handle_object(ObjectEvent::Deleted { reference, uid: Uid::new("web-2") }, story.now);
    assert!(matches!(story.one(), Action::Kill { .. }));
    story.done("web");
    story.observe(vec![]);
    assert!(matches!(story.one(), Action::RemoveFiles { .. }));
    story.done("web");
    let known: Vec<&str> = story.state.pods.keys().map(Uid::as_str).collect();
    assert_eq!(known, ["other"]);
}

#[test]
fn a_config_map_is_gone_by_whatever_uid_its_end_is_told() {
    let mut story = Story::new();
    let metadata = json!({ "name": "settings", "namespace": "default", "uid": "1" });
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata });
    let object = Object::from_json(map.to_string()).unwrap();
    let reference = object.reference.clone();
    story.state.handle_object(ObjectEvent::Applied(object), story.now);
    story.state.handle_object(ObjectEvent::Deleted { reference, uid: Uid::new("2") }, story.now);
    assert!(story.state.objects.is_empty());
}

#[test]
fn many_pods_start_a_few_at_a_time() {
    let mut story = Story::new();
    story.observe(vec![]);
    for number in 0..30 {
        story.apply(&format!("pod-{number}"), "app:1");
    }
    let (actions, _, _) = story.outputs();
    assert_eq!(actions.len(), story.state.config.parallel_starts);
    let first = actions[0].0.clone();
    story.done(&first);
    assert_eq!(story.outputs().0.len(), 1, "a free place is taken at once");
}

#[test]
fn without_a_link_a_quiet_pipe_is_no_reason_to_remove_what_runs() {
    let mut story = Story::new();
    let found = || sandbox("web", 0, true, vec![container(0, "app:1", RUNNING)]);
    story.observe(vec![found()]);
    for connectivity in [Connectivity::Offline, Connectivity::Online, Connectivity::Offline] {
        story.connect(connectivity);
        story.pass(3600);
        story.nothing();
        story.observe(vec![found()]);
        story.nothing();
        assert!(story.state.poll_timeout() > story.now.at, "it asks again and again");
    }
    story.connect(Connectivity::Synchronized);
    story.pass(1);
    story.nothing();
    // Losing the link again does not make unknown what was told.
    story.connect(Connectivity::Offline);
    story.pass(1);
    assert!(matches!(story.one(), Action::Kill { .. }));
}

#[test]
fn a_pod_that_the_cloud_tells_again_after_the_store_was_lost_runs_on() {
    let mut story = Story::new();
    let found = || sandbox("web", 0, true, vec![container(0, "app:1", RUNNING)]);
    story.observe(vec![found()]);
    story.pass(60);
    story.connect(Connectivity::Synchronized);
    story.pass(1);
    story.apply("web", "app:1");
    assert!(matches!(story.one(), Action::Prepare(_)));
    story.done("web");
    story.pass(60);
    story.observe(vec![found()]);
    story.nothing();
}

#[test]
fn a_pod_that_becomes_known_while_it_is_removed_as_nobodys_runs_again() {
    let mut story = Story::new();
    let found = || sandbox("web", 0, true, vec![container(0, "app:1", RUNNING)]);
    story.connect(Connectivity::Synchronized);
    story.observe(vec![found()]);
    story.pass(60);
    assert!(matches!(story.one(), Action::Kill { .. }));
    story.apply("web", "app:1");
    story.nothing();
    story.done("web");
    story.observe(vec![]);
    assert!(matches!(story.one(), Action::Prepare(_)));
    story.done("web");
    assert!(matches!(story.one(), Action::RunSandbox(_)));
}

#[test]
fn what_keeps_a_pod_from_starting_does_not_keep_it_from_going() {
    let mut story = Story::new();
    story.observe(vec![]);
    story.apply("web", "app:1");
    story.one();
    let failure = || Failure { reason: "FailedMount", message: "no space left".into() };
    for _ in 0..8 {
        story.state.handle_done(&Uid::new("web"), Outcome::Failed(failure()), story.now);
        story.nothing();
        story.pass(60);
        story.one();
    }
    story.state.handle_done(&Uid::new("web"), Outcome::Failed(failure()), story.now);
    let reference = ObjectRef::pod("default", "web");
    story.state.handle_object(ObjectEvent::Deleted { reference, uid: Uid::new("web") }, story.now);
    assert!(matches!(story.one(), Action::RemoveFiles { .. }));
}

#[test]
fn a_step_that_fails_is_taken_again_later_and_the_status_says_why() {
    let mut story = Story::new();
    story.observe(vec![]);
    story.apply("web", "app:1");
    story.one();
    story.done("web");
    story.one();
    let failure = Failure { reason: "FailedCreatePodSandBox", message: "no address left".into() };
    story.state.handle_done(&Uid::new("web"), Outcome::Failed(failure), story.now);
    story.observe(vec![]);
    let (actions, _, reports) = story.outputs();
    assert!(actions.is_empty());
    let PodState::Status(status) = &reports.last().unwrap().state else { panic!() };
    assert!(std::str::from_utf8(status).unwrap().contains("no address left"));
    story.pass(1);
    assert!(matches!(story.one(), Action::RunSandbox(_)));
}

#[test]
fn hostile_names_of_an_orphan_lead_to_no_directory() {
    let mut story = Story::new();
    let mut odd = sandbox("x", 0, true, vec![]);
    odd.uid = Uid::new("../../etc");
    story.connect(Connectivity::Synchronized);
    story.observe(vec![odd]);
    story.pass(60);
    assert!(matches!(story.one(), Action::Kill { grace, .. } if grace == Duration::from_secs(30)));
    story.nothing();
    story.done("../../etc");
    story.observe(vec![]);
    let Action::RemoveFiles { directories } = story.one() else { panic!() };
    assert!(directories.is_empty(), "{directories:?}");
}
