//! What KubeEdge's file may say and makes no difference here.

use anyhow::Result;

use super::tree::{self, Node};

const WINDOWS: &str = "this edge runs on Linux";
const DEADLINES: &str = "the link has deadlines of its own, which follow from heartbeat";
const COUNTS: &str = "how much is kept of containers that have ended is not configurable";
const CALLS: &str = "ServiceBus calls servers of this node, and serves nothing itself";

/// Keys whose value makes no difference, each with the reason.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("database.driverName", "the store is a file of its own, beside the one that dataSource names"),
    ("database.aliasName", "there is one store"),
    ("featureGates", "there are no feature gates"),
    ("modules.edgeHub.messageQPS", "reports are paced by object: kubeedgeRs.deviceTwin"),
    ("modules.edgeHub.messageBurst", "reports are paced by object: kubeedgeRs.deviceTwin"),
    ("modules.edgeHub.projectID", "the cloud knows a node by its certificate"),
    ("modules.edgeHub.websocket.handshakeTimeout", DEADLINES),
    ("modules.edgeHub.websocket.readDeadline", DEADLINES),
    ("modules.edgeHub.websocket.writeDeadline", DEADLINES),
    ("modules.edgeHub.quic.handshakeTimeout", DEADLINES),
    ("modules.edgeHub.quic.readDeadline", DEADLINES),
    ("modules.edgeHub.quic.writeDeadline", DEADLINES),
    ("modules.edged.registerNodeNamespace", "a Node is in no namespace"),
    ("modules.edged.customInterfaceName", "name the address itself: modules.edged.nodeIP"),
    ("modules.edged.maxContainerCount", COUNTS),
    ("modules.edged.maxPerPodContainerCount", COUNTS),
    ("modules.edged.minimumGCAge", COUNTS),
    ("modules.edged.windowsService", WINDOWS),
    ("modules.edged.windowsPriorityClass", WINDOWS),
    ("modules.edged.experimentalMounterPath", "volumes are mounted by edgecore itself"),
    (
        "modules.edged.experimentalNodeAllocatableIgnoreEvictionThreshold",
        "what evictionHard keeps free is never given to pods",
    ),
    ("modules.edged.seccompDefault", "a pod names its profile in securityContext.seccompProfile"),
    ("modules.edged.runtimeCgroups", "the runtime's own group is not looked at"),
    ("modules.serviceBus.server", CALLS),
    ("modules.serviceBus.port", CALLS),
    ("modules.serviceBus.timeout", "a call has 10 s, from connecting to the last byte"),
    ("modules.serviceBus.tlsCertFile", CALLS),
    ("modules.serviceBus.tlsPrivateKeyFile", CALLS),
    ("modules.metaManager.contextSendGroup", "the parts are joined where they are made"),
    ("modules.metaManager.contextSendModule", "the parts are joined where they are made"),
];

/// Names what is switched on and is not there, and what is set and has no effect.
pub(super) fn warn(root: &Node<'_>, defaults: &Node<'_>, warnings: &mut Vec<String>) -> Result<()> {
    for key in ["metaManager.metaServer", "dbTest", "taskManager"] {
        let node = root.at("modules").at(key).at("enable");
        if node.bool()? {
            warnings.push(format!("{}: not available in this edge; it has no effect", node.path()));
        }
    }
    tree::warn_of_kind(root, "EdgeCore", warnings)?;
    tree::warn_without_effect(root, defaults, WITHOUT_EFFECT, warnings);
    Ok(())
}
