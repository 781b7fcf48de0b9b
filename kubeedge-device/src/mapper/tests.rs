//! The schedule as stories, then the part over its pipes with devices in memory.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kubeedge_core::{
    device::{
        DeviceAssignment, DeviceError, DeviceSpec, Reading, ReadingContent,
        memory::{Fault, MemoryProtocol},
    },
    id::DeviceId,
};
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Config, Error, Mapper, Outside, pipes,
    state::{Action, Now, Outcome, State},
};

fn id(name: &str) -> DeviceId {
    DeviceId::new("default", name).unwrap()
}

/// A boiler with a limit that may be written, and a pressure that is read every 100 ms.
fn boiler(name: &str, limit: Option<&str>) -> DeviceSpec {
    spec(name, limit, 1)
}

fn spec(name: &str, limit: Option<&str>, port: u16) -> DeviceSpec {
    let desired = limit.map_or("null".to_owned(), |limit| format!(r#"{{"value":"{limit}"}}"#));
    let device = format!(
        r#"{{"metadata":{{"namespace":"default","name":"{name}"}},"spec":{{
            "protocol":{{"protocolName":"memory","configData":{{"port":{port}}}}},"properties":[
            {{"name":"limit","desired":{desired}}},{{"name":"pressure","desired":{{"value":"1"}},"collectCycle":100}},
            {{"name":"video"}}]}}}}"#
    );
    let model = r#"{"spec":{"properties":[{"name":"limit","type":"INT","minimum":"0","maximum":"100"},
        {"name":"pressure","type":"DOUBLE","accessMode":"ReadOnly"},{"name":"video","type":"STREAM"}]}}"#;
    DeviceSpec::from_json(device.as_bytes(), model.as_bytes()).unwrap()
}

fn assign(spec: DeviceSpec) -> DeviceAssignment {
    DeviceAssignment { device: spec.device.clone(), spec: Some(spec) }
}

fn unreachable() -> DeviceError {
    DeviceError::Unreachable("unplugged".to_owned())
}

/// A schedule with one boiler, whose clock stands until it is moved.
struct Schedule {
    state: State,
    start: Instant,
    passed: Duration,
}

impl Schedule {
    fn new(limit: Option<&str>) -> Self {
        let mut schedule = Self {
            state: State::new(Config::default(), "memory"),
            start: Instant::now(),
            passed: Duration::ZERO,
        };
        schedule.assign(boiler("b", limit));
        schedule
    }

    fn opened(limit: Option<&str>) -> Self {
        let mut schedule = Self::new(limit);
        assert!(matches!(schedule.next(), Some(Action::Open(_))));
        schedule.done(Outcome::Opened(Ok(())));
        schedule
    }

    fn now(&self) -> Now {
        Now { at: self.start + self.passed, wall_ms: 0 }
    }

    fn assign(&mut self, spec: DeviceSpec) {
        self.state.handle_assignment(assign(spec), self.now());
    }

    fn next(&mut self) -> Option<Action> {
        let mut actions = self.state.poll_actions(self.now().at);
        assert!(actions.len() <= 1);
        actions.pop().map(|(_, action)| action)
    }

    fn done(&mut self, outcome: Outcome) -> bool {
        self.state.handle_outcome(&id("b"), outcome, self.now())
    }

    fn pass(&mut self, milliseconds: u64) {
        self.passed += Duration::from_millis(milliseconds);
    }

    fn observed(&mut self) -> Vec<Option<String>> {
        let readings = self.state.poll_readings().into_iter();
        readings
            .filter_map(|reading| match reading.content {
                ReadingContent::Property { property, observed_desired, .. } if property == "limit" => {
                    Some(observed_desired)
                }
                ReadingContent::Property { .. } | ReadingContent::State(_) => None,
            })
            .collect()
    }

    /// How long until there is something to do.
    fn due_in(&self) -> Duration {
        self.state.poll_timeout().unwrap() - self.now().at
    }

