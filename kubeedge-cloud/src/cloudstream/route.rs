//! What a path of the kubelet asks for. Pure.

use kubeedge_core::message::LogRequest;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    Log(Question),
    /// A stream into the pod, which the node has at the same path.
    Stream {
        namespace: String,
        pod: String,
    },
}

/// The log that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) request: LogRequest,
    pub(super) follow: bool,
}

/// An HTTP status with a text for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: u16,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(code: u16, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl Route {
    /// Reads path and query; `now_ms` is since the Unix epoch.
    pub(super) fn read(path: &str, query: Option<&str>, now_ms: u64) -> Result<Self, Refusal> {
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let (what, names) = parts.split_first().unwrap_or((&"", &[]));
        // A pod's UID may stand after its name, as the API server puts it.
        let is_path = match *what {
            "containerLogs" => names.len() == 3,
            "exec" | "attach" => matches!(names.len(), 3 | 4),
            "portForward" => matches!(names.len(), 2 | 3),
            _ => false,
        };
        if !is_path {
            let why = "of the kubelet's paths, containerLogs, exec, attach and portForward reach edge nodes";
            return Err(Refusal::new(404, why));
        }
        if let Some(odd) = names.iter().find(|name| !is_name(name)) {
            return Err(Refusal::new(400, format!("{odd:?} is no name")));
        }
        match *names {
            [namespace, pod, container] if *what == "containerLogs" => {
                Question::read(namespace, pod, container, query, now_ms).map(Self::Log)
            }
            [namespace, pod, ..] => Ok(Self::Stream { namespace: namespace.to_owned(), pod: pod.to_owned() }),
            _ => Err(Refusal::new(404, "there is no pod in this path")),
        }
    }
}

impl Question {
    fn read(
        namespace: &str,
        pod: &str,
        container: &str,
        query: Option<&str>,
        now_ms: u64,
    ) -> Result<Self, Refusal> {
        let mut question = Self {
            request: LogRequest {
                namespace: namespace.to_owned(),
                pod: pod.to_owned(),
                container: container.to_owned(),
                tail_lines: None,
                since_ms: None,
                limit_bytes: None,
                timestamps: false,
                previous: false,
                cursor: None,
            },
            follow: false,
        };
        let pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        for (name, value) in pairs.filter(|(_, value)| !value.is_empty()) {
            question.set(name, value, now_ms)?;
        }
        Ok(question)
    }

    fn set(&mut self, name: &str, value: &str, now_ms: u64) -> Result<(), Refusal> {
        let number = || {
            value
                .parse::<u64>()
                .map_err(|_| Refusal::new(400, format!("{name} must be a number, and is {value:?}")))
        };
        let flag = || ["true", "1"].contains(&value);
        match name {
            "follow" => self.follow = flag(),
            "timestamps" => self.request.timestamps = flag(),
            "previous" => self.request.previous = flag(),
            "tailLines" => self.request.tail_lines = Some(number()?),
            "limitBytes" => self.request.limit_bytes = Some(number()?),
            "sinceSeconds" => {
                self.request.since_ms = Some(now_ms.saturating_sub(number()?.saturating_mul(1000)));
            }
            // The only signs of a time that a URL has otherwise.
            "sinceTime" => {
                let text =
                    value.replace("%3A", ":").replace("%3a", ":").replace("%2B", "+").replace("%2b", "+");
                let time: jiff::Timestamp =
                    text.parse().map_err(|_| Refusal::new(400, "sinceTime must be a time as in RFC 3339"))?;
                self.request.since_ms = Some(u64::try_from(time.as_millisecond()).unwrap_or_default());
            }
            // What else there may be changes nothing at the kubelet either.
            _ => {}
        }
        Ok(())
    }
}

/// Whether it is a name as namespaces, pods and containers have them, so that it can be a part of a path.
fn is_name(text: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    !text.is_empty() && text.len() <= 253 && text.bytes().all(inside) && !text.starts_with('.')
}
