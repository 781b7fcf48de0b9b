use std::{collections::BTreeMap, time::Duration};

use super::{
    Random, device_report, node_report, object,
    pair::{Faults, Pair},
    pod, pod_report,
};
use crate::{
    hub::{EdgeConfig, NodeConfig},
    id::DeviceId,
    message::{Connectivity, ObjectRef, Publish, Report, ReportKey, Upload, UploadId, UploadedPublish},
};

/// The reference model: what the API was told last, and what the edge reported last. No link, no network.
#[derive(Debug, Default)]
struct Expected {
    reports: BTreeMap<ReportKey, Report>,
    uploads: Vec<UploadedPublish>,
}

#[test]
fn after_the_faults_both_sides_agree_whatever_happened() {
    for seed in 0..300 {
        let outcome = std::panic::catch_unwind(|| replay(seed));
        assert!(outcome.is_ok(), "seed {seed}: see above; replay({seed}) shows it again");
    }
}

/// Runs the story of one seed.
fn replay(seed: u64) {
    let edge = EdgeConfig { inventory_part: 3, ..EdgeConfig::default() };
    let mut node = NodeConfig { heartbeat: Duration::from_secs(3), ..NodeConfig::default() };
    let mut random = Random(seed ^ 0x5eed);
    if random.chance(300) {
        // A small window, so that it matters.
        node.flow.window_items = 1 + random.below(4) as usize;
    }
    let mut pair = Pair::with(seed, edge, node);
    pair.faults = Faults {
        lost: [0, 0, 50, 200][random.below(4) as usize],
        twice: [0, 50, 200][random.below(3) as usize],
        jitter_ms: [0, 50, 400][random.below(3) as usize],
        reorder: random.chance(500),
        distance_ms: 0,
        partition: false,
        storing_ms: [0, 20, 300][random.below(3) as usize],
    };
    let mut expected = Expected::default();
    let mut version = 0;
    let actions = 30 + random.below(60);
    for _ in 0..actions {
        version += 1;
        act(&mut pair, &mut expected, &mut random, version);
        let pause = [0, 1, 30, 500, 3000][random.below(5) as usize];
        pair.run(Duration::from_millis(random.below(pause + 1)));
    }
    pair.faults = Faults { storing_ms: pair.faults.storing_ms, ..Faults::default() };
    pair.cloud_down = false;
    // Longest: a repetition's pause of 30 s, or three heartbeats and the back-off.
    let agreed = pair.run_while_not(Duration::from_secs(60), |pair| agree(pair, &expected));
    assert!(agreed, "seed {seed}: no agreement {}", disagreement(&pair, &expected));
    // And it stays so.
    pair.run(Duration::from_secs(20));
    assert!(agree(&pair, &expected), "seed {seed}: agreement was lost {}", disagreement(&pair, &expected));
}

fn agree(pair: &Pair, expected: &Expected) -> bool {
    pair.state() == Connectivity::Synchronized
        && pair.stored == pair.api
        && pair.api_reports == expected.reports
        && expected.uploads.iter().all(|upload| arrived(pair, upload) && pair.uploaded.contains(&upload.id))
}

fn disagreement(pair: &Pair, expected: &Expected) -> String {
    let mut text = format!("at {:?}, {:?}", pair.elapsed(), pair.state());
    if pair.stored != pair.api {
        text += &format!("\nedge has {:?}\nAPI  has {:?}", pair.stored, pair.api);
    }
    if pair.api_reports != expected.reports {
        text += &format!("\nAPI has reports {:?}\nedge made {:?}", pair.api_reports, expected.reports);
    }
    let lost: Vec<_> = expected.uploads.iter().filter(|upload| !arrived(pair, upload)).collect();
    text + &format!("\nuploads lost: {lost:?}\nedge {:?}\ncloud {:?}", pair.edge, pair.cloud)
}

fn arrived(pair: &Pair, upload: &UploadedPublish) -> bool {
    pair.api_uploads.contains(&Upload::Publish(upload.clone()))
}

/// One thing that happens in the world.
fn act(pair: &mut Pair, expected: &mut Expected, random: &mut Random, version: u64) {
    let name = ["a", "b", "c", "d", "e"][random.below(5) as usize];
    match random.below(100) {
        0..40 => change_object(pair, &reference(random, name), random, version),
        40..65 => {
            let report = match random.below(3) {
                0 => node_report(version),
                1 => pod_report(name, version),
                _ => device_report(name, version),
            };
            expected.reports.insert(report.key(), report.clone());
            pair.report(report);
        }
        65..75 => {
            let payload = version.to_string().into();
            let publish = Publish { topic: "a".to_owned(), payload };
            let upload = UploadedPublish { id: UploadId { run: 1, number: version }, publish };
            expected.uploads.push(upload.clone());
            pair.edge.handle_upload(Upload::Publish(upload));
            pair.pump();
        }
        75..80 => pair.faults.partition = true,
        80..88 => pair.faults.partition = false,
        88..92 => pair.cut(),
        92..95 => {
            pair.crash_edge();
            // Parts keep uploads until they are told otherwise, and report states again when they start.
            for upload in expected.uploads.iter().filter(|upload| !pair.uploaded.contains(&upload.id)) {
                pair.edge.handle_upload(Upload::Publish(upload.clone()));
            }
            expected.reports.values().for_each(|report| pair.report(report.clone()));
        }
        95..97 => {
            pair.crash_cloud();
            pair.cloud_down = random.chance(500);
        }
        _ => pair.cloud_down = false,
    }
}

fn reference(random: &mut Random, name: &str) -> ObjectRef {
    match random.below(3) {
        0 => pod(name),
        1 => ObjectRef::config_map("default", name),
        _ => ObjectRef::device(&DeviceId::new("default", name).unwrap()),
    }
}

fn change_object(pair: &mut Pair, reference: &ObjectRef, random: &mut Random, version: u64) {
    let held = pair.api.get(reference).cloned();
    match held {
        Some(_) if random.chance(300) => pair.delete(reference),
        // The same name, deleted and made again between two looks of a watch.
        Some(_) if random.chance(200) => pair.apply(object(reference, &format!("uid-{version}"), version)),
        Some(held) => pair.apply(object(reference, held.uid.as_str(), version)),
        None => pair.apply(object(reference, &format!("uid-{version}"), version)),
    }
}
