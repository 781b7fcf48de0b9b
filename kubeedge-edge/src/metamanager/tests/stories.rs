use std::time::{Duration, Instant};

use kubeedge_core::{message::ObjectEvent::Applied, store::Batch};

use super::{
    super::{
        record,
        state::{Audience, Output, State},
    },
    *,
};

const PAUSE: Duration = Duration::from_secs(1);

fn empty() -> State {
    holding([])
}

fn holding(objects: impl IntoIterator<Item = Object>) -> State {
    let entries: Vec<_> = objects.into_iter().map(|object| object.entry()).collect();
    State::restore(entries, Vec::new(), PAUSE, 4 * PAUSE)
}

fn put(object: &Object) -> Batch {
    let mut batch = Batch::new();
    batch.put(record::key(&object.reference).unwrap(), record::encode(object));
    batch
}

/// Performs what the state asks, with a store that works.
fn settle(state: &mut State) -> Vec<Output> {
    let mut outputs = Vec::new();
    while let Some(output) = state.poll_output() {
        let persist = matches!(output, Output::Persist(_));
        outputs.push(output);
        if persist {
            state.handle_committed();
        }
    }
    outputs
}

fn versions(state: &State) -> Vec<(String, u64)> {
    let line = |entry: &kubeedge_core::message::InventoryEntry| {
        (format!("{} {}", entry.reference.name(), entry.uid), entry.resource_version.0)
    };
    state.inventory().iter().map(line).collect()
}

#[test]
fn an_object_is_persisted_then_acknowledged_then_handed_out() {
    let mut state = empty();
    let pod = pod("a", "1", 5, "x");
    state.handle_object(delivered(1, Applied(pod.clone())));
    assert_eq!(state.poll_output(), Some(Output::Persist(put(&pod))));
    assert_eq!(state.poll_output(), None, "nothing is said before it is durable");
    assert!(state.inventory().is_empty(), "the cloud is not told of what could still be lost");
    state.handle_committed();
    assert_eq!(state.poll_output(), Some(Output::Ack(acked(pod.reference.clone(), 1))));
    assert_eq!(state.poll_output(), Some(Output::Notify(Audience::Workloads, Applied(pod))));
    assert_eq!(state.poll_output(), None);
    assert_eq!(versions(&state), [("a 1".to_owned(), 5)]);
}

#[test]
fn objects_that_wait_together_share_one_commit_and_all_are_acknowledged_before_any_is_handed_out() {
    let mut state = empty();
    for i in 0..5 {
        state.handle_object(delivered(i, Applied(pod(&format!("p{i}"), "1", 1, "x"))));
    }
    let outputs = settle(&mut state);
    let shape: String = outputs
        .iter()
        .map(|output| match output {
            Output::Persist(_) => 'P',
            Output::Ack(_) => 'A',
            Output::Notify(..) => 'N',
        })
        .collect();
    assert_eq!(shape, "PAAAAANNNNN");
}

#[test]
fn pods_are_committed_and_handed_out_behind_all_else_that_has_come() {
    let mut state = empty();
    let service = |number: u64| {
        let reference = ObjectRef::new("v1", "Service", "default", format!("s{number:03}"));
        object(reference, "1", 1, &"x".repeat(8 << 10))
    };
    // More than one commit takes.
    let (pods, services) = (20, 200);
    for number in 0..pods {
        state.handle_object(delivered(number, Applied(pod(&format!("p{number}"), "1", 1, "x"))));
    }
    for number in 0..services {
        state.handle_object(delivered(pods + number, Applied(service(number))));
    }
    let outputs = settle(&mut state);
    assert!(outputs.iter().filter(|output| matches!(output, Output::Persist(_))).count() > 1);
    let kinds = outputs.iter().filter_map(|output| match output {
        Output::Notify(_, event) => Some(event.key().kind().to_owned()),
        Output::Persist(_) | Output::Ack(_) => None,
    });
    let kinds: Vec<_> = kinds.collect();
    let first_pod = kinds.iter().position(|kind| kind == "Pod");
    assert_eq!((first_pod, kinds.len()), (Some(200), 220));
}

