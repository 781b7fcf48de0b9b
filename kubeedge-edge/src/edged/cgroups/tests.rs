use kubeedge_core::id::Uid;

use super::{
    Limits, Place,
    limits::{Version, of_node, shares},
    tree::Tree,
};
use crate::edged::{CgroupDriver, Cgroups, Config, Reserved};

fn of_pod(cgroups: &Cgroups, class: &str) -> (String, String) {
    let place = Place::of_pod(cgroups, class, &Uid::new("12ab-34")).unwrap();
    (place.parent(), place.directory().display().to_string())
}

fn written(limits: &Limits, version: Version) -> Vec<String> {
    limits
        .files(version)
        .into_iter()
        .map(|file| format!("{}: {} = {}", file.controller, file.name, file.value))
        .collect()
}

#[test]
fn the_cgroup_of_a_pod_is_where_the_kubelet_has_it_with_both_drivers() {
    let own = Cgroups::default();
    let burstable = "/kubepods/burstable/pod12ab-34";
    assert_eq!(of_pod(&own, "Burstable"), (burstable.into(), burstable[1..].into()));
    assert_eq!(of_pod(&own, "Guaranteed").0, "/kubepods/pod12ab-34");
    let systemd = Cgroups { driver: CgroupDriver::Systemd, root: "/edge".into(), ..own };
    let slice = "edge-kubepods-besteffort-pod12ab_34.slice";
    let directory = format!("edge.slice/edge-kubepods.slice/edge-kubepods-besteffort.slice/{slice}");
    assert_eq!(of_pod(&systemd, "BestEffort"), (slice.into(), directory));
    assert_eq!(Place::of_pod(&systemd, "BestEffort", &Uid::new("../x")), None);
    let way: Vec<_> = Place::of_class(&Cgroups::default(), "Burstable").way();
    assert_eq!(way, ["kubepods", "kubepods/burstable"].map(std::path::PathBuf::from));
}

#[test]
fn limits_are_written_into_the_files_of_either_version() {
    let limits = Limits {
        cpu_shares: shares(500),
        cpu_quota_us: Some(100_000),
        memory_bytes: Some(64 << 20),
        pids: Some(100),
        huge_pages: [("2MB".to_owned(), 4 << 20)].into(),
    };
    assert_eq!(
        written(&limits, Version::V1),
        [
            "cpu: cpu.shares = 512",
            "cpu: cpu.cfs_period_us = 100000",
            "cpu: cpu.cfs_quota_us = 100000",
            "memory: memory.limit_in_bytes = 67108864",
            "pids: pids.max = 100",
            "hugetlb: hugetlb.2MB.limit_in_bytes = 4194304",
        ]
    );
    assert_eq!(
        written(&limits, Version::V2),
        [
            "cpu: cpu.weight = 20",
            "cpu: cpu.max = 100000 100000",
            "memory: memory.max = 67108864",
            "pids: pids.max = 100",
            "hugetlb: hugetlb.2MB.max = 4194304",
        ]
    );
    let least = Limits { cpu_shares: shares(0), ..Limits::default() };
    assert_eq!(written(&least, Version::V1), ["cpu: cpu.shares = 2"]);
    assert_eq!(written(&least, Version::V2), ["cpu: cpu.weight = 1"]);
    let most = Limits { cpu_shares: shares(i64::MAX), ..Limits::default() };
    assert_eq!(written(&most, Version::V2), ["cpu: cpu.weight = 10000"]);
}

#[test]
fn all_pods_together_get_what_the_node_does_not_keep_back() {
    let mut config = Config::new("edge-1".parse().unwrap());
    config.kube_reserved = Reserved { cpu_milli: 500, memory_bytes: 100, ephemeral_storage_bytes: 0 };
    config.system_reserved = Reserved { cpu_milli: 500, memory_bytes: 24, ephemeral_storage_bytes: 0 };
    let held = of_node(&config, &Cgroups::default(), 2000, 1024);
    assert_eq!((held.cpu_shares, held.memory_bytes), (1024, Some(900)));
    let free = Cgroups { enforce_allocatable: false, ..Cgroups::default() };
    let all = of_node(&config, &free, 2000, 1024);
    assert_eq!((all.cpu_shares, all.memory_bytes), (2048, Some(1024)));
}

#[test]
fn hierarchies_are_found_where_they_are_mounted() {
    assert_eq!(Tree::read("36 35 0:31 / /proc rw - proc proc rw\n"), None);
    let v1 = Tree::read(
        "30 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
         31 25 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
         32 25 0:28 / /sys/fs/cgroup/unified rw - cgroup2 none rw\n",
    );
    let v1 = format!("{:?}", v1.unwrap());
    assert!(v1.contains("V1") && v1.contains("unified") && v1.contains("cpuacct"), "{v1}");
    let v2 = Tree::read("30 25 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n");
    assert!(format!("{v2:?}").contains("V2"));
}
