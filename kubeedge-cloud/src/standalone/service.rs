//! The API as a service: a request comes in, an answer goes out.

use std::{convert::Infallible, future::Future, pin::Pin, sync::Arc, task};

use bytes::{Buf, BufMut as _, Bytes, BytesMut};
use futures::StreamExt as _;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header, request::Parts};
use http_body_util::{BodyExt as _, StreamBody};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::{
    Body, Inner, Nodes,
    delete::{self, Deletion},
    discovery,
    failure::Failure,
    json::at,
    list::{Page, Scope},
    nodes::{Node, stream_path},
    patch::Patch,
    protobuf,
    query::Query,
    resize::resize,
    resource::Resource,
    respond::{self, Form},
    route::{self, Route},
    store, streams, tokens,
    watch::Watch,
    write::{self, Target, Written},
};

/// The API as a `tower::Service`; cloneable.
#[derive(Debug, Clone)]
pub struct ApiService {
    pub(super) inner: Arc<Inner>,
    pub(super) nodes: Option<Nodes>,
}

impl<B> tower::Service<Request<B>> for ApiService
where
    B: http_body::Body + Send + 'static,
    B::Data: Buf + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> task::Poll<Result<(), Infallible>> {
        task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let answer = service.answer(request).await;
            Ok(answer.unwrap_or_else(|failure| respond::failure(&failure)))
        })
    }
}

/// How many times the limit of a body is read on and forgotten.
const FORGOTTEN_MAX: usize = 16;

/// Reads a body of at most `limit` bytes.
///
/// A longer one is read to its end, within reason: a connection that is closed with bytes unread is reset, and
/// then the client does not see the answer that says why.
async fn collect<B>(body: B, limit: usize) -> Result<Bytes, Failure>
where
    B: http_body::Body,
    B::Data: Buf,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut body = std::pin::pin!(body);
    let (mut kept, mut came) = (BytesMut::new(), 0_usize);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            let error: Box<dyn std::error::Error + Send + Sync> = error.into();
            Failure::bad_request(format!("the body cannot be read: {error}"))
        })?;
        let Ok(data) = frame.into_data() else { continue };
        came = came.saturating_add(data.remaining());
        if came <= limit {
            kept.put(data);
        } else if came <= limit.saturating_mul(FORGOTTEN_MAX) {
            kept = BytesMut::new();
        } else {
            break;
        }
    }
    if came > limit { Err(Failure::too_large(limit)) } else { Ok(kept.freeze()) }
}