#[test]
fn an_older_version_and_a_duplicate_are_acknowledged_and_not_stored() {
    for (version, content) in [(4, "older"), (5, "x")] {
        let mut state = holding([pod("a", "1", 5, "x")]);
        let known = pod("a", "1", version, content);
        state.handle_object(delivered(9, Applied(known.clone())));
        assert_eq!(settle(&mut state), [Output::Ack(acked(known.reference, 9))]);
        assert_eq!(versions(&state), [("a 1".to_owned(), 5)]);
    }
}

#[test]
fn versions_that_are_no_numbers_do_not_hold_a_changed_object_back() {
    let mut state = holding([pod("a", "1", 0, "x")]);
    state.handle_object(delivered(1, Applied(pod("a", "1", 0, "y"))));
    assert_eq!(settle(&mut state).len(), 3);
}

#[test]
fn another_uid_takes_the_place_of_the_object_whatever_its_version() {
    let mut state = holding([pod("a", "old", 50, "x")]);
    state.handle_object(delivered(1, Applied(pod("a", "new", 3, "y"))));
    assert_eq!(settle(&mut state).len(), 3);
    assert_eq!(versions(&state), [("a new".to_owned(), 3)]);
}

#[test]
fn a_delete_removes_the_object_it_means() {
    let mut state = holding([pod("a", "1", 5, "x")]);
    let reference = ObjectRef::pod("default", "a");
    let event = deleted(reference.clone(), "1");
    state.handle_object(delivered(1, event.clone()));
    let mut batch = Batch::new();
    batch.delete(record::key(&reference).unwrap());
    assert_eq!(
        settle(&mut state),
        [
            Output::Persist(batch),
            Output::Ack(acked(reference, 1)),
            Output::Notify(Audience::Workloads, event)
        ]
    );
    assert!(state.inventory().is_empty());
}

#[test]
fn a_delete_of_an_earlier_object_of_that_name_or_of_none_is_acknowledged_and_ignored() {
    let reference = ObjectRef::pod("default", "a");
    for mut state in [holding([pod("a", "new", 5, "x")]), empty()] {
        let held = versions(&state);
        state.handle_object(delivered(1, deleted(reference.clone(), "old")));
        assert_eq!(settle(&mut state), [Output::Ack(acked(reference.clone(), 1))]);
        assert_eq!(versions(&state), held);
    }
}

#[test]
fn an_acknowledgement_that_covers_an_earlier_delivery_waits_for_it_to_be_durable() {
    let mut state = empty();
    let pod = pod("a", "1", 5, "x");
    state.handle_object(delivered(1, Applied(pod.clone())));
    state.handle_object(delivered(2, Applied(pod.clone())));
    let outputs = settle(&mut state);
    assert_eq!(
        outputs,
        [
            Output::Persist(put(&pod)),
            Output::Ack(acked(pod.reference.clone(), 2)),
            Output::Notify(Audience::Workloads, Applied(pod))
        ]
    );
}

#[test]
fn a_newer_event_takes_the_place_of_one_that_waits() {
    let mut state = holding([pod("a", "old", 1, "x")]);
    let reference = ObjectRef::pod("default", "a");
    state.handle_object(delivered(1, deleted(reference.clone(), "old")));
    state.handle_object(delivered(2, Applied(pod("a", "new", 2, "y"))));
    // This one means the object before, which is replaced anyway.
    state.handle_object(delivered(3, deleted(reference.clone(), "old")));
    let outputs = settle(&mut state);
    assert_eq!(outputs[1], Output::Ack(acked(reference, 3)));
    assert_eq!(versions(&state), [("a new".to_owned(), 2)]);
}

