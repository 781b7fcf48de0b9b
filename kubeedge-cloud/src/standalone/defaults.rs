//! What the API server writes where a client says nothing.

use serde_json::{Map, Value, json};

use super::{
    json::{at, default, items, object, text},
    resource::Resource,
};

/// Completes an object that is being created.
pub(crate) fn on_create(resource: &Resource, value: &mut Value) {
    match resource.kind {
        "Pod" => {
            pod(value);
            let class = qos_class(value);
            value["status"] = json!({ "phase": "Pending", "qosClass": class });
        }
        "Namespace" => {
            value["status"] = json!({ "phase": "Active" });
            let name = text(value, &["metadata", "name"]).to_owned();
            object(super::json::metadata(value), "labels")
                .insert("kubernetes.io/metadata.name".into(), name.into());
        }
        _ => on_update(resource, value),
    }
}

/// Completes an object that is being changed.
pub(crate) fn on_update(resource: &Resource, value: &mut Value) {
    match resource.kind {
        "Pod" => pod(value),
        "Secret" => secret(value),
        "Service" => service(value),
        _ => {}
    }
}

/// Text that a client wrote plainly moves to where Kubernetes keeps it, in base64.
fn secret(secret: &mut Value) {
    let Some(members) = secret.as_object_mut() else { return };
    default(members, "type", "Opaque");
    if let Some(Value::Object(plain)) = members.remove("stringData") {
        let data = object(members, "data");
        for (name, text) in plain {
            data.insert(name, base64(text.as_str().unwrap_or_default().as_bytes()).into());
        }
    }
}

/// Addresses are not given out: nothing here would lead from one to a pod, so a Service has the one that its author knows.
fn service(service: &mut Value) {
    let Some(members) = service.as_object_mut() else { return };
    let spec = object(members, "spec");
    default(spec, "type", "ClusterIP");
    default(spec, "sessionAffinity", "None");
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(port) = port.as_object_mut() else { continue };
        default(port, "protocol", "TCP");
        let number = port.get("port").cloned().unwrap_or_default();
        default(port, "targetPort", number);
    }
}

fn base64(bytes: &[u8]) -> String {
    // Kubernetes' own type for bytes writes them as base64.
    match serde_json::to_value(k8s_openapi::ByteString(bytes.to_vec())) {
        Ok(Value::String(text)) => text,
        _ => String::new(),
    }
}

fn pod(pod: &mut Value) {
    let Some(members) = pod.as_object_mut() else { return };
    let spec = object(members, "spec");
    for (name, value) in [
        ("restartPolicy", "Always"),
        ("dnsPolicy", "ClusterFirst"),
        ("schedulerName", "default-scheduler"),
        ("serviceAccountName", "default"),
    ] {
        default(spec, name, value);
    }
    let account = spec.get("serviceAccountName").cloned().unwrap_or_default();
    default(spec, "serviceAccount", account);
    default(spec, "terminationGracePeriodSeconds", 30);
    default(spec, "enableServiceLinks", true);
    default(spec, "securityContext", json!({}));
    default(spec, "preemptionPolicy", "PreemptLowerPriority");
    default(spec, "priority", 0);
    for list in ["initContainers", "containers"] {
        for item in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(item) = item.as_object_mut() {
                container(item);
            }
        }
    }
    for item in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(item) = item.as_object_mut() {
            volume(item);
        }
    }
}

fn container(container: &mut Map<String, Value>) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let policy = if is_latest(image) { "Always" } else { "IfNotPresent" };
    default(container, "imagePullPolicy", policy);
    default(container, "terminationMessagePath", "/dev/termination-log");
    default(container, "terminationMessagePolicy", "File");
    default(container, "resources", json!({}));
    for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(port) = port.as_object_mut() {
            default(port, "protocol", "TCP");
        }
    }
    if let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) {
        requests_from_limits(resources);
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(name).and_then(Value::as_object_mut) {
            for (name, value) in [
                ("timeoutSeconds", 1),
                ("periodSeconds", 10),
                ("successThreshold", 1),
                ("failureThreshold", 3),
            ] {
                default(probe, name, value);
            }
            if let Some(http) = probe.get_mut("httpGet").and_then(Value::as_object_mut) {
                default(http, "scheme", "HTTP");
                default(http, "path", "/");
            }
        }
    }
    for env in container.get_mut("env").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(field) = env.pointer_mut("/valueFrom/fieldRef").and_then(Value::as_object_mut) {
            default(field, "apiVersion", "v1");
        }
    }
}

