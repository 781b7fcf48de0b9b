//! What becomes of each member of a Pod's spec: the table that a Pod is held against before it is run.
//!
//! Every member of Kubernetes 1.33's `PodSpec` stands here once. Nothing that it asks for is passed over in
//! silence: a member is done, or there is nothing for a node to do about it, or the Pod is refused and its
//! status names the member. Members that Kubernetes does not know are left alone, since the API server has
//! checked them and a later version of the API may have added them.

use serde_json::Value;

/// A member of an object, by its name in the API.
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) becomes: Becomes,
}

/// What becomes of a member.
pub(crate) enum Becomes {
    /// Edged does what it asks for.
    Done,
    /// Edged does it as far as the table of its own members says.
    Parts(&'static [Field]),
    /// Edged does it for these values, and refuses others.
    Only(&'static [&'static str], &'static str),
    /// There is nothing for the node to do; why.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "it is for who reads the table; a test sees that it is there")
    )]
    Harmless(&'static str),
    /// The Pod is refused; why.
    Refused(&'static str),
    /// It is added to Pods that run, which must not fail for it: it is left undone, and an event says why.
    Told(&'static str),
}

use Becomes::{Done, Harmless, Only, Parts, Refused, Told};

macro_rules! fields {
    ($($name:literal: $becomes:expr),* $(,)?) => { &[$(Field { name: $name, becomes: $becomes }),*] };
}

const SCHEDULER: &str = "it is for the scheduler, which has chosen this node";
const STORAGE: &str = "no driver for this kind of storage runs at the edge; use hostPath, a local \
                       PersistentVolume, or emptyDir";
const WINDOWS: &str = "it is for nodes with Windows";
const DEVICES: &str = "devices are not allocated to pods by resource claims";

/// The members of `spec`.
pub(crate) const POD_SPEC: &[Field] = fields! {
    "activeDeadlineSeconds": Done,
    "affinity": Done,
    "automountServiceAccountToken": Harmless("the API server has added the volume or left it out"),
    "containers": Parts(CONTAINER),
    "dnsConfig": Done,
    "dnsPolicy": Done,
    "enableServiceLinks": Done,
    "ephemeralContainers": Told("containers for debugging are not added to pods of the edge"),
    "hostAliases": Done,
    "hostIPC": Done,
    "hostNetwork": Done,
    "hostPID": Done,
    "hostUsers": Only(&["true"], "user namespaces are not set up"),
    "hostname": Done,
    "imagePullSecrets": Done,
    "initContainers": Parts(CONTAINER),
    "nodeName": Done,
    "nodeSelector": Done,
    "os": Done,
    "overhead": Done,
    "preemptionPolicy": Harmless(SCHEDULER),
    "priority": Done,
    "priorityClassName": Harmless(SCHEDULER),
    "readinessGates": Done,
    "resourceClaims": Refused(DEVICES),
    "resources": Parts(RESOURCES),
    "restartPolicy": Done,
    "runtimeClassName": Done,
    "schedulerName": Harmless(SCHEDULER),
    "schedulingGates": Harmless(SCHEDULER),
    "securityContext": Parts(POD_SECURITY),
    "serviceAccount": Harmless("it is the old name of serviceAccountName, which the API server sets as well"),
    "serviceAccountName": Done,
    "setHostnameAsFQDN": Done,
    "shareProcessNamespace": Done,
    "subdomain": Done,
    "terminationGracePeriodSeconds": Done,
    "tolerations": Harmless("they are for the scheduler and for the controller that evicts pods by taints"),
    "topologySpreadConstraints": Harmless(SCHEDULER),
    "volumes": Parts(VOLUME),
};

/// The members of a container and of an init container.
pub(crate) const CONTAINER: &[Field] = fields! {
    "args": Done,
    "command": Done,
    "env": Done,
    "envFrom": Done,
    "image": Done,
    "imagePullPolicy": Done,
    "lifecycle": Parts(fields! {
        "postStart": Done,
        "preStop": Done,
        "stopSignal": Refused("containers are stopped with the signal that their image names"),
    }),
    "livenessProbe": Done,
    "name": Done,
    "ports": Done,
    "readinessProbe": Done,
    "resizePolicy": Done,
    "resources": Parts(RESOURCES),
    "restartPolicy": Done,
    "securityContext": Parts(SECURITY),
    "startupProbe": Done,
    "stdin": Done,
    "stdinOnce": Done,
    "terminationMessagePath": Done,
    "terminationMessagePolicy": Done,
    "tty": Done,
    "volumeDevices": Refused("raw block devices are not given to containers; mount a file system"),
    "volumeMounts": Parts(fields! {
        "mountPath": Done,
        "mountPropagation": Done,
        "name": Done,
        "readOnly": Done,
        "recursiveReadOnly": Only(&["Disabled", "IfPossible"], "mounts below a mount are not made read-only"),
        "subPath": Done,
        "subPathExpr": Done,
    }),
    "workingDir": Done,
};

/// The members of `resources`, of a container and of a pod as a whole.
const RESOURCES: &[Field] = fields! {
    "claims": Refused(DEVICES),
    "limits": Done,
    "requests": Done,
};

/// The members of a pod's `securityContext`.
pub(crate) const POD_SECURITY: &[Field] = fields! {
    "appArmorProfile": Done,
    "fsGroup": Done,
    "fsGroupChangePolicy": Done,
    "runAsGroup": Done,
    "runAsNonRoot": Done,
    "runAsUser": Done,
    "seLinuxChangePolicy": Harmless("it says how files get a label of SELinux, and without seLinuxOptions they get none"),
    "seLinuxOptions": Refused("labels of SELinux are not set"),
    "seccompProfile": Done,
    "supplementalGroups": Done,
    "supplementalGroupsPolicy": Only(&["Merge"], "the groups that the image gives its user are always merged"),
    "sysctls": Done,
    "windowsOptions": Harmless(WINDOWS),
};

/// The members of a container's `securityContext`.
pub(crate) const SECURITY: &[Field] = fields! {
    "allowPrivilegeEscalation": Done,
    "appArmorProfile": Done,
    "capabilities": Done,
    "privileged": Done,
    "procMount": Only(&["Default"], "an unmasked /proc needs a user namespace, which is not set up"),
    "readOnlyRootFilesystem": Done,
    "runAsGroup": Done,
    "runAsNonRoot": Done,
    "runAsUser": Done,
    "seLinuxOptions": Refused("labels of SELinux are not set"),
    "seccompProfile": Done,
    "windowsOptions": Harmless(WINDOWS),
};

/// The members of a volume.
pub(crate) const VOLUME: &[Field] = fields! {
    "awsElasticBlockStore": Refused(STORAGE),
    "azureDisk": Refused(STORAGE),
    "azureFile": Refused(STORAGE),
    "cephfs": Refused(STORAGE),
    "cinder": Refused(STORAGE),
    "configMap": Done,
    "csi": Refused(STORAGE),
    "downwardAPI": Done,
    "emptyDir": Parts(fields! {
        "medium": Only(&["Memory"], "huge pages are not mounted"),
        "sizeLimit": Done,
    }),
    "ephemeral": Done,
    "fc": Refused(STORAGE),
    "flexVolume": Refused(STORAGE),
    "flocker": Refused(STORAGE),
    "gcePersistentDisk": Refused(STORAGE),
    "gitRepo": Refused("it was taken out of Kubernetes; clone in an init container into an emptyDir"),
    "glusterfs": Refused(STORAGE),
    "hostPath": Done,
    "image": Refused("images are not mounted as volumes"),
    "iscsi": Refused(STORAGE),
    "name": Done,
    "nfs": Refused(STORAGE),
    "persistentVolumeClaim": Done,
    "photonPersistentDisk": Refused(STORAGE),
    "portworxVolume": Refused(STORAGE),
    "projected": Parts(fields! {
        "defaultMode": Done,
        "sources": Parts(fields! {
            "clusterTrustBundle": Refused("trust bundles of the cluster do not reach the edge; use a ConfigMap"),
            "configMap": Done,
            "downwardAPI": Done,
            "secret": Done,
            "serviceAccountToken": Done,
        }),
    }),
    "quobyte": Refused(STORAGE),
    "rbd": Refused(STORAGE),
    "scaleIO": Refused(STORAGE),
    "secret": Done,
    "storageos": Refused(STORAGE),
    "vsphereVolume": Refused(STORAGE),
};

/// The first thing that a Pod's spec asks for and that is not done: the member's path, and why not.
pub(crate) fn unsupported(spec: &Value) -> Option<(String, String)> {
    in_object(spec, POD_SPEC, "spec")
}

/// What a Pod's spec asks for that is left undone without refusing the Pod, in words for an event.
pub(crate) fn undone(spec: &Value) -> Option<String> {
    POD_SPEC.iter().find_map(|field| match field.becomes {
        Told(why) if spec.get(field.name).is_some_and(asks) => Some(format!("spec.{}: {why}", field.name)),
        Told(_) | Done | Parts(_) | Only(..) | Harmless(_) | Refused(_) => None,
    })
}

fn in_object(object: &Value, table: &[Field], path: &str) -> Option<(String, String)> {
    table.iter().find_map(|field| {
        let value = object.get(field.name).filter(|value| asks(value))?;
        in_member(value, &field.becomes, &format!("{path}.{}", field.name))
    })
}

fn in_member(value: &Value, becomes: &Becomes, path: &str) -> Option<(String, String)> {
    match becomes {
        Done | Harmless(_) | Told(_) => None,
        Refused(why) => Some((path.to_owned(), (*why).to_owned())),
        Only(done, why) => {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let known = done.contains(&text.as_str());
            (!known).then(|| (path.to_owned(), format!("{text}: {why}")))
        }
        Parts(table) => match value.as_array() {
            Some(items) => {
                let mut items = items.iter().enumerate();
                items.find_map(|(index, item)| in_object(item, table, &format!("{path}[{index}]")))
            }
            None => in_object(value, table, path),
        },
    }
}

/// Whether a member asks for anything: what is empty is what the API would have left out.
fn asks(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    }
}
