//! What is shown, step by step. Each step waits for what a user would look for, and fails when it does not come.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind, LogParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    print::Printer,
    world::{NODE, World},
};

/// 30 s for a step: on a slow machine, and with a container to start, it is seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tells the whole story.
pub(crate) async fn tell(world: &mut World, image: Option<&str>, printer: &mut Printer) -> Result<()> {
    printer.begin("node Ready");
    printer.seen(&node_ready(world).await?);

    printer.begin("Pod, ConfigMap, Device and DeviceModel applied");
    printer.seen(&apply_all(world, image).await?);

    printer.begin("pod Running with the ConfigMap's value in its log");
    printer.seen(&log_says(world, "limit=30").await?);
    let before = running_container(world).await?;

    printer.begin("reported temperature in the Device's status");
    printer.seen(&temperature_after(world, 0).await?.0);

    printer.begin("desired value set in the cloud reaches the device");
    printer.seen(&set_point(world, "25").await?);

    printer.begin("link cut: both ends say so");
    world.link.cut();
    printer.seen(&both_ends_notice(world).await?);
    let cut_at_ms = now_ms();

    printer.begin("pod still running, twin still answering locally");
    ensure!(running_container(world).await? == before, "the pod was restarted when the link went down");
    printer.seen(&world.ask_twin("setpoint").await.context("the twin does not answer")?);

    printer.begin("ConfigMap changed in the cloud meanwhile");
    printer.seen(&change_config_map(world, "45").await?);

    printer.begin("edge restarted while offline: pod known, twin kept");
    world.restart_edge().await?;
    printer.seen(&known_after_restart(world, &before).await?);

    printer.begin("link restored: ConfigMap's new value at the edge");
    world.link.restore();
    printer.seen(&log_says(world, "file=45").await?);

    printer.begin("readings in the cloud again");
    printer.seen(&temperature_after(world, cut_at_ms).await?.0);

    printer.begin("no pod restarted");
    printer.seen(&never_restarted(world, &before).await?);
    Ok(())
}

async fn node_ready(world: &World) -> Result<String> {
    let nodes: Api<Node> = Api::all(world.client.clone());
    until("the node is not Ready", async || {
        let node = nodes.get_opt(NODE).await?;
        let Some(status) = node.and_then(|node| node.status) else { return Ok(None) };
        let ready = condition(status.conditions.iter().flatten().map(|c| (&c.type_, &c.status)), "Ready")
            == Some("True");
        let version = status.node_info.map(|info| info.kubelet_version).unwrap_or_default();
        Ok(ready.then(|| format!("{NODE}, {version}")))
    })
    .await
}

async fn apply_all(world: &World, image: Option<&str>) -> Result<String> {
    let manifests = manifests(image);
    for manifest in &manifests {
        let text =
            |pointer: &str| manifest.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let kind = text("/kind");
        let (group, version) = match text("/apiVersion").split_once('/') {
            Some((group, version)) => (group.to_owned(), version.to_owned()),
            None => (String::new(), text("/apiVersion")),
        };
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(&group, &version, &kind));
        let api: Api<DynamicObject> = Api::default_namespaced_with(world.client.clone(), &resource);
        let name = text("/metadata/name");
        api.patch(&name, &PatchParams::apply("quickstart"), &Patch::Apply(manifest))
            .await
            .with_context(|| format!("apply {kind} {name}"))?;
    }
    Ok(format!("{} objects, server-side", manifests.len()))
}

