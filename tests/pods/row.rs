//! A row of the table: a pod, what it needs, and what is promised of it.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

/// A pod with what is promised of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Row {
    /// Also the pod's name.
    pub(crate) name: String,
    /// What Kubernetes' documentation promises, and where.
    #[allow(dead_code, reason = "it is for who reads the table")]
    says: String,
    /// What is applied before the pod.
    #[serde(default)]
    pub(crate) objects: Vec<Value>,
    /// Labels and annotations.
    #[serde(default)]
    metadata: Value,
    spec: Value,
    /// What is otherwise on a cluster, if something is.
    pub(crate) cluster: Option<OnCluster>,
    #[serde(flatten)]
    pub(crate) expect: Expect,
    /// What is applied later, and what is promised then.
    #[serde(default)]
    pub(crate) then: Vec<Step>,
}

/// What a cluster's API does with a pod that the standalone one leaves to the node.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnCluster {
    /// It refuses the pod, with this among its words.
    Refused(String),
    /// There is nothing to see, and why.
    LeftOut(String),
    /// Some versions take the member at this place (RFC 6901) away before a node sees it.
    MayTakeAway(String),
}

/// A change, and what is promised of the pod afterwards.
#[derive(Debug, Deserialize)]
pub(crate) struct Step {
    #[serde(default)]
    pub(crate) apply: Vec<Value>,
    #[serde(flatten)]
    pub(crate) expect: Expect,
}

/// What is promised of a pod; what is not named may be anything.
#[derive(Debug, Deserialize)]
pub(crate) struct Expect {
    /// Members of its status.
    #[serde(default)]
    pub(crate) status: Value,
    /// Lines that its containers print.
    #[serde(default)]
    pub(crate) log: BTreeMap<String, Vec<String>>,
    /// Events about it.
    #[serde(default)]
    pub(crate) events: Vec<Value>,
}

impl Row {
    /// All rows of the table.
    pub(crate) fn all(host: &Path, image: &str) -> Result<Vec<Self>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("pods/table");
        let mut files: Vec<_> =
            fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        files.sort();
        let mut rows = Vec::new();
        for file in files {
            let text = fs::read_to_string(&file)?;
            let text = text.replace("${HOST}", &host.to_string_lossy()).replace("${IMAGE}", image);
            let text = text.replace("${IPC}", &fs::read_link("/proc/self/ns/ipc")?.to_string_lossy());
            let read: Vec<Self> =
                serde_saphyr::from_str(&text).with_context(|| file.display().to_string())?;
            rows.extend(read.into_iter().map(|row| row.filled(image)));
        }
        Ok(rows)
    }

    fn filled(mut self, image: &str) -> Self {
        fill(&mut self.spec, "restartPolicy", &json!("Never"));
        fill(&mut self.spec, "terminationGracePeriodSeconds", &json!(1));
        for list in ["initContainers", "containers"] {
            for container in self.spec[list].as_array_mut().into_iter().flatten() {
                fill(container, "image", &json!(image));
            }
        }
        self
    }

    /// The pod as it is created.
    pub(crate) fn pod(&self) -> Value {
        let mut metadata = if self.metadata.is_object() { self.metadata.clone() } else { json!({}) };
        metadata["name"] = self.name.as_str().into();
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": self.spec })
    }
}

fn fill(object: &mut Value, member: &str, value: &Value) {
    if object[member].is_null() {
        object[member] = value.clone();
    }
}
