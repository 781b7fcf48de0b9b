//! The API through a client.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Node, Pod, ServiceAccount};
use kube::{
    Api, Error as KubeError,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
        PostParams, Preconditions, WatchEvent, WatchParams,
    },
    client::Body as KubeBody,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::{ApiServer, Config, Standalone, pipes};

async fn api() -> ApiServer {
    ApiServer::open(None, Config::default()).await.unwrap()
}

async fn maps() -> (ApiServer, Api<ConfigMap>) {
    let api = api().await;
    let maps = Api::default_namespaced(api.client());
    (api, maps)
}

fn config_map(name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(json!({
        "metadata": { "name": name, "labels": { "v": value } }, "data": { "key": value },
    }))
    .unwrap()
}

fn pod(name: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": { "containers": [{ "name": "main", "image": "nginx:1" }] },
    }))
    .unwrap()
}

fn bound(name: &str, node: &str) -> Pod {
    let mut pod = pod(name);
    pod.spec.as_mut().unwrap().node_name = Some(node.into());
    pod
}

fn node(name: &str) -> Node {
    serde_json::from_value(json!({
        "metadata": { "name": name }, "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
    }))
    .unwrap()
}

fn devices(api: &ApiServer, kind: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("devices.kubeedge.io", "v1beta1", kind);
    let plural = if kind.kind == "DeviceStatus" { "devicestatuses" } else { "devices" };
    Api::default_namespaced_with(api.client(), &ApiResource::from_gvk_with_plural(&kind, plural))
}

fn device(spec: Value) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device", "metadata": { "name": "lamp" }, "spec": spec,
    }))
    .unwrap()
}

fn code<T: std::fmt::Debug>(result: Result<T, KubeError>) -> u16 {
    match result {
        Err(KubeError::Api(status)) => status.code,
        other => panic!("expected a status, got {other:?}"),
    }
}

/// One request without a client, for what clients do not send.
async fn request(api: &ApiServer, method: &str, path: &str, body: Value) -> (StatusCode, Value) {
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let request = Request::builder().method(method).uri(path).body(KubeBody::from(body)).unwrap();
    let response = api.service().oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (head.status, serde_json::from_slice(&body).unwrap_or_default())
}

/// The next event of a watch in short: what happened, and to which object.
async fn next(watch: &mut (impl Stream<Item = Result<WatchEvent<ConfigMap>, KubeError>> + Unpin)) -> String {
    let name = |map: ConfigMap| map.metadata.name.unwrap();
    let event = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.expect("an event comes");
    match event {
        Some(Ok(WatchEvent::Added(map))) => format!("added {}", name(map)),
        Some(Ok(WatchEvent::Modified(map))) => format!("modified {}", name(map)),
        Some(Ok(WatchEvent::Deleted(map))) => format!("deleted {}", name(map)),
        Some(Ok(WatchEvent::Bookmark(mark))) => format!("bookmark {:?}", mark.metadata.annotations),
        Some(Ok(WatchEvent::Error(status))) => format!("error {}", status.code),
        Some(Err(error)) => panic!("{error}"),
        None => "end".into(),
    }
}

// ---------------------------------------------------------------------------------------------------- writing

#[tokio::test]
async fn a_pod_gets_other_resources_by_its_own_door_and_nothing_else_through_it() {
    let api = api().await;
    let pods: Api<Pod> = Api::default_namespaced(api.client());
    pods.create(&PostParams::default(), &pod("web")).await.unwrap();
    let main = |members: Value| json!({ "spec": { "containers": [members] } });
    let sized =
        main(json!({ "name": "main", "image": "other:1", "resources": { "limits": { "cpu": "2" } } }));
    let params = PatchParams::default();
    let usual = pods.patch("web", &params, &Patch::Strategic(&sized)).await;
    assert_eq!(code(usual), 422, "an update of a pod may not change them");
    let resized = pods.patch_subresource("resize", "web", &params, &Patch::Strategic(&sized)).await.unwrap();
    let container = &resized.spec.unwrap().containers[0];
    assert_eq!(container.resources.as_ref().unwrap().limits.as_ref().unwrap()["cpu"].0, "2");
    assert_eq!(container.image.as_deref(), Some("nginx:1"), "the image is not changed here");
    let stale = json!({ "metadata": { "resourceVersion": "1" } });
    let stale = pods.patch_subresource("resize", "web", &params, &Patch::Merge(&stale)).await;
    assert_eq!(code(stale), 409);
}

