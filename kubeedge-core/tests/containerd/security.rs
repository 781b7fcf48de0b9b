//! What a container may do, seen from inside.

use std::{fs, path::Path, process::Command};

use kubeedge_core::runtime::{
    Capabilities, ContainerRuntime, Device, Mount, MountPropagation, RuntimeError, SecurityProfile,
};

use crate::{Running, adapter, sandbox, sleeper, support};

pub(crate) async fn run(containerd: &support::Containerd) {
    a_container_is_who_it_should_be(containerd).await;
    a_hardened_container_can_do_little_and_a_privileged_one_all(containerd).await;
    a_seccomp_profile_of_the_node_is_kept(containerd).await;
    namespaces_are_shared_as_asked(containerd).await;
    sysctls_devices_and_mounts_are_there(containerd).await;
    what_cannot_work_is_invalid(containerd).await;
}

async fn a_container_is_who_it_should_be(containerd: &support::Containerd) {
    let pod = Running::start(
        containerd,
        "who",
        |sandbox| {
            sandbox.run_as_user = Some(1000);
            sandbox.supplemental_groups = vec![2000];
        },
        |config| {
            config.run_as_user = Some(1000);
            config.run_as_group = Some(3000);
            config.supplemental_groups = vec![2000, 4000];
        },
    )
    .await;
    let status = pod.sh("cat /proc/self/status").await.unwrap();
    let line = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(line("Uid:"), ["1000"; 4]);
    assert_eq!(line("Gid:"), ["3000"; 4]);
    let mut groups = line("Groups:");
    groups.retain(|group| group != "3000");
    assert_eq!(groups, ["2000", "4000"]);
    pod.remove().await;
}

async fn a_hardened_container_can_do_little_and_a_privileged_one_all(containerd: &support::Containerd) {
    let status = "busybox grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/1/status";
    let words = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
    let hardened = Running::start(
        containerd,
        "hardened",
        |_| {},
        |config| {
            config.read_only_root = true;
            config.no_new_privileges = true;
            let (add, drop) = (vec!["NET_BIND_SERVICE".to_owned()], vec!["ALL".to_owned()]);
            config.capabilities = Capabilities { add, drop };
            config.seccomp = Some(SecurityProfile::RuntimeDefault);
        },
    )
    .await;
    // NET_BIND_SERVICE is capability 10, and 2 is a filter.
    let seen = words(hardened.sh(status).await.unwrap());
    assert_eq!(seen, "CapEff: 0000000000000400 NoNewPrivs: 1 Seccomp: 2");
    hardened.sh("echo > /written").await.expect_err("the root is read-only");
    hardened.sh("busybox unshare -m true").await.expect_err("it may not");
    let masked = hardened.sh("busybox wc -c < /proc/keys").await.unwrap_or_else(|_| "0".into());
    assert_eq!(masked, "0", "what it must not see is hidden");
    hardened.sh("echo 1 > /proc/sys/net/ipv4/ip_forward").await.expect_err("kernel parameters are read-only");
    hardened.remove().await;

    let plain = Running::start(containerd, "plain", |_| {}, |_| {}).await;
    let seen = words(plain.sh(status).await.unwrap());
    assert!(seen.ends_with("NoNewPrivs: 0 Seccomp: 0"), "no profile is none: {seen}");
    plain.sh("echo > /written").await.unwrap();
    plain.remove().await;

    let privileged = Running::start(
        containerd,
        "privileged",
        |sandbox| sandbox.privileged = true,
        |config| {
            config.privileged = true;
            config.unmasked_proc = true;
        },
    )
    .await;
    privileged.sh("busybox mkdir /m && busybox mount -t tmpfs none /m && echo > /m/x").await.unwrap();
    privileged.sh("echo 1 > /proc/sys/net/ipv4/ip_forward").await.unwrap();
    privileged.remove().await;
}

async fn a_seccomp_profile_of_the_node_is_kept(containerd: &support::Containerd) {
    let profile = containerd.directory().join("no-mkdir.json");
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}"#;
    fs::write(&profile, text).unwrap();
    let localhost = SecurityProfile::Localhost(profile.to_str().unwrap().to_owned());
    let pod = Running::start(containerd, "seccomp", |_| {}, |config| config.seccomp = Some(localhost)).await;
    pod.sh("busybox mkdir /made").await.expect_err("the profile forbids it");
    pod.sh("echo > /written").await.unwrap();
    let id = Running::add(&pod.runtime, &pod.sandbox, "free", |config| {
        config.seccomp = Some(SecurityProfile::Unconfined);
    })
    .await;
    let free = Running { id, ..pod };
    free.sh("busybox mkdir /made").await.unwrap();
    free.remove().await;
}

