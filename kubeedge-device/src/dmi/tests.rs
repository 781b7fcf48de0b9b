//! What is run and what is told, while edgecore comes and goes.

use std::time::{Duration, Instant};

use kubeedge_core::{
    device::{DeviceSpec, Reading, ReadingContent},
    dmi::{self, proto},
    id::DeviceId,
};
use tonic::Code;

use super::{
    Config,
    service::Question,
    state::{Outcome, Report, State},
};

fn id(name: &str) -> DeviceId {
    DeviceId::new("default", name).unwrap()
}

fn messages(name: &str, limit: &str) -> (proto::Device, proto::DeviceModel) {
    let device = format!(
        r#"{{"metadata":{{"namespace":"default","name":"{name}"}},"spec":{{"deviceModelRef":{{"name":"boiler"}},
            "protocol":{{"protocolName":"rig"}},"properties":[{{"name":"limit","desired":{{"value":"{limit}"}}}},{{"name":"pressure"}}]}}}}"#
    );
    let model = r#"{"metadata":{"namespace":"default","name":"boiler"},"spec":{"properties":[
        {"name":"limit","type":"INT"},{"name":"pressure","type":"DOUBLE"}]}}"#;
    let spec = DeviceSpec::from_json(device.as_bytes(), model.as_bytes()).unwrap();
    (dmi::device(&spec).unwrap(), dmi::model(&spec).unwrap())
}

fn reading(name: &str, property: &str, value: &str) -> Reading {
    let content = ReadingContent::Property {
        property: property.to_owned(),
        value: value.to_owned(),
        observed_desired: None,
        timestamp_ms: 5,
    };
    Reading { device: id(name), content }
}

struct Clocked {
    state: State,
    start: Instant,
    passed: Duration,
}

impl Clocked {
    fn new() -> Self {
        let start = Instant::now();
        let config = Config::new("m", "rig", "/run/test/m.sock");
        Self { state: State::new(config, start), start, passed: Duration::ZERO }
    }

    fn now(&self) -> Instant {
        self.start + self.passed
    }

    fn register(&mut self, names: &[&str]) {
        let request = self.state.poll_registration(self.now()).expect("it is time to register");
        assert_eq!(request.mapper.unwrap().address, b"/run/test/m.sock");
        let answer = proto::MapperRegisterResponse {
            model_list: names.iter().take(1).map(|name| messages(name, "1").1).collect(),
            device_list: names.iter().map(|name| messages(name, "1").0).collect(),
        };
        self.state.handle_registered(answer, self.now());
    }

    /// What the mapper is told: `+` a device that it should run, `-` one that it should not.
    fn told(&mut self) -> Vec<String> {
        let assignments = self.state.poll_assignments().into_iter();
        let sign = |there: bool| if there { '+' } else { '-' };
        assignments.map(|told| format!("{}{}", sign(told.spec.is_some()), told.device.name())).collect()
    }

    fn report(&mut self) -> Option<Report> {
        let mut reports = self.state.poll_reports(self.now());
        assert!(reports.len() <= 1);
        reports.pop()
    }

    /// The values of the next report, about which it is said `outcome`.
    fn reported(&mut self, outcome: Outcome) -> Vec<String> {
        let Some(report) = self.report() else { return Vec::new() };
        let value =
            |twin: &proto::Twin| format!("{}={}", twin.property_name, twin.reported.clone().unwrap().value);
        let values = report.state.iter().cloned().chain(report.twins.iter().map(value)).collect();
        self.state.handle_outcome(report, outcome, self.now());
        values
    }
}

fn lost() -> Outcome {
    Outcome::Lost("edgecore was killed".to_owned())
}

#[test]
fn what_was_found_while_edgecore_was_away_is_told_when_it_is_back_the_newest_of_each_property() {
    let mut mapper = Clocked::new();
    mapper.register(&["a"]);
    assert_eq!(mapper.told(), ["+a"]);
    mapper.state.handle_reading(reading("a", "limit", "1"));
    mapper.state.handle_reading(reading("a", "pressure", "1"));
    let report = mapper.report().unwrap();
    assert!(mapper.report().is_none(), "one report of a device at a time");
    assert_eq!(report.twins[0].reported.as_ref().unwrap().metadata["type"], "int");
    // It is not answered, and one of the values is older by then.
    mapper.state.handle_reading(reading("a", "limit", "2"));
    mapper.state.handle_outcome(report, lost(), mapper.now());
    mapper.state.handle_reading(Reading { device: id("a"), content: ReadingContent::State("online".into()) });
    assert!(mapper.report().is_none(), "edgecore does not know the mapper");
    mapper.passed += Duration::from_secs(1);
    mapper.register(&["a"]);
    assert_eq!(mapper.told(), [""; 0], "the device runs on");
    assert_eq!(mapper.reported(Outcome::Done), ["online", "limit=2", "pressure=1"]);
    assert!(mapper.report().is_none());
}

