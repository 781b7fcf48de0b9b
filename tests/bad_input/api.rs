//! Nonsense for the standalone API.

use anyhow::{Context, Result, ensure};
use kube::{Client, Config, config::Kubeconfig, core::Status};
use serde_json::{Value, json};

use crate::Healthy;

#[test]
fn kubectl_is_told_what_is_wrong_with_a_manifest_and_where() -> Result<()> {
    let mut site = Healthy::start()?;
    let large = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: large}}\ndata: {{x: \"{}\"}}\n",
        "x".repeat((1 << 20) + 1)
    );
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: map}\n";
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: pod}\nspec:\n  ";
    for (manifest, wanted) in [
        ("apiVersion: v1\nkind: [\n".to_owned(), "line"),
        ("kind: ConfigMap\n\tmetadata: {}\n".to_owned(), "line"),
        (format!("{map}data: [1]\n"), "data"),
        (format!("{map}data: {{x: 7}}\n"), "data"),
        (format!("{pod}containers: none\n"), "containers"),
        (
            format!("{pod}containers: [{{name: a, image: b, ports: [{{containerPort: x}}]}}]\n"),
            "containerPort",
        ),
        (format!("{pod}containers: []\n"), "spec.containers"),
        (format!("{pod}containers: [{{name: A_B, image: b}}]\n"), "spec.containers[0].name"),
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: A_B}\n".to_owned(), "metadata.name"),
        ("apiVersion: v1\nkind: Magic\nmetadata: {name: a}\n".to_owned(), "Magic"),
        (large, "data"),
    ] {
        let shown: String = manifest.chars().take(200).collect();
        let refused = site.cloud.apply(&manifest).err().with_context(|| format!("was taken: {shown}"))?;
        let refused: String = format!("{refused:#}").chars().take(2000).collect();
        ensure!(refused.contains(wanted), "{wanted:?} is not in: {refused}");
    }
    let error =
        site.cloud.kubectl(&["--token=wrong", "get", "pods"]).err().context("a wrong token was taken")?;
    ensure!(format!("{error:#}").contains("logged in"), "{error:#}");
    site.goes_on()
}

/// Requests: method, path, type of the body, body; the code and the words that the Status must have.
const REQUESTS: [(&str, &str, &str, &str, u16, &str); 16] = [
    (
        "POST",
        "/api/v1/namespaces/default/configmaps?fieldValidation=Strict",
        "application/json",
        r#"{"metadata":{"name":"map"},"datta":{"x":"y"}}"#,
        400,
        "unknown field \"datta\"",
    ),
    (
        "POST",
        "/api/v1/namespaces/default/pods?fieldValidation=Strict",
        "application/json",
        r#"{"metadata":{"name":"pod"},"spec":{"containers":[{"name":"a","image":"b","imagge":"c"}]}}"#,
        400,
        "unknown field \"spec.containers[0].imagge\"",
    ),
    ("GET", "/api/v1/pods?watch=1&resourceVersion=nonsense", "", "", 400, "resourceVersion"),
    ("GET", "/api/v1/pods?watch=1&resourceVersion=-1", "", "", 400, "resourceVersion"),
    ("GET", "/api/v1/pods?resourceVersion=99999999999999999999999", "", "", 400, "resourceVersion"),
    ("GET", "/api/v1/pods?limit=many", "", "", 400, "limit"),
    ("GET", "/api/v1/pods?continue=nonsense", "", "", 400, "continue"),
    ("GET", "/api/v1/pods?labelSelector=%3D%3D%3D", "", "", 400, "selector"),
    ("GET", "/api/v1/pods?fieldSelector=spec.magic%3D1", "", "", 400, "spec.magic"),
    ("GET", "/api/v1/magic", "", "", 404, "could not find"),
    ("POST", "/api/v1/namespaces/default/pods", "application/json", "{", 400, "EOF"),
    ("POST", "/api/v1/namespaces/default/pods", "application/json", "[]", 400, "object"),
    ("POST", "/api/v1/namespaces/default/pods", "text/plain", "pod", 415, "text/plain"),
    (
        "POST",
        "/api/v1/namespaces/default/configmaps",
        "application/json",
        r#"{"metadata":[]}"#,
        400,
        "metadata",
    ),
    (
        "PATCH",
        "/api/v1/namespaces/default/pods/reader",
        "application/merge-patch+json",
        "{\"spec\"",
        400,
        "EOF",
    ),
    (
        "PATCH",
        "/api/v1/namespaces/default/pods/reader",
        "application/json-patch+json",
        r#"[{"op":"replace","path":"/never/was","value":1}]"#,
        422,
        "/never/was",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn each_wrong_request_gets_a_status_that_names_what_is_wrong() -> Result<()> {
    let mut site = Healthy::start()?;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kubeconfig = Kubeconfig::read_from(site.cloud.kubeconfig())?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
    let client = Client::try_from(config.clone())?;
    let mut before = None;
    // The allocator has an arena for each thread of cloudcore, and some rounds pass until each has held a large
    // body; what is lost with each round would show in those that follow.
    for round in 0..12 {
        for (method, path, kind, body, code, words) in REQUESTS {
            let status = refused(&client, method, path, kind, body.as_bytes().to_vec()).await?;
            ensure!(status.code == code && status.message.contains(words), "{path} {body}: {status:?}");
        }
        // Within the limit of an object, and over the limit of a request.
        for (data, wanted) in [((1 << 20) + 1, 422), (4 << 20, 413)] {
            let map = json!({"metadata": {"name": "large"}, "data": {"x": "x".repeat(data)}}).to_string();
            let path = "/api/v1/namespaces/default/configmaps";
            let status = refused(&client, "POST", path, "application/json", map.into_bytes()).await?;
            ensure!(status.code == wanted, "{status:?}");
        }
        let deep = format!("{{\"metadata\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        let path = "/api/v1/namespaces/default/configmaps";
        let status = refused(&client, "POST", path, "application/json", deep.into_bytes()).await?;
        ensure!(status.code == 400 && status.message.len() < 1000, "{status:?}");
        if round == 5 {
            before = Some(site.cloud_memory()?);
        }
    }
    before.context("there are more rounds than five")?.has_not_grown()?;
    for token in [None, Some("wrong"), Some("")] {
        let mut config = config.clone();
        config.auth_info.token = token.map(|token| token.to_owned().into());
        let status = refused(&Client::try_from(config)?, "GET", "/api/v1/pods", "", Vec::new()).await?;
        ensure!(status.code == 401 && status.reason == "Unauthorized", "{status:?}");
    }
    site.goes_on()
}

/// What the API says to a request that it must refuse.
async fn refused(client: &Client, method: &str, path: &str, kind: &str, body: Vec<u8>) -> Result<Status> {
    let mut request = http::Request::builder().method(method).uri(path);
    if !kind.is_empty() {
        request = request.header(http::header::CONTENT_TYPE, kind);
    }
    match client.request::<Value>(request.body(body)?).await {
        Ok(answer) => anyhow::bail!("{method} {path} was taken: {answer}"),
        Err(kube::Error::Api(status)) => Ok(*status),
        Err(error) => Err(error).context(format!("{method} {path} got no Status")),
    }
}
