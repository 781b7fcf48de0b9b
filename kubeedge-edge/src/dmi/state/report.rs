//! What mappers report: checked against the device, and taken whole or not at all.

use kubeedge_core::{
    device::{PropertyType, Reading, ReadingContent},
    dmi::{device_id, proto},
    id::DeviceId,
};
use tonic::Code;

use super::{super::service::Refusal, Device, Now, Property, State};

impl State {
    /// Takes what properties of a device have.
    pub(in super::super) fn handle_values(
        &mut self,
        request: proto::ReportDeviceStatusRequest,
        now: Now,
    ) -> Result<(), Refusal> {
        let id = self.reporter(&request.device_namespace, &request.device_name, now)?;
        let value_max = self.config.limits.value_bytes;
        let Some(device) = self.devices.get_mut(&id) else { return Err(unknown(&id)) };
        let twins = request.reported_device.map(|status| status.twins).unwrap_or_default();
        if twins.is_empty() {
            return Err(Refusal::new(Code::InvalidArgument, format!("device {id}: the report has no twins")));
        }
        for twin in &twins {
            let wrong = |why: String| {
                let place = format!("device {id}, property {:?}", cut(&twin.property_name));
                Refusal::new(Code::InvalidArgument, format!("{place}: {why}"))
            };
            let property = device.properties.get(&twin.property_name);
            let property = property.ok_or_else(|| wrong("the device has no such property".to_owned()))?;
            check(property, twin, value_max).map_err(wrong)?;
        }
        for twin in twins {
            self.readings.extend(take(&id, device, twin, now));
        }
        Ok(())
    }

    /// Takes whether a device is connected.
    pub(in super::super) fn handle_state(
        &mut self,
        request: &proto::ReportDeviceStatesRequest,
        now: Now,
    ) -> Result<(), Refusal> {
        let id = self.reporter(&request.device_namespace, &request.device_name, now)?;
        let state = match request.state.to_ascii_lowercase().as_str() {
            "online" | "offline" | "ok" | "unknown" | "unhealthy" => request.state.clone(),
            // KubeEdge's mapper framework has a word of its own.
            "disconnected" => "offline".to_owned(),
            _ => {
                let known = "online, offline, ok, unknown and unhealthy are known";
                let why = format!("device {id}: {:?} is no state; {known}", cut(&request.state));
                return Err(Refusal::new(Code::InvalidArgument, why));
            }
        };
        self.readings.push(Reading { device: id, content: ReadingContent::State(state) });
        Ok(())
    }

    /// The device of a report, if its mapper may make one more.
    fn reporter(&mut self, namespace: &str, name: &str, now: Now) -> Result<DeviceId, Refusal> {
        let id = device_id(namespace, name)
            .map_err(|error| Refusal::new(Code::InvalidArgument, error.to_string()))?;
        let protocol = self.devices.get(&id).map(|device| device.protocol.as_str());
        let mapper = protocol.and_then(|protocol| self.mappers.get_mut(protocol));
        let limits = &self.config.limits;
        let bucket = mapper.map_or(&mut self.strangers, |mapper| &mut mapper.bucket);
        if !bucket.take(limits.calls_per_second, limits.calls_at_once, now.at) {
            let why = format!(
                "device {id}: its mapper reports more than {} times a second",
                limits.calls_per_second
            );
            return Err(Refusal::new(Code::ResourceExhausted, why));
        }
        if self.devices.contains_key(&id) { Ok(id) } else { Err(unknown(&id)) }
    }
}

fn unknown(id: &DeviceId) -> Refusal {
    let why = format!("device {id} is not on this node, or does not fit its device model");
    Refusal::new(Code::NotFound, why)
}

fn check(property: &Property, twin: &proto::Twin, value_max: usize) -> Result<(), String> {
    for (what, value) in [("reported", &twin.reported), ("observedDesired", &twin.observed_desired)] {
        let length = value.as_ref().map_or(0, |value| value.value.len());
        if length > value_max {
            return Err(format!("the {what} value has {length} bytes; {value_max} are allowed"));
        }
    }
    match &twin.reported {
        Some(reported) => check_form(property.value_type, &reported.value),
        None => Ok(()),
    }
}

/// Checks that a value has the form of its type. Bounds are no matter of a report: what is out of bounds is what an
/// operator wants to see.
fn check_form(value_type: PropertyType, value: &str) -> Result<(), String> {
    match value_type {
        PropertyType::Int | PropertyType::Float | PropertyType::Double => match value.parse::<f64>() {
            Ok(_) => Ok(()),
            Err(_) => Err(format!("{:?} is no number", cut(value))),
        },
        // What KubeEdge's mapper framework takes for one.
        PropertyType::Boolean => match value {
            "1" | "t" | "T" | "true" | "TRUE" | "True" | "0" | "f" | "F" | "false" | "FALSE" | "False" => {
                Ok(())
            }
            _ => Err(format!("{:?} is neither true nor false", cut(value))),
        },
        PropertyType::String | PropertyType::Bytes | PropertyType::Stream => Ok(()),
    }
}

/// Makes a checked twin a reading. An observed value without a reported one goes with the next of these.
fn take(id: &DeviceId, device: &mut Device, twin: proto::Twin, now: Now) -> Option<Reading> {
    let property = device.properties.get_mut(&twin.property_name)?;
    // Mappers that have observed nothing send an empty one.
    if let Some(observed) = twin.observed_desired.filter(|observed| !observed.value.is_empty()) {
        property.observed = Some(observed.value);
    }
    let reported = twin.reported?;
    let read_at = reported.metadata.get("timestamp").and_then(|timestamp| timestamp.parse().ok());
    Some(Reading {
        device: id.clone(),
        content: ReadingContent::Property {
            property: twin.property_name,
            value: reported.value,
            observed_desired: property.observed.clone(),
            timestamp_ms: read_at.unwrap_or(now.wall_ms),
        },
    })
}

/// A text as far as it belongs into a message.
fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}