#[test]
fn a_device_that_edgecore_does_not_mention_runs_on_for_a_while() {
    let mut mapper = Clocked::new();
    mapper.register(&["a", "b"]);
    assert_eq!(mapper.told(), ["+a", "+b"]);
    mapper.state.handle_edgecore_changed(mapper.now());
    mapper.register(&[]);
    assert_eq!(mapper.told(), [""; 0]);
    mapper.state.handle_question(Question::Device(messages("a", "1").0)).unwrap();
    mapper.passed += Duration::from_secs(30);
    mapper.state.handle_timeout(mapper.now());
    assert_eq!(mapper.told(), ["-b"]);
}

#[test]
fn a_device_waits_for_its_model_and_follows_it() {
    let mut mapper = Clocked::new();
    mapper.register(&[]);
    let (device, mut model) = messages("a", "1");
    mapper.state.handle_question(Question::Device(device.clone())).unwrap();
    assert_eq!(mapper.told(), [""; 0]);
    mapper.state.handle_question(Question::Model(model.clone())).unwrap();
    mapper.state.handle_question(Question::Model(model.clone())).unwrap();
    mapper.state.handle_question(Question::Device(device.clone())).unwrap();
    assert_eq!(mapper.told(), ["+a"], "the same again changes nothing");
    model.spec.as_mut().unwrap().properties[0].maximum = "9".to_owned();
    mapper.state.handle_question(Question::Model(model)).unwrap();
    assert_eq!(mapper.told(), ["+a"]);
    mapper.state.handle_reading(reading("a", "limit", "7"));
    let ask = |name: &str| Question::Get { namespace: "default".into(), name: name.into() };
    let found = mapper.state.handle_question(ask("a")).unwrap().unwrap();
    assert_eq!(found.status.unwrap().twins[0].reported.as_ref().unwrap().value, "7");
    assert_eq!(mapper.state.handle_question(ask("b")).unwrap_err().code, Code::NotFound);
    let remove = || Question::RemoveDevice { namespace: "default".into(), name: "a".into() };
    mapper.state.handle_question(remove()).unwrap();
    assert_eq!(mapper.told(), ["-a"]);
    mapper.state.handle_question(remove()).unwrap();
}

#[test]
fn a_device_that_cannot_be_run_is_refused_with_the_place_and_the_former_one_runs_on() {
    let mut mapper = Clocked::new();
    mapper.register(&["a"]);
    mapper.told();
    let (mut device, _) = messages("a", "1");
    device.spec.as_mut().unwrap().properties[0].name = "colour".to_owned();
    let refusal = mapper.state.handle_question(Question::Device(device)).unwrap_err();
    assert_eq!(refusal.code, Code::InvalidArgument);
    assert!(refusal.why.contains("default/a") && refusal.why.contains("\"colour\""), "{refusal:?}");
    assert_eq!(mapper.told(), [""; 0]);
}

#[test]
fn a_value_that_edgecore_refuses_takes_no_other_with_it() {
    let mut mapper = Clocked::new();
    mapper.register(&["a"]);
    mapper.state.handle_reading(reading("a", "limit", "1"));
    mapper.state.handle_reading(reading("a", "pressure", "2"));
    let wrong = || Outcome::Refused(Code::InvalidArgument, "no".to_owned());
    assert_eq!(mapper.reported(wrong()), ["limit=1", "pressure=2"]);
    assert_eq!(mapper.reported(wrong()), ["limit=1"]);
    assert_eq!(mapper.reported(Outcome::Done), ["pressure=2"]);
    assert_eq!(mapper.reported(Outcome::Done), [""; 0]);
}

#[test]
fn an_edgecore_that_wants_fewer_reports_gets_the_newest_later() {
    let mut mapper = Clocked::new();
    mapper.register(&["a"]);
    mapper.state.handle_reading(reading("a", "limit", "1"));
    let busy = Outcome::Refused(Code::Unknown, "too many requests".to_owned());
    assert_eq!(mapper.reported(busy), ["limit=1"]);
    mapper.state.handle_reading(reading("a", "limit", "2"));
    assert_eq!(mapper.reported(Outcome::Done), [""; 0]);
    mapper.passed += mapper.state.poll_timeout().unwrap() - mapper.now();
    assert_eq!(mapper.reported(Outcome::Done), ["limit=2"]);
}

#[test]
fn registering_is_tried_after_pauses_that_double() {
    let mut mapper = Clocked::new();
    let mut pauses = Vec::new();
    for _ in 0..8 {
        assert!(mapper.state.poll_registration(mapper.now()).is_some());
        mapper.state.handle_not_registered("nobody is there", mapper.now());
        assert!(mapper.state.poll_registration(mapper.now()).is_none());
        let pause = mapper.state.poll_timeout().unwrap() - mapper.now();
        pauses.push(pause.as_millis());
        mapper.passed += pause;
    }
    assert_eq!(pauses, [200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]);
}
