//! Devices with an HTTP interface, such as cameras, relays and gateways: a GET reads, a PUT or POST writes.
//!
//! The device's protocol settings:
//!
//! | Key | Meaning |
//! |---|---|
//! | `host` (or `ip`), `port` | the server; port 80 unless it says otherwise |
//! | `timeout` | how many milliseconds an answer may take; 3000 unless it says otherwise |
//!
//! A property's visitor:
//!
//! | Key | Meaning |
//! |---|---|
//! | `path` | what is asked for; it begins with a slash |
//! | `pointer` | where the value is in a JSON answer (RFC 6901), such as `/sensors/0/temperature`; without it, the value is the whole answer |
//! | `scale` | what a number is multiplied by |
//! | `writePath`, `writeMethod` | where a value is written, and by `PUT` (the default) or `POST` |
//! | `writeKey` | what is written is an object with the value under this key; without it, it is the value |
//!
//! One connection is made for one exchange: devices of this kind have few of them, and forget them.

use std::{convert::Infallible, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use kubeedge_core::device::{
    AccessMode, DeviceError, DeviceHandle, DeviceProtocol, DeviceSpec, PropertySpec,
};
use tokio::{net::TcpStream, time::timeout};

use super::{settings::Settings, text};

/// Drives devices with an HTTP interface.
#[derive(Debug, Clone)]
pub struct Http {
    name: String,
}

/// The longest answer: values are short, and a page that is not is not one.
const ANSWER_BYTES_MAX: usize = 256 << 10;

impl Default for Http {
    fn default() -> Self {
        Self::named("http")
    }
}

impl Http {
    /// Creates the protocol under a name; devices whose `spec.protocol.protocolName` is this are given to it.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned() }
    }
}

#[async_trait]
impl DeviceProtocol for Http {
    fn name(&self) -> &str {
        &self.name
    }

    async fn open(&self, spec: &DeviceSpec) -> Result<Box<dyn DeviceHandle>, DeviceError> {
        let handle = Handle::read_settings(spec)
            .map_err(|why| DeviceError::Invalid(format!("spec.protocol.configData: {why}")))?;
        // Whether it is there shows with the first request.
        Ok(Box::new(handle))
    }
}

#[derive(Debug)]
struct Handle {
    host: String,
    port: u16,
    timeout: Duration,
    spec: DeviceSpec,
}

impl Handle {
    fn read_settings(spec: &DeviceSpec) -> Result<Self, String> {
        let settings = Settings(&spec.protocol_config);
        let host =
            settings.text(&["host", "ip"])?.ok_or("host is missing: the name or address of the server")?;
        let port = settings.whole(&["port"], 1, 65_535)?.unwrap_or(80);
        let timeout = settings.whole(&["timeout"], 1, 60_000)?.unwrap_or(3_000);
        Ok(Self {
            host: host.to_owned(),
            port: u16::try_from(port).unwrap_or(80),
            timeout: Duration::from_millis(timeout.into()),
            spec: spec.clone(),
        })
    }

    fn settings<'a>(&self, property: &'a PropertySpec) -> Result<Settings<'a>, DeviceError> {
        match self.spec.property(&property.name) {
            Some(_) => Ok(Settings(&property.visitor)),
            None => Err(DeviceError::Invalid(format!("the device has no property {:?}", property.name))),
        }
    }

    /// Makes a request; the answer with its code.
    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<(StatusCode, Bytes), DeviceError> {
        let authority = format!("{}:{}", self.host, self.port);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &authority)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| DeviceError::Invalid(format!("path {path:?}: {error}")))?;
        let exchange = exchange((&self.host, self.port), request);
        match timeout(self.timeout, exchange).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(DeviceError::Unreachable(format!("{authority}: {error}"))),
            Err(_) => {
                Err(DeviceError::Unreachable(format!("{authority}: no answer within {:?}", self.timeout)))
            }
        }
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn exchange(to: (&str, u16), request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), BoxError> {
    let socket = TcpStream::connect(to).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
    let talk = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await?;
        Ok((status, body.to_bytes()))
    };
    // The connection has to be driven while the two talk; its error comes out of the talk as well.
    let drive = async {
        let _ = connection.await;
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        result = talk => result,
        never = drive => match never {},
    }
}

/// Tells an answer that is no value from one that may be.
fn check(status: StatusCode, path: &str) -> Result<(), DeviceError> {
    match status {
        status if status.is_success() => Ok(()),
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            Err(DeviceError::Unreachable(format!("{path} answers {status}")))
        }
        status => Err(DeviceError::Invalid(format!("{path} answers {status}"))),
    }
}

#[async_trait]
impl DeviceHandle for Handle {
    async fn read(&mut self, property: &PropertySpec) -> Result<String, DeviceError> {
        let settings = self.settings(property)?;
        let visitor = |why| DeviceError::Invalid(format!("visitors.configData: {why}"));
        let path = settings.text(&["path"]).map_err(visitor)?;
        let path = path.ok_or_else(|| visitor("path is missing".to_owned()))?;
        let (status, body) = self.exchange(Method::GET, path, String::new()).await?;
        check(status, path)?;
        text::value(property, settings, &body).map_err(|why| DeviceError::Invalid(format!("{path}: {why}")))
    }

