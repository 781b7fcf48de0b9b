//! What people do to the pods of some nodes all the time, and what must have come of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{containerd::IMAGE, fleet::ApiSite, random::Random};

/// Pods of each node that stay.
const STEADY: usize = 3;
/// At most so many pods that come and go are there at a time.
const OTHERS: usize = 6;

/// Notes the start, and then again and again what the pod sees of its ConfigMap, its label and its annotation.
const STEADY_SCRIPT: &str = "echo started >> /marks/$NAME.starts; while true; do read map < /map/value; read label < /info/label; \
    read note < /info/note; echo $map $label $note > /marks/$NAME.seen; sleep 1; done";

/// The nodes' pods as they should be.
pub(crate) struct Load {
    api: ApiSite,
    maps: Api<ConfigMap>,
    random: Random,
    nodes: Vec<Place>,
    steady: BTreeMap<String, Steady>,
    others: BTreeMap<String, Other>,
    gone: BTreeSet<String>,
    /// How many changes were made.
    pub(crate) changes: u64,
}

/// A node, and the folder that its pods leave their marks in.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) node: String,
    pub(crate) marks: PathBuf,
}

struct Steady {
    at: usize,
    map: u64,
    label: u64,
    note: u64,
    ready: bool,
    turned: Instant,
    /// How often it had a reason to turn, its start among them.
    reasons: u64,
}

struct Other {
    at: usize,
    /// Whether it ends by itself.
    ends: bool,
}

impl Load {
    /// Creates the pods that stay.
    pub(crate) async fn start(api: ApiSite, seed: u64, nodes: Vec<Place>) -> Result<Self> {
        let maps = Api::namespaced(api.client(), "default");
        let (random, steady, others) = (Random::new(seed), BTreeMap::new(), BTreeMap::new());
        let mut load = Self { api, maps, random, nodes, steady, others, gone: BTreeSet::new(), changes: 0 };
        for at in 0..load.nodes.len() {
            for number in 0..STEADY {
                let name = format!("{}-steady-{number}", load.nodes[at].node);
                load.create_steady(name, at).await?;
            }
        }
        Ok(load)
    }

    /// Changes something.
    pub(crate) async fn change(&mut self) -> Result<()> {
        self.changes += 1;
        let (number, value) = (self.random.below(self.steady.len() as u64) as usize, self.changes);
        let (name, steady) = self.steady.iter_mut().nth(number).context("it is one of them")?;
        let pods = self.api.pods();
        let merge = async |patch: Value| {
            pods.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
        };
        match self.random.below(10) {
            0..=2 => {
                let patch = json!({ "data": { "value": format!("{value}\n") } });
                self.maps.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
                steady.map = value;
            }
            3 => {
                merge(json!({ "metadata": { "labels": { "round": value.to_string() } } })).await?;
                steady.label = value;
            }
            4 => {
                merge(json!({ "metadata": { "annotations": { "round": value.to_string() } } })).await?;
                steady.note = value;
            }
            // Times in statuses are whole seconds: two turns have to differ in them.
            5 | 6 if steady.turned.elapsed() > Duration::from_secs(3) => {
                let file = self.nodes[steady.at].marks.join(format!("{name}.ready"));
                let turned = if steady.ready { fs::remove_file(&file) } else { fs::write(&file, "") };
                turned.with_context(|| file.display().to_string())?;
                (steady.ready, steady.turned) = (!steady.ready, Instant::now());
                steady.reasons += 1;
            }
            7 | 8 if self.others.len() < OTHERS => self.create_other().await?,
            9 if !self.others.is_empty() => self.delete_other().await?,
            _ => {}
        }
        Ok(())
    }

    /// How long it is until the next change: there are quiet times and busy ones.
    pub(crate) fn pause(&mut self) -> Duration {
        let longest = if (self.changes / 20).is_multiple_of(2) { 60 } else { 600 };
        Duration::from_millis(self.random.below(longest))
    }

    async fn create_steady(&mut self, name: String, at: usize) -> Result<()> {
        let map = json!({ "metadata": { "name": name }, "data": { "value": "0\n" } });
        self.maps.create(&PostParams::default(), &serde_json::from_value(map)?).await?;
        fs::write(self.nodes[at].marks.join(format!("{name}.ready")), "")?;
        let field = |path: &str, field: &str| json!({ "path": path, "fieldRef": { "fieldPath": field } });
        let info =
            [field("label", "metadata.labels['round']"), field("note", "metadata.annotations['round']")];
        let mut pod = self.pod(&name, at, STEADY_SCRIPT);
        pod["metadata"]["labels"] = json!({ "round": "0" });
        pod["metadata"]["annotations"] = json!({ "round": "0" });
        let spec = &mut pod["spec"];
        spec["volumes"].as_array_mut().context("volumes")?.extend([
            json!({ "name": "map", "configMap": { "name": name } }),
            json!({ "name": "info", "downwardAPI": { "items": info } }),
        ]);
        let container = &mut spec["containers"][0];
        container["volumeMounts"].as_array_mut().context("mounts")?.extend([
            json!({ "name": "map", "mountPath": "/map" }),
            json!({ "name": "info", "mountPath": "/info" }),
        ]);
        container["readinessProbe"] = json!({
            "exec": { "command": ["cat", format!("/marks/{name}.ready")] },
            "periodSeconds": 2, "timeoutSeconds": 20, "failureThreshold": 1,
        });
        self.api.pods().create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
        let steady =
            Steady { at, map: 0, label: 0, note: 0, ready: true, turned: Instant::now(), reasons: 1 };
        self.steady.insert(name, steady);
        Ok(())
    }

