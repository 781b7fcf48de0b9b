//! Stories of shortage: levels in, pressures and ends out.

use std::time::Duration;

use kubeedge_core::{id::Uid, message::Object};
use serde_json::json;

use super::*;
use crate::edged::{Eviction, pod::Pod, quantity::Quantity};

const MIB: i64 = 1 << 20;

fn levels(memory: i64, disk: i64) -> Levels {
    let level = |available| Level { capacity: 1000 * MIB, available: available * MIB };
    [(Signal::Memory, level(memory)), (Signal::NodeDisk, level(disk))].into()
}

#[test]
fn a_hard_threshold_counts_at_once_and_its_pressure_lasts() {
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let mut watch = Watch::new(Eviction::default());
    watch.handle_levels(levels(100, 100), start);
    assert_eq!((watch.pressures(start), watch.shortage(start)), (BTreeSet::new(), None));
    watch.handle_levels(levels(500, 99), after(10));
    let disk = watch.shortage(after(10)).unwrap();
    let expected =
        Shortage { signal: Signal::NodeDisk, hard: true, quantity: 100 * MIB, available: 99 * MIB };
    assert_eq!(disk, expected);
    watch.handle_levels(levels(99, 99), after(20));
    assert_eq!(watch.shortage(after(20)).unwrap().signal, Signal::Memory, "memory cannot wait");
    assert_eq!(watch.pressures(after(20)), [Pressure::Memory, Pressure::Disk].into());
    watch.handle_levels(levels(500, 500), after(30));
    assert_eq!(watch.shortage(after(30)), None);
    assert_eq!(watch.pressures(after(319)).len(), 2);
    assert_eq!(watch.pressures(after(320)).len(), 0);
}

#[test]
fn a_soft_threshold_has_a_grace_and_more_than_it_is_given_back() {
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let soft = Threshold {
        signal: Signal::Memory,
        least: "30%".parse().unwrap(),
        grace: Duration::from_secs(60),
        reclaim: Some("100Mi".parse().unwrap()),
    };
    let config = Eviction { hard: vec![], soft: vec![soft], ..Eviction::default() };
    let mut watch = Watch::new(config);
    watch.handle_levels(levels(299, 0), start);
    assert_eq!(watch.shortage(after(59)), None);
    watch.handle_levels(levels(301, 0), after(59));
    assert_eq!(watch.pressures(after(59)), BTreeSet::new());
    watch.handle_levels(levels(399, 0), after(60));
    let short = watch.shortage(after(60)).unwrap();
    assert_eq!(
        (short.hard, short.quantity),
        (false, 300 * MIB),
        "100 MiB more than the threshold are wanted"
    );
    watch.handle_levels(levels(400, 0), after(70));
    assert_eq!(watch.shortage(after(70)), None);
    watch.handle_levels(levels(299, 0), after(80));
    assert_eq!(watch.shortage(after(139)), None, "the grace begins anew");
    assert!(watch.shortage(after(140)).is_some());
}

#[test]
fn a_file_system_that_counts_no_inodes_is_never_short_of_them() {
    let mut watch = Watch::new(Eviction::default());
    watch.handle_levels([(Signal::NodeInodes, Level::default())].into(), Instant::now());
    assert_eq!(watch.shortage(Instant::now()), None);
}

fn candidate(
    uid: &str,
    priority: i32,
    requested: i64,
    used: Option<i64>,
    quality: &'static str,
) -> Candidate {
    let one = Use { name: "app".into(), requested: requested * MIB, used: used.map(|used| used * MIB) };
    Candidate { uid: Uid::new(uid), priority, quality, containers: vec![one], ..Candidate::default() }
}

fn order(mut candidates: Vec<Candidate>) -> Vec<String> {
    let shortage = Shortage { signal: Signal::Memory, hard: true, quantity: 100 * MIB, available: 5 << 10 };
    let mut order = Vec::new();
    while let Some((uid, _)) = choose(&candidates, &shortage, Duration::ZERO) {
        candidates.retain(|one| one.uid != uid);
        order.push(uid.to_string());
    }
    order
}

#[test]
fn who_uses_more_than_it_asked_for_ends_first_then_the_least_important_then_the_largest() {
    let order_of = order(vec![
        candidate("frugal-low", -1, 100, Some(50), "Burstable"),
        candidate("frugal", 0, 100, Some(50), "Guaranteed"),
        candidate("greedy-important", 5, 0, Some(900), "BestEffort"),
        candidate("greedy", 0, 100, Some(150), "Burstable"),
        candidate("greedier", 0, 0, Some(100), "BestEffort"),
        Candidate { critical: true, ..candidate("critical", 0, 0, Some(5000), "BestEffort") },
    ]);
    assert_eq!(order_of, ["greedier", "greedy", "greedy-important", "frugal-low", "frugal"]);
}