    async fn write(&mut self, property: &PropertySpec, value: &str) -> Result<(), DeviceError> {
        let settings = self.settings(property)?;
        if property.access == AccessMode::ReadOnly {
            return Err(DeviceError::Rejected(format!("{:?} can only be read", property.name)));
        }
        let visitor = |why| DeviceError::Invalid(format!("visitors.configData: {why}"));
        let path = settings.text(&["writePath", "path"]).map_err(visitor)?;
        let path = path.ok_or_else(|| visitor("writePath is missing".to_owned()))?;
        let method = match settings.text(&["writeMethod"]).map_err(visitor)? {
            None | Some("PUT") => Method::PUT,
            Some("POST") => Method::POST,
            Some(other) => {
                return Err(visitor(format!("writeMethod is {other:?}, and neither PUT nor POST")));
            }
        };
        let body = text::payload(property, settings, value).map_err(DeviceError::Rejected)?;
        let (status, _) = self.exchange(method, path, body).await?;
        match check(status, path) {
            Err(DeviceError::Invalid(why)) => Err(DeviceError::Rejected(why)),
            checked => checked,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::{Json, Router, routing::get};
    use kubeedge_core::device::conformance;
    use serde_json::{Value, json};
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;

    fn spec(port: u16) -> DeviceSpec {
        let device = format!(
            r#"{{"metadata":{{"namespace":"default","name":"h-1"}},"spec":{{
            "protocol":{{"protocolName":"http","configData":{{"host":"127.0.0.1","port":{port},"timeout":500}}}},"properties":[
            {{"name":"temperature","visitors":{{"configData":{{"path":"/status","pointer":"/sensors/0/t","scale":0.1}}}}}},
            {{"name":"limit","visitors":{{"configData":{{"path":"/limit","pointer":"/limit","writeKey":"limit"}}}}}},
            {{"name":"version","visitors":{{"configData":{{"path":"/version"}}}}}}]}}}}"#
        );
        let model = r#"{"spec":{"properties":[{"name":"temperature","type":"DOUBLE","accessMode":"ReadOnly"},
            {"name":"limit","type":"INT"},{"name":"version","type":"STRING","accessMode":"ReadOnly"}]}}"#;
        DeviceSpec::from_json(device.as_bytes(), model.as_bytes()).unwrap()
    }

    async fn device() -> u16 {
        let limit = Arc::new(Mutex::new(json!(5)));
        let written = limit.clone();
        let put = move |Json(body): Json<Value>| {
            *written.lock().unwrap() = body["limit"].clone();
            async {}
        };
        let limit = move || {
            let limit = limit.lock().unwrap().clone();
            async move { Json(json!({ "limit": limit })) }
        };
        let app = Router::new()
            .route("/status", get(|| async { Json(json!({"sensors":[{"t":215}]})) }))
            .route("/version", get(|| async { "1.2\n" }))
            .route("/limit", get(limit).put(put));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move { axum::serve(listener, app).await });
        port
    }

    #[tokio::test]
    async fn http_devices_keep_the_contract() {
        conformance::run(&Http::default(), &spec(device().await), Some(("limit", "7"))).await;
    }

    #[tokio::test]
    async fn values_are_found_where_the_visitor_says() {
        let spec = spec(device().await);
        let mut handle = Http::default().open(&spec).await.unwrap();
        assert_eq!(handle.read(spec.property("temperature").unwrap()).await.unwrap(), "21.5");
        assert_eq!(handle.read(spec.property("version").unwrap()).await.unwrap(), "1.2");
        let mut other = spec.property("temperature").unwrap().clone();
        other.visitor.insert("pointer".to_owned(), "/sensors/7/t".into());
        let error = handle.read(&other).await.unwrap_err();
        assert_eq!(error.to_string(), "/status: the answer has nothing at /sensors/7/t");
        other.visitor.insert("path".to_owned(), "/nowhere".into());
        let error = handle.read(&other).await.unwrap_err();
        assert_eq!(error.to_string(), "/nowhere answers 404 Not Found");
    }

    #[tokio::test]
    async fn rubbish_silence_and_endless_answers_are_errors_that_end_in_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let spec = spec(listener.local_addr().unwrap().port());
        tokio::spawn(async move {
            for number in 0.. {
                let (mut socket, _) = listener.accept().await.unwrap();
                match number {
                    0 => _ = socket.write_all(b"\0\xff rubbish\r\n\r\n").await,
                    1 => tokio::time::sleep(Duration::from_secs(1)).await,
                    2 => _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nab").await,
                    _ => {
                        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
                        while socket.write_all(&[b'x'; 65_536]).await.is_ok() {}
                    }
                }
            }
        });
        let mut handle = Http::default().open(&spec).await.unwrap();
        for _ in 0..4 {
            let read = handle.read(spec.property("version").unwrap()).await;
            assert!(matches!(read, Err(DeviceError::Unreachable(_))), "{read:?}");
        }
    }
}
