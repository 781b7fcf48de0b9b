//! Pods and what they refer to, for the tests of pure parts.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use kubeedge_core::message::{Answer, Object, ObjectRef, Token};
use serde_json::{Value, json};

use super::{Config, host::HostFiles, pod::Pod, resolve::Facts, state::Moment, tokens::Tokens};

/// A node with what its pods may refer to.
pub(crate) struct Scene {
    pub(crate) config: Config,
    pub(crate) objects: BTreeMap<ObjectRef, Object>,
    pub(crate) tokens: Tokens,
    pub(crate) host: HostFiles,
    pub(crate) pod_ips: Vec<String>,
    pub(crate) kubernetes: String,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let mut config = Config::new("edge-1".parse().unwrap());
        config.root = "/root".into();
        config.labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
        Self {
            config,
            objects: BTreeMap::new(),
            tokens: Tokens::default(),
            host: HostFiles { disk_bytes: 1 << 30, ..HostFiles::default() },
            pod_ips: Vec::new(),
            kubernetes: String::new(),
        }
    }

    pub(crate) fn facts(&self) -> Facts<'_> {
        Facts {
            objects: &self.objects,
            tokens: &self.tokens,
            host: &self.host,
            node_name: "edge-1",
            node_labels: &self.config.labels,
            kubernetes: &self.kubernetes,
            host_ip: "192.0.2.7",
            pod_ips: &self.pod_ips,
            cpu_milli: 4000,
            memory_bytes: 8 << 30,
        }
    }

    pub(crate) fn put(&mut self, api_version: &str, kind: &str, name: &str, rest: Value) {
        let namespaced = !matches!(kind, "PersistentVolume" | "RuntimeClass");
        let mut metadata = json!({ "name": name, "uid": name });
        if namespaced {
            metadata["namespace"] = "default".into();
        }
        let mut object = json!({ "apiVersion": api_version, "kind": kind, "metadata": metadata });
        object.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        let object = Object::from_json(object.to_string()).unwrap();
        self.objects.insert(object.reference.clone(), object);
    }

    pub(crate) fn config_map(&mut self, name: &str, data: Value) {
        self.put("v1", "ConfigMap", name, json!({ "data": data }));
    }

    /// Data in base64, as the API has it.
    pub(crate) fn secret(&mut self, name: &str, data: Value) {
        self.put("v1", "Secret", name, json!({ "data": data }));
    }

    /// Gives all tokens that the pod asks for: each is called after its audience.
    pub(crate) fn give_tokens(&mut self, pod: &Pod) {
        let now = Moment { at: Instant::now(), unix_ms: 0 };
        self.tokens.want(pod, now.at);
        while let Some(request) = self.tokens.poll_request(now.at) {
            let lifetime_ms = Duration::from_secs(request.expiration_seconds).as_millis() as u64;
            let token =
                Token { token: format!("for {}", request.audience), expires_at_ms: lifetime_ms, lifetime_ms };
            self.tokens.handle_answer(&request, Ok(Answer::Token(token)), now);
        }
    }
}

/// A pod called `web` with one container called `app`; `spec` and `container` say what else.
pub(crate) fn pod(spec: Value, container: Value) -> Pod {
    let mut app = json!({ "name": "app", "image": "app:1" });
    app.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
    let mut whole = json!({ "containers": [app] });
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let metadata = json!({
        "name": "web", "namespace": "default", "uid": "u-1",
        "labels": { "app": "web", "tier": "front" }, "annotations": { "note": "a \"b\"" },
    });
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": whole });
    Pod::parse(&Object::from_json(pod.to_string()).unwrap()).unwrap()
}
