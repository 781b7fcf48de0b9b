//! What KubeEdge's file may say and makes no difference here.

use anyhow::Result;

use super::tree::{self, Node};

/// Keys whose value makes no difference, each with the reason.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("commonConfig.monitorServer.enableProfiling", "there is no pprof; /metrics is always served"),
    ("kubeAPIConfig.contentType", "the API is spoken to in JSON, which keeps fields that are not known here"),
    (
        "modules.cloudHub.writeTimeout",
        "a node that takes nothing is noticed by keepaliveInterval, and what waits for it is bounded by \
         kubeedgeRs.cloudHub.sessionMemoryMiB",
    ),
    ("modules.cloudHub.quic.maxIncomingStreams", "a node has as many streams as the link has lanes"),
    ("modules.cloudHub.unixsocket.address", "the parts of cloudcore need no socket between them"),
    ("modules.edgeController.nodeUpdateFrequency", "a node's status is written when the node reports it"),
    ("modules.syncController", "what a node holds is compared whenever it connects"),
    ("featureGates", "there are no feature gates"),
];

/// What is only there for KubeEdge's tunnel.
const OF_THE_TUNNEL: &[(&str, &str)] = &[
    ("modules.cloudStream.tunnelPort", TUNNEL),
    ("modules.cloudStream.tlsTunnelCAFile", TUNNEL),
    ("modules.cloudStream.tlsTunnelCertFile", TUNNEL),
    ("modules.cloudStream.tlsTunnelPrivateKeyFile", TUNNEL),
];
const TUNNEL: &str = "there is no tunnel: nodes are asked over CloudHub's link";

/// Names what is switched on and is not there, and what is set and has no effect.
pub(super) fn warn(root: &Node<'_>, defaults: &Node<'_>, warnings: &mut Vec<String>) -> Result<()> {
    for key in ["taskManager", "dynamicController", "cloudHub.authorization"] {
        let node = root.at("modules").at(key).at("enable");
        if node.bool()? {
            warnings.push(format!("{}: not available in this cloudcore; it has no effect", node.path()));
        }
    }
    tree::warn_of_kind(root, "CloudCore", warnings)?;
    tree::warn_without_effect(root, defaults, WITHOUT_EFFECT, warnings);
    if root.at("modules.cloudStream.enable").bool()? {
        tree::warn_without_effect(root, defaults, OF_THE_TUNNEL, warnings);
    }
    let nodes: i64 = root.at("modules.cloudHub.nodeLimit").number(1, 1_000_000)?;
    warn_of_rates(root, defaults, nodes, warnings)?;
    for controller in ["modules.edgeController", "modules.deviceController"] {
        for (section, usual) in [("buffer", usual_buffer as fn(&str, i64) -> i64), ("load", usual_load)] {
            let node = root.at(controller).at(section);
            let mut changed = Vec::new();
            for (key, value) in node.members()? {
                if value.number(i64::MIN, i64::MAX)? != usual(key, nodes) {
                    changed.push(key);
                }
            }
            if !changed.is_empty() {
                warnings.push(format!(
                    "{}: {} without an effect: queues hold one message per object, and one task does the work",
                    node.path(),
                    changed.join(", ")
                ));
            }
        }
    }
    Ok(())
}

/// KubeEdge brings both to what follows from `nodeLimit`, whatever the file says.
fn warn_of_rates(root: &Node<'_>, defaults: &Node<'_>, nodes: i64, warnings: &mut Vec<String>) -> Result<()> {
    for (path, usual) in [("kubeAPIConfig.qps", 5 * nodes), ("kubeAPIConfig.burst", 10 * nodes)] {
        let node = root.at(path);
        if !node.is_as(&defaults.at(path)) && node.number(i64::MIN, i64::MAX)? != usual {
            warnings.push(format!(
                "{path}: it has no effect: requests are as many as nodes report changes, each at its own pace, and the \
                 API server limits them by its own priorities"
            ));
        }
    }
    Ok(())
}

/// KubeEdge's value of a key below `buffer`, which it brings to the number of nodes.
fn usual_buffer(key: &str, nodes: i64) -> i64 {
    match key {
        "podEvent" | "configMapEvent" | "secretEvent" | "rulesEvent" | "ruleEndpointsEvent"
        | "deviceEvent" | "deviceModelEvent" => 1,
        "deviceStatusEvent" => 0,
        "patchNode" => 1024 + nodes / 2,
        "queryNode" | "createLease" => 1024 + nodes,
        _ => 1024,
    }
}

/// KubeEdge's value of a key below `load`.
fn usual_load(key: &str, nodes: i64) -> i64 {
    match key {
        "updatePodStatusWorkers" | "updateNodeStatusWorkers" | "updateDeviceStatusWorkers" => 1,
        "queryConfigMapWorkers"
        | "querySecretWorkers"
        | "createNodeWorkers"
        | "patchPodWorkers"
        | "deletePodWorkers"
        | "queryLeaseWorkers"
        | "ServiceAccountTokenWorkers" => 100,
        "patchNodeWorkers" => 100 + nodes / 50,
        "queryNodeWorkers" | "createLeaseWorkers" => nodes,
        _ => 4,
    }
}