#[test]
fn after_a_failed_commit_nothing_is_said_and_all_of_it_is_tried_again() {
    let mut state = empty();
    let start = Instant::now();
    let pod = pod("a", "1", 5, "x");
    state.handle_object(delivered(1, Applied(pod.clone())));
    for (failure, pause) in [1, 2, 4, 4].into_iter().enumerate() {
        assert_eq!(state.poll_output(), Some(Output::Persist(put(&pod))), "try {failure}");
        assert_eq!(state.handle_commit_failed(start), pause * PAUSE);
        assert_eq!(state.poll_output(), None);
        assert!(!state.has_room(), "what comes stays in its pipe");
        assert_eq!(state.poll_timeout(), Some(start + pause * PAUSE));
        state.handle_timeout(start + pause * PAUSE - Duration::from_millis(1));
        assert_eq!(state.poll_output(), None, "the pause is kept");
        state.handle_timeout(start + pause * PAUSE);
    }
    assert!(state.inventory().is_empty());
    assert_eq!(settle(&mut state).len(), 3);
    // A success forgets the failures.
    state.handle_object(delivered(2, deleted(pod.reference, "1")));
    assert!(matches!(state.poll_output(), Some(Output::Persist(_))));
    assert_eq!(state.handle_commit_failed(start), PAUSE);
}

#[test]
fn what_came_while_a_commit_was_under_way_wins_over_the_commit_that_failed() {
    let mut state = empty();
    let now = Instant::now();
    state.handle_object(delivered(1, Applied(pod("a", "1", 1, "x"))));
    assert!(matches!(state.poll_output(), Some(Output::Persist(_))));
    let newer = pod("a", "1", 2, "y");
    state.handle_object(delivered(2, Applied(newer.clone())));
    state.handle_commit_failed(now);
    state.handle_timeout(now + PAUSE);
    let outputs = settle(&mut state);
    assert_eq!(outputs[..2], [Output::Persist(put(&newer)), Output::Ack(acked(newer.reference, 2))]);
}

#[test]
fn kinds_go_to_the_part_that_works_with_them_and_others_are_only_stored() {
    let models = ObjectRef::device_model("default", "m");
    let service = ObjectRef::new("v1", "Service", "default", "s");
    let other = ObjectRef::new("example.com/v1", "Secret", "default", "s");
    for (reference, audience) in [
        (ObjectRef::secret("default", "s"), Some(Audience::Workloads)),
        (ObjectRef::config_map("default", "s"), Some(Audience::Workloads)),
        (models, Some(Audience::Devices)),
        (service, Some(Audience::Workloads)),
        (other, None),
    ] {
        let mut state = empty();
        state.handle_object(delivered(1, Applied(object(reference, "1", 1, "x"))));
        let told = settle(&mut state).into_iter().find_map(|output| match output {
            Output::Notify(audience, _) => Some(audience),
            Output::Persist(_) | Output::Ack(_) => None,
        });
        assert_eq!(told, audience);
        assert_eq!(state.inventory().len(), 1);
    }
}

#[test]
fn one_commit_is_bounded_in_objects_and_bytes() {
    let mut state = empty();
    let large = "x".repeat(700 << 10);
    for i in 0..4 {
        state.handle_object(delivered(i, Applied(pod(&format!("p{i}"), "1", 1, &large))));
    }
    let commits = settle(&mut state).into_iter().filter(|output| matches!(output, Output::Persist(_)));
    assert_eq!(commits.count(), 2);
    for i in 0.. {
        if !state.has_room() {
            assert_eq!(i, 256);
            break;
        }
        state.handle_object(delivered(i, Applied(pod(&format!("q{i}"), "1", 1, "x"))));
    }
}

#[test]
fn an_object_that_cannot_be_stored_does_not_block_the_link() {
    let mut state = empty();
    let long = ObjectRef::pod("default", "x".repeat(2000));
    state.handle_object(delivered(1, Applied(object(long.clone(), "1", 1, "x"))));
    assert_eq!(settle(&mut state), [Output::Ack(acked(long, 1))]);
    let uid = "u".repeat(300);
    state.handle_object(delivered(2, Applied(pod("a", &uid, 1, "x"))));
    assert_eq!(settle(&mut state), [Output::Ack(acked(ObjectRef::pod("default", "a"), 2))]);
}

#[test]
fn a_damaged_record_is_removed_and_is_not_in_the_inventory() {
    let key = record::key(&ObjectRef::pod("default", "a")).unwrap();
    let mut state = State::restore([], vec![key.clone()], PAUSE, PAUSE);
    let mut batch = Batch::new();
    batch.delete(key);
    assert_eq!(settle(&mut state), [Output::Persist(batch)]);
    assert!(state.inventory().is_empty());
}