/// What has a limit and no request is requested at its limit.
fn requests_from_limits(resources: &mut Map<String, Value>) {
    let Some(Value::Object(limits)) = resources.get("limits").cloned() else { return };
    let requests = object(resources, "requests");
    for (name, limit) in limits {
        default(requests, &name, limit);
    }
}

/// The image without a tag, or with `latest`; one that names a digest never is.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or_default();
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn volume(volume: &mut Map<String, Value>) {
    // 420 is 0644.
    for source in ["configMap", "secret", "projected", "downwardAPI"] {
        if let Some(source) = volume.get_mut(source).and_then(Value::as_object_mut) {
            default(source, "defaultMode", 420);
        }
    }
    if let Some(host_path) = volume.get_mut("hostPath").and_then(Value::as_object_mut) {
        default(host_path, "type", "");
    }
    if volume.len() == 1 {
        volume.insert("emptyDir".into(), json!({}));
    }
}

/// `Guaranteed` if every container has limits for CPU and memory and requests as much, `BestEffort` if none
/// asks for anything, else `Burstable`.
fn qos_class(pod: &Value) -> &'static str {
    let containers =
        || items(pod, &["spec", "containers"]).iter().chain(items(pod, &["spec", "initContainers"]));
    let of = |container, which, what| at(container, &["resources", which, what]).cloned();
    let names = ["cpu", "memory"];
    let asks =
        |c| names.iter().any(|what| of(c, "limits", what).or_else(|| of(c, "requests", what)).is_some());
    if !containers().any(asks) {
        return "BestEffort";
    }
    let full = |container| {
        names.iter().all(|what| {
            let limit = of(container, "limits", what);
            limit.is_some() && limit == of(container, "requests", what)
        })
    };
    if containers().all(full) { "Guaranteed" } else { "Burstable" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn created(spec: Value) -> Value {
        let mut pod = json!({ "metadata": { "name": "a" }, "spec": spec });
        on_create(Resource::core("pods"), &mut pod);
        pod
    }

    #[test]
    fn the_pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.27", "IfNotPresent"),
            ("registry:5000/nginx", "Always"),
            ("registry:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:00", "IfNotPresent"),
        ] {
            let pod = created(json!({ "containers": [{ "name": "a", "image": image }] }));
            assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], policy, "{image}");
        }
    }

    #[test]
    fn the_quality_of_service_follows_requests_and_limits() {
        let class = |resources: Value| {
            let pod =
                created(json!({ "containers": [{ "name": "a", "image": "b", "resources": resources }] }));
            pod["status"]["qosClass"].clone()
        };
        assert_eq!(class(json!({})), "BestEffort");
        assert_eq!(class(json!({ "requests": { "cpu": "1" } })), "Burstable");
        assert_eq!(class(json!({ "limits": { "cpu": "1", "memory": "1Gi" } })), "Guaranteed");
    }

    #[test]
    fn a_service_keeps_the_address_that_it_was_given_and_gets_none() {
        for given in [json!({}), json!({ "clusterIP": "10.0.0.7" })] {
            let mut spec = given.clone();
            spec["ports"] = json!([{ "port": 80 }]);
            let mut service = json!({ "metadata": { "name": "a" }, "spec": spec });
            on_create(Resource::core("services"), &mut service);
            assert_eq!(service["spec"]["clusterIP"], given["clusterIP"]);
            assert_eq!(service["spec"]["type"], "ClusterIP");
            let port = json!({ "port": 80, "protocol": "TCP", "targetPort": 80 });
            assert_eq!(service["spec"]["ports"], json!([port]));
        }
    }

    #[test]
    fn plain_text_of_a_secret_is_kept_as_base64() {
        let mut secret = json!({ "metadata": { "name": "a" }, "stringData": { "key": "value" } });
        on_create(Resource::core("secrets"), &mut secret);
        assert_eq!(secret["data"]["key"], "dmFsdWU=");
        assert_eq!(secret["type"], "Opaque");
        assert!(secret.get("stringData").is_none());
    }
}