impl ApiService {
    async fn answer<B>(&self, request: Request<B>) -> Result<Response<Body>, Failure>
    where
        B: http_body::Body + Send,
        B::Data: Buf + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (parts, body) = request.into_parts();
        let limit = self.inner.config.body_bytes_max;
        let body = timeout(self.inner.config.body_timeout, collect(body, limit)).await;
        let body = body.map_err(|_| Failure::node(504, "the body did not come in time"))??;
        let query = Query::parse(parts.uri.query())?;
        match route::parse(parts.uri.path())? {
            Route::Fixed(path) if path == "/openid/v1/jwks" && parts.method == Method::GET => {
                let keys = self.inner.store.write(false, tokens::key_set).await?;
                Ok(respond::json(200, &keys))
            }
            Route::Fixed(path) => fixed(&path, &parts),
            Route::NodeProxy { node, port, path } => {
                let node = Node::new(self.nodes.as_ref(), &node, self.inner.config.node_timeout)?;
                node.call(port, path, &parts, body).await
            }
            Route::Objects { resource, namespace, name: None, sub: _ } => {
                self.collection(resource, namespace, &query, &parts, &body).await
            }
            Route::Objects { resource, namespace, name: Some(name), sub } => {
                let namespace = namespace.unwrap_or_default();
                let mut target = Target { resource, namespace, name, status: false };
                match (sub.as_deref(), resource.kind) {
                    (None, _) => {}
                    (Some("status"), _) if resource.status => target.status = true,
                    (Some("approval"), "CertificateSigningRequest") => target.status = true,
                    (Some("log"), "Pod") if parts.method == Method::GET => {
                        return self.logs(&target, &query).await;
                    }
                    (Some("binding"), "Pod") if parts.method == Method::POST => {
                        let binding = decode_body(&parts.headers, &body)?;
                        let bind = move |txn: &mut store::Txn<'_, '_>| write::binding(txn, &target, &binding);
                        self.inner.store.write(query.dry_run()?, bind).await?;
                        return Ok(respond::json(201, &success(json!({}))));
                    }
                    (Some("resize"), "Pod") if parts.method == Method::PUT => {
                        let object = decode_body(&parts.headers, &body)?;
                        let resize = move |txn: &mut store::Txn<'_, '_>| resize(txn, &target, |_| Ok(object));
                        let written = self.inner.store.write(query.dry_run()?, resize).await?;
                        return Ok(respond::json(200, &written.object));
                    }
                    (Some("resize"), "Pod") if parts.method == Method::PATCH => {
                        let patch = Patch::parse(media_type(&parts.headers), &body, true)?;
                        if matches!(patch, Patch::Apply(_)) {
                            return Err(Failure::bad_request("resize: use a merge, strategic or JSON patch"));
                        }
                        let resize = move |txn: &mut store::Txn<'_, '_>| {
                            resize(txn, &target, |old| patch.apply_to(old.clone()))
                        };
                        let written = self.inner.store.write(query.dry_run()?, resize).await?;
                        return Ok(respond::json(200, &written.object));
                    }
                    (Some("resize"), "Pod") if parts.method == Method::GET => {}
                    (Some("token"), "ServiceAccount") if parts.method == Method::POST => {
                        let asked = decode_body(&parts.headers, &body)?;
                        let issue = move |txn: &mut store::Txn<'_, '_>| tokens::issue(txn, &target, &asked);
                        let given = self.inner.store.write(query.dry_run()?, issue).await?;
                        return Ok(respond::json(201, &given));
                    }
                    (Some(sub @ ("exec" | "attach" | "portforward")), "Pod") => {
                        return self.stream(&target, sub, &query, parts).await;
                    }
                    (Some(_), _) => return Err(Failure::no_such_path()),
                }
                self.object(target, &query, &parts, &body).await
            }
        }
    }

    async fn logs(&self, target: &Target, query: &Query) -> Result<Response<Body>, Failure> {
        let (pod, node) = self.pod_and_node(target)?;
        node.logs(&pod, query).await
    }

    /// As an API server does it: at the path that the pod's kubelet has for the same, with the client's own query.
    async fn stream(
        &self,
        target: &Target,
        what: &str,
        query: &Query,
        parts: Parts,
    ) -> Result<Response<Body>, Failure> {
        if ![Method::GET, Method::POST].contains(&parts.method) {
            return Err(Failure::method_not_allowed());
        }
        let (pod, node) = self.pod_and_node(target)?;
        let path = stream_path(&pod, what, query)?;
        streams::stream(node.into_inner(), &path, parts, &self.inner.streams, &self.inner.config).await
    }

    fn pod_and_node(&self, target: &Target) -> Result<(Value, Node), Failure> {
        let pod = self.inner.store.read()?.get(target.resource, &target.namespace, &target.name)?;
        let pod = pod.ok_or_else(|| Failure::not_found(target.resource.plural, "", &target.name))?;
        let pod = store::decode(&pod)?;
        let node = at(&pod, &["spec", "nodeName"]).and_then(Value::as_str);
        let node = node.ok_or_else(|| {
            Failure::bad_request(format!("pod {} does not have a host assigned", target.name))
        })?;
        let node = Node::new(self.nodes.as_ref(), node, self.inner.config.node_timeout)?;
        Ok((pod, node))
    }

    async fn collection(
        &self,
        resource: &'static Resource,
        namespace: Option<String>,
        query: &Query,
        parts: &Parts,
        body: &[u8],
    ) -> Result<Response<Body>, Failure> {
        let form = Form::choose(&parts.headers, query.get("includeObject"))?;
        let scope = Scope::parse(resource, namespace, query)?;
        match parts.method {
            Method::GET if query.flag("watch") => self.watch(scope, query, form).await,
            Method::GET => self.list(scope, query, form).await,
            Method::POST => {
                if scope.namespace.is_none() && resource.namespaced {
                    return Err(Failure::method_not_allowed());
                }
                let object = decode_body(&parts.headers, body)?;
                let options = query.options(agent(parts))?;
                let namespace = scope.namespace.unwrap_or_default();
                let target = Target { resource, namespace, name: String::new(), status: false };
                let create = move |txn: &mut store::Txn<'_, '_>| write::create(txn, target, object, &options);
                let written = self.inner.store.write(query.dry_run()?, create).await?;
                Ok(answer_written(resource, written, form))
            }
            Method::DELETE => self.delete_collection(scope, query, body).await,
            _ => Err(Failure::method_not_allowed()),
        }
    }

    async fn object(
        &self,
        target: Target,
        query: &Query,
        parts: &Parts,
        body: &[u8],
    ) -> Result<Response<Body>, Failure> {
        let form = Form::choose(&parts.headers, query.get("includeObject"))?;
        let resource = target.resource;
        let store = &self.inner.store;
        let written = match parts.method {
            Method::GET => {
                let object = store.read()?.get(resource, &target.namespace, &target.name)?;
                let object = object
                    .ok_or_else(|| Failure::not_found(resource.plural, resource.group, &target.name))?;
                return Ok(respond::bytes(200, "application/json", form.object(resource, object, true)));
            }
            Method::PUT => {
                let (object, options) = (decode_body(&parts.headers, body)?, query.options(agent(parts))?);
                let update =
                    move |txn: &mut store::Txn<'_, '_>| write::replace(txn, &target, object, &options);
                store.write(query.dry_run()?, update).await?
            }
            Method::PATCH => {
                let patch = Patch::parse(media_type(&parts.headers), body, resource.built_in())?;
                let options = query.options(agent(parts))?;
                if matches!(patch, Patch::Apply(_)) && query.get("fieldManager").is_none() {
                    return Err(Failure::bad_request(
                        "fieldManager: Required value: is required for apply patch",
                    ));
                }
                let patch = move |txn: &mut store::Txn<'_, '_>| write::patch(txn, &target, &patch, &options);
                store.write(query.dry_run()?, patch).await?
            }
            Method::DELETE if !target.status => return self.delete(target, query, body).await,
            _ => return Err(Failure::method_not_allowed()),
        };
        Ok(answer_written(resource, written, form))
    }

    async fn delete(&self, target: Target, query: &Query, body: &[u8]) -> Result<Response<Body>, Failure> {
        let (deletion, dry_run) = deletion(query, body)?;
        let (resource, name) = (target.resource, target.name.clone());
        let delete = move |txn: &mut store::Txn<'_, '_>| delete::delete(txn, &target, &deletion);
        let (object, gone) = self.inner.store.write(dry_run, delete).await?;
        if !gone {
            return Ok(respond::json(200, &object));
        }
        let mut details = json!({
            "name": name, "kind": resource.plural, "uid": object["metadata"]["uid"],
        });
        if !resource.group.is_empty() {
            details["group"] = resource.group.into();
        }
        Ok(respond::json(200, &success(details)))
    }

    async fn delete_collection(
        &self,
        scope: Scope,
        query: &Query,
        body: &[u8],
    ) -> Result<Response<Body>, Failure> {
        let (deletion, dry_run) = deletion(query, body)?;
        let resource = scope.resource;
        let delete = move |txn: &mut store::Txn<'_, '_>| {
            for object in txn.list(scope.resource, scope.namespace.as_deref())? {
                if scope.selector.matches(&object) {
                    delete::delete(txn, &scope.target_of(&object), &deletion)?;
                }
            }
            Ok(())
        };
        self.inner.store.write(dry_run, delete).await?;
        Ok(respond::json(200, &success(json!({ "kind": resource.plural }))))
    }

    async fn list(&self, scope: Scope, query: &Query, form: Form) -> Result<Response<Body>, Failure> {
        let page = Page::parse(query)?;
        // Every list is of now, which is as new as any version asked for; what is no version is refused all the same.
        query.number("resourceVersion")?;
        let inner = self.inner.clone();
        // Reading may wait for the disk, and a large list takes a while to put together.
        let list = tokio::task::spawn_blocking(move || {
            let (objects, meta) = page.read(&inner.store, &scope)?;
            form.list(scope.resource, &objects, &meta)
        });
        let list = list.await.map_err(|_| Failure::internal("the list was given up"))??;
        Ok(respond::bytes(200, "application/json", list))
    }

    async fn watch(&self, scope: Scope, query: &Query, form: Form) -> Result<Response<Body>, Failure> {
        let version = query.number("resourceVersion")?.unwrap_or_default();
        let send_initial = query.flag("sendInitialEvents");
        let config = &self.inner.config;
        let lasts =
            query.number("timeoutSeconds")?.map_or(config.watch_timeout, std::time::Duration::from_secs);
        let wants_initial = version == 0 || send_initial;
        let inner = self.inner.clone();
        let begin = tokio::task::spawn_blocking(move || {
            let snapshot = inner.store.read()?;
            let initial = if wants_initial { scope.all(&snapshot)? } else { Vec::new() };
            Ok::<_, Failure>((scope, initial, snapshot.version))
        });
        let begin = begin.await.map_err(|_| Failure::internal("the watch was given up"))??;
        let (scope, mut initial, current) = begin;
        let version = match version {
            _ if wants_initial => current,
            // A version from another store: this client has to list again.
            version if version > current.max(self.inner.store.history().published()) => 0,
            version => version,
        };
        if query.get("sendInitialEvents") == Some("false") {
            initial.clear();
        }
        initial.reverse();
        let watch = Watch {
            history: self.inner.store.history().clone(),
            resource: scope.resource,
            prefix: store::prefix(scope.resource, scope.namespace.as_deref()),
            selector: scope.selector,
            form,
            version,
            initial,
            mark_initial: send_initial && query.flag("allowWatchBookmarks"),
            bookmarks: query.flag("allowWatchBookmarks"),
            bookmark_every: config.bookmark_interval,
            until: Instant::now() + lasts.min(config.watch_timeout * 2),
        };
        let frames = watch.lines().map(|line| Ok(http_body::Frame::data(line)));
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        let media_type = HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, media_type);
        Ok(response)
    }
}

