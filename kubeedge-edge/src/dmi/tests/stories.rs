use std::time::Duration;

use kubeedge_core::device::ReadingContent;
use tonic::Code;

use super::{
    super::{Config, state::Outcome},
    Clocked, assign, gone, id, registration, report, spec, twin,
};

const SOCKET: &str = "/run/test/mapper.sock";

fn refused(code: Code) -> Outcome {
    Outcome::Refused(code, "no".to_owned())
}

#[test]
fn a_mapper_is_told_its_devices_when_it_registers_and_then_what_changes() {
    let mut edge = Clocked::new();
    edge.assign(assign(spec("a", "rig", "1", "bar")));
    edge.assign(assign(spec("other", "modbus", "1", "bar")));
    assert_eq!(edge.register(registration("m", "rig", SOCKET)).unwrap(), ["a"]);
    assert_eq!(edge.make_all(), [""; 0], "the answer has told everything");
    edge.assign(assign(spec("a", "rig", "2", "bar")));
    edge.assign(assign(spec("b", "rig", "1", "bar")));
    assert_eq!(edge.make_all(), ["UpdateDevice default/a", "RegisterDevice default/b"]);
    edge.assign(assign(spec("a", "rig", "2", "bar")));
    assert_eq!(edge.make_all(), [""; 0], "the same again is told to nobody");
    edge.assign(gone("b"));
    edge.assign(assign(spec("a", "modbus", "2", "bar")));
    assert_eq!(
        edge.make_all(),
        ["RemoveDevice default/a", "RemoveDevice default/b", "RemoveDeviceModel default/boiler"]
    );
}

#[test]
fn a_model_that_changes_is_told_once_before_its_devices() {
    let mut edge = Clocked::new();
    edge.register(registration("m", "rig", SOCKET)).unwrap();
    for name in ["a", "b"] {
        edge.assign(assign(spec(name, "rig", "1", "bar")));
    }
    assert_eq!(
        edge.make_all(),
        ["CreateDeviceModel boiler for default/a", "RegisterDevice default/a", "RegisterDevice default/b"]
    );
    for name in ["a", "b"] {
        edge.assign(assign(spec(name, "rig", "1", "Pa")));
    }
    assert_eq!(edge.make_all(), ["UpdateDeviceModel boiler for default/a"]);
}