async fn namespaces_are_shared_as_asked(containerd: &support::Containerd) {
    let own = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string();
    let of_node = Running::start(
        containerd,
        "of-node",
        |sandbox| {
            (sandbox.host_network, sandbox.host_pid, sandbox.host_ipc) = (true, true, true);
            sandbox.hostname = String::new();
        },
        |_| {},
    )
    .await;
    for kind in ["net", "pid", "ipc"] {
        let seen = of_node.sh(&format!("busybox readlink /proc/self/ns/{kind}")).await.unwrap();
        assert_eq!(seen, own(kind), "the node's {kind}");
    }
    of_node.remove().await;

    let pod = Running::start(containerd, "apart", |_| {}, |_| {}).await;
    for kind in ["net", "pid", "ipc"] {
        let seen = pod.sh(&format!("busybox readlink /proc/self/ns/{kind}")).await.unwrap();
        assert_ne!(seen, own(kind), "its own {kind}");
    }
    let first = pod.sh("cat /proc/1/cmdline").await.unwrap();
    assert!(first.contains("trap"), "its own command is its first process: {first}");
    let target = pod.id.clone();
    let id = Running::add(&pod.runtime, &pod.sandbox, "debug", |config| {
        config.process_target = Some(target);
        config.args = vec!["sleep 1000".into()];
    })
    .await;
    let debug = Running { id, ..pod };
    let first = debug.sh("cat /proc/1/cmdline").await.unwrap();
    assert!(first.contains("trap"), "the target's processes are seen: {first}");
    debug.remove().await;

    let shared = Running::start(containerd, "shared", |sandbox| sandbox.share_processes = true, |_| {}).await;
    let first = shared.sh("cat /proc/1/cmdline").await.unwrap();
    assert!(first.contains("2147483647"), "the sandbox's own process is the first: {first}");
    shared.remove().await;
}

async fn sysctls_devices_and_mounts_are_there(containerd: &support::Containerd) {
    let shared = containerd.directory().join("shared");
    fs::create_dir_all(&shared).unwrap();
    let mount =
        |arguments: &[&str]| assert!(Command::new("mount").args(arguments).status().unwrap().success());
    let path = shared.to_str().unwrap();
    mount(&["-t", "tmpfs", "tmpfs", path]);
    mount(&["--make-shared", path]);
    let pod = Running::start(
        containerd,
        "parts",
        |sandbox| {
            sandbox.sysctls = [("net.ipv4.ip_unprivileged_port_start".to_owned(), "80".to_owned())].into();
            sandbox.annotations = [("example.org/word".to_owned(), "kept".to_owned())].into();
            sandbox.privileged = true;
        },
        |config| {
            config.devices = vec![Device {
                container_path: "/dev/nothing".into(),
                host_path: "/dev/null".into(),
                permissions: "rwm".into(),
            }];
            let mount = |name: &str, propagation| Mount {
                container_path: Path::new("/").join(name),
                host_path: shared.clone(),
                propagation,
                ..Mount::default()
            };
            config.mounts = vec![
                mount("private", MountPropagation::Private),
                mount("from-node", MountPropagation::HostToContainer),
                mount("both", MountPropagation::Bidirectional),
            ];
            config.privileged = true;
        },
    )
    .await;
    let seen = pod.sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start").await.unwrap();
    assert_eq!(seen, "80");
    let later = shared.join("later");
    fs::create_dir(&later).unwrap();
    mount(&["-t", "tmpfs", "tmpfs", later.to_str().unwrap()]);
    fs::write(later.join("file"), "").unwrap();
    pod.sh("[ -e /from-node/later/file ] && [ -e /both/later/file ]").await.unwrap();
    pod.sh("[ -e /private/later/file ]").await.expect_err("a private mount stays as it was");
    let made = "busybox mkdir /both/made && busybox mount -t tmpfs none /both/made && echo > /both/made/file";
    pod.sh(made).await.unwrap();
    assert!(shared.join("made/file").exists(), "the node sees what the container mounts");
    pod.remove().await;

    let with_device = Running::start(
        containerd,
        "device",
        |_| {},
        |config| {
            config.devices = vec![Device {
                container_path: "/dev/nothing".into(),
                host_path: "/dev/null".into(),
                permissions: "rw".into(),
            }];
        },
    )
    .await;
    with_device.sh("[ -c /dev/nothing ] && echo gone > /dev/nothing").await.unwrap();
    with_device.remove().await;
}

async fn what_cannot_work_is_invalid(containerd: &support::Containerd) {
    let runtime = adapter(containerd);
    let id = runtime.run_sandbox(&sandbox(containerd, "odd")).await.unwrap();
    let mut config = sleeper("app");
    config.seccomp = Some(SecurityProfile::Localhost("/never/was.json".into()));
    let odd = runtime.create_container(&id, &config).await;
    assert!(matches!(odd, Err(RuntimeError::Invalid { .. })), "{odd:?}");
    if !Path::new("/sys/kernel/security/apparmor").exists() {
        let mut config = sleeper("app");
        config.apparmor = Some(SecurityProfile::Localhost("absent".into()));
        let odd = runtime.create_container(&id, &config).await;
        assert!(matches!(odd, Err(RuntimeError::Invalid { .. })), "{odd:?}");
    }
    let mut config = sleeper("cdi");
    config.cdi_devices = vec!["example.org/sensor=0".into()];
    let odd = runtime.create_container(&id, &config).await;
    assert!(odd.is_err(), "a device that nobody knows is not left out: {odd:?}");
    runtime.remove_sandbox(&id).await.unwrap();
    let mut config = sandbox(containerd, "handler");
    config.handler = "magic".into();
    let odd = runtime.run_sandbox(&config).await;
    assert!(
        matches!(&odd, Err(RuntimeError::Invalid { message, .. }) if message.contains("magic")),
        "{odd:?}"
    );
}