fn answer_written(resource: &Resource, written: Written, form: Form) -> Response<Body> {
    let code = if written.created { 201 } else { 200 };
    let object = form.object(resource, written.object.to_string().into(), true);
    let mut response = respond::bytes(code, "application/json", object);
    for warning in written.warnings.iter().take(16) {
        let text: String = warning.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').collect();
        let text = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    response
}

fn success(details: Value) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details })
}

/// The options of a deletion, which stand in the body or in the query.
fn deletion(query: &Query, body: &[u8]) -> Result<(Deletion, bool), Failure> {
    let options: Value = if body.starts_with(protobuf::MAGIC) {
        protobuf::decode(body)?
    } else if body.iter().all(u8::is_ascii_whitespace) {
        json!({})
    } else {
        serde_json::from_slice(body)
            .map_err(|e| Failure::bad_request(format!("error decoding DeleteOptions: {e}")))?
    };
    let in_query = query.get("gracePeriodSeconds").map(str::parse::<i64>).transpose();
    let in_query = in_query.map_err(|_| Failure::bad_request("gracePeriodSeconds must be a number"))?;
    let grace = match options.get("gracePeriodSeconds") {
        None | Some(Value::Null) => in_query,
        Some(value) => {
            let bad = || Failure::bad_request("DeleteOptions.gracePeriodSeconds must be a whole number");
            Some(value.as_i64().ok_or_else(bad)?)
        }
    };
    if let Some(policy) = options.get("propagationPolicy").and_then(Value::as_str)
        && !["Background", "Foreground", "Orphan"].contains(&policy)
    {
        let message = format!("DeleteOptions.propagationPolicy: Unsupported value: {policy:?}");
        return Err(Failure::bad_request(message));
    }
    let precondition =
        |member| at(&options, &["preconditions", member]).and_then(Value::as_str).map(str::to_owned);
    let dry_run = options.get("dryRun").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    let deletion = Deletion { grace, uid: precondition("uid"), version: precondition("resourceVersion") };
    Ok((deletion, dry_run || query.dry_run()?))
}