#[test]
fn without_figures_quality_and_priority_decide() {
    let order_of = order(vec![
        candidate("guaranteed", 0, 100, None, "Guaranteed"),
        candidate("burstable", 0, 100, None, "Burstable"),
        candidate("best-effort", 0, 0, None, "BestEffort"),
        candidate("best-effort-important", 9, 0, None, "BestEffort"),
        candidate("guaranteed-low", -1, 100, None, "Guaranteed"),
    ]);
    let expected = ["best-effort", "best-effort-important", "guaranteed-low", "burstable", "guaranteed"];
    assert_eq!(order_of, expected);
}

#[test]
fn the_reason_is_given_in_the_kubelets_words() {
    let shortage =
        Shortage { signal: Signal::Memory, hard: true, quantity: 100 * MIB, available: 97340 << 10 };
    let (_, failed) =
        choose(&[candidate("a", 0, 10, Some(20), "Burstable")], &shortage, Duration::from_secs(7)).unwrap();
    assert_eq!(
        (failed.reason.as_str(), failed.grace, failed.disruption),
        ("Evicted", Some(Duration::from_secs(1)), Some("TerminationByKubelet"))
    );
    assert_eq!(
        failed.message,
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 97340Ki. \
         Container app was using 20Mi, request is 10Mi, has larger consumption of memory. "
    );
    let soft = Shortage { signal: Signal::NodeInodes, hard: false, quantity: 5, available: 2 };
    let (_, failed) =
        choose(&[candidate("a", 0, 10, None, "Burstable")], &soft, Duration::from_secs(7)).unwrap();
    assert_eq!(failed.grace, Some(Duration::from_secs(7)));
    assert_eq!(failed.message, "The node was low on resource: inodes. Threshold quantity: 5, available: 2. ");
}

#[test]
fn thresholds_are_read_as_the_kubelet_writes_them() {
    assert_eq!("100Mi".parse(), Ok(Amount::Units(100 * MIB)));
    assert_eq!("7.5%".parse(), Ok(Amount::Share(750)));
    for wrong in ["", "%", "101%", "-1%", "-5", "10 %", "lots"] {
        assert!(wrong.parse::<Amount>().is_err(), "{wrong:?}");
    }
    for name in ["memory.available", "imagefs.inodesFree", "pid.available"] {
        assert_eq!(name.parse::<Signal>().unwrap().to_string(), name);
    }
    let error = "memory.avail".parse::<Signal>().unwrap_err().to_string();
    assert!(error.starts_with("\"memory.avail\" is not memory.available, nodefs.available"), "{error}");
}

#[test]
fn a_pod_that_writes_more_than_it_may_ends() {
    let container = |limit: &str| json!({ "name": "app", "image": "app:1", "resources": { "limits": { "ephemeral-storage": limit } } });
    let pod = |containers: serde_json::Value| {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "web", "namespace": "default", "uid": "web" },
            "spec": { "containers": containers },
        });
        Pod::parse(&Object::from_json(pod.to_string()).unwrap()).unwrap()
    };
    let measured = |volume: i64, container: i64| Measured {
        volumes: [("cache".to_owned(), volume * MIB)].into(),
        containers: [("app".to_owned(), container * MIB)].into(),
    };
    let limits = BTreeMap::from([("cache".to_owned(), Quantity::parse("10Mi").unwrap())]);
    let one = pod(json!([container("20Mi")]));
    let two = pod(json!([container("20Mi"), { "name": "b", "image": "b" }]));
    let message =
        |pod: &Pod, measured: &Measured| exceeded(pod, &limits, measured).map(|failed| failed.message);
    assert_eq!(message(&one, &measured(10, 10)), None);
    assert_eq!(
        message(&one, &measured(11, 0)).unwrap(),
        "Usage of EmptyDir volume \"cache\" exceeds the limit \"10Mi\". "
    );
    assert_eq!(
        message(&one, &measured(9, 12)).unwrap(),
        "Pod ephemeral local storage usage exceeds the total limit of containers 20Mi. "
    );
    assert_eq!(message(&two, &measured(9, 12)), None, "not all of its containers have a limit");
    assert_eq!(
        message(&two, &measured(9, 21)).unwrap(),
        "Container app exceeded its local ephemeral storage limit \"20Mi\". "
    );
}
