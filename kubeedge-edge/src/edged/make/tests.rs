use std::path::{Path, PathBuf};

use kubeedge_core::runtime::{ContainerConfig, MountPropagation, SandboxConfig, SecurityProfile};
use serde_json::{Value, json};

use super::{Before, cgroup, container, pod_limits, qos_class, sandbox};
use crate::edged::{
    Cgroups, resolve,
    testing::{Scene, pod},
};

fn sandbox_of(scene: &Scene, spec: Value) -> Result<SandboxConfig, String> {
    sandbox(&pod(spec, json!({})), 0, &scene.config, &scene.facts()).map_err(|why| why.0)
}

fn container_of(scene: &Scene, spec: Value, own: Value) -> Result<(ContainerConfig, Before), String> {
    let pod = pod(spec, own);
    let env = resolve::environment(&pod.spec.containers[0], &pod, &scene.facts()).map_err(|why| why.0)?;
    container(&pod, &pod.spec.containers[0], 0, env, &scene.config, &scene.facts()).map_err(|why| why.0)
}

fn env_of(scene: &Scene, own: Value) -> Result<Vec<String>, String> {
    let (config, _) = container_of(scene, json!({ "serviceAccountName": "robot" }), own)?;
    Ok(config.env.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
}

#[test]
fn the_environment_has_what_is_named_in_the_order_in_which_the_api_lets_entries_win() {
    let mut scene = Scene::new();
    scene.config_map("m", json!({ "A": "map", "B": "map", "1bad": "x", "with.dot": "1" }));
    scene.secret("s", json!({ "B": "c2VjcmV0" }));
    scene.put("v1", "ConfigMap", "bin", json!({ "data": { "T": "t" }, "binaryData": { "X": "AAE=" } }));
    let own = json!({
        "envFrom": [
            { "configMapRef": { "name": "m" } }, { "secretRef": { "name": "s" } },
            { "prefix": "P_", "configMapRef": { "name": "m" } }, { "configMapRef": { "name": "bin" } },
            { "secretRef": { "name": "gone", "optional": true } },
        ],
        "env": [
            { "name": "A", "value": "own" },
            { "name": "C", "value": "$(A) $(B) $$(A) $(Z)" },
            { "name": "D", "valueFrom": { "secretKeyRef": { "name": "s", "key": "B" } } },
            { "name": "E", "valueFrom": { "configMapKeyRef": { "name": "m", "key": "z", "optional": true } } },
        ],
    });
    let mut env = env_of(&scene, own).unwrap();
    env.sort();
    assert_eq!(
        env,
        [
            "A=own",
            "B=secret",
            "C=own secret $(A) $(Z)",
            "D=secret",
            "P_1bad=x",
            "P_A=map",
            "P_B=map",
            "P_with.dot=1",
            "T=t",
            "with.dot=1"
        ]
    );
}

#[test]
fn what_the_environment_needs_and_is_absent_is_named() {
    let mut scene = Scene::new();
    scene.config_map("m", json!({}));
    let from = |source: Value| env_of(&scene, json!({ "env": [{ "name": "A", "valueFrom": source }] }));
    assert_eq!(
        from(json!({ "secretKeyRef": { "name": "s", "key": "k" } })).unwrap_err(),
        "secret \"s\" not found"
    );
    assert_eq!(
        from(json!({ "configMapKeyRef": { "name": "m", "key": "k" } })).unwrap_err(),
        "couldn't find key k in ConfigMap default/m"
    );
    let all = json!({ "envFrom": [{ "configMapRef": { "name": "z" } }] });
    assert_eq!(env_of(&scene, all).unwrap_err(), "configmap \"z\" not found");
}

#[test]
fn every_field_that_the_api_documents_can_be_a_variable() {
    let mut scene = Scene::new();
    scene.pod_ips = vec!["10.1.2.3".to_owned(), "fd00::3".to_owned()];
    for (path, value) in [
        ("metadata.name", "web"),
        ("metadata.namespace", "default"),
        ("metadata.uid", "u-1"),
        ("metadata.labels['app']", "web"),
        ("metadata.labels['none']", ""),
        ("metadata.annotations['note']", "a \"b\""),
        ("spec.nodeName", "edge-1"),
        ("spec.serviceAccountName", "robot"),
        ("status.hostIP", "192.0.2.7"),
        ("status.hostIPs", "192.0.2.7"),
        ("status.podIP", "10.1.2.3"),
        ("status.podIPs", "10.1.2.3,fd00::3"),
    ] {
        let own = json!({ "env": [{ "name": "V", "valueFrom": { "fieldRef": { "fieldPath": path } } }] });
        assert_eq!(env_of(&scene, own).unwrap(), [format!("V={value}")], "{path}");
    }
    let wrong = json!({ "env": [{ "name": "V", "valueFrom": { "fieldRef": { "fieldPath": "spec.x" } } }] });
    assert_eq!(env_of(&scene, wrong).unwrap_err(), "unsupported fieldPath: spec.x");
}

#[test]
fn resources_can_be_variables_in_any_unit_and_default_to_what_the_node_has() {
    let scene = Scene::new();
    for (resource, divisor, value) in [
        ("limits.cpu", "0", "1"),
        ("limits.cpu", "1m", "500"),
        ("requests.cpu", "1m", "250"),
        ("limits.memory", "1Mi", "8192"),
        ("requests.memory", "1", "67108864"),
        ("requests.memory", "1M", "68"),
        ("limits.ephemeral-storage", "1Gi", "1"),
    ] {
        let reference = json!({ "resource": resource, "divisor": divisor });
        let own = json!({
            "env": [{ "name": "V", "valueFrom": { "resourceFieldRef": reference } }],
            "resources": { "limits": { "cpu": "500m" }, "requests": { "cpu": "250m", "memory": "64Mi" } },
        });
        assert_eq!(env_of(&scene, own).unwrap(), [format!("V={value}")], "{resource} by {divisor}");
    }
}

#[test]
fn pods_are_told_where_the_kubernetes_api_is_unless_they_say_it_themselves() {
    let mut scene = Scene::new();
    assert_eq!(env_of(&scene, json!({})).unwrap(), Vec::<String>::new());
    scene.kubernetes = "[fd00::1]:6443".to_owned();
    let own = json!({ "env": [
        { "name": "KUBERNETES_SERVICE_PORT", "value": "1" },
        { "name": "URL", "value": "https://$(KUBERNETES_SERVICE_HOST)" },
    ] });
    let env = env_of(&scene, own).unwrap();
    assert!(env.contains(&"KUBERNETES_SERVICE_HOST=fd00::1".to_owned()), "{env:?}");
    assert!(env.contains(&"KUBERNETES_SERVICE_PORT=1".to_owned()));
    assert!(env.contains(&"URL=https://fd00::1".to_owned()));
}

#[test]
fn mounts_lead_where_they_should_and_files_of_objects_cannot_be_written() {
    let mut scene = Scene::new();
    scene.pod_ips = vec!["10.1.2.3".to_owned()];
    let spec = json!({ "volumes": [
        { "name": "config", "configMap": { "name": "m" } },
        { "name": "data", "emptyDir": {} },
        { "name": "host", "hostPath": { "path": "/srv" } },
    ] });
    let own = json!({
        "env": [{ "name": "NAME", "value": "web" }],
        "volumeMounts": [
            { "name": "config", "mountPath": "/etc/app" },
            { "name": "data", "mountPath": "data", "subPathExpr": "logs/$(NAME)" },
            { "name": "host", "mountPath": "/srv", "readOnly": true, "mountPropagation": "HostToContainer" },
        ],
    });
    let (config, before) = container_of(&scene, spec.clone(), own).unwrap();
    let seen: Vec<_> = config
        .mounts
        .iter()
        .map(|mount| (mount.container_path.as_path(), mount.host_path.as_path(), mount.read_only))
        .collect();
    assert_eq!(
        seen,
        [
            (Path::new("/etc/app"), Path::new("/root/pods/u-1/volumes/config"), true),
            (Path::new("/data"), Path::new("/root/pods/u-1/volumes/data"), false),
            (Path::new("/srv"), Path::new("/srv"), true),
            (Path::new("/etc/hosts"), Path::new("/root/pods/u-1/etc-hosts"), false),
        ]
    );
    assert_eq!(config.mounts[2].propagation, MountPropagation::HostToContainer);
    assert_eq!(before.parts[&1].path, "logs/web");
    assert_eq!(before.parts[&1].place, PathBuf::from("/root/pods/u-1/volume-subpaths/app/1"));
    for wrong in ["$(NONE)/x", "../$(NAME)", "/$(NAME)"] {
        let own = json!({
            "env": [{ "name": "NAME", "value": "web" }],
            "volumeMounts": [{ "name": "data", "mountPath": "/d", "subPathExpr": wrong }],
        });
        assert!(container_of(&scene, spec.clone(), own).is_err(), "{wrong}");
    }
}

#[test]
fn the_hosts_file_has_the_pods_name_and_what_it_asks_for() {
    let mut scene = Scene::new();
    scene.host.hosts = "127.0.0.1 localhost\n192.0.2.7 edge-1\n".to_owned();
    let hosts = |scene: &Scene, spec: Value| {
        let (_, before) = container_of(scene, spec, json!({})).unwrap();
        before.hosts.map(|(_, text)| text)
    };
    assert_eq!(hosts(&scene, json!({})), None, "without an address there is nothing to say");
    scene.pod_ips = vec!["10.1.2.3".to_owned()];
    let plain = hosts(&scene, json!({})).unwrap();
    assert!(plain.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"), "{plain}");
    assert!(plain.ends_with("\n10.1.2.3\tweb\n"), "{plain}");
    let alias = json!([{ "ip": "127.0.0.1", "hostnames": ["foo.local", "bar.local"] }]);
    let named = hosts(&scene, json!({ "hostname": "h", "subdomain": "sub", "hostAliases": alias })).unwrap();
    let end = "10.1.2.3\th.sub.default.svc.cluster.local\th\n\n# Entries added by HostAliases.\n\
               127.0.0.1\tfoo.local\tbar.local\n";
    assert!(named.ends_with(end), "{named}");
    let of_node = hosts(&scene, json!({ "hostNetwork": true })).unwrap();
    let beginning =
        "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n192.0.2.7 edge-1\n";
    assert_eq!(of_node, beginning);
    let volumes = json!({ "volumes": [{ "name": "v", "emptyDir": {} }] });
    let own = json!({ "volumeMounts": [{ "name": "v", "mountPath": "/etc/hosts" }] });
    assert_eq!(container_of(&scene, volumes, own).unwrap().1.hosts, None);
}

#[test]
fn a_pod_is_called_as_it_asks() {
    let scene = Scene::new();
    let name = |spec: Value| sandbox_of(&scene, spec).map(|config| config.hostname);
    assert_eq!(name(json!({})).unwrap(), "web");
    assert_eq!(name(json!({ "hostname": "h", "subdomain": "s" })).unwrap(), "h");
    let full = json!({ "hostname": "h", "subdomain": "s", "setHostnameAsFQDN": true });
    assert_eq!(name(full).unwrap(), "h.s.default.svc.cluster.local");
    let long = json!({ "subdomain": "s".repeat(63), "setHostnameAsFQDN": true });
    assert!(name(long).unwrap_err().contains("is too long"));
    assert_eq!(name(json!({ "hostNetwork": true, "hostname": "h" })).unwrap(), "");
}

#[test]
fn names_are_resolved_by_the_policy_of_the_pod() {
    let mut scene = Scene::new();
    scene.host.resolv = "# x\nnameserver 192.0.2.53\nsearch site.example\noptions timeout:1\n".to_owned();
    let dns = |scene: &Scene, spec: Value| {
        let dns = sandbox_of(scene, spec).unwrap().dns?;
        Some((dns.servers.join(" "), dns.searches.join(" "), dns.options.join(" ")))
    };
    let line = |servers: &str, searches: &str, options: &str| {
        Some((servers.to_owned(), searches.to_owned(), options.to_owned()))
    };
    assert_eq!(dns(&scene, json!({})), None, "the runtime gives the node's own");
    assert_eq!(dns(&scene, json!({ "dnsPolicy": "Default" })), None);
    let own = json!({
        "nameservers": ["198.51.100.1"], "searches": ["own.example"],
        "options": [{ "name": "timeout", "value": "5" }, { "name": "edns0" }],
    });
    assert_eq!(
        dns(&scene, json!({ "dnsPolicy": "None", "dnsConfig": own })),
        line("198.51.100.1", "own.example", "timeout:5 edns0")
    );
    assert_eq!(
        dns(&scene, json!({ "dnsPolicy": "Default", "dnsConfig": own })),
        line("192.0.2.53 198.51.100.1", "site.example own.example", "timeout:5 edns0")
    );
    scene.config.cluster_dns = vec!["169.254.96.16".to_owned()];
    let searches = "default.svc.cluster.local svc.cluster.local cluster.local site.example";
    let of_cluster = line("169.254.96.16", searches, "ndots:5");
    assert_eq!(dns(&scene, json!({ "dnsPolicy": "ClusterFirst" })), of_cluster);
    assert_eq!(dns(&scene, json!({ "dnsPolicy": "ClusterFirst", "hostNetwork": true })), None);
    let with_host = json!({ "dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true });
    assert_eq!(dns(&scene, with_host), of_cluster);
}

#[test]
fn the_sandbox_shares_what_the_pod_asks_for() {
    let mut scene = Scene::new();
    let config = sandbox_of(
        &scene,
        json!({
            "hostPID": true, "hostIPC": true, "shareProcessNamespace": true,
            "securityContext": {
                "runAsUser": 1, "supplementalGroups": [5], "fsGroup": 6,
                "sysctls": [{ "name": "net/ipv4/tcp_syncookies", "value": "0" }],
            },
        }),
    )
    .unwrap();
    assert!(config.host_pid && config.host_ipc && config.share_processes && !config.host_network);
    assert_eq!(config.sysctls["net.ipv4.tcp_syncookies"], "0");
    assert_eq!((config.run_as_user, config.supplemental_groups), (Some(1), vec![5, 6]));
    let class = json!({ "runtimeClassName": "gvisor" });
    assert_eq!(sandbox_of(&scene, class.clone()).unwrap_err(), "RuntimeClass \"gvisor\" not found");
    scene.put("node.k8s.io/v1", "RuntimeClass", "gvisor", json!({ "handler": "runsc" }));
    assert_eq!(sandbox_of(&scene, class).unwrap().handler, "runsc");
}

#[test]
fn a_containers_rights_are_its_own_and_else_the_pods() {
    let scene = Scene::new();
    let spec = json!({ "securityContext": {
        "runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": true, "fsGroup": 2000,
        "seccompProfile": { "type": "RuntimeDefault" },
    } });
    let (config, before) = container_of(&scene, spec.clone(), json!({})).unwrap();
    assert_eq!((config.run_as_user, config.run_as_group), (Some(1000), Some(1000)));
    assert_eq!(config.supplemental_groups, [2000]);
    assert_eq!(config.seccomp, Some(SecurityProfile::RuntimeDefault));
    assert!(!config.no_new_privileges && !before.must_not_be_root);
    let own = json!({ "securityContext": {
        "runAsUser": 7, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
        "capabilities": { "add": ["CAP_NET_ADMIN"], "drop": ["ALL"] },
        "seccompProfile": { "type": "Localhost", "localhostProfile": "p/audit.json" },
        "appArmorProfile": { "type": "Localhost", "localhostProfile": "mine" },
    } });
    let (config, _) = container_of(&scene, spec.clone(), own).unwrap();
    assert_eq!(config.run_as_user, Some(7));
    assert!(config.no_new_privileges && config.read_only_root);
    assert_eq!(
        (config.capabilities.add, config.capabilities.drop),
        (vec!["NET_ADMIN".into()], vec!["ALL".into()])
    );
    assert_eq!(config.seccomp, Some(SecurityProfile::Localhost("/root/seccomp/p/audit.json".to_owned())));
    assert_eq!(config.apparmor, Some(SecurityProfile::Localhost("mine".to_owned())));
    let root = json!({ "securityContext": { "runAsUser": 0 } });
    let why = container_of(&scene, spec, root).unwrap_err();
    assert_eq!(
        why,
        "container's runAsUser breaks non-root policy (pod: \"web_default(u-1)\", container: app)"
    );
    let ask = json!({ "securityContext": { "runAsNonRoot": true } });
    assert!(container_of(&scene, json!({}), ask).unwrap().1.must_not_be_root);
}

#[test]
fn resources_become_what_the_kernel_counts_in() {
    let scene = Scene::new();
    let of = |resources: Value, spec: Value| {
        container_of(&scene, spec, json!({ "resources": resources })).unwrap().0.resources
    };
    let none = of(json!({}), json!({}));
    assert_eq!((none.cpu_shares, none.cpu_quota, none.memory_limit, none.oom_score_adj), (2, 0, 0, 1000));
    let equal = json!({ "limits": { "cpu": "500m", "memory": "64Mi" } });
    let guaranteed = of(equal.clone(), json!({}));
    assert_eq!((guaranteed.cpu_shares, guaranteed.cpu_quota, guaranteed.cpu_period), (512, 50_000, 100_000));
    assert_eq!((guaranteed.memory_limit, guaranteed.oom_score_adj), (64 << 20, -997));
    let burstable =
        of(json!({ "requests": { "cpu": "1m", "memory": "4Gi" }, "limits": { "cpu": "1m" } }), json!({}));
    assert_eq!((burstable.cpu_shares, burstable.cpu_quota, burstable.oom_score_adj), (2, 1000, 500));
    let little = of(json!({ "requests": { "memory": "1" } }), json!({}));
    assert_eq!(little.oom_score_adj, 999);
    assert_eq!(of(json!({}), json!({ "priority": 2_000_001_000 })).oom_score_adj, -997);
    let pages =
        of(json!({ "limits": { "hugepages-2Mi": "4Mi", "hugepages-1Gi": "1Gi", "memory": "1" } }), json!({}));
    assert_eq!((pages.hugepages["2MB"], pages.hugepages["1GB"]), (4 << 20, 1 << 30));
}

/// Shares, quota and memory of a pod as a whole.
fn whole(spec: Value) -> (u64, Option<i64>, Option<i64>) {
    let limits = pod_limits(&pod(spec, json!({})), None);
    (limits.cpu_shares, limits.cpu_quota_us, limits.memory_bytes)
}

fn sized(name: &str, requests: Value, limits: Value) -> Value {
    json!({ "name": name, "image": "app:1", "resources": { "requests": requests, "limits": limits } })
}

#[test]
fn a_pod_as_a_whole_is_held_to_the_sum_of_its_limits_where_each_container_has_one() {
    assert_eq!(whole(json!({})), (2, None, None), "best effort");
    let small = || sized("a", json!({ "cpu": "100m" }), json!({ "cpu": "250m", "memory": "32Mi" }));
    let large = || sized("b", json!({}), json!({ "cpu": "1", "memory": "64Mi" }));
    let open = || sized("c", json!({ "cpu": "100m" }), json!({ "memory": "1Mi" }));
    assert_eq!(whole(json!({ "containers": [small(), large()] })), (1126, Some(125_000), Some(96 << 20)));
    assert_eq!(whole(json!({ "containers": [small(), open()] })), (204, None, Some(33 << 20)));
    // An init container that ends before the others counts only where it wants more than they do together.
    let init = json!({ "initContainers": [large()], "containers": [small()] });
    assert_eq!(whole(init), (1024, Some(100_000), Some(64 << 20)));
    let init = json!({ "initContainers": [open()], "containers": [small()] });
    assert_eq!(whole(init), (102, None, Some(32 << 20)), "one of them has no limit");
    let mut sidecar = large();
    sidecar["restartPolicy"] = json!("Always");
    let sidecars = json!({ "initContainers": [sidecar], "containers": [small()] });
    assert_eq!(whole(sidecars), (1126, Some(125_000), Some(96 << 20)));
    let overhead = json!({ "containers": [small(), open()], "overhead": { "cpu": "50m", "memory": "8Mi" } });
    assert_eq!(whole(overhead), (256, None, Some(41 << 20)), "what has no limit gets none by it");
    let tiny = sized("t", json!({}), json!({ "cpu": "1m", "memory": "4Mi" }));
    assert_eq!(whole(json!({ "containers": [tiny] })), (2, Some(1000), Some(4 << 20)));
}

#[test]
fn what_a_pod_asks_for_as_a_whole_stands_for_its_containers() {
    let spec = json!({ "resources": { "requests": { "cpu": "200m" }, "limits": { "cpu": "500m", "memory": "1Gi" } } });
    assert_eq!(whole(spec.clone()), (204, Some(50_000), Some(1 << 30)));
    let of_pod = pod(spec.clone(), json!({}));
    assert_eq!(qos_class(&of_pod), "Burstable");
    let equal = json!({ "resources": { "limits": { "cpu": "1", "memory": "1Gi" } } });
    assert_eq!(qos_class(&pod(equal, json!({}))), "Guaranteed");
    let scene = Scene::new();
    let limits = container_of(&scene, spec, json!({})).unwrap().0.resources;
    // It is promised all of the gibibyte of eight that the pod is promised by its limit.
    assert_eq!((limits.cpu_quota, limits.memory_limit, limits.oom_score_adj), (50_000, 1 << 30, 875));
}

#[test]
fn the_runtime_is_told_the_cgroup_of_the_pod_and_what_its_sandbox_needs() {
    let mut scene = Scene::new();
    let limited = json!({ "containers": [sized("a", json!({}), json!({ "cpu": "1", "memory": "64Mi" }))],
        "overhead": { "cpu": "250m", "memory": "16Mi" } });
    let without = sandbox_of(&scene, limited.clone()).unwrap();
    assert_eq!(without.cgroup_parent, None);
    assert_eq!((without.resources.cpu_shares, without.resources.memory_limit), (1024, 64 << 20));
    assert_eq!((without.overhead.cpu_quota, without.overhead.memory_limit), (25_000, 16 << 20));
    assert_eq!(cgroup(&pod(limited.clone(), json!({})), &scene.config, true), None);
    scene.config.cgroups = Some(Cgroups { pids_max: Some(50), ..Cgroups::default() });
    let with = sandbox_of(&scene, limited.clone()).unwrap();
    assert_eq!(with.cgroup_parent.as_deref(), Some("/kubepods/podu-1"));
    let cgroup = cgroup(&pod(limited, json!({})), &scene.config, true).unwrap();
    assert_eq!((cgroup.limits.memory_bytes, cgroup.limits.pids), (Some(80 << 20), Some(50)));
}
