//! Questions about what is kept, by HTTP: for a page on the gateway, a script, or `curl`.
//!
//! The paths and the frame of the answers are those of KubeEdge's mappers; errors are plain text.
//!
//! | `GET` | `Data` of the answer |
//! |---|---|
//! | `/api/v1/ping` | none, but a `Message` |
//! | `/api/v1/database/<namespace>/<device>` | values of the device, newest first; `?property=`, `?from=` and `?to=` (milliseconds since the Unix epoch or RFC 3339), `?limit=` (1,000, and 10,000 at most) |
//! | `/api/v1/stats` | how Keeper is doing: what is stored, and for each destination what waits, since when, and what was dropped |
//!
//! There is no password, and nothing can be changed; only clients of the same machine are answered.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use kubeedge_core::{id::DeviceId, pipe::Caller, store::StoreError};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Semaphore, sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{DestinationStats, Kept, Query, Stats};

/// Clients at once; a further one is closed.
const CONNECTIONS_MAX: usize = 16;

/// How long a client may take for the head of a request.
const HEAD: Duration = Duration::from_secs(10);

/// How long the store may take for an answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Values in one answer.
const LIMIT_MAX: usize = 10_000;

/// How soon the next connection is tried after the system gave none, as when there are no more descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Whom questions are put to.
#[derive(Debug, Clone)]
pub struct Outbox {
    /// What is kept.
    pub history: Caller<Query, Result<Vec<Kept>, StoreError>>,
    /// How Keeper is doing.
    pub stats: watch::Receiver<Stats>,
}

/// An answer that is an error.
#[derive(Debug, PartialEq, Eq)]
struct Refused(StatusCode, String);

/// What is asked.
#[derive(Debug, PartialEq, Eq)]
enum Question {
    Ping,
    Stats,
    Values(Query),
}

