//! A cloud and an edge on a real containerd, whose pods leave marks in a folder of the node.
//!
//! This file is included by `#[path]`, together with `containerd.rs`.

#![allow(dead_code, reason = "not every test that includes this file needs all of it")]

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use kubeedge_tests::{
    binaries,
    site::{Cloud, Edge, EdgeOptions, wait_within},
};
use serde_json::{Value, json};

use crate::containerd::{Containerd, IMAGE};

/// How long what should happen may take on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// A cloud, an edge on a real containerd, and a folder of the node that pods leave marks in.
pub(crate) struct Site {
    pub(crate) edge: Edge,
    pub(crate) cloud: Cloud,
    pub(crate) containerd: Containerd,
    pub(crate) folder: tempfile::TempDir,
}

impl Site {
    pub(crate) fn start() -> Result<Self> {
        Self::start_on(Containerd::start(), "")
    }

    /// Starts a node on this containerd, with more members of the kubelet's configuration.
    pub(crate) fn start_on(containerd: Containerd, kubelet: &str) -> Result<Self> {
        Self::start_with(containerd, kubelet, "", "")
    }

    /// As [`Site::start_on`], with more members of the cloud's `commonConfig`, and lines under its `modules:`.
    pub(crate) fn start_with(
        containerd: Containerd,
        kubelet: &str,
        common: &str,
        modules: &str,
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::create_dir_all(folder.path().join("marks"))?;
        let binaries = binaries();
        let cloud = Cloud::start_with_config(&binaries, &folder.path().join("cloud"), 1, common, modules)?;
        let options = EdgeOptions {
            containerd: Some(containerd.socket()),
            kubelet: kubelet.to_owned(),
            ..EdgeOptions::new("edge-1")
        };
        let edge = Edge::start(&binaries, &folder.path().join("edge"), &cloud, &options)?;
        Ok(Self { edge, cloud, containerd, folder })
    }

    pub(crate) fn mark(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join("marks").join(name)
    }

    /// Applies a pod whose containers see the marks at `/marks`.
    pub(crate) fn apply(&self, name: &str, mut spec: Value) -> Result<()> {
        spec["nodeName"] = json!("edge-1");
        let marks = self.folder.path().join("marks");
        let mut volumes = vec![json!({ "name": "marks", "hostPath": { "path": marks } })];
        volumes.extend(spec["volumes"].as_array().cloned().unwrap_or_default());
        spec["volumes"] = json!(volumes);
        let lists = ["initContainers", "containers"];
        for list in lists {
            for container in spec[list].as_array_mut().into_iter().flatten() {
                container["image"] = container.get("image").cloned().unwrap_or_else(|| json!(IMAGE));
                container["imagePullPolicy"] = json!("IfNotPresent");
                let mut mounts = vec![json!({ "name": "marks", "mountPath": "/marks" })];
                mounts.extend(container["volumeMounts"].as_array().cloned().unwrap_or_default());
                container["volumeMounts"] = json!(mounts);
            }
        }
        let metadata = json!({ "name": name, "namespace": "default" });
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec });
        self.cloud.apply(&pod.to_string()).map(drop)
    }

    pub(crate) fn status(&self, pod: &str) -> Result<Value> {
        let pod: Value = serde_json::from_str(&self.cloud.kubectl(&["get", "pod", pod, "-o", "json"])?)?;
        Ok(pod["status"].clone())
    }

    /// Waits until the pod's status is as it should be.
    pub(crate) fn wait(&self, pod: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        wait_within(SOON, &format!("{pod}: {what}"), || {
            last = self.status(pod)?;
            Ok(holds(&last))
        })
        .with_context(|| format!("{last:#}\n{}", tail(&self.edge.log())))?;
        Ok(last)
    }

    pub(crate) fn events(&self, pod: &str) -> Result<Vec<(String, String)>> {
        let field = format!("involvedObject.name={pod}");
        let all = self.cloud.kubectl(&["get", "events", "--field-selector", &field, "-o", "json"])?;
        let all: Value = serde_json::from_str(&all)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let events = all["items"].as_array().into_iter().flatten();
        Ok(events.map(|event| (text(&event["reason"]), text(&event["message"]))).collect())
    }

    pub(crate) fn wait_event(&self, pod: &str, reason: &str, message: &str) -> Result<()> {
        wait_within(SOON, &format!("{pod}: the event {reason}: {message}"), || {
            let events = self.events(pod)?;
            Ok(events.iter().any(|(of, text)| of == reason && text.contains(message)))
        })
        .with_context(|| format!("{:#?}", self.events(pod)))
    }
}

pub(crate) fn shell(name: &str, script: &str) -> Value {
    json!({ "name": name, "command": ["sh", "-c", script] })
}

pub(crate) fn with(mut container: Value, members: &Value) -> Value {
    for (key, value) in members.as_object().into_iter().flatten() {
        container[key] = value.clone();
    }
    container
}

pub(crate) fn exec(script: &str) -> Value {
    json!({ "exec": { "command": ["sh", "-c", script] } })
}

pub(crate) fn ready(status: &Value) -> bool {
    let conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|it| it["type"] == "Ready" && it["status"] == "True")
}

pub(crate) fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
