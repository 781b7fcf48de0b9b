//! Where a device's values are pushed: `pushMethod` of a Device's property.

use serde::Deserialize;
use serde_json::Value;

use super::{SpecError, spec::field};

/// A destination for each value of a property, besides the twin.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PushMethod {
    /// A POST for each value.
    Http(HttpPush),
    /// A publish for each value.
    Mqtt(MqttPush),
}

/// An HTTP server that takes values.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HttpPush {
    /// The server's name or address, without a scheme.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The path with its query; it begins with a slash.
    pub path: String,
    /// How many milliseconds an answer may take; `None` if the device does not say.
    pub timeout_ms: Option<u64>,
}

/// An MQTT broker that takes values.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MqttPush {
    /// The broker's name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The topic; it has no wildcards.
    pub topic: String,
    /// The quality of service: 0, 1 or 2.
    pub qos: u8,
    /// Whether the broker keeps the newest value for later subscribers.
    pub retained: bool,
}

/// Something that a Device asks for and drivers of this SDK do not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {why}")]
pub struct Unsupported {
    /// The field's path, such as `spec.properties[2].pushMethod.dbMethod`.
    pub path: String,
    /// What to do instead.
    pub why: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PushJson {
    http: Option<HttpJson>,
    mqtt: Option<MqttJson>,
    otel: Option<Value>,
    db_method: Option<Value>,
    anomaly_detection: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct HttpJson {
    host_name: String,
    port: i64,
    request_path: String,
    timeout: i64,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MqttJson {
    address: String,
    topic: String,
    qos: i64,
    retained: bool,
}

impl PushJson {
    /// The destinations; what is not done is added to `unsupported`.
    pub(super) fn read(
        self,
        path: &str,
        unsupported: &mut Vec<Unsupported>,
    ) -> Result<Vec<PushMethod>, SpecError> {
        let others = [
            ("otel", &self.otel),
            ("dbMethod", &self.db_method),
            ("anomalyDetection", &self.anomaly_detection),
        ];
        for (member, _) in others.iter().filter(|(_, value)| value.is_some()) {
            unsupported.push(Unsupported {
                path: format!("{path}.{member}"),
                why: "drivers of this SDK push by http and mqtt only; the property is read and reported all the same"
                    .to_owned(),
            });
        }
        let http = self.http.map(|http| http.read(&format!("{path}.http")).map(PushMethod::Http));
        let mqtt = self.mqtt.map(|mqtt| mqtt.read(&format!("{path}.mqtt")).map(PushMethod::Mqtt));
        http.into_iter().chain(mqtt).collect()
    }
}

impl HttpJson {
    fn read(self, path: &str) -> Result<HttpPush, SpecError> {
        let host = self.host_name.strip_prefix("http://").unwrap_or(&self.host_name).trim_end_matches('/');
        let name = format!("{path}.hostName");
        if self.host_name.starts_with("https://") {
            return Err(field(
                name,
                "values are pushed by plain http; put a proxy on the node that speaks https",
            ));
        }
        let port = port(self.port, 80, &format!("{path}.port"))?;
        let request_path = if self.request_path.is_empty() { "/" } else { &self.request_path };
        if !request_path.starts_with('/') || !request_path.bytes().all(|byte| byte.is_ascii_graphic()) {
            let why =
                format!("{request_path:?} does not begin with / or has characters that must be escaped");
            return Err(field(format!("{path}.requestPath"), why));
        }
        Ok(HttpPush {
            host: self::host(host, &name)?,
            port,
            path: request_path.to_owned(),
            // KubeEdge's field has no unit in its name; seconds, as its other timeouts.
            timeout_ms: u64::try_from(self.timeout).ok().filter(|s| *s > 0).map(|s| s.saturating_mul(1_000)),
        })
    }
}

impl MqttJson {
    fn read(self, path: &str) -> Result<MqttPush, SpecError> {
        let name = format!("{path}.address");
        let address = ["tcp://", "mqtt://"]
            .iter()
            .find_map(|scheme| self.address.strip_prefix(scheme))
            .unwrap_or(&self.address)
            .trim_end_matches('/');
        if let Some((scheme, _)) = address.split_once("://") {
            return Err(field(
                name,
                format!("{scheme}:// is not spoken; tcp:// is, to a broker on the node or near it"),
            ));
        }
        let (host, digits) = match address.rsplit_once(':') {
            Some((host, digits)) if !host.ends_with(':') => (host, digits),
            Some(_) | None => (address, "1883"),
        };
        let number = digits.parse().map_err(|_| field(&*name, format!("{digits:?} is no port")))?;
        let port = port(number, 1883, &name)?;
        if self.topic.is_empty() || self.topic.len() > 1_024 || self.topic.contains(['+', '#', '\0']) {
            let why = format!(
                "{:?} is no topic to publish to: it is empty, too long, or has wildcards",
                self.topic
            );
            return Err(field(format!("{path}.topic"), why));
        }
        let qos = u8::try_from(self.qos).ok().filter(|qos| *qos <= 2);
        let qos =
            qos.ok_or_else(|| field(format!("{path}.qos"), format!("{} is not 0, 1 or 2", self.qos)))?;
        Ok(MqttPush { host: self::host(host, &name)?, port, topic: self.topic, qos, retained: self.retained })
    }
}

fn host(text: &str, path: &str) -> Result<String, SpecError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]%".contains(&byte);
    if text.is_empty() || text.len() > 255 || !text.bytes().all(fits) {
        return Err(field(path, format!("{text:?} is no host name or address")));
    }
    Ok(text.to_owned())
}

/// A port; zero stands for the default.
fn port(number: i64, default: u16, path: &str) -> Result<u16, SpecError> {
    match u16::try_from(number) {
        Ok(0) => Ok(default),
        Ok(port) => Ok(port),
        Err(_) => Err(field(path, format!("{number} is no port"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> (Result<Vec<PushMethod>, String>, Vec<String>) {
        let push: PushJson = serde_json::from_str(json).unwrap();
        let mut unsupported = Vec::new();
        let read = push.read("pushMethod", &mut unsupported).map_err(|error| error.to_string());
        (read, unsupported.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn http_and_mqtt_are_read_as_kubeedge_writes_them() {
        let (push, unsupported) = read(
            r#"{"http":{"hostName":"http://10.0.0.5","port":8080,"requestPath":"/in?x=1","timeout":3},
                "mqtt":{"address":"tcp://127.0.0.1:1883","topic":"plant/boiler","qos":1,"retained":true}}"#,
        );
        let http = HttpPush {
            host: "10.0.0.5".to_owned(),
            port: 8080,
            path: "/in?x=1".to_owned(),
            timeout_ms: Some(3_000),
        };
        let mqtt = MqttPush {
            host: "127.0.0.1".to_owned(),
            port: 1883,
            topic: "plant/boiler".to_owned(),
            qos: 1,
            retained: true,
        };
        assert_eq!(push.unwrap(), [PushMethod::Http(http), PushMethod::Mqtt(mqtt)]);
        assert!(unsupported.is_empty());
    }

    #[test]
    fn what_is_not_done_is_named_and_hinders_nothing() {
        let (push, unsupported) =
            read(r#"{"dbMethod":{"redis":{}},"otel":{"endpointURL":"x"},"http":{"hostName":"a"}}"#);
        assert_eq!(push.unwrap().len(), 1);
        assert_eq!(unsupported.len(), 2);
        assert!(unsupported[1].starts_with("pushMethod.dbMethod: "), "{unsupported:?}");
    }

    #[test]
    fn a_destination_that_cannot_work_is_refused_by_its_field() {
        for (json, field) in [
            (r#"{"http":{"hostName":""}}"#, "pushMethod.http.hostName"),
            (r#"{"http":{"hostName":"https://a"}}"#, "pushMethod.http.hostName"),
            (r#"{"http":{"hostName":"a","port":70000}}"#, "pushMethod.http.port"),
            (r#"{"http":{"hostName":"a","requestPath":"x"}}"#, "pushMethod.http.requestPath"),
            (r#"{"http":{"hostName":"a","requestPath":"/x y"}}"#, "pushMethod.http.requestPath"),
            (r#"{"http":{"hostName":"a b"}}"#, "pushMethod.http.hostName"),
            (r#"{"mqtt":{"address":"tcp://b:x","topic":"t"}}"#, "pushMethod.mqtt.address"),
            (r#"{"mqtt":{"address":"ssl://b:8883","topic":"t"}}"#, "pushMethod.mqtt.address"),
            (r#"{"mqtt":{"address":"b","topic":"t/#"}}"#, "pushMethod.mqtt.topic"),
            (r#"{"mqtt":{"address":"b","topic":"t","qos":3}}"#, "pushMethod.mqtt.qos"),
        ] {
            let error = read(json).0.unwrap_err();
            assert!(error.starts_with(&format!("{field}: ")), "{json}: {error}");
        }
    }
}