/// Answers questions until `stop`. The listener should be on the loopback address: others are not answered.
pub async fn serve(listener: TcpListener, outbox: Outbox, stop: CancellationToken) -> Result<(), Infallible> {
    let (permits, mut connections) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), JoinSet::new());
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else { continue };
                    let outbox = outbox.clone();
                    connections.spawn(async move {
                        let answer = |request| answer(request, peer, outbox.clone());
                        let served = http1::Builder::new()
                            .timer(TokioTimer::new())
                            .header_read_timeout(HEAD)
                            .max_buf_size(16 << 10)
                            .serve_connection(TokioIo::new(stream), service_fn(answer))
                            .await;
                        if let Err(error) = served {
                            tracing::debug!(%peer, %error, "a client that asks for values");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a client that asks for values was not taken");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    peer: SocketAddr,
    outbox: Outbox,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let asked = if !peer.ip().is_loopback() || !is_local(host) {
        Err(Refused(StatusCode::FORBIDDEN, "only clients of this machine are answered".to_owned()))
    } else if request.method() != Method::GET {
        Err(Refused(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered".to_owned()))
    } else {
        question(request.uri().path(), request.uri().query().unwrap_or_default())
    };
    let answered = match asked {
        Ok(question) => reply(question, outbox).await,
        Err(refused) => Err(refused),
    };
    let (status, kind, body) = match answered {
        Ok(body) => (StatusCode::OK, "application/json", body.to_string()),
        Err(Refused(status, why)) => (status, "text/plain; charset=utf-8", why + "\n"),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    Ok(response)
}

/// A page of another site that a browser on this machine shows has that site's name here.
fn is_local(host: Option<&str>) -> bool {
    let Some(host) = host else { return true };
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    ["localhost", "127.0.0.1", "[::1]"].contains(&name)
}

/// What a path asks for.
fn question(path: &str, query: &str) -> Result<Question, Refused> {
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    match parts[..] {
        ["api", "v1", "ping"] => Ok(Question::Ping),
        ["api", "v1", "stats"] => Ok(Question::Stats),
        ["api", "v1", "database", namespace, name] => {
            let wrong = |error| {
                Refused(StatusCode::BAD_REQUEST, format!("{namespace}/{name} cannot be a device: {error}"))
            };
            let device = DeviceId::new(namespace, name).map_err(wrong)?;
            values(device, query).map(Question::Values)
        }
        _ => {
            let known =
                "/api/v1/ping, /api/v1/stats and /api/v1/database/<namespace>/<device> are answered here";
            Err(Refused(StatusCode::NOT_FOUND, known.to_owned()))
        }
    }
}

fn values(device: DeviceId, query: &str) -> Result<Query, Refused> {
    let mut asked = Query { device: Some(device), ..Query::default() };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let wrong =
            |what: &str| Refused(StatusCode::BAD_REQUEST, format!("{name}={value}: {name} has to be {what}"));
        match name {
            "property" if !value.is_empty() => asked.property = Some(value.to_owned()),
            "property" => return Err(wrong("the name of a property")),
            "from" | "to" => {
                let at = time(value)
                    .ok_or_else(|| wrong("milliseconds since 1970, or a time as RFC 3339 has it"))?;
                if name == "from" { asked.from_ms = at } else { asked.to_ms = at }
            }
            "limit" => {
                let limit = value.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
                asked.limit = limit.ok_or_else(|| wrong("a number from 1 to 10000"))?;
            }
            other => {
                let known = "property, from, to and limit are known";
                return Err(Refused(StatusCode::BAD_REQUEST, format!("{other:?}: {known}")));
            }
        }
    }
    Ok(asked)
}

/// Milliseconds since the Unix epoch.
fn time(text: &str) -> Option<u64> {
    // In a query a plus sign may stand as it is, or as `%2B`, and colons as `%3A`.
    let text = text.replace("%3A", ":").replace("%3a", ":").replace("%2B", "+").replace("%2b", "+");
    text.parse().ok().or_else(|| u64::try_from(text.parse::<Timestamp>().ok()?.as_millisecond()).ok())
}

async fn reply(question: Question, outbox: Outbox) -> Result<Value, Refused> {
    let (name, content) = match question {
        Question::Ping => ("Message", json!("values are kept here")),
        Question::Stats => ("Data", stats(&outbox.stats.borrow())),
        Question::Values(query) => {
            let unavailable = |why: String| Refused(StatusCode::SERVICE_UNAVAILABLE, why);
            let kept = outbox.history.call(query, ANSWER).await;
            let kept = kept.map_err(|error| unavailable(error.to_string()))?;
            let kept = kept.map_err(|error| unavailable(error.to_string()))?;
            ("Data", kept.iter().map(value).collect())
        }
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = rfc3339(u64::try_from(now.as_millis()).unwrap_or_default());
    Ok(json!({ "apiVersion": "v1", "statusCode": 200, "timeStamp": now, name: content }))
}

fn value(kept: &Kept) -> Value {
    json!({
        "property": kept.sample.property,
        "value": kept.sample.value,
        "timestamp": kept.sample.timestamp_ms,
        "sequence": kept.sequence,
    })
}

fn stats(stats: &Stats) -> Value {
    let destination = |stats: &DestinationStats| {
        json!({
            "unsent": stats.unsent, "oldestUnsent": stats.oldest_unsent_ms.map(rfc3339), "sent": stats.sent,
            "refused": stats.refused, "dropped": stats.dropped, "expired": stats.expired,
            "failure": stats.failure,
        })
    };
    let destinations = stats.destinations.iter();
    let destinations: serde_json::Map<String, Value> =
        destinations.map(|(to, stats)| (to.to_string(), destination(stats))).collect();
    json!({
        "accepted": stats.accepted, "durable": stats.durable, "lost": stats.lost,
        "stored": stats.stored, "storedBytes": stats.stored_bytes, "oldest": stats.oldest_ms.map(rfc3339),
        "withoutOutbox": stats.without_outbox, "destinations": destinations,
    })
}

fn rfc3339(ms: u64) -> String {
    let at = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    at.map_or_else(|| ms.to_string(), |at| at.to_string())
}

#[cfg(test)]
mod tests {
    use kubeedge_core::{device::Sample, store::memory::MemoryStore};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;
    use crate::keeper::{self, Config, Keeper};

    #[test]
    fn a_question_names_its_device_property_and_time() {
        let device = || DeviceId::new("default", "boiler").unwrap();
        let query = "property=pressure&from=1970-01-01T00%3A00%3A02Z&to=5000&limit=7";
        let asked = question("/api/v1/database/default/boiler", query).unwrap();
        let wanted = Query {
            device: Some(device()),
            property: Some("pressure".to_owned()),
            from_ms: 2_000,
            to_ms: 5_000,
            limit: 7,
        };
        assert_eq!(asked, Question::Values(wanted));
        let all = Query { device: Some(device()), ..Query::default() };
        assert_eq!(question("/api/v1/database/default/boiler", ""), Ok(Question::Values(all)));
    }

    #[test]
    fn a_wrong_question_is_told_what_is_wrong() {
        let refused = |path: &str, query: &str| match question(path, query) {
            Err(Refused(status, why)) => (status.as_u16(), why),
            Ok(asked) => panic!("{asked:?}"),
        };
        let path = "/api/v1/database/default/boiler";
        for (query, names) in [
            ("from=yesterday", "from=yesterday"),
            ("limit=0", "from 1 to 10000"),
            ("limit=10001", "from 1 to 10000"),
            ("property=", "the name of a property"),
            ("order=asc", "\"order\""),
        ] {
            let (status, why) = refused(path, query);
            assert!(status == 400 && why.contains(names), "{query}: {status} {why}");
        }
        assert_eq!(refused("/api/v1/database/default/..", "").0, 400);
        assert_eq!(refused("/api/v1/database/default", "").0, 404);
        assert_eq!(refused("/", "").0, 404);
    }

    #[test]
    fn another_sites_page_is_not_of_this_machine() {
        for (host, local) in [
            (Some("127.0.0.1:7777"), true),
            (Some("localhost"), true),
            (None, true),
            (Some("evil.example:7777"), false),
        ] {
            assert_eq!(is_local(host), local, "{host:?}");
        }
    }

    #[tokio::test]
    async fn what_is_kept_is_asked_for_by_http() -> Result<(), Box<dyn std::error::Error>> {
        let (inbox, outbox, outside) = keeper::pipes();
        let stop = CancellationToken::new();
        let keeper = Keeper::new(Config::default(), Arc::new(MemoryStore::new()), inbox, outbox);
        tokio::spawn(keeper.run(stop.clone()));
        for (number, value) in ["1.5", "1.6"].into_iter().enumerate() {
            outside.samples.send(Sample {
                device: DeviceId::new("default", "boiler")?,
                property: "pressure".to_owned(),
                value: value.to_owned(),
                timestamp_ms: 1_700_000_000_000 + number as u64,
                push: [].into(),
            })?;
        }
        let mut stats = outside.stats.clone();
        stats.wait_for(|stats| stats.durable == 2).await?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(serve(
            listener,
            Outbox { history: outside.queries, stats: outside.stats },
            stop.clone(),
        ));
        let get = async |method: &str, path: &str, host: &str| -> std::io::Result<(String, String)> {
            let mut socket = TcpStream::connect(address).await?;
            let request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            socket.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await?;
            let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
            Ok((head.lines().next().unwrap_or_default().to_owned(), body.to_owned()))
        };
        let (status, body) = get("GET", "/api/v1/database/default/boiler?limit=1", "localhost").await?;
        let body: Value = serde_json::from_str(&body)?;
        assert_eq!(status, "HTTP/1.1 200 OK");
        assert_eq!(body["Data"].as_array().map(Vec::len), Some(1));
        assert_eq!(
            (&body["Data"][0]["value"], &body["Data"][0]["property"]),
            (&json!("1.6"), &json!("pressure"))
        );
        let (_, body) = get("GET", "/api/v1/stats", "localhost").await?;
        assert_eq!(serde_json::from_str::<Value>(&body)?["Data"]["durable"], json!(2));
        assert!(get("POST", "/api/v1/stats", "localhost").await?.0.contains("405"));
        assert!(get("GET", "/api/v1/stats", "evil.example").await?.0.contains("403"));
        stop.cancel();
        Ok(())
    }
}
