use std::sync::Arc;

use kubeedge_core::{
    message::{Connectivity, Report},
    store::memory::MemoryStore,
};
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    super::{DeviceTwin, Error, Outside, pipes},
    *,
};

/// A running part.
struct Running {
    outside: Outside,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

impl Running {
    fn start(store: &MemoryStore) -> Self {
        let stop = CancellationToken::new();
        let (inbox, outbox, outside) = pipes();
        let config = Config::new("edge-1".parse().unwrap());
        let part = DeviceTwin::new(config, Arc::new(store.clone()), inbox, outbox);
        Self { outside, task: tokio::spawn(part.run(stop.clone())), stop }
    }

    async fn with_thermometer(store: &MemoryStore) -> Self {
        let mut running = Self::start(store);
        running.hear(model(1));
        running.hear(thermometer("u", 1, None));
        running.outside.assignments.recv().await.unwrap();
        running.settle().await;
        running
    }

    fn hear(&self, event: ObjectEvent) {
        self.outside.devices.send(event).unwrap();
    }

    /// Sends a message and waits for an answer on `answer`.
    async fn ask(&mut self, event: &str, payload: Value, answer: &str) -> Value {
        self.outside.device_messages.send(message(event, &payload)).unwrap();
        loop {
            let (topic, payload) = show(&self.next_publish().await);
            if topic == answer {
                return payload;
            }
        }
    }

    async fn next_publish(&mut self) -> Publish {
        timeout(Duration::from_secs(60), self.outside.publishes.recv())
            .await
            .expect("an answer comes")
            .unwrap()
    }

    async fn twins(&mut self) -> Value {
        self.ask("twin/get", json!({}), "twin/get/result").await["twin"].clone()
    }

    /// Waits until nothing is left to do, and forgets what was told.
    async fn settle(&mut self) {
        self.twins().await;
        while self.outside.reports.try_recv().is_some() || self.outside.assignments.try_recv().is_some() {}
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

fn actual(key: &str, value: &str) -> Value {
    json!({"event_id": value, "twin": {key: {"actual": {"value": value}}}})
}

#[tokio::test(start_paused = true)]
async fn twins_survive_a_stop_with_the_readings_that_were_not_written_yet() {
    let store = MemoryStore::new();
    let mut running = Running::with_thermometer(&store).await;
    for value in ["20", "21", "22"] {
        running.outside.readings.send(reading("temperature", value, None)).unwrap();
        running.settle().await;
    }
    let before = running.twins().await;
    running.stop().await;
    let mut running = Running::start(&store);
    assert_eq!(running.twins().await, before);
    assert_eq!(before["temperature"]["actual"]["value"], "22");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_answered_is_there_wherever_the_power_is_cut() {
    for commits in 0..12 {
        let store = MemoryStore::new();
        store.cut_power_after(commits);
        let mut running = Running::start(&store);
        running.hear(model(1));
        running.hear(thermometer("u", 1, Some("20")));
        let mut acknowledged = Vec::new();
        for number in 0..12 {
            let key = format!("k{number}");
            let answer = running.ask("twin/update", actual(&key, "1"), "twin/update/result").await;
            if answer.get("code").is_none() {
                acknowledged.push(key);
            }
        }
        let mut reports = Vec::new();
        while let Some(Report::Device(report)) = running.outside.reports.try_recv() {
            reports.push(report);
        }
        running.task.abort();
        let mut running = Running::start(&store.cut_power());
        let answer = running.ask("twin/get", json!({}), "twin/get/result").await;
        for key in &acknowledged {
            assert_eq!(answer["twin"][key]["actual"]["value"], "1", "{key} after {commits} commits");
        }
        for twin in reports.iter().flat_map(|report| &report.twins) {
            assert!(answer["twin"].get(&twin.property).is_some(), "{} was reported", twin.property);
        }
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_store_fails_applications_are_told_and_the_clouds_wishes_wait() {
    let store = MemoryStore::new();
    let mut running = Running::with_thermometer(&store).await;
    running.ask("twin/update", actual("a", "1"), "twin/update/result").await;
    running.settle().await;
    store.fail_commits_after(0);
    running.hear(thermometer("u", 2, Some("25")));
    let answer = running.ask("twin/update", actual("a", "2"), "twin/update/result").await;
    assert_eq!((&answer["code"], &answer["event_id"]), (&json!(500), &json!("2")));
    assert_eq!(running.twins().await["a"]["actual"]["value"], "1", "what could not be saved is not told");
    let bad = running
        .ask("twin/update", json!({"event_id": "x", "twin": {"a": {"actual": {}}}}), "twin/update/result")
        .await;
    assert_eq!(bad["code"], 400);
    assert!(running.outside.reports.try_recv().is_none_or(|report| {
        let Report::Device(report) = report else { unreachable!() };
        reported(&report, "a").unwrap().0 == "1"
    }));
    store.heal();
    let answer = running.ask("twin/update", actual("a", "3"), "twin/update/result").await;
    assert_eq!(answer.get("code"), None);
    let assignment = timeout(Duration::from_secs(60), async {
        loop {
            let assignment = running.outside.assignments.recv().await.unwrap();
            let desired = assignment.spec.unwrap().property("target").unwrap().desired.clone();
            if desired.is_some() {
                return desired;
            }
        }
    });
    assert_eq!(assignment.await.unwrap().as_deref(), Some("25"));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_works_again_is_noticed_without_a_message() {
    let store = MemoryStore::new();
    let mut running = Running::start(&store);
    store.fail_commits_after(0);
    running.hear(model(1));
    running.hear(thermometer("u", 1, Some("25")));
    tokio::time::sleep(Duration::from_secs(100)).await;
    while let Some(assignment) = running.outside.assignments.try_recv() {
        assert_eq!(assignment.spec, None);
    }
    store.heal();
    let assignment = timeout(Duration::from_secs(31), running.outside.assignments.recv()).await;
    assert!(assignment.unwrap().unwrap().spec.is_some());
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn everything_is_reported_again_when_a_link_begins() {
    let mut running = Running::with_thermometer(&MemoryStore::new()).await;
    running.ask("twin/update", actual("a", "1"), "twin/update/result").await;
    running.settle().await;
    for _ in 0..2 {
        running.outside.connectivity.send(Connectivity::Online).unwrap();
        let Some(Report::Device(report)) = running.outside.reports.recv().await else { unreachable!() };
        assert_eq!(reported(&report, "a").unwrap().0, "1");
        running.outside.connectivity.send(Connectivity::Synchronized).unwrap();
        running.twins().await;
        assert!(running.outside.reports.try_recv().is_none(), "the same link goes on");
        running.outside.connectivity.send(Connectivity::Offline).unwrap();
        running.twins().await;
    }
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn applications_that_do_not_listen_hold_up_nothing() {
    let mut running = Running::with_thermometer(&MemoryStore::new()).await;
    for number in 0..3_000 {
        while running
            .outside
            .device_messages
            .send(message("twin/update", &actual("a", &number.to_string())))
            .is_err()
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let last = async {
        loop {
            let Some(Report::Device(report)) = running.outside.reports.recv().await else { unreachable!() };
            if reported(&report, "a").is_some_and(|(value, _)| value == "2999") {
                return;
            }
        }
    };
    timeout(Duration::from_secs(60), last).await.unwrap();
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_part_whose_inputs_are_gone_waits_for_its_stop() {
    let store = MemoryStore::new();
    let Running { outside, stop, task } = Running::start(&store);
    drop(outside);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!task.is_finished());
    stop.cancel();
    task.await.unwrap().unwrap();
}
