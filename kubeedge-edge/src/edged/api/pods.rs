//! Lists of pods, and the pod that a path names.

use std::collections::BTreeMap;

use kubeedge_core::runtime::{ContainerId, ContainerState, ObservedContainer, ObservedSandbox, SandboxId};
use serde_json::{Value, json};

use super::{
    super::KnownPod,
    route::{PodPath, Refused},
};

/// A PodList of what Edged knows, each pod with the status that it has here.
pub(super) fn list(known: &[KnownPod]) -> Value {
    let mut pods: BTreeMap<(String, String), Value> = BTreeMap::new();
    for pod in known {
        let Ok(mut value) = serde_json::from_slice::<Value>(&pod.json) else { continue };
        let status = pod.status.as_ref().and_then(|status| serde_json::from_slice::<Value>(status).ok());
        if let (Some(status), Some(object)) = (status, value.as_object_mut()) {
            object.insert("status".to_owned(), status);
        }
        let text = |name: &str| value["metadata"][name].as_str().unwrap_or_default().to_owned();
        pods.insert((text("namespace"), text("name")), value);
    }
    pod_list(pods.into_values().collect())
}

/// A PodList of what runs, as far as the runtime knows it.
pub(super) fn running(observed: &[ObservedSandbox]) -> Value {
    let pods = observed.iter().filter(|sandbox| sandbox.ready).map(|sandbox| {
        let running = sandbox.containers.iter().filter(|one| is_running(one));
        let containers: Vec<Value> =
            running.map(|one| json!({"name": one.name, "image": one.image, "resources": {}})).collect();
        json!({
            "metadata": {
                "name": sandbox.name,
                "namespace": sandbox.namespace,
                "uid": sandbox.uid.as_str(),
                "creationTimestamp": null,
            },
            "spec": {"containers": containers},
            "status": {},
        })
    });
    pod_list(pods.collect())
}

fn pod_list(items: Vec<Value>) -> Value {
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

/// The newest sandbox of a pod.
pub(super) fn sandbox<'a>(
    observed: &'a [ObservedSandbox],
    path: &PodPath,
) -> Result<&'a ObservedSandbox, Refused> {
    let of_name = observed.iter().filter(|sandbox| {
        let same = sandbox.name == path.name && sandbox.namespace == path.namespace;
        same && path.uid.as_ref().is_none_or(|uid| sandbox.uid.as_str() == uid)
    });
    let newest = of_name.max_by_key(|sandbox| (sandbox.ready, sandbox.created_at_ms));
    newest.ok_or_else(|| Refused(404, format!("pod \"{}_{}\" does not exist", path.name, path.namespace)))
}

/// The sandbox of a pod whose network is up.
pub(super) fn ready_sandbox(observed: &[ObservedSandbox], path: &PodPath) -> Result<SandboxId, Refused> {
    let sandbox = sandbox(observed, path)?;
    if sandbox.ready {
        return Ok(sandbox.id.clone());
    }
    Err(Refused(409, format!("pod \"{}_{}\" is not running", path.name, path.namespace)))
}

/// The instance of a container that runs.
pub(super) fn running_container(
    observed: &[ObservedSandbox],
    path: &PodPath,
    name: &str,
) -> Result<ContainerId, Refused> {
    let sandbox = sandbox(observed, path)?;
    let mut instances = sandbox.containers.iter().filter(|one| one.name == name).peekable();
    let pod = format!("pod \"{}_{}\"", path.name, path.namespace);
    if instances.peek().is_none() {
        return Err(Refused(404, format!("container {name} is not found in {pod}")));
    }
    let running = instances.filter(|one| is_running(one)).max_by_key(|one| one.attempt);
    let running = running.ok_or_else(|| Refused(409, format!("container {name} in {pod} does not run")))?;
    Ok(running.id.clone())
}

pub(super) fn is_running(container: &ObservedContainer) -> bool {
    matches!(container.state, ContainerState::Running { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_the_status_of_this_node_and_all_else_as_the_api_has_it() {
        let known = KnownPod {
            json:
                r#"{"metadata":{"name":"p","namespace":"d"},"spec":{"odd":[1]},"status":{"phase":"Pending"}}"#
                    .into(),
            status: Some(r#"{"phase":"Running"}"#.into()),
        };
        let early = KnownPod { json: r#"{"metadata":{"name":"a","namespace":"d"}}"#.into(), status: None };
        let list = list(&[known, early]);
        assert_eq!(list["items"][0]["metadata"]["name"], "a", "in the order of names");
        assert_eq!(list["items"][1]["status"]["phase"], "Running");
        assert_eq!(list["items"][1]["spec"]["odd"][0], 1);
    }

    #[test]
    fn the_instance_that_runs_is_found_and_what_is_wrong_is_told() {
        let container = |attempt, state| ObservedContainer {
            id: ContainerId(format!("c{attempt}")),
            name: "app".into(),
            attempt,
            state,
            ..ObservedContainer::default()
        };
        let running = ContainerState::Running { started_at_ms: 1 };
        let mut sandbox = ObservedSandbox {
            name: "p".into(),
            namespace: "d".into(),
            ready: true,
            containers: vec![container(0, ContainerState::Unknown), container(1, running)],
            ..ObservedSandbox::default()
        };
        let path = |uid: Option<&str>| PodPath {
            namespace: "d".into(),
            name: "p".into(),
            uid: uid.map(str::to_owned),
        };
        let found = running_container(std::slice::from_ref(&sandbox), &path(None), "app");
        assert_eq!(found, Ok(ContainerId("c1".into())));
        let all = std::slice::from_ref(&sandbox);
        assert_eq!(running_container(all, &path(Some("other")), "app").unwrap_err().0, 404);
        assert_eq!(running_container(all, &path(None), "web").unwrap_err().0, 404);
        sandbox.containers.pop();
        assert_eq!(running_container(&[sandbox], &path(None), "app").unwrap_err().0, 409);
    }
}