fn decode_body(headers: &HeaderMap, body: &[u8]) -> Result<Value, Failure> {
    match media_type(headers) {
        "application/json" | "" => serde_json::from_slice(body)
            .map_err(|e| Failure::bad_request(format!("the body is not valid JSON: {e}"))),
        "application/yaml" => super::patch::apply::parse(body),
        "application/vnd.kubernetes.protobuf" => protobuf::decode(body),
        other => {
            let message = format!(
                "the body of the request was in an unknown format {other:?}; it must be application/json or application/yaml"
            );
            Err(Failure::unsupported_media_type(message))
        }
    }
}

fn media_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

fn agent(parts: &Parts) -> &str {
    parts.headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or("unknown")
}

fn fixed(path: &str, parts: &Parts) -> Result<Response<Body>, Failure> {
    match (parts.method.as_str(), path) {
        ("GET" | "HEAD", "/healthz" | "/readyz" | "/livez") => {
            Ok(respond::bytes(200, "text/plain; charset=utf-8", "ok".into()))
        }
        ("GET" | "HEAD", path) => discovery::answer(path, &parts.headers),
        // `kubectl auth can-i` asks here; whoever has the token may do everything.
        ("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews") => {
            let review = json!({
                "kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1",
                "metadata": {}, "spec": {}, "status": { "allowed": true },
            });
            Ok(respond::json(201, &review))
        }
        _ => Err(Failure::no_such_path()),
    }
}
