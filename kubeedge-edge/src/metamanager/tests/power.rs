//! The power goes between any two commits.

use std::{collections::BTreeMap, fs, sync::Arc, time::Duration};

use kubeedge_core::{
    message::ObjectEvent::Applied,
    store::{
        memory::MemoryStore,
        redb::{RedbConfig, RedbStore},
    },
};
use tokio::time::timeout;

use super::{parts::Running, *};

/// Objects come, change, go, and come back under their names.
fn script() -> Vec<ObjectEvent> {
    let config = ObjectRef::config_map("default", "c");
    let model = ObjectRef::device_model("default", "m");
    vec![
        Applied(pod("a", "1", 1, "x")),
        Applied(object(config.clone(), "2", 2, "x")),
        Applied(pod("a", "1", 3, "y")),
        Applied(object(model.clone(), "3", 4, "x")),
        deleted(ObjectRef::pod("default", "a"), "1"),
        Applied(pod("b", "4", 5, "x")),
        Applied(pod("a", "5", 6, "z")),
        Applied(object(config.clone(), "6", 7, "y")),
        deleted(model, "3"),
        deleted(config, "other"),
        Applied(pod("b", "4", 9, "y")),
    ]
}

type Model = BTreeMap<ObjectRef, Object>;

fn apply(model: &mut Model, event: &ObjectEvent) {
    match event {
        Applied(object) => drop(model.insert(object.reference.clone(), object.clone())),
        ObjectEvent::Deleted { reference, uid } => {
            if model.get(reference).is_some_and(|object| object.uid == *uid) {
                model.remove(reference);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_power_cut_after_any_commit_loses_nothing_that_was_acknowledged() {
    let script = script();
    for commits in 0..=script.len() as u64 {
        let store = MemoryStore::new();
        store.cut_power_after(commits);
        let mut running = Running::start(&store);
        let mut model = Model::new();
        for (number, event) in script.iter().enumerate() {
            running.send(number as u64, event.clone());
            let Some(acked) = running.acked().await else { break };
            assert_eq!(acked.delivery, delivery(number as u64));
            apply(&mut model, event);
        }
        running.stop().await;

        let store = store.cut_power();
        let mut running = Running::start(&store);
        let mut handed_out = Model::new();
        while let Some(event) = running.workload().await {
            apply(&mut handed_out, &event);
        }
        while let Some(event) = running.device().await {
            apply(&mut handed_out, &event);
        }
        assert_eq!(handed_out, model, "after {commits} commits");
        let held: Vec<_> = model.keys().map(ToString::to_string).collect();
        assert_eq!(running.held().await, held, "after {commits} commits");

        // Sending all of it again leads to the same end.
        let mut whole = Model::new();
        for (number, event) in script.iter().enumerate() {
            running.send(100 + number as u64, event.clone());
            apply(&mut whole, event);
            assert!(running.acked().await.is_some());
        }
        running.stop().await;
        let running = Running::start(&store.cut_power());
        let held: Vec<_> = whole.keys().map(ToString::to_string).collect();
        assert_eq!(running.held().await, held, "sent again after {commits} commits");
        running.stop().await;
    }
}

#[tokio::test]
async fn a_process_killed_after_any_acknowledgement_finds_it_all_in_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let open = |path| Arc::new(RedbStore::open(path, RedbConfig::default()).unwrap());
    let mut running = Running::start_over(open(path.clone()));
    let mut model = Model::new();
    for (number, event) in script().into_iter().enumerate() {
        running.send(number as u64, event.clone());
        timeout(Duration::from_secs(30), running.outside.acked.recv()).await.unwrap().unwrap();
        apply(&mut model, &event);
        // What a killed process leaves: the file as it is, not closed.
        let killed = directory.path().join(format!("{number}.redb"));
        fs::copy(&path, &killed).unwrap();
        let restarted = Running::start_over(open(killed));
        let held: Vec<_> = model.keys().map(ToString::to_string).collect();
        assert_eq!(restarted.held().await, held, "after {number}");
        restarted.stop().await;
    }
    running.stop().await;
}