fn manifests(image: Option<&str>) -> [Value; 4] {
    // A process has no file system of its own: CONTAINER_ROOT says where its mounts are. In a container it is empty.
    let script = "while true; do echo \"limit=$LIMIT file=$(cat $CONTAINER_ROOT/etc/thermostat/limit)\"; sleep 0.5; done";
    [
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "thermostat", "namespace": "default"},
            "data": {"limit": "30"},
        }),
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "thermostat", "namespace": "default"},
            "spec": {
                "nodeSelector": {"kubernetes.io/hostname": NODE},
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "main",
                    "image": image.unwrap_or("none"),
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", script],
                    "env": [{"name": "LIMIT", "valueFrom": {"configMapKeyRef": {"name": "thermostat", "key": "limit"}}}],
                    "volumeMounts": [{"name": "config", "mountPath": "/etc/thermostat"}],
                }],
                "volumes": [{"name": "config", "configMap": {"name": "thermostat"}}],
            },
        }),
        json!({
            "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "DeviceModel",
            "metadata": {"name": "thermometer", "namespace": "default"},
            "spec": {
                "protocol": "thermometer",
                "properties": [
                    {"name": "temperature", "type": "DOUBLE", "accessMode": "ReadOnly", "unit": "celsius"},
                    {"name": "setpoint", "type": "DOUBLE", "accessMode": "ReadWrite", "minimum": "0", "maximum": "40"},
                ],
            },
        }),
        json!({
            "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device",
            "metadata": {"name": "room", "namespace": "default"},
            "spec": {
                "deviceModelRef": {"name": "thermometer"},
                "nodeName": NODE,
                "protocol": {"protocolName": "thermometer"},
                "properties": [
                    {"name": "temperature", "reportToCloud": true, "collectCycle": 500, "reportCycle": 500},
                    {"name": "setpoint", "reportToCloud": true, "collectCycle": 500, "desired": {"value": "21"}},
                ],
            },
        }),
    ]
}

async fn log_says(world: &World, text: &str) -> Result<String> {
    let pods: Api<Pod> = Api::default_namespaced(world.client.clone());
    let newest = LogParams { tail_lines: Some(1), ..LogParams::default() };
    until(&format!("the pod's log does not say {text:?}"), async || {
        // Until the pod runs there is no log; the last reason shows if it never does.
        let log = pods.logs("thermostat", &newest).await?;
        Ok(log.contains(text).then(|| log.trim().to_owned()))
    })
    .await
}

/// The id of the pod's container, from the runtime itself: it answers whether there is a link or not.
async fn running_container(world: &World) -> Result<String> {
    let sandboxes = world.runtime.observe().await?;
    let containers: Vec<_> = sandboxes
        .iter()
        .filter(|sandbox| sandbox.name == "thermostat")
        .flat_map(|sandbox| &sandbox.containers)
        .collect();
    match containers[..] {
        [one] if matches!(one.state, kubeedge_core::runtime::ContainerState::Running { .. }) => {
            Ok(one.id.to_string())
        }
        _ => bail!("one running container was expected, and there are: {containers:?}"),
    }
}

fn devices(world: &World) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("devices.kubeedge.io", "v1beta1", "Device"));
    Api::default_namespaced_with(world.client.clone(), &resource)
}

/// Waits for a temperature that was read after `after_ms`.
async fn temperature_after(world: &World, after_ms: u64) -> Result<(String, u64)> {
    let devices = devices(world);
    until("no temperature is in the Device's status", async || {
        let device = devices.get("room").await?;
        let Some(reported) = reported(&device.data, "temperature") else { return Ok(None) };
        let value = reported["value"].as_str().unwrap_or_default();
        let at: u64 =
            reported["metadata"]["timestamp"].as_str().and_then(|text| text.parse().ok()).unwrap_or(0);
        Ok((at > after_ms).then(|| (format!("{value} \u{b0}C"), at)))
    })
    .await
}

fn reported(device: &Value, property: &str) -> Option<Value> {
    let twins = device["status"]["twins"].as_array()?;
    let twin = twins.iter().find(|twin| twin["propertyName"] == property)?;
    twin.get("reported").cloned()
}

