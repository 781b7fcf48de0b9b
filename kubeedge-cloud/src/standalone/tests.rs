//! The API through a client.

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::{ApiServer, Config};

async fn api() -> ApiServer {
    ApiServer::open(None, Config::default()).await.unwrap()
}

fn config_map(name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(
        json!({ "metadata": { "name": name, "labels": { "v": value } }, "data": { "key": value } }),
    )
    .unwrap()
}

fn pod(name: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": { "containers": [{ "name": "main", "image": "nginx:1" }] },
    }))
    .unwrap()
}

#[tokio::test]
async fn an_object_is_created_read_listed_changed_and_deleted() {
    let maps: Api<ConfigMap> = Api::default_namespaced(api().await.client());
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
}

#[tokio::test]
async fn a_pod_is_completed_as_the_api_server_does() {
    let pods: Api<Pod> = Api::default_namespaced(api().await.client());
    let pod = pods.create(&PostParams::default(), &pod("a")).await.unwrap();
    let spec = pod.spec.unwrap();
    assert_eq!(spec.restart_policy.as_deref(), Some("Always"));
    assert_eq!(pod.status.unwrap().phase.as_deref(), Some("Pending"));
}