#[test]
fn a_mapper_that_does_not_answer_is_called_after_pauses_that_double() {
    let mut edge = Clocked::new();
    edge.assign(assign(spec("a", "rig", "1", "bar")));
    edge.register(registration("m", "rig", SOCKET)).unwrap();
    edge.assign(assign(spec("a", "rig", "2", "bar")));
    edge.passed += Duration::from_secs(100);
    edge.state.handle_timeout(edge.now().at);
    edge.state.written();
    let mut pauses = Vec::new();
    for _ in 0..8 {
        assert_eq!(edge.make(Outcome::Silent("no answer within 10s".into())), "UpdateDevice default/a");
        edge.state.written();
        pauses.push(edge.due_in().as_millis());
        edge.passed += edge.due_in();
    }
    assert_eq!(pauses, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
    // It registers again: that is a sign of life, and tells it everything.
    assert_eq!(edge.register(registration("m", "rig", SOCKET)).unwrap(), ["a"]);
    assert_eq!(edge.make_all(), [""; 0]);
}

#[test]
fn a_device_that_is_refused_holds_up_no_other() {
    let mut edge = Clocked::new();
    edge.register(registration("m", "rig", SOCKET)).unwrap();
    for name in ["a", "b"] {
        edge.assign(assign(spec(name, "rig", "1", "bar")));
    }
    assert_eq!(edge.make(Outcome::Done), "CreateDeviceModel boiler for default/a");
    assert_eq!(edge.make(refused(Code::Internal)), "RegisterDevice default/a");
    assert_eq!(edge.make(Outcome::Done), "RegisterDevice default/b");
    assert_eq!(edge.make_all(), [""; 0]);
    edge.passed += Duration::from_millis(500);
    assert_eq!(edge.make_all(), ["RegisterDevice default/a"]);
}

#[test]
fn what_a_mapper_says_of_what_it_knows_is_believed() {
    let mut edge = Clocked::new();
    edge.register(registration("m", "rig", SOCKET)).unwrap();
    edge.assign(assign(spec("a", "rig", "1", "bar")));
    assert_eq!(edge.make(refused(Code::AlreadyExists)), "CreateDeviceModel boiler for default/a");
    assert_eq!(edge.make(Outcome::Done), "UpdateDeviceModel boiler for default/a");
    assert_eq!(edge.make(refused(Code::AlreadyExists)), "RegisterDevice default/a");
    assert_eq!(edge.make(refused(Code::NotFound)), "UpdateDevice default/a");
    edge.passed += Duration::from_secs(1);
    assert_eq!(edge.make(Outcome::Done), "RegisterDevice default/a");
    edge.assign(gone("a"));
    assert_eq!(edge.make(refused(Code::NotFound)), "RemoveDevice default/a");
    assert_eq!(edge.make_all(), ["RemoveDeviceModel default/boiler"]);
}

#[test]
fn a_device_of_which_nobody_knows_whether_the_mapper_has_it_is_updated_first() {
    let mut edge = Clocked::new();
    edge.register(registration("m", "rig", SOCKET)).unwrap();
    edge.assign(assign(spec("a", "rig", "1", "bar")));
    edge.make(Outcome::Done);
    assert_eq!(edge.make(Outcome::Unreachable("nobody is there".into())), "RegisterDevice default/a");
    edge.passed += Duration::from_secs(1);
    assert_eq!(edge.make(Outcome::Silent("too late".into())), "RegisterDevice default/a");
    edge.passed += Duration::from_secs(2);
    assert_eq!(edge.make_all(), ["UpdateDevice default/a"]);
}

#[test]
fn registrations_that_cannot_be_are_refused_with_the_reason() {
    let mut config = Config::new("/run/test/dmi.sock");
    config.reserved.insert("thermometer".to_owned());
    config.limits.mappers = 1;
    let mut edge = Clocked::with(config);
    let mut refusal =
        |name, protocol, address| edge.register(registration(name, protocol, address)).unwrap_err();
    let inside = refusal("m", "thermometer", SOCKET);
    assert_eq!(inside.code, Code::FailedPrecondition);
    assert!(inside.why.contains("run inside edgecore"), "{inside:?}");
    for (name, protocol, address, why) in [
        ("m", "", SOCKET, "protocol"),
        ("", "rig", SOCKET, "name"),
        ("m", "rig", "mapper.sock", "absolute"),
        ("m", "rig", "/run/test/dmi.sock", "own socket"),
    ] {
        let refusal = refusal(name, protocol, address);
        assert_eq!(refusal.code, Code::InvalidArgument);
        assert!(refusal.why.contains(why), "{refusal:?}");
    }
    edge.register(registration("m", "rig", SOCKET)).unwrap();
    let full = edge.register(registration("n", "opcua", SOCKET)).unwrap_err();
    assert_eq!(full.code, Code::ResourceExhausted);
}

#[test]
fn a_mapper_that_wants_no_devices_is_not_called() {
    let mut edge = Clocked::new();
    edge.assign(assign(spec("a", "rig", "1", "bar")));
    let mut request = registration("m", "rig", SOCKET);
    request.with_data = false;
    assert_eq!(edge.register(request).unwrap(), [""; 0]);
    edge.assign(assign(spec("a", "rig", "2", "bar")));
    assert_eq!(edge.make_all(), [""; 0]);
}

#[test]
fn what_finds_no_room_in_the_answer_to_a_registration_is_told_by_calls() {
    let mut config = Config::new("/run/test/dmi.sock");
    config.limits.message_bytes = 5_000;
    config.limits.devices_per_mapper = 9;
    let mut edge = Clocked::with(config);
    for index in 0..12 {
        edge.assign(assign(spec(&format!("d-{index:02}"), "rig", "1", "bar")));
    }
    let told = edge.register(registration("m", "rig", SOCKET)).unwrap().len();
    assert!((1..9).contains(&told), "{told}");
    assert_eq!(edge.make_all().len(), 9 - told, "those beyond the limit are told to nobody");
}

#[test]
fn a_report_is_taken_whole_or_refused_with_device_and_property() {
    let mut edge = Clocked::new();
    edge.assign(assign(spec("a", "rig", "7", "bar")));
    edge.register(registration("m", "rig", SOCKET)).unwrap();
    let values = |edge: &mut Clocked, twins| {
        let taken = edge.state.handle_values(report("a", twins), edge.now());
        (taken.map_err(|refusal| refusal.why), edge.state.poll_readings())
    };
    for (bad, why) in [
        (twin("limit", Some("warm"), None), r#"device default/a, property "limit": "warm" is no number"#),
        (twin("on", Some("maybe"), None), r#"device default/a, property "on": "maybe" is neither"#),
        (twin("colour", Some("red"), None), r#"device default/a, property "colour": the device has no such"#),
        (
            twin("label", Some(&"x".repeat(5_000)), None),
            r#"property "label": the reported value has 5000 bytes"#,
        ),
    ] {
        let (taken, readings) = values(&mut edge, vec![twin("pressure", Some("1"), None), bad]);
        let said = taken.unwrap_err();
        assert!(said.contains(why), "{said}");
        assert!(readings.is_empty());
    }
    assert!(values(&mut edge, Vec::new()).0.unwrap_err().contains("default/a"));
    // What is absent is absent; an observed value goes with the next reported one.
    let (taken, readings) =
        values(&mut edge, vec![twin("limit", None, Some("7")), twin("pressure", None, None)]);
    assert_eq!((taken, readings.len()), (Ok(()), 0));
    let (taken, readings) =
        values(&mut edge, vec![twin("limit", Some("250"), Some("")), twin("on", Some("True"), None)]);
    assert_eq!((taken, readings.len()), (Ok(()), 2));
    assert_eq!(
        readings[0].content,
        ReadingContent::Property {
            property: "limit".to_owned(),
            value: "250".to_owned(),
            observed_desired: Some("7".to_owned()),
            timestamp_ms: 1_000,
        }
    );
    let unknown = edge.state.handle_values(report("b", vec![twin("limit", Some("1"), None)]), edge.now());
    let unknown = unknown.unwrap_err();
    assert_eq!(unknown.code, Code::NotFound);
    assert!(unknown.why.contains("default/b"), "{unknown:?}");
}

#[test]
fn the_state_of_a_device_is_one_of_those_that_kubeedge_knows() {
    let mut edge = Clocked::new();
    edge.assign(assign(spec("a", "rig", "7", "bar")));
    let mut states = |state: &str| {
        let request = kubeedge_core::dmi::proto::ReportDeviceStatesRequest {
            device_name: "a".to_owned(),
            device_namespace: "default".to_owned(),
            state: state.to_owned(),
        };
        edge.state.handle_state(&request, edge.now()).map_err(|refusal| refusal.why)?;
        Ok(edge.state.poll_readings().pop().unwrap().content)
    };
    assert_eq!(states("Online"), Ok(ReadingContent::State("Online".to_owned())));
    assert_eq!(states("disconnected"), Ok(ReadingContent::State("offline".to_owned())));
    let wrong: String = states("sleepy").unwrap_err();
    assert!(wrong.contains("default/a") && wrong.contains("sleepy"), "{wrong}");
}

#[test]
fn a_mapper_that_reports_too_often_is_told_so_and_others_are_not() {
    let mut config = Config::new("/run/test/dmi.sock");
    (config.limits.calls_per_second, config.limits.calls_at_once) = (10, 5);
    let mut edge = Clocked::with(config);
    edge.assign(assign(spec("a", "rig", "7", "bar")));
    edge.assign(assign(spec("b", "opcua", "7", "bar")));
    edge.register(registration("m", "rig", SOCKET)).unwrap();
    edge.register(registration("n", "opcua", "/run/test/n.sock")).unwrap();
    let mut taken = |name: &str, passed| {
        edge.passed = passed;
        let one = || report(name, vec![twin("limit", Some("1"), None)]);
        (0..20).filter(|_| edge.state.handle_values(one(), edge.now()).is_ok()).count()
    };
    assert_eq!(taken("a", Duration::ZERO), 5);
    assert_eq!(taken("b", Duration::ZERO), 5);
    assert_eq!(taken("a", Duration::from_millis(300)), 3);
    assert_eq!(id("a").name(), "a");
}
