use kubeedge_core::message::LogRequest;

use super::route::{Question, Refusal, Route};

const NOW_MS: u64 = 1_800_000_000_000;

fn read(path: &str, query: &str) -> Result<Route, Refusal> {
    Route::read(path, Some(query), NOW_MS)
}

fn asked(request: LogRequest, follow: bool) -> Result<Route, Refusal> {
    Ok(Route::Log(Question { request, follow }))
}

fn log() -> LogRequest {
    LogRequest {
        namespace: "default".into(),
        pod: "web-0".into(),
        container: "main".into(),
        tail_lines: None,
        since_ms: None,
        limit_bytes: None,
        timestamps: false,
        previous: false,
        cursor: None,
    }
}

#[test]
fn what_the_api_server_puts_into_the_url_is_what_the_node_is_asked() {
    let path = "/containerLogs/default/web-0/main";
    assert_eq!(read(path, ""), asked(log(), false));
    let many = read(path, "follow=true&tailLines=7&timestamps=true&limitBytes=10&sinceSeconds=60&stream=All");
    let request = LogRequest {
        tail_lines: Some(7),
        limit_bytes: Some(10),
        timestamps: true,
        since_ms: Some(NOW_MS - 60_000),
        ..log()
    };
    assert_eq!(many, asked(request, true));
    let previous = read(path, "previous=true&sinceTime=1970-01-01T00%3A00%3A01Z");
    let request = LogRequest { previous: true, since_ms: Some(1000), ..log() };
    assert_eq!(previous, asked(request, false));
}

#[test]
fn a_stream_is_for_a_pod_whose_uid_may_be_in_the_path() {
    let stream = || Ok(Route::Stream { namespace: "default".into(), pod: "web-0".into() });
    for path in [
        "/exec/default/web-0/main",
        "/exec/default/web-0/0a-1b/main",
        "/attach/default/web-0/main",
        "/attach/default/web-0/0a-1b/main",
        "/portForward/default/web-0",
        "/portForward/default/web-0/0a-1b",
    ] {
        assert_eq!(read(path, "command=sh&output=1"), stream(), "{path}");
    }
}

#[test]
fn what_is_nothing_of_a_pod_is_refused_with_the_reason() {
    let code = |path: &str, query: &str| read(path, query).unwrap_err().code;
    assert_eq!(code("/run/default/web-0/main", "cmd=sh"), 404);
    assert_eq!(code("/exec/default/web-0", "command=sh"), 404);
    assert_eq!(code("/exec/default/web-0/UID/main", "command=sh"), 400);
    assert_eq!(code("/portForward/default/web-0/u-1/main", ""), 404);
    assert_eq!(code("/stats/summary", ""), 404);
    assert_eq!(code("/", ""), 404);
    assert_eq!(code("/containerLogs/default/web-0", ""), 404);
    assert_eq!(code("/containerLogs/default/../main", ""), 400);
    assert_eq!(code("/containerLogs/default/a%2Fb/main", ""), 400);
    assert_eq!(code("/containerLogs//web-0/main", ""), 400);
    assert_eq!(code("/containerLogs/default/web-0/main", "tailLines=-1"), 400);
    assert_eq!(code("/containerLogs/default/web-0/main", "sinceTime=yesterday"), 400);
}