#[tokio::test]
async fn an_object_is_created_read_listed_changed_and_deleted() {
    let (_api, maps) = maps().await;
    let created = maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    assert!(created.metadata.uid.is_some() && created.metadata.creation_timestamp.is_some());
    assert_eq!(maps.get("a").await.unwrap(), created);
    let listed = maps.list(&ListParams::default().labels("v=1")).await.unwrap();
    assert_eq!(listed.items, [created]);
    let patch = json!({ "data": { "key": null, "other": "2" } });
    let patched = maps.patch("a", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    assert_eq!(patched.data.unwrap().into_iter().collect::<Vec<_>>(), [("other".to_owned(), "2".to_owned())]);
    assert!(maps.delete("a", &DeleteParams::default()).await.unwrap().is_right());
    assert!(maps.get_opt("a").await.unwrap().is_none());
    assert_eq!(code(maps.delete("a", &DeleteParams::default()).await), 404);
}

#[tokio::test]
async fn a_name_is_taken_once_and_generated_on_request() {
    let (_api, maps) = maps().await;
    maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    assert_eq!(code(maps.create(&PostParams::default(), &config_map("a", "1")).await), 409);
    assert_eq!(code(maps.create(&PostParams::default(), &config_map("Not_valid", "1")).await), 422);
    let mut unnamed = config_map("", "1");
    unnamed.metadata.name = None;
    assert_eq!(code(maps.create(&PostParams::default(), &unnamed).await), 422);
    unnamed.metadata.generate_name = Some("part-".into());
    let one = maps.create(&PostParams::default(), &unnamed).await.unwrap().metadata.name.unwrap();
    let two = maps.create(&PostParams::default(), &unnamed).await.unwrap().metadata.name.unwrap();
    assert!(one.starts_with("part-") && one.len() == 10 && one != two, "{one} {two}");
}

#[tokio::test]
async fn replacing_an_older_version_is_a_conflict_and_replacing_by_the_same_changes_nothing() {
    let (_api, maps) = maps().await;
    let first = maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    let same = maps.replace("a", &PostParams::default(), &first).await.unwrap();
    assert_eq!(same.metadata.resource_version, first.metadata.resource_version);
    let mut second = first.clone();
    second.data = None;
    let second = maps.replace("a", &PostParams::default(), &second).await.unwrap();
    assert_ne!(second.metadata.resource_version, first.metadata.resource_version);
    assert_eq!(code(maps.replace("a", &PostParams::default(), &first).await), 409);
}

#[tokio::test]
async fn a_dry_run_answers_and_changes_nothing() {
    let (_api, maps) = maps().await;
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    assert!(maps.create(&dry, &config_map("a", "1")).await.unwrap().metadata.uid.is_some());
    assert!(maps.get_opt("a").await.unwrap().is_none());
    maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    maps.delete("a", &DeleteParams { dry_run: true, ..DeleteParams::default() }).await.unwrap();
    assert!(maps.get_opt("a").await.unwrap().is_some());
}

#[tokio::test]
async fn status_is_written_by_its_own_path_only() {
    let api = api().await;
    let pods: Api<Pod> = Api::default_namespaced(api.client());
    let mut pod = pods.create(&PostParams::default(), &bound("a", "n")).await.unwrap();
    assert_eq!(pod.spec.as_ref().unwrap().restart_policy.as_deref(), Some("Always"));
    assert_eq!(pod.status.as_ref().unwrap().phase.as_deref(), Some("Pending"));
    pod.status.as_mut().unwrap().phase = Some("Failed".into());
    let pod = pods.replace("a", &PostParams::default(), &pod).await.unwrap();
    assert_eq!(pod.status.as_ref().unwrap().phase.as_deref(), Some("Pending"));
    let status = json!({ "status": { "phase": "Running" }, "spec": { "hostNetwork": true } });
    let pod = pods.patch_status("a", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    assert_eq!(pod.status.unwrap().phase.as_deref(), Some("Running"));
    assert_eq!(pod.spec.unwrap().host_network, None);
}

#[tokio::test]
async fn every_kind_of_patch_changes_what_it_names() {
    let api = api().await;
    let pods: Api<Pod> = Api::default_namespaced(api.client());
    pods.create(&PostParams::default(), &pod("a")).await.unwrap();
    let image = |pod: Pod| pod.spec.unwrap().containers[0].image.clone().unwrap();
    let params = PatchParams::default();
    let strategic = json!({ "spec": { "containers": [{ "name": "main", "image": "nginx:2" }] } });
    let pod = pods.patch("a", &params, &Patch::Strategic(strategic)).await.unwrap();
    assert_eq!(image(pod), "nginx:2");
    let operations = json!([
        { "op": "test", "path": "/spec/containers/0/image", "value": "nginx:2" },
        { "op": "replace", "path": "/spec/containers/0/image", "value": "nginx:3" },
    ]);
    let operations: json_patch::Patch = serde_json::from_value(operations).unwrap();
    let pod = pods.patch("a", &params, &Patch::<Pod>::Json(operations.clone())).await.unwrap();
    assert_eq!(image(pod), "nginx:3");
    assert_eq!(code(pods.patch("a", &params, &Patch::<Pod>::Json(operations)).await), 422);
    let merge = json!({ "metadata": { "labels": { "a": "b" } } });
    let pod = pods.patch("a", &params, &Patch::Merge(merge)).await.unwrap();
    assert_eq!(pod.metadata.labels.unwrap()["a"], "b");
    let forbidden = json!({ "spec": { "hostNetwork": true } });
    assert_eq!(code(pods.patch("a", &params, &Patch::Merge(forbidden)).await), 422);
}

#[tokio::test]
async fn a_strategic_patch_is_for_kubernetes_own_kinds() {
    let api = api().await;
    let devices = devices(&api, "Device");
    let spec = json!({ "deviceModelRef": { "name": "m" } });
    devices.create(&PostParams::default(), &device(spec)).await.unwrap();
    let patch = json!({ "spec": { "nodeName": "n" } });
    assert_eq!(code(devices.patch("lamp", &PatchParams::default(), &Patch::Strategic(&patch)).await), 415);
    let changed = devices.patch("lamp", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    assert_eq!(
        (changed.data["spec"]["nodeName"].as_str(), changed.metadata.generation),
        (Some("n"), Some(2))
    );
    let patch = json!({ "metadata": { "labels": { "a": "b" } } });
    let labelled = devices.patch("lamp", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    assert_eq!(labelled.metadata.generation, Some(2));
}

#[tokio::test]
async fn apply_creates_and_two_managers_do_not_disturb_each_other() {
    let (_api, maps) = maps().await;
    let apply = async |manager: &str, data: Value| {
        let config =
            json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "data": data });
        maps.patch("a", &PatchParams::apply(manager), &Patch::Apply(config)).await
    };
    let first = apply("one", json!({ "a": "1", "b": "2" })).await.unwrap();
    let again = apply("one", json!({ "a": "1", "b": "2" })).await.unwrap();
    assert_eq!(first.metadata.resource_version, again.metadata.resource_version);
    apply("two", json!({ "c": "3" })).await.unwrap();
    assert_eq!(code(apply("two", json!({ "a": "9" })).await), 409);
    let last = apply("one", json!({ "a": "1" })).await.unwrap();
    assert_eq!(last.data.unwrap().into_keys().collect::<Vec<_>>(), ["a", "c"]);
    let managers = last.metadata.managed_fields.unwrap();
    assert_eq!(
        managers.iter().map(|entry| entry.manager.as_deref().unwrap()).collect::<Vec<_>>(),
        ["one", "two"]
    );
}

#[tokio::test]
async fn what_is_immutable_stays() {
    let (_api, maps) = maps().await;
    let mut map = config_map("a", "1");
    map.immutable = Some(true);
    maps.create(&PostParams::default(), &map).await.unwrap();
    let patch = json!({ "data": { "key": "2" } });
    assert_eq!(code(maps.patch("a", &PatchParams::default(), &Patch::Merge(patch)).await), 422);
    let patch = json!({ "metadata": { "labels": { "still": "allowed" } } });
    maps.patch("a", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

#[tokio::test]
async fn the_place_of_what_is_wrong_is_named() {
    let api = api().await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = |container: Value| json!({ "metadata": { "name": "a" }, "spec": { "containers": [{ "name": "x", "image": "y" }, container] } });
    for (container, code, place) in [
        (json!({ "name": "a", "image": 5 }), 400, "spec.containers[1].image"),
        (json!({ "name": "a", "ports": "no" }), 400, "spec.containers[1].ports"),
        (json!({ "name": "a" }), 422, "spec.containers[1].image"),
        (json!({ "name": "x", "image": "y" }), 422, "spec.containers[1].name"),
        (
            json!({ "name": "a", "image": "y", "volumeMounts": [{ "name": "v", "mountPath": "/" }] }),
            422,
            "spec.containers[1].volumeMounts[0].name",
        ),
        (
            json!({ "name": "a", "image": "y", "ports": [{ "containerPort": 0 }] }),
            422,
            "spec.containers[1].ports[0].containerPort",
        ),
    ] {
        let (status, body) = request(&api, "POST", pods, pod(container)).await;
        let message = body["message"].as_str().unwrap();
        assert!(status == code && message.contains(place), "{status} {message}");
    }
    let strict = format!("{pods}?fieldValidation=Strict");
    let (status, body) =
        request(&api, "POST", &strict, pod(json!({ "name": "a", "image": "y", "extra": 1 }))).await;
    assert_eq!(status, 400);
    assert_eq!(body["message"], "strict decoding error: unknown field \"spec.containers[1].extra\"");
    for body in
        [json!([]), json!("text"), json!({ "kind": "Node" }), json!({ "metadata": 5 }), json!({ "spec": 5 })]
    {
        let (status, _) = request(&api, "POST", pods, body.clone()).await;
        assert!([400, 422].contains(&status.as_u16()), "{body} gave {status}");
    }
    let devices = "/apis/devices.kubeedge.io/v1beta1/namespaces/default/devices";
    for spec in [
        json!({}),
        json!(5),
        json!({ "deviceModelRef": { "name": "m" }, "properties": [{ "name": "a" }, { "name": "a" }] }),
    ] {
        let device = json!({ "metadata": { "name": "lamp" }, "spec": spec });
        let (status, body) = request(&api, "POST", devices, device).await;
        assert!(status == 422 && body["message"].as_str().unwrap().contains("spec"), "{body}");
    }
}

#[tokio::test]
async fn a_hostile_patch_is_refused_and_harms_nothing() {
    let (api, maps) = maps().await;
    maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    let path = "/api/v1/namespaces/default/configmaps/a";
    let copies: Vec<Value> = (0..60)
        .map(|i| json!({ "op": "copy", "from": "/metadata", "path": format!("/metadata/{i}") }))
        .collect();
    let deep = "[".repeat(90) + &"]".repeat(90);
    let deep: Value = serde_json::from_str(&deep).unwrap();
    let deeper = json!([
        { "op": "add", "path": "/x", "value": deep },
        { "op": "copy", "from": "/x", "path": &format!("/x{}", "/0".repeat(89)) },
    ]);
    for patch in [json!(copies), deeper, json!([{ "op": "add", "path": "/x".repeat(200), "value": 1 }])] {
        let request = Request::builder()
            .method("PATCH")
            .uri(path)
            .header("content-type", "application/json-patch+json")
            .body(KubeBody::from(patch.to_string().into_bytes()))
            .unwrap();
        let status = api.service().oneshot(request).await.unwrap().status();
        assert_eq!(status, 400);
    }
    assert_eq!(maps.list(&ListParams::default()).await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused() {
    let api = ApiServer::open(None, Config { body_bytes_max: 1000, ..Config::default() }).await.unwrap();
    let (status, body) = request(&api, "POST", "/api/v1/namespaces", json!({ "x": "y".repeat(2000) })).await;
    assert_eq!((status.as_u16(), body["reason"].as_str()), (413, Some("RequestEntityTooLarge")));
}

#[tokio::test]
async fn a_body_that_is_too_large_is_read_to_its_end_so_that_the_client_reads_the_answer() {
    let api = ApiServer::open(None, Config { body_bytes_max: 1000, ..Config::default() }).await.unwrap();
    for (chunks, read) in [(5, 5), (1000, 33)] {
        let taken = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = taken.clone();
        let body = futures::stream::iter(0..chunks).map(move |_| {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok::<_, Infallible>(http_body::Frame::data(Bytes::from_static(&[b' '; 500])))
        });
        let request = Request::builder().method("POST").uri("/api/v1/namespaces");
        let request = request.body(http_body_util::StreamBody::new(body)).unwrap();
        assert_eq!(api.service().oneshot(request).await.unwrap().status(), 413);
        assert_eq!(taken.load(std::sync::atomic::Ordering::Relaxed), read);
    }
}

// --------------------------------------------------------------------------------------------------- deletion

#[tokio::test]
async fn a_pod_on_a_node_goes_when_its_node_says_so_and_another_at_once() {
    let api = api().await;
    let pods: Api<Pod> = Api::default_namespaced(api.client());
    pods.create(&PostParams::default(), &bound("a", "n")).await.unwrap();
    pods.create(&PostParams::default(), &pod("b")).await.unwrap();
    assert!(pods.delete("b", &DeleteParams::default()).await.unwrap().is_right());
    let marked = pods.delete("a", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert_eq!(marked.metadata.deletion_grace_period_seconds, Some(30));
    assert!(marked.metadata.deletion_timestamp.is_some());
    let shorter = DeleteParams::default().grace_period(5);
    let marked = pods.delete("a", &shorter).await.unwrap().left().unwrap();
    assert_eq!(marked.metadata.deletion_grace_period_seconds, Some(5));
    assert!(pods.delete("a", &DeleteParams::default().grace_period(0)).await.unwrap().is_right());
    assert!(pods.get_opt("a").await.unwrap().is_none());
}

#[tokio::test]
async fn a_finalizer_holds_the_object_until_it_is_taken_away() {
    let (_api, maps) = maps().await;
    let mut map = config_map("a", "1");
    map.metadata.finalizers = Some(vec!["example.com/hold".into()]);
    maps.create(&PostParams::default(), &map).await.unwrap();
    assert!(maps.delete("a", &DeleteParams::default()).await.unwrap().is_left());
    assert!(maps.get("a").await.unwrap().metadata.deletion_timestamp.is_some());
    let patch = json!({ "metadata": { "finalizers": null } });
    maps.patch("a", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    assert!(maps.get_opt("a").await.unwrap().is_none());
}

#[tokio::test]
async fn a_deletion_may_be_bound_to_one_object_of_the_name() {
    let (_api, maps) = maps().await;
    let map = maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    let only = |uid: &str| {
        DeleteParams::default().preconditions(Preconditions { uid: Some(uid.into()), resource_version: None })
    };
    assert_eq!(code(maps.delete("a", &only("other")).await), 409);
    maps.delete("a", &only(map.metadata.uid.as_deref().unwrap())).await.unwrap();
}

#[tokio::test]
async fn many_objects_are_deleted_by_selector() {
    let (_api, maps) = maps().await;
    for (name, value) in [("a", "1"), ("b", "1"), ("c", "2")] {
        maps.create(&PostParams::default(), &config_map(name, value)).await.unwrap();
    }
    maps.delete_collection(&DeleteParams::default(), &ListParams::default().labels("v=1")).await.unwrap();
    let left = maps.list(&ListParams::default()).await.unwrap();
    assert_eq!(left.items.len(), 1);
}

#[tokio::test]
async fn a_namespace_goes_with_its_content_and_waits_for_pods_on_nodes() {
    let api = api().await;
    let namespaces: Api<Namespace> = Api::all(api.client());
    let (maps, pods): (Api<ConfigMap>, Api<Pod>) =
        (Api::namespaced(api.client(), "site"), Api::namespaced(api.client(), "site"));
    assert_eq!(code(maps.create(&PostParams::default(), &config_map("a", "1")).await), 404);
    let site: Namespace = serde_json::from_value(json!({ "metadata": { "name": "site" } })).unwrap();
    namespaces.create(&PostParams::default(), &site).await.unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(api.client(), "site");
    assert!(accounts.get_opt("default").await.unwrap().is_some());
    maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    pods.create(&PostParams::default(), &bound("p", "n")).await.unwrap();
    let terminating = namespaces.delete("site", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert_eq!(terminating.status.unwrap().phase.as_deref(), Some("Terminating"));
    assert!(maps.get_opt("a").await.unwrap().is_none());
    assert_eq!(code(maps.create(&PostParams::default(), &config_map("b", "1")).await), 403);
    pods.delete("p", &DeleteParams::default().grace_period(0)).await.unwrap();
    assert!(namespaces.get_opt("site").await.unwrap().is_none());
}

#[tokio::test]
async fn a_pod_without_credentials_for_its_images_gets_those_of_its_account() {
    let api = api().await;
    let accounts: Api<ServiceAccount> = Api::default_namespaced(api.client());
    let pods: Api<Pod> = Api::default_namespaced(api.client());
    let secrets = async |name: &str, own: Value| {
        let mut pod = bound(name, "n");
        pod.spec.as_mut().unwrap().image_pull_secrets = serde_json::from_value(own).unwrap();
        let created = pods.create(&PostParams::default(), &pod).await.unwrap();
        let secrets = created.spec.unwrap().image_pull_secrets.unwrap_or_default();
        secrets.into_iter().map(|secret| secret.name).collect::<Vec<_>>()
    };
    assert!(secrets("before", Value::Null).await.is_empty());
    let of_account = json!({ "imagePullSecrets": [{ "name": "registry" }] });
    accounts.patch("default", &PatchParams::default(), &Patch::Merge(of_account)).await.unwrap();
    assert_eq!(secrets("without", Value::Null).await, ["registry"]);
    assert_eq!(secrets("with", json!([{ "name": "own" }])).await, ["own"]);
}

// -------------------------------------------------------------------------------------------- lists and watches

#[tokio::test]
async fn pages_of_a_list_show_the_moment_at_which_it_began() {
    let (_api, maps) = maps().await;
    for name in ["a", "b", "c", "d", "e"] {
        maps.create(&PostParams::default(), &config_map(name, "1")).await.unwrap();
    }
    let mut page = ListParams::default().limit(2);
    let first = maps.list(&page).await.unwrap();
    // What happens between the pages does not show: one goes, one changes, one comes.
    maps.delete("c", &DeleteParams::default()).await.unwrap();
    maps.patch("d", &PatchParams::default(), &Patch::Merge(json!({ "data": { "key": "2" } }))).await.unwrap();
    maps.create(&PostParams::default(), &config_map("cc", "1")).await.unwrap();
    page.continue_token = first.metadata.continue_.clone();
    let second = maps.list(&page).await.unwrap();
    page.continue_token = second.metadata.continue_.clone();
    let third = maps.list(&page).await.unwrap();
    let all: Vec<_> = first.items.iter().chain(&second.items).chain(&third.items).collect();
    let names: Vec<&str> = all.iter().map(|map| map.metadata.name.as_deref().unwrap()).collect();
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
    assert_eq!(all[3].data.as_ref().unwrap()["key"], "1");
    assert_eq!(
        (third.metadata.continue_, third.metadata.resource_version),
        (None, first.metadata.resource_version)
    );
}

#[tokio::test]
async fn a_list_that_pauses_for_too_long_must_begin_again() {
    let api = ApiServer::open(None, Config { history_changes: 2, ..Config::default() }).await.unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(api.client());
    for name in ["a", "b", "c"] {
        maps.create(&PostParams::default(), &config_map(name, "1")).await.unwrap();
    }
    let mut page = ListParams::default().limit(1);
    page.continue_token = maps.list(&page).await.unwrap().metadata.continue_;
    for name in ["d", "e", "f"] {
        maps.create(&PostParams::default(), &config_map(name, "1")).await.unwrap();
    }
    assert_eq!(code(maps.list(&page).await), 410);
    page.continue_token = Some("nonsense".into());
    assert_eq!(code(maps.list(&page).await), 400);
}

#[tokio::test]
async fn a_watch_tells_every_change_after_its_version_and_a_selector_makes_objects_come_and_go() {
    let (_api, maps) = maps().await;
    let begin = maps.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    let mut all = maps.watch(&WatchParams::default(), &begin).await.unwrap().boxed();
    let mut some = maps.watch(&WatchParams::default().labels("v=1"), &begin).await.unwrap().boxed();
    assert_eq!(next(&mut all).await, "added a");
    assert_eq!(next(&mut some).await, "added a");
    let label = |value: &str| Patch::Merge(json!({ "metadata": { "labels": { "v": value } } }));
    maps.patch("a", &PatchParams::default(), &label("2")).await.unwrap();
    assert_eq!(next(&mut all).await, "modified a");
    assert_eq!(next(&mut some).await, "deleted a");
    maps.patch("a", &PatchParams::default(), &label("1")).await.unwrap();
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!((next(&mut all).await, next(&mut all).await), ("modified a".into(), "deleted a".into()));
    assert_eq!((next(&mut some).await, next(&mut some).await), ("added a".into(), "deleted a".into()));
}

#[tokio::test]
async fn a_watch_from_nowhere_begins_with_what_exists_and_marks_its_end_on_request() {
    let (_api, maps) = maps().await;
    maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    let mut watch = maps.watch(&WatchParams::default(), "0").await.unwrap().boxed();
    assert_eq!(next(&mut watch).await, "added a");
    let mut watch = maps.watch(&WatchParams::default().initial_events(), "0").await.unwrap().boxed();
    assert_eq!(next(&mut watch).await, "added a");
    assert!(next(&mut watch).await.contains("k8s.io/initial-events-end"));
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(next(&mut watch).await, "deleted a");
}

#[tokio::test]
async fn a_watch_that_has_fallen_behind_is_closed_with_410() {
    let api = ApiServer::open(None, Config { history_changes: 3, ..Config::default() }).await.unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(api.client());
    let begin = maps.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let mut slow = maps.watch(&WatchParams::default(), &begin).await.unwrap().boxed();
    for name in ["a", "b", "c", "d", "e"] {
        maps.create(&PostParams::default(), &config_map(name, "1")).await.unwrap();
    }
    assert_eq!((next(&mut slow).await, next(&mut slow).await), ("error 410".into(), "end".into()));
    let mut unknown = maps.watch(&WatchParams::default(), "99999999999999999").await.unwrap().boxed();
    assert_eq!(next(&mut unknown).await, "error 410");
}

#[tokio::test]
async fn a_watch_ends_in_its_time_and_is_told_versions_meanwhile() {
    let config = Config { bookmark_interval: Duration::from_millis(50), ..Config::default() };
    let api = ApiServer::open(None, config).await.unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(api.client());
    let watch = maps.watch(&WatchParams::default().timeout(1), "0").await.unwrap();
    let events: Vec<_> = watch.try_collect().await.unwrap();
    assert!(
        events.len() > 2 && events.iter().all(|event| matches!(event, WatchEvent::Bookmark(_))),
        "{events:?}"
    );
}

#[tokio::test]
async fn a_table_has_a_row_for_each_object() {
    let (api, maps) = maps().await;
    maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    let request = Request::builder()
        .uri("/api/v1/namespaces/default/configmaps")
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")
        .body(KubeBody::empty())
        .unwrap();
    let body = api.service().oneshot(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    let table: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["rows"][0]["cells"], json!(["a", "1", table["rows"][0]["cells"][2]]));
    assert_eq!(table["rows"][0]["object"]["metadata"]["name"], "a");
}

// -------------------------------------------------------------------------------------------------- durability

#[tokio::test]
async fn objects_and_versions_survive_a_restart_and_old_watches_must_list_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.redb");
    let created = {
        let api = ApiServer::open(Some(&path), Config::default()).await.unwrap();
        let maps: Api<ConfigMap> = Api::default_namespaced(api.client());
        maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap()
    };
    // The client's own task lets go of the store a moment after the client.
    let api = loop {
        match ApiServer::open(Some(&path), Config::default()).await {
            Ok(api) => break api,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    let maps: Api<ConfigMap> = Api::default_namespaced(api.client());
    assert_eq!(maps.get("a").await.unwrap(), created);
    let version = |map: &ConfigMap| map.metadata.resource_version.as_deref().unwrap().parse::<u64>().unwrap();
    let second = maps.create(&PostParams::default(), &config_map("b", "1")).await.unwrap();
    assert!(version(&second) > version(&created));
    let before = (version(&created) - 1).to_string();
    let mut old = maps.watch(&WatchParams::default(), &before).await.unwrap().boxed();
    assert_eq!(next(&mut old).await, "error 410");
    let mut current =
        maps.watch(&WatchParams::default(), &version(&created).to_string()).await.unwrap().boxed();
    assert_eq!(next(&mut current).await, "added b");
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_at_once_get_versions_of_their_own() {
    let (_api, maps) = maps().await;
    let creates = (0..100).map(|i| {
        let maps = maps.clone();
        async move { maps.create(&PostParams::default(), &config_map(&format!("m{i}"), "1")).await.unwrap() }
    });
    let created = futures::future::join_all(creates).await;
    let versions: std::collections::BTreeSet<_> =
        created.into_iter().map(|map| map.metadata.resource_version.unwrap()).collect();
    assert_eq!(versions.len(), 100);
}

// ---------------------------------------------------------------------------------------------------- the part

#[tokio::test]
async fn a_pod_gets_a_node_when_there_is_one_and_a_reason_until_then() {
    let api = api().await;
    let (outbox, _outside) = pipes();
    let stop = CancellationToken::new();
    let part = tokio::spawn(Standalone::new(api.clone(), None, outbox).run(stop.clone()));
    let pods: Api<Pod> = Api::default_namespaced(api.client());
    pods.create(&PostParams::default(), &pod("a")).await.unwrap();
    let condition = async |status: &str| {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            let pod = pods.get("a").await.unwrap();
            let conditions = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
            if conditions.iter().any(|c| c.type_ == "PodScheduled" && c.status == status) {
                return pod;
            }
            assert!(tokio::time::Instant::now() < deadline, "{pod:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waiting = condition("False").await;
    let reason = waiting.status.unwrap().conditions.unwrap()[0].message.clone().unwrap();
    assert_eq!(reason, "no nodes available to schedule pods");
    let nodes: Api<Node> = Api::all(api.client());
    nodes.create(&PostParams::default(), &node("n1")).await.unwrap();
    assert_eq!(condition("True").await.spec.unwrap().node_name.as_deref(), Some("n1"));
    stop.cancel();
    part.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_pod_that_has_no_room_for_its_node_does_not_keep_others_waiting() {
    let api = api().await;
    let path = "/api/v1/namespaces/default/pods";
    let padded = |bytes: usize| {
        let mut pod = serde_json::to_value(pod("large")).unwrap();
        pod["spec"]["containers"][0]["env"] = json!([{ "name": "A", "value": "x".repeat(bytes) }]);
        pod
    };
    let (_, small) = request(&api, "POST", &format!("{path}?dryRun=All"), padded(1)).await;
    let room = (3 << 19) - small.to_string().len();
    let (status, _) = request(&api, "POST", path, padded(room)).await;
    assert_eq!(status, 201, "it is as large as an object may be");
    let pods: Api<Pod> = Api::default_namespaced(api.client());
    pods.create(&PostParams::default(), &pod("other")).await.unwrap();
    Api::<Node>::all(api.client()).create(&PostParams::default(), &node("n1")).await.unwrap();
    let (outbox, _outside) = pipes();
    let stop = CancellationToken::new();
    let part = tokio::spawn(Standalone::new(api.clone(), None, outbox).run(stop.clone()));
    let scheduled = async {
        while pods.get("other").await.unwrap().spec.unwrap().node_name.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), scheduled).await.expect("the other pod gets its node");
    assert_eq!(pods.get("large").await.unwrap().spec.unwrap().node_name, None);
    stop.cancel();
    part.await.unwrap().unwrap();
}

#[tokio::test]
async fn expired_events_and_pods_of_vanished_nodes_are_removed() {
    let config = Config { sweep_interval: Duration::from_millis(20), ..Config::default() };
    let api = ApiServer::open(None, config).await.unwrap();
    let (events, pods): (Api<Event>, Api<Pod>) =
        (Api::default_namespaced(api.client()), Api::default_namespaced(api.client()));
    let event = |name: &str, time: String| {
        serde_json::from_value(json!({
            "metadata": { "name": name }, "involvedObject": {}, "lastTimestamp": time,
            "message": "x", "reason": "y", "type": "Normal",
        }))
        .unwrap()
    };
    // Its creation is what keeps it: the object was written just now, whatever it tells of.
    events.create(&PostParams::default(), &event("fresh", "2020-01-01T00:00:00Z".into())).await.unwrap();
    let nodes: Api<Node> = Api::all(api.client());
    nodes.create(&PostParams::default(), &node("n1")).await.unwrap();
    pods.create(&PostParams::default(), &bound("stays", "n1")).await.unwrap();
    pods.create(&PostParams::default(), &bound("goes", "n2")).await.unwrap();
    let (outbox, _outside) = pipes();
    let stop = CancellationToken::new();
    let part = tokio::spawn(Standalone::new(api.clone(), None, outbox).run(stop.clone()));
    let gone = async {
        while pods.get_opt("goes").await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("the pod goes");
    assert!(pods.get_opt("stays").await.unwrap().is_some());
    assert!(events.get_opt("fresh").await.unwrap().is_some());
    stop.cancel();
    part.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_event_goes_when_its_time_is_over() {
    let config = Config {
        sweep_interval: Duration::from_millis(20),
        event_ttl: Duration::from_millis(1),
        ..Config::default()
    };
    let api = ApiServer::open(None, config).await.unwrap();
    let events: Api<Event> = Api::default_namespaced(api.client());
    let event: Event =
        serde_json::from_value(json!({ "metadata": { "name": "e" }, "involvedObject": {} })).unwrap();
    events.create(&PostParams::default(), &event).await.unwrap();
    let (outbox, _outside) = pipes();
    let stop = CancellationToken::new();
    let part = tokio::spawn(Standalone::new(api.clone(), None, outbox).run(stop.clone()));
    let gone = async {
        while events.get_opt("e").await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("the event goes");
    stop.cancel();
    part.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_watcher_of_controllers_lists_follows_and_lists_again_after_a_gap() {
    use kube::runtime::watcher::{Config as Watching, Event as Seen, watcher};

    for watching in [Watching::default(), Watching::default().streaming_lists()] {
        let api = ApiServer::open(None, Config { history_changes: 4, ..Config::default() }).await.unwrap();
        let maps: Api<ConfigMap> = Api::default_namespaced(api.client());
        maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
        let mut watcher = watcher(maps.clone(), watching).boxed();
        // Reads until the object of this name has been seen, and says how often a list began.
        let mut until = async |wanted: &str| {
            let mut lists = 0;
            loop {
                let seen = tokio::time::timeout(Duration::from_secs(10), watcher.next()).await;
                match seen.expect("an event comes").unwrap() {
                    Ok(Seen::Init) => lists += 1,
                    Ok(Seen::InitApply(map) | Seen::Apply(map))
                        if map.metadata.name.as_deref() == Some(wanted) =>
                    {
                        return lists;
                    }
                    // The gap itself is told as an error, after which the watcher begins anew.
                    Ok(_) | Err(_) => {}
                }
            }
        };
        assert_eq!(until("a").await, 1);
        maps.create(&PostParams::default(), &config_map("b", "1")).await.unwrap();
        assert_eq!(until("b").await, 0);
        for name in ["c", "d", "e", "f", "g", "h"] {
            maps.create(&PostParams::default(), &config_map(name, "1")).await.unwrap();
        }
        assert_eq!(until("h").await, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn no_time_passes_while_an_api_in_memory_works() {
    let begin = tokio::time::Instant::now();
    let (_api, maps) = maps().await;
    maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    maps.list(&ListParams::default()).await.unwrap();
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(begin.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn a_token_of_an_account_ends_with_its_pod_and_says_so() {
    let api = api().await;
    let made: Pod =
        Api::default_namespaced(api.client()).create(&PostParams::default(), &pod("web")).await.unwrap();
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let asked = |uid: &str, seconds: i64| {
        let bound = json!({ "apiVersion": "v1", "kind": "Pod", "name": "web", "uid": uid });
        json!({ "spec": { "audiences": ["vault"], "expirationSeconds": seconds, "boundObjectRef": bound } })
    };
    let uid = made.metadata.uid.unwrap();
    let (code, given) = request(&api, "POST", path, asked(&uid, 600)).await;
    assert_eq!(code, 201, "{given}");
    let token = given["status"]["token"].as_str().unwrap();
    assert_eq!(token.split('.').count(), 3, "{token}");
    assert!(given["status"]["expirationTimestamp"].is_string());
    assert_eq!(given["spec"]["expirationSeconds"], 600);
    let (code, keys) = request(&api, "GET", "/openid/v1/jwks", Value::Null).await;
    assert_eq!((code.as_u16(), &keys["keys"][0]["kty"]), (200, &json!("EC")));
    assert_eq!(request(&api, "POST", path, asked("other", 600)).await.0, 409);
    assert_eq!(request(&api, "POST", path, asked(&uid, 10)).await.0, 422);
    let nobody = "/api/v1/namespaces/default/serviceaccounts/nobody/token";
    assert_eq!(request(&api, "POST", nobody, asked(&uid, 600)).await.0, 404);
}