    async fn create_other(&mut self) -> Result<()> {
        let (at, ends) = (self.random.below(self.nodes.len() as u64) as usize, self.random.below(2) == 0);
        let name = format!("other-{}", self.changes);
        let script = if ends { "sleep 1" } else { "exec sleep 100000" };
        let script = format!("echo started >> /marks/$NAME.starts; {script}");
        let pod = self.pod(&name, at, &script);
        self.api.pods().create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
        self.others.insert(name, Other { at, ends });
        Ok(())
    }

    async fn delete_other(&mut self) -> Result<()> {
        let number = self.random.below(self.others.len() as u64) as usize;
        let name = self.others.keys().nth(number).cloned().context("it is one of them")?;
        self.api.pods().delete(&name, &DeleteParams::default()).await?;
        self.others.remove(&name);
        self.gone.insert(name);
        Ok(())
    }

    fn pod(&self, name: &str, at: usize, script: &str) -> Value {
        let place = &self.nodes[at];
        json!({
            "metadata": { "name": name },
            "spec": {
                "nodeName": place.node,
                "restartPolicy": if name.starts_with("other-") { "Never" } else { "Always" },
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", script],
                    "env": [{ "name": "NAME", "value": name }],
                    "volumeMounts": [{ "name": "marks", "mountPath": "/marks" }],
                }],
                "volumes": [{ "name": "marks", "hostPath": { "path": place.marks } }],
            },
        })
    }

    /// Waits until everything is as it should be, at the nodes and in the API; says how long that took.
    pub(crate) async fn agree(&self, within: Duration) -> Result<Duration> {
        let began = Instant::now();
        loop {
            let wrong = self.difference().await?;
            if wrong.is_empty() {
                return Ok(began.elapsed());
            }
            if began.elapsed() > within {
                bail!("not within {within:?}: {wrong:#?}");
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn difference(&self) -> Result<Vec<String>> {
        let pods = self.api.raw_pods().list(&ListParams::default()).await?.items;
        let pods: BTreeMap<_, _> = pods
            .iter()
            .map(|pod| (pod.metadata.name.clone().unwrap_or_default(), &pod.data["status"]))
            .collect();
        let mut wrong = Vec::new();
        let steady = self.steady.iter().map(|(name, it)| (name, it.at, "Running", Some(it.ready)));
        let others = self.others.iter().map(|(name, it)| {
            let phase = if it.ends { "Succeeded" } else { "Running" };
            (name, it.at, phase, (!it.ends).then_some(true))
        });
        for (name, at, phase, ready) in steady.chain(others) {
            let Some(status) = pods.get(name) else {
                wrong.push(format!("{name} is not there"));
                continue;
            };
            if status["phase"] != phase || ready.is_some_and(|ready| is_ready(status) != ready) {
                wrong.push(format!("{name} is not {phase} with ready {ready:?}: {status}"));
            }
            let starts = self.mark(at, name, "starts");
            if starts != "started\n" {
                wrong.push(format!("{name} has started {:?} times", starts.lines().count()));
            }
        }
        for (name, Steady { at, map, label, note, .. }) in &self.steady {
            let (seen, made) = (self.mark(*at, name, "seen"), format!("{map} {label} {note}\n"));
            if seen != made {
                wrong.push(format!("{name} sees {seen:?} of {made:?}"));
            }
        }
        wrong.extend(
            self.gone.iter().filter(|name| pods.contains_key(*name)).map(|name| format!("{name} is there")),
        );
        Ok(wrong)
    }

    /// How often each pod that stays had a reason to come to be ready, or not ready any more.
    pub(crate) fn reasons(&self) -> impl Iterator<Item = (String, u64)> {
        self.steady.iter().map(|(name, it)| (name.clone(), it.reasons))
    }

    /// How many tasks a node should run: sandboxes and containers.
    pub(crate) fn tasks(&self, node: usize) -> usize {
        let steady = self.steady.values().filter(|it| it.at == node).count();
        2 * (steady + self.others.values().filter(|it| it.at == node && !it.ends).count())
    }

    fn mark(&self, at: usize, name: &str, kind: &str) -> String {
        fs::read_to_string(self.nodes[at].marks.join(format!("{name}.{kind}"))).unwrap_or_default()
    }
}

/// Whether a status says that its pod is ready.
pub(crate) fn is_ready(status: &Value) -> bool {
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.any(|it| it["type"] == "Ready" && it["status"] == "True")
}
