//! Who is told what and when, as stories and by random; then the part with real mappers on real sockets.

mod pipes;
mod random;
mod stories;

use std::time::{Duration, Instant};

use kubeedge_core::{
    device::{DeviceAssignment, DeviceSpec},
    dmi::proto,
    id::DeviceId,
};

use super::{
    Config,
    service::Refusal,
    state::{Call, Now, Outcome, State},
};

fn id(name: &str) -> DeviceId {
    DeviceId::new("default", name).unwrap()
}

/// A device with a limit that may be written, and a pressure; `unit` makes another model of the same name.
fn spec(name: &str, protocol: &str, limit: &str, unit: &str) -> DeviceSpec {
    let device = format!(
        r#"{{"metadata":{{"namespace":"default","name":"{name}"}},"spec":{{"deviceModelRef":{{"name":"boiler"}},
            "protocol":{{"protocolName":"{protocol}","configData":{{"port":1}}}},"properties":[
            {{"name":"limit","desired":{{"value":"{limit}"}}}},{{"name":"pressure"}},{{"name":"on"}},{{"name":"label"}}]}}}}"#
    );
    let model = format!(
        r#"{{"metadata":{{"namespace":"default","name":"boiler"}},"spec":{{"properties":[
            {{"name":"limit","type":"INT","maximum":"100","unit":"{unit}"}},{{"name":"pressure","type":"DOUBLE"}},
            {{"name":"on","type":"BOOLEAN"}},{{"name":"label","type":"STRING"}}]}}}}"#
    );
    DeviceSpec::from_json(device.as_bytes(), model.as_bytes()).unwrap()
}

fn assign(spec: DeviceSpec) -> DeviceAssignment {
    DeviceAssignment { device: spec.device.clone(), spec: Some(spec) }
}

fn gone(name: &str) -> DeviceAssignment {
    DeviceAssignment { device: id(name), spec: None }
}

fn registration(name: &str, protocol: &str, address: &str) -> proto::MapperRegisterRequest {
    proto::MapperRegisterRequest {
        with_data: true,
        mapper: Some(proto::MapperInfo {
            name: name.to_owned(),
            version: "v1".to_owned(),
            api_version: "v1beta1".to_owned(),
            protocol: protocol.to_owned(),
            address: address.as_bytes().to_vec(),
            state: "ok".to_owned(),
        }),
    }
}

fn report(name: &str, twins: Vec<proto::Twin>) -> proto::ReportDeviceStatusRequest {
    proto::ReportDeviceStatusRequest {
        device_name: name.to_owned(),
        device_namespace: "default".to_owned(),
        reported_device: Some(proto::DeviceStatus { twins, ..proto::DeviceStatus::default() }),
    }
}

fn twin(property: &str, reported: Option<&str>, observed: Option<&str>) -> proto::Twin {
    let value =
        |value: &str| proto::TwinProperty { value: value.to_owned(), ..proto::TwinProperty::default() };
    proto::Twin {
        property_name: property.to_owned(),
        reported: reported.map(value),
        observed_desired: observed.map(value),
    }
}

/// A state whose clock stands until it is moved.
struct Clocked {
    state: State,
    start: Instant,
    passed: Duration,
}

impl Clocked {
    fn new() -> Self {
        Self::with(Config::new("/run/test/dmi.sock"))
    }

    fn with(config: Config) -> Self {
        let start = Instant::now();
        Self { state: State::new(config, start), start, passed: Duration::ZERO }
    }

    fn now(&self) -> Now {
        Now { at: self.start + self.passed, wall_ms: 1_000 }
    }

    fn assign(&mut self, assignment: DeviceAssignment) {
        self.state.handle_assignment(assignment, self.now());
    }

    fn register(&mut self, request: proto::MapperRegisterRequest) -> Result<Vec<String>, Refusal> {
        let answer = self.state.handle_register(request, self.now())?;
        self.state.written();
        Ok(answer.device_list.into_iter().map(|device| device.name).collect())
    }

    /// The next call of the only mapper.
    fn call(&mut self) -> Option<Call> {
        let mut calls = self.state.poll_calls(self.now().at);
        assert!(calls.len() <= 1, "{calls:?}");
        calls.pop()
    }

    /// Makes the next call, says what becomes of it, and gives its name.
    fn make(&mut self, outcome: Outcome) -> String {
        match self.call() {
            Some(call) => {
                let name = call.what.to_string();
                self.state.handle_outcome(call, outcome, self.now().at);
                name
            }
            None => "nothing".to_owned(),
        }
    }

    /// Makes all calls there are, with success.
    fn make_all(&mut self) -> Vec<String> {
        std::iter::repeat_with(|| self.make(Outcome::Done)).take_while(|name| name != "nothing").collect()
    }

    /// How long until there is something to do.
    fn due_in(&self) -> Duration {
        self.state.poll_timeout().unwrap().saturating_duration_since(self.now().at)
    }
}