    fn states(&mut self) -> Vec<String> {
        let readings = self.state.poll_readings().into_iter();
        readings
            .filter_map(|reading| match reading.content {
                ReadingContent::State(state) => Some(state),
                ReadingContent::Property { .. } => None,
            })
            .collect()
    }
}

fn name_of(action: Option<Action>) -> String {
    match action {
        Some(Action::Read(spec, place)) => format!("read {}", spec.properties[place].name),
        Some(Action::Write(spec, place, value)) => format!("write {} {value}", spec.properties[place].name),
        Some(Action::Open(_)) => "open".to_owned(),
        Some(Action::Close) => "close".to_owned(),
        None => "wait".to_owned(),
    }
}

#[test]
fn a_device_is_opened_written_read_back_and_then_read_by_its_cycles() {
    let mut schedule = Schedule::opened(Some("7"));
    assert_eq!(name_of(schedule.next()), "write limit 7");
    assert_eq!(name_of(schedule.next()), "wait", "one thing at a time");
    schedule.done(Outcome::Wrote("limit".into(), "7".into(), Ok(())));
    assert_eq!(schedule.states(), ["online"]);
    assert_eq!(name_of(schedule.next()), "read limit");
    schedule.done(Outcome::Read("limit".into(), Ok("7".into())));
    let readings = schedule.state.poll_readings();
    assert!(matches!(&readings[0].content,
        ReadingContent::Property { value, observed_desired: Some(observed), .. } if value == "7" && observed == "7"));
    assert_eq!(
        name_of(schedule.next()),
        "read pressure",
        "a desired value of what is read-only is not written"
    );
    schedule.done(Outcome::Read("pressure".into(), Ok("1.5".into())));
    assert_eq!(name_of(schedule.next()), "wait", "a stream has no value");
    assert_eq!(schedule.due_in(), Duration::from_millis(100));
    schedule.passed = Duration::from_secs(5);
    assert_eq!(name_of(schedule.next()), "read pressure", "what is due longest comes first");
    schedule.done(Outcome::Read("pressure".into(), Ok("1.5".into())));
    assert_eq!(name_of(schedule.next()), "read limit");
    schedule.done(Outcome::Read("limit".into(), Ok("7".into())));
    assert_eq!(schedule.due_in(), Duration::from_millis(100), "missed cycles are not made up for");
}