async fn set_point(world: &World, value: &str) -> Result<String> {
    let devices = devices(world);
    let patch = json!([{"op": "replace", "path": "/spec/properties/1/desired/value", "value": value}]);
    let patch: json_patch::Patch = serde_json::from_value(patch)?;
    devices
        .patch("room", &PatchParams::default(), &Patch::<()>::Json(patch))
        .await
        .context("patch device room")?;
    until("the device does not report the desired value", async || {
        let device = devices.get("room").await?;
        let reported = reported(&device.data, "setpoint");
        let has = reported.as_ref().is_some_and(|reported| reported["value"] == value);
        Ok(has.then(|| format!("setpoint {value} \u{b0}C, read back from the device")))
    })
    .await
}

async fn both_ends_notice(world: &World) -> Result<String> {
    let mut connectivity = world.connectivity()?;
    timeout(PATIENCE, connectivity.wait_for(|connectivity| !connectivity.is_online()))
        .await
        .context("the edge does not notice")??;
    let nodes: Api<Node> = Api::all(world.client.clone());
    until("the cloud does not notice", async || {
        let status = nodes.get(NODE).await?.status.unwrap_or_default();
        let ready = condition(status.conditions.iter().flatten().map(|c| (&c.type_, &c.status)), "Ready");
        Ok((ready == Some("Unknown")).then(|| "edge offline, node Ready=Unknown".to_owned()))
    })
    .await
}

async fn change_config_map(world: &World, value: &str) -> Result<String> {
    let config_maps: Api<ConfigMap> = Api::default_namespaced(world.client.clone());
    let patch = json!({"data": {"limit": value}});
    config_maps.patch("thermostat", &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(format!("limit {value}"))
}

async fn known_after_restart(world: &World, before: &str) -> Result<String> {
    let known = until("the restarted edge does not know its pod", async || {
        let objects = world.held("Pod").await?;
        Ok((objects == 1).then_some(()))
    });
    known.await?;
    let twin = until("the restarted edge's twin does not answer", async || {
        Ok(Some(world.ask_twin("setpoint").await?))
    })
    .await?;
    ensure!(twin.contains("25"), "the twin has forgotten the set point: {twin}");
    ensure!(!world.connectivity()?.borrow().is_online(), "the link was meant to be cut");
    // Long enough for an edge that does not know its pod to do something about it.
    sleep(Duration::from_secs(1)).await;
    let after = running_container(world).await?;
    ensure!(after == before, "the container was replaced: {before} before, {after} after");
    Ok(format!("same container, {twin}"))
}

async fn never_restarted(world: &World, before: &str) -> Result<String> {
    let after = running_container(world).await?;
    ensure!(after == before, "the container was replaced: {before} before, {after} after");
    let pods: Api<Pod> = Api::default_namespaced(world.client.clone());
    until("the pod is not Running in the API", async || {
        let status = pods.get("thermostat").await?.status.unwrap_or_default();
        let restarts = status.container_statuses.iter().flatten().map(|c| c.restart_count).sum::<i32>();
        ensure!(restarts == 0, "the API counts {restarts} restarts");
        Ok((status.phase.as_deref() == Some("Running"))
            .then(|| "Running, 0 restarts, same container".to_owned()))
    })
    .await
}

/// The status of the condition of this type.
fn condition<'a>(
    conditions: impl Iterator<Item = (&'a String, &'a String)>,
    wanted: &str,
) -> Option<&'a str> {
    let mut conditions = conditions;
    conditions.find(|(kind, _)| *kind == wanted).map(|(_, status)| status.as_str())
}

/// Asks again and again until there is an answer; the last error is told when there is none in time.
async fn until<T>(otherwise: &str, mut ask: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    let mut last = None;
    while Instant::now() < deadline {
        match timeout(PATIENCE, ask()).await {
            Ok(Ok(Some(answer))) => return Ok(answer),
            Ok(Ok(None)) => last = None,
            Ok(Err(error)) => last = Some(error),
            Err(_) => last = Some(anyhow::anyhow!("no answer")),
        }
        sleep(Duration::from_millis(25)).await;
    }
    match last {
        Some(error) => Err(error.context(format!("{otherwise} within {PATIENCE:?}"))),
        None => bail!("{otherwise} within {PATIENCE:?}"),
    }
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
