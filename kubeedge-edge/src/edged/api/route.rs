//! From the path and query of a request to what is asked for. Pure.

use kubeedge_core::{message::LogRequest, runtime::Streams};

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    Health,
    Pods,
    RunningPods,
    Summary,
    Metrics,
    ResourceMetrics,
    Logs { request: LogRequest, follow: bool },
    Exec { pod: PodPath, container: String, command: Vec<String>, streams: Streams },
    Attach { pod: PodPath, container: String, streams: Streams },
    PortForward { pod: PodPath, ports: Vec<u16> },
}

/// A pod, as a path names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodPath {
    pub(super) namespace: String,
    pub(super) name: String,
    /// Only the pod of that name with this UID is meant.
    pub(super) uid: Option<String>,
}

/// Says why a request is none: with the HTTP status, and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused(pub(super) u16, pub(super) String);

/// Words that one command may have, and ports that one request may name. A request's head is bounded too.
const WORDS_MAX: usize = 4096;

/// Reads a request's target. `now_ms` is for times that are given as an age.
pub(super) fn route(path: &str, query: Option<&str>, now_ms: u64) -> Result<Route, Refused> {
    let query = Query::parse(query.unwrap_or(""));
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    match parts[..] {
        ["healthz"] | ["healthz", "ping" | "syncloop"] => Ok(Route::Health),
        ["pods"] => Ok(Route::Pods),
        ["runningpods"] => Ok(Route::RunningPods),
        ["stats"] | ["stats", "summary"] => Ok(Route::Summary),
        ["metrics"] => Ok(Route::Metrics),
        ["metrics", "resource"] => Ok(Route::ResourceMetrics),
        ["containerLogs", namespace, pod, container] => logs(namespace, pod, container, &query, now_ms),
        ["exec", ref rest @ ..] => {
            let (pod, container) = container(rest)?;
            let command: Vec<String> = query.all("command").take(WORDS_MAX).map(str::to_owned).collect();
            if command.is_empty() {
                return Err(Refused(400, "you must specify at least one command".to_owned()));
            }
            Ok(Route::Exec { pod, container, command, streams: streams(&query)? })
        }
        ["attach", ref rest @ ..] => {
            let (pod, container) = container(rest)?;
            Ok(Route::Attach { pod, container, streams: streams(&query)? })
        }
        ["portForward", namespace, name] => port_forward(namespace, name, None, &query),
        ["portForward", namespace, name, uid] => port_forward(namespace, name, Some(uid), &query),
        _ => Err(Refused(404, "404 page not found".to_owned())),
    }
}

fn container(parts: &[&str]) -> Result<(PodPath, String), Refused> {
    match *parts {
        [namespace, name, container] => Ok((pod(namespace, name, None), container.to_owned())),
        [namespace, name, uid, container] => Ok((pod(namespace, name, Some(uid)), container.to_owned())),
        _ => Err(Refused(404, "404 page not found".to_owned())),
    }
}

fn pod(namespace: &str, name: &str, uid: Option<&str>) -> PodPath {
    PodPath { namespace: namespace.to_owned(), name: name.to_owned(), uid: uid.map(str::to_owned) }
}

fn port_forward(namespace: &str, name: &str, uid: Option<&str>, query: &Query) -> Result<Route, Refused> {
    let texts = query.all("port").flat_map(|text| text.split(',')).take(WORDS_MAX);
    let port = |text: &str| match text.parse() {
        Ok(0) | Err(_) => Err(Refused(400, format!("port {text:?} is not a number from 1 to 65535"))),
        Ok(port) => Ok(port),
    };
    let ports = texts.map(port).collect::<Result<_, _>>()?;
    Ok(Route::PortForward { pod: pod(namespace, name, uid), ports })
}

/// The kubelet's names, and those that the API server has for the same.
fn streams(query: &Query) -> Result<Streams, Refused> {
    let streams = Streams {
        stdin: query.flag("input") || query.flag("stdin"),
        stdout: query.flag("output") || query.flag("stdout"),
        stderr: query.flag("error") || query.flag("stderr"),
        tty: query.flag("tty"),
    };
    if !(streams.stdin || streams.stdout || streams.stderr) {
        return Err(Refused(400, "you must specify at least 1 of stdin, stdout, stderr".to_owned()));
    }
    // A terminal has one stream for both.
    Ok(Streams { stderr: streams.stderr && !streams.tty, ..streams })
}