#[test]
fn a_device_that_does_not_answer_is_tried_after_pauses_that_double() {
    let mut schedule = Schedule::new(None);
    let mut pauses = Vec::new();
    for _ in 0..7 {
        assert_eq!(name_of(schedule.next()), "open");
        schedule.done(Outcome::Opened(Err(unreachable())));
        pauses.push(schedule.due_in().as_secs());
        schedule.passed += schedule.due_in();
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    assert_eq!(schedule.states(), ["offline"]);
    // Opening alone does not show that it is there: a gateway opens although the device behind it is gone.
    schedule.next();
    schedule.done(Outcome::Opened(Ok(())));
    schedule.next();
    assert!(!schedule.done(Outcome::Read("limit".into(), Err(unreachable()))));
    assert_eq!(schedule.due_in().as_secs(), 30);
    schedule.passed += schedule.due_in();
    schedule.next();
    schedule.done(Outcome::Opened(Ok(())));
    schedule.next();
    schedule.done(Outcome::Read("limit".into(), Ok("1".into())));
    assert_eq!(schedule.states(), ["online"]);
    schedule.next();
    schedule.done(Outcome::Read("pressure".into(), Err(unreachable())));
    assert_eq!(schedule.due_in().as_secs(), 1, "an answer ends the row of failures");
}

#[test]
fn what_is_desired_is_written_when_it_changes_and_after_opening() {
    let mut schedule = Schedule::opened(Some("7"));
    assert_eq!(name_of(schedule.next()), "write limit 7");
    // It changes while the write is under way, and once more.
    schedule.assign(boiler("b", Some("8")));
    schedule.assign(boiler("b", Some("9")));
    schedule.done(Outcome::Wrote("limit".into(), "7".into(), Ok(())));
    assert_eq!(name_of(schedule.next()), "write limit 9");
    schedule.done(Outcome::Wrote("limit".into(), "9".into(), Err(unreachable())));
    schedule.passed += schedule.due_in();
    assert_eq!(name_of(schedule.next()), "open");
    schedule.done(Outcome::Opened(Ok(())));
    assert_eq!(name_of(schedule.next()), "write limit 9");
    schedule.done(Outcome::Wrote("limit".into(), "9".into(), Err(DeviceError::Rejected("no".into()))));
    assert_eq!(name_of(schedule.next()), "read limit", "what was rejected waits");
    schedule.done(Outcome::Read("limit".into(), Ok("7".into())));
    schedule.assign(boiler("b", Some("101")));
    assert_eq!(name_of(schedule.next()), "read pressure", "what does not fit the model is not written");
    schedule.done(Outcome::Read("pressure".into(), Ok("1".into())));
    assert_eq!(schedule.states().last().unwrap(), "unhealthy");
    schedule.assign(boiler("b", None));
    schedule.pass(1_000);
    schedule.next();
    schedule.done(Outcome::Read("pressure".into(), Ok("1".into())));
    assert_eq!(schedule.states().last().unwrap(), "online", "nothing is desired, so nothing is missing");
}

#[test]
fn what_the_device_does_not_take_is_written_again_after_pauses_that_double() {
    let mut schedule = Schedule::opened(Some("7"));
    schedule.next();
    schedule.done(Outcome::Wrote(
        "limit".into(),
        "7".into(),
        Err(DeviceError::Rejected("local mode".into())),
    ));
    assert_eq!(schedule.states(), ["unhealthy"]);
    let mut written_at = Vec::new();
    while written_at.len() < 3 {
        match name_of(schedule.next()).as_str() {
            "write limit 7" => {
                written_at.push(schedule.passed.as_secs());
                schedule.done(Outcome::Wrote("limit".into(), "7".into(), Ok(())));
            }
            // It says that it has taken the value, and has another.
            "read limit" => _ = schedule.done(Outcome::Read("limit".into(), Ok("5".into()))),
            "read pressure" => _ = schedule.done(Outcome::Read("pressure".into(), Ok("1".into()))),
            _ => schedule.pass(100),
        }
    }
    assert_eq!(written_at, [1, 3, 7]);
    assert!(
        schedule.observed().iter().all(Option::is_none),
        "what the device does not have was not observed"
    );
    assert_eq!(name_of(schedule.next()), "read limit");
    schedule.done(Outcome::Read("limit".into(), Ok("7".into())));
    assert_eq!(schedule.states(), ["online"]);
    schedule.pass(60_000);
    assert_eq!(name_of(schedule.next()), "read pressure", "it has it: nothing is written");
}

#[test]
fn a_value_is_reported_by_its_cycle_and_kept_each_time() {
    let mut schedule = Schedule::opened(None);
    let mut slow = boiler("b", None);
    for property in &mut slow.properties {
        (property.collect_cycle_ms, property.report_cycle_ms) = (100, 1_000);
    }
    schedule.assign(slow);
    let (mut reported, mut kept) = (0, 0);
    for _ in 0..200 {
        if name_of(schedule.next()) == "read pressure" {
            schedule.done(Outcome::Read("pressure".into(), Ok("1".into())));
        } else {
            schedule.done(Outcome::Read("limit".into(), Ok("1".into())));
            schedule.next();
            schedule.done(Outcome::Read("pressure".into(), Ok("1".into())));
        }
        let pressure = |property: Option<String>| property.as_deref() == Some("pressure");
        reported += schedule.state.poll_readings().iter().filter(|reading| pressure(reading.key().1)).count();
        kept += schedule.state.poll_samples().iter().filter(|sample| sample.property == "pressure").count();
        // A call takes a while, which must not make the cycle longer.
        schedule.pass(3);
        let due = schedule.due_in();
        schedule.passed += due;
    }
    let seconds = schedule.passed.as_secs_f64();
    assert!((seconds * 10.0 - kept as f64).abs() <= 2.0, "{kept} kept in {seconds} s");
    assert!((seconds - reported as f64).abs() <= 2.0, "{reported} reported in {seconds} s");
}

#[test]
fn while_nobody_takes_values_nothing_is_read_and_what_is_desired_is_written() {
    let mut schedule = Schedule::opened(None);
    schedule.state.hold(true);
    assert_eq!(name_of(schedule.next()), "wait");
    assert_eq!(schedule.due_in(), Duration::from_millis(50), "it is looked at again, and not in each turn");
    schedule.assign(boiler("b", Some("7")));
    schedule.passed += schedule.due_in();
    assert_eq!(name_of(schedule.next()), "write limit 7");
    schedule.done(Outcome::Wrote("limit".into(), "7".into(), Ok(())));
    schedule.pass(100);
    assert_eq!(name_of(schedule.next()), "wait");
    schedule.state.hold(false);
    schedule.pass(100);
    assert_eq!(name_of(schedule.next()), "read pressure");
}

#[test]
fn a_value_that_does_not_fit_the_model_is_not_told_and_the_device_is_unhealthy() {
    let mut schedule = Schedule::opened(None);
    schedule.next();
    schedule.done(Outcome::Read("limit".into(), Ok("warm".into())));
    schedule.next();
    schedule.done(Outcome::Read("pressure".into(), Ok("1".into())));
    let readings = schedule.state.poll_readings();
    let property = |reading: &Reading| reading.key().1;
    assert_eq!(readings.iter().filter_map(property).collect::<Vec<_>>(), ["pressure"]);
    assert_eq!(readings[0].content, ReadingContent::State("unhealthy".to_owned()));
    schedule.passed = Duration::from_secs(1);
    schedule.next();
    schedule.done(Outcome::Read("pressure".into(), Ok("1".into())));
    schedule.next();
    schedule.done(Outcome::Read("limit".into(), Ok("1".into())));
    assert_eq!(schedule.states(), ["online"]);
}

#[test]
fn a_device_is_opened_again_only_if_its_connection_changes() {
    let mut schedule = Schedule::opened(None);
    schedule.assign(boiler("b", Some("5")));
    assert_eq!(name_of(schedule.next()), "write limit 5");
    schedule.assign(spec("b", Some("5"), 2));
    assert!(
        !schedule.done(Outcome::Wrote("limit".into(), "5".into(), Ok(()))),
        "the handle is of the old port"
    );
    assert_eq!(name_of(schedule.next()), "open");
}

#[test]
fn a_device_that_goes_and_comes_back_never_has_two_handles() {
    let mut schedule = Schedule::opened(None);
    schedule.next();
    let gone = DeviceAssignment { device: id("b"), spec: None };
    schedule.state.handle_assignment(gone.clone(), schedule.now());
    schedule.assign(boiler("b", None));
    assert_eq!(name_of(schedule.next()), "wait", "the last call is still under way");
    assert!(!schedule.done(Outcome::Read("limit".into(), Ok("1".into()))));
    assert_eq!(name_of(schedule.next()), "open");
    schedule.done(Outcome::Opened(Ok(())));
    schedule.state.handle_assignment(gone, schedule.now());
    assert_eq!(name_of(schedule.next()), "close");
    assert_eq!(schedule.state.poll_timeout(), None);
}

#[test]
fn devices_of_another_protocol_are_left_alone() {
    let mut schedule = Schedule::opened(None);
    let mut other = boiler("b", None);
    other.protocol = "modbus".to_owned();
    schedule.assign(other);
    assert_eq!(name_of(schedule.next()), "close");
}

struct Running {
    protocol: MemoryProtocol,
    outside: Outside,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

impl Running {
    fn start(protocol: MemoryProtocol) -> Self {
        let (inbox, outbox, outside) = pipes();
        let stop = CancellationToken::new();
        let mapper = Mapper::new(Config::default(), Arc::new(protocol.clone()), inbox, outbox);
        Self { protocol, outside, task: tokio::spawn(mapper.run(stop.clone())), stop }
    }

    /// Waits for a reading of a property, or of the connection.
    async fn until(&mut self, device: &str, property: Option<&str>, expected: &str) {
        let found = async {
            loop {
                let reading = self.outside.readings.recv().await.unwrap();
                let value = match &reading.content {
                    ReadingContent::Property { value, .. } | ReadingContent::State(value) => value,
                };
                if reading.key() == (id(device), property.map(str::to_owned)) && value == expected {
                    return;
                }
            }
        };
        timeout(Duration::from_secs(120), found)
            .await
            .unwrap_or_else(|_| panic!("{device} {property:?} {expected}"));
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_hangs_holds_up_no_other() {
    let protocol = MemoryProtocol::new("memory");
    protocol.set_fault(&id("hanging"), Some(Fault::Hangs));
    let mut running = Running::start(protocol);
    for name in ["hanging", "good"] {
        running.outside.assignments.send(assign(boiler(name, Some("7")))).unwrap();
    }
    let started = tokio::time::Instant::now();
    running.until("good", Some("limit"), "7").await;
    running.protocol.set(&id("good"), "pressure", "3.5");
    running.until("good", Some("pressure"), "3.5").await;
    assert!(started.elapsed() < Duration::from_secs(1), "the other's deadline was not waited for");
    running.until("hanging", None, "offline").await;
    running.protocol.set_fault(&id("hanging"), None);
    running.until("hanging", None, "online").await;
    assert_eq!(running.protocol.value(&id("hanging"), "limit").as_deref(), Some("7"));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_desired_reaches_a_device_that_was_away() {
    let mut running = Running::start(MemoryProtocol::new("memory"));
    running.outside.assignments.send(assign(boiler("b", Some("7")))).unwrap();
    running.until("b", None, "online").await;
    running.protocol.set_fault(&id("b"), Some(Fault::Unreachable));
    running.until("b", None, "offline").await;
    running.outside.assignments.send(assign(boiler("b", Some("8")))).unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(running.protocol.writes(&id("b")).len(), 1);
    running.protocol.set_fault(&id("b"), None);
    running.until("b", Some("limit"), "8").await;
    assert_eq!(running.protocol.opens(&id("b")), 2);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_device_that_is_taken_away_is_read_no_more() {
    let mut running = Running::start(MemoryProtocol::new("memory"));
    running.outside.assignments.send(assign(boiler("b", None))).unwrap();
    running.until("b", None, "online").await;
    running.outside.assignments.send(DeviceAssignment { device: id("b"), spec: None }).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let reads = running.protocol.reads(&id("b"));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(running.protocol.reads(&id("b")), reads);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_full_pipe_slows_reading_down_and_loses_nothing() {
    let protocol = MemoryProtocol::new("memory");
    let (inbox, mut outbox, outside) = pipes();
    let (samples, mut kept) = kubeedge_core::pipe::events("samples", 4);
    outbox.samples = Some(samples);
    let stop = CancellationToken::new();
    let mapper = Mapper::new(Config::default(), Arc::new(protocol.clone()), inbox, outbox);
    let task = tokio::spawn(mapper.run(stop.clone()));
    for number in 0..10 {
        outside.assignments.send(assign(boiler(&format!("b-{number}"), None))).unwrap();
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    let reads = |protocol: &MemoryProtocol| {
        (0..10).map(|number| protocol.reads(&id(&format!("b-{number}")))).sum::<usize>()
    };
    let stalled = reads(&protocol);
    assert!(stalled <= 4 + 10, "each device waits with one value at most: {stalled}");
    let mut taken = 0;
    while taken < 500 {
        kept.recv().await.unwrap();
        taken += 1;
    }
    stop.cancel();
    task.await.unwrap().unwrap();
    while kept.try_recv().is_some() {
        taken += 1;
    }
    assert!(reads(&protocol) - taken <= 10 + 10, "{taken} of {} came", reads(&protocol));
}

#[tokio::test]
async fn a_protocol_without_a_name_is_an_error() {
    let running = Running::start(MemoryProtocol::new(""));
    assert!(matches!(running.task.await.unwrap(), Err(Error::Nameless)));
}
