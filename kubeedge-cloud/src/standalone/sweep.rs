//! Removes what nobody else removes: events that have expired, and pods whose node is gone.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval};

use super::{
    Inner,
    delete::{self, Deletion},
    failure::Failure,
    json::text,
    resource::Resource,
    store::{self, Txn},
    write::Target,
};

/// Sweeps from time to time, and never ends.
pub(super) async fn run(inner: &Arc<Inner>) {
    let mut ticks = interval(inner.config.sweep_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Pods whose node was missing at the last sweep: one that is only being registered anew is spared.
    let mut suspects = Marks::new();
    loop {
        ticks.tick().await;
        let oldest = Timestamp::now().checked_sub(inner.config.event_ttl).unwrap_or(Timestamp::MIN);
        let swept = async {
            let found = candidates(inner, oldest)?;
            let orphans: Marks = found.orphans.intersection(&suspects).cloned().collect();
            suspects = found.orphans;
            if found.expired.is_empty() && orphans.is_empty() {
                return Ok(());
            }
            let remove = move |txn: &mut Txn<'_, '_>| {
                remove_expired(txn, &found.expired, oldest)?;
                remove_orphans(txn, &orphans)
            };
            inner.store.write(false, remove).await
        };
        let swept: Result<(), Failure> = swept.await;
        if let Err(failure) = swept {
            tracing::warn!(%failure, "expired objects cannot be removed");
        }
    }
}

/// Objects, each as its place in the store and its UID: the next object in the same place is another.
type Marks = BTreeSet<(Vec<u8>, String)>;

/// What a sweep would remove, by a look at the store that others may have changed a moment later.
struct Candidates {
    /// Events that have expired.
    expired: Marks,
    /// Pods whose node does not exist.
    orphans: Marks,
}

fn candidates(inner: &Inner, oldest: Timestamp) -> Result<Candidates, Failure> {
    let snapshot = inner.store.read()?;
    let mut expired = Marks::new();
    snapshot.scan(&store::prefix(Resource::core("events"), None), None, |key, event| {
        let event = store::decode(event)?;
        if has_expired(&event, oldest) {
            expired.insert((key.to_vec(), uid(&event).to_owned()));
        }
        Ok(true)
    })?;
    let mut nodes = BTreeSet::new();
    snapshot.scan(&store::prefix(Resource::core("nodes"), Some("")), None, |_, node| {
        nodes.insert(text(&store::decode(node)?, &["metadata", "name"]).to_owned());
        Ok(true)
    })?;
    let mut orphans = Marks::new();
    snapshot.scan(&store::prefix(Resource::core("pods"), None), None, |key, pod| {
        let pod = store::decode(pod)?;
        let node = node_of(&pod);
        if !node.is_empty() && !nodes.contains(node) {
            orphans.insert((key.to_vec(), uid(&pod).to_owned()));
        }
        Ok(true)
    })?;
    Ok(Candidates { expired, orphans })
}

fn uid(object: &Value) -> &str {
    text(object, &["metadata", "uid"])
}

fn node_of(pod: &Value) -> &str {
    text(pod, &["spec", "nodeName"])
}

/// Whether the last time that the event tells of is before `oldest`.
fn has_expired(event: &Value, oldest: Timestamp) -> bool {
    let times: [&[&str]; 4] = [
        &["series", "lastObservedTime"],
        &["lastTimestamp"],
        &["eventTime"],
        &["metadata", "creationTimestamp"],
    ];
    let seen = times.iter().filter_map(|path| text(event, path).parse::<Timestamp>().ok()).max();
    seen.is_some_and(|seen| seen < oldest)
}

/// Removes those of the events that have not been written anew meanwhile.
fn remove_expired(txn: &mut Txn<'_, '_>, marks: &Marks, oldest: Timestamp) -> Result<(), Failure> {
    let events = Resource::core("events");
    for event in marked(txn, marks)? {
        if has_expired(&event, oldest) {
            remove(txn, events, &event);
        }
    }
    Ok(())
}

/// Removes those of the pods whose node has not come back meanwhile.
fn remove_orphans(txn: &mut Txn<'_, '_>, marks: &Marks) -> Result<(), Failure> {
    for pod in marked(txn, marks)? {
        if txn.get(Resource::core("nodes"), "", node_of(&pod))?.is_none() {
            remove(txn, Resource::core("pods"), &pod);
        }
    }
    Ok(())
}

/// The marked objects, without those that have gone and those whose place another has taken.
fn marked(txn: &Txn<'_, '_>, marks: &Marks) -> Result<Vec<Value>, Failure> {
    let mut found = Vec::new();
    for (key, mark) in marks {
        found.extend(txn.get_key(key)?.filter(|object| uid(object) == mark));
    }
    Ok(found)
}

/// Deletes the object. One that cannot be deleted keeps no other from it.
fn remove(txn: &mut Txn<'_, '_>, resource: &'static Resource, object: &Value) {
    let [namespace, name] =
        ["namespace", "name"].map(|member| text(object, &["metadata", member]).to_owned());
    let target = Target { resource, namespace, name, status: false };
    let deletion = Deletion { grace: Some(0), uid: Some(uid(object).to_owned()), version: None };
    if let Err(failure) = delete::delete(txn, &target, &deletion) {
        let (namespace, name) = (&target.namespace, &target.name);
        tracing::warn!(%failure, kind = resource.kind, namespace, name, "an object cannot be removed");
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Event, Node, Pod};
    use kube::{
        Api,
        api::{DeleteParams, Patch, PatchParams, PostParams},
    };
    use serde_json::json;

    use super::*;
    use crate::standalone::{ApiServer, Config};

    async fn create<K>(objects: &Api<K>, object: Value)
    where
        K: Clone + std::fmt::Debug + serde::de::DeserializeOwned + serde::Serialize,
    {
        objects.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    }

    fn pod(name: &str, node: &str) -> Value {
        json!({
            "metadata": { "name": name },
            "spec": { "nodeName": node, "containers": [{ "name": "main", "image": "nginx:1" }] },
        })
    }

    #[tokio::test]
    async fn a_pod_is_spared_that_has_taken_an_orphans_name_or_whose_node_came_back() {
        let api = ApiServer::open(None, Config::default()).await.unwrap();
        let pods: Api<Pod> = Api::default_namespaced(api.client());
        for (name, node) in [("goes", "gone"), ("anew", "gone"), ("stays", "back")] {
            create(&pods, pod(name, node)).await;
        }
        let found = candidates(&api.inner, Timestamp::MIN).unwrap();
        assert_eq!(found.orphans.len(), 3);
        // Before the sweep has its turn, one name is taken by another pod, and one node comes back.
        pods.delete("anew", &DeleteParams::default().grace_period(0)).await.unwrap();
        create(&pods, pod("anew", "gone")).await;
        create(&Api::<Node>::all(api.client()), json!({ "metadata": { "name": "back" } })).await;
        let remove = move |txn: &mut Txn<'_, '_>| remove_orphans(txn, &found.orphans);
        api.inner.store.write(false, remove).await.unwrap();
        assert!(pods.get_opt("goes").await.unwrap().is_none());
        assert!(pods.get_opt("anew").await.unwrap().is_some());
        assert!(pods.get_opt("stays").await.unwrap().is_some());
    }

    #[tokio::test]
    async fn an_event_is_spared_that_has_happened_again() {
        let api = ApiServer::open(None, Config::default()).await.unwrap();
        let events: Api<Event> = Api::default_namespaced(api.client());
        for name in ["goes", "stays"] {
            create(&events, json!({ "metadata": { "name": name }, "involvedObject": {} })).await;
        }
        let later: Timestamp = "2100-01-01T00:00:00Z".parse().unwrap();
        let found = candidates(&api.inner, later).unwrap();
        assert_eq!(found.expired.len(), 2);
        let again = Patch::Merge(json!({ "lastTimestamp": "2100-01-02T00:00:00Z" }));
        events.patch("stays", &PatchParams::default(), &again).await.unwrap();
        let remove = move |txn: &mut Txn<'_, '_>| remove_expired(txn, &found.expired, later);
        api.inner.store.write(false, remove).await.unwrap();
        assert!(events.get_opt("goes").await.unwrap().is_none());
        assert!(events.get_opt("stays").await.unwrap().is_some());
    }
}