fn logs(namespace: &str, pod: &str, container: &str, query: &Query, now_ms: u64) -> Result<Route, Refused> {
    let age_ms = query.number("sinceSeconds", 1)?.map(|seconds| seconds.saturating_mul(1000));
    let since_time = query.first("sinceTime").filter(|text| !text.is_empty());
    let since_ms = match (age_ms, since_time) {
        (Some(_), Some(_)) => {
            return Err(Refused(400, "at most one of sinceTime or sinceSeconds may be specified".to_owned()));
        }
        (Some(age_ms), None) => Some(now_ms.saturating_sub(age_ms)),
        (None, Some(text)) => {
            let time = text.parse::<jiff::Timestamp>();
            let time = time.map_err(|error| Refused(400, format!("sinceTime: {error}")))?;
            Some(u64::try_from(time.as_millisecond()).unwrap_or(0))
        }
        (None, None) => None,
    };
    let request = LogRequest {
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        container: container.to_owned(),
        tail_lines: query.number("tailLines", 0)?,
        since_ms,
        limit_bytes: query.number("limitBytes", 1)?,
        timestamps: query.flag("timestamps"),
        previous: query.flag("previous"),
        cursor: None,
    };
    Ok(Route::Logs { request, follow: query.flag("follow") })
}

/// A query's parameters, which may come more than once.
struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Self {
        Self(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn first(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// As Kubernetes reads a flag of a query: there, and neither 0 nor false.
    fn flag(&self, name: &str) -> bool {
        self.first(name).is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"))
    }

    fn number(&self, name: &str, least: u64) -> Result<Option<u64>, Refused> {
        let Some(text) = self.first(name).filter(|text| !text.is_empty()) else { return Ok(None) };
        match text.parse() {
            Ok(number) if number >= least => Ok(Some(number)),
            Ok(_) | Err(_) => {
                Err(Refused(400, format!("{name}: {text:?} is not a number of at least {least}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(path: &str) -> Result<Route, Refused> {
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        route(path, query, 100_000)
    }

    #[test]
    fn paths_are_the_kubelets() {
        assert_eq!(path("/pods"), Ok(Route::Pods));
        assert_eq!(path("/runningpods/"), Ok(Route::RunningPods));
        assert_eq!(path("/stats/summary?only_cpu_and_memory=true"), Ok(Route::Summary));
        assert_eq!(path("/metrics/resource"), Ok(Route::ResourceMetrics));
        for absent in
            ["/", "/run/a/b/c", "/exec/a/b", "/exec/a/b/c/d/e?command=x&output=1", "/containerLogs/a/b"]
        {
            assert_eq!(path(absent).unwrap_err().0, 404, "{absent}");
        }
    }

    #[test]
    fn a_command_and_its_streams_are_read_as_the_kubelet_reads_them() {
        let streams = Streams { stdin: true, stdout: true, stderr: false, tty: true };
        let pod = PodPath { namespace: "a".into(), name: "b".into(), uid: Some("u".into()) };
        let exec = Route::Exec {
            pod,
            container: "c".into(),
            command: vec!["sh".into(), "-c".into(), "echo a+b &".into()],
            streams,
        };
        let query = "command=sh&command=-c&command=echo+a%2Bb+%26&input=1&output=true&error=1&tty=1";
        assert_eq!(path(&format!("/exec/a/b/u/c?{query}")), Ok(exec));
        assert_eq!(path("/exec/a/b/c?output=1").unwrap_err().0, 400);
        assert_eq!(path("/exec/a/b/c?command=sh&output=0").unwrap_err().0, 400);
        assert_eq!(path("/attach/a/b/c").unwrap_err().0, 400);
    }

    #[test]
    fn ports_are_numbers() {
        let Ok(Route::PortForward { ports, .. }) = path("/portForward/a/b?port=80&port=8080,443") else {
            panic!()
        };
        assert_eq!(ports, [80, 8080, 443]);
        for wrong in ["0", "-1", "65536", "x"] {
            assert_eq!(path(&format!("/portForward/a/b?port={wrong}")).unwrap_err().0, 400);
        }
    }

    #[test]
    fn a_logs_options_are_read_and_wrong_ones_named() {
        let Ok(Route::Logs { request, follow }) =
            path("/containerLogs/a/b/c?follow=true&tailLines=5&sinceSeconds=60&timestamps=1&limitBytes=9")
        else {
            panic!()
        };
        assert!(follow && request.timestamps && !request.previous);
        assert_eq!(
            (request.tail_lines, request.since_ms, request.limit_bytes),
            (Some(5), Some(40_000), Some(9))
        );
        let Ok(Route::Logs { request, .. }) = path("/containerLogs/a/b/c?sinceTime=1970-01-01T00:00:01Z")
        else {
            panic!()
        };
        assert_eq!(request.since_ms, Some(1000));
        for wrong in ["tailLines=-1", "limitBytes=0", "sinceTime=yesterday", "sinceSeconds=x"] {
            let refused = path(&format!("/containerLogs/a/b/c?{wrong}")).unwrap_err();
            let name = wrong.split('=').next().unwrap();
            assert!(refused.0 == 400 && refused.1.contains(name), "{refused:?}");
        }
    }
}
