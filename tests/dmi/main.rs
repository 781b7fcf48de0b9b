//! Mappers as processes of their own, in Rust and in Python, at a site of real processes.

mod site;

use std::time::Duration;

use anyhow::{Context, Result};
use kubeedge_tests::site::{wait_for, wait_within};

use site::{Random, Site};

#[tokio::test(flavor = "multi_thread")]
async fn a_mapper_in_python_registers_reports_is_killed_and_comes_back_however_it_dials() -> Result<()> {
    let mut site = Site::start(None)?;
    site.apply_device("d-0", "counter", "1")?;
    let socket = site.edge.folder().join("dmi.sock");
    let path = socket.to_string_lossy().into_owned();
    let encoded = path.replace('/', "%2F");
    // What other languages make of the path of a socket: gRPC's own two forms, and the authorities that grpc-go sends
    // for a bare path.
    for (index, (dial, authority)) in [
        (format!("unix://{path}"), None),
        (format!("unix:{path}"), None),
        (format!("unix:{path}"), Some(encoded.as_str())),
        (format!("unix:{path}"), Some(path.as_str())),
    ]
    .into_iter()
    .enumerate()
    {
        let limit = (index + 1).to_string();
        site.start_python_with(&dial, authority)?;
        let told = format!("\"what\": \"registered\", \"pid\": {},", site.python_pid());
        wait_for("the mapper to register", || Ok(site.python_log().contains(&told)))
            .with_context(|| site.logs())?;
        let registered =
            site.python_log().lines().rfind(|line| line.contains(&told)).unwrap_or_default().to_owned();
        assert!(registered.contains("default/d-0"), "it was told its devices: {registered}");
        site.apply_device("d-0", "counter", &limit)?;
        wait_for("the desired value to come back as reported", || {
            Ok(site.value_in_cloud("d-0", "limit").as_deref() == Some(limit.as_str()))
        })
        .with_context(|| site.logs())?;
        site.kill_python();
        // A device that comes while the mapper is away is in the answer to its next registration.
        site.apply_device(&format!("d-{}", index + 1), "counter", "1")?;
    }
    let path = format!("unix:{path}");
    site.start_python_with(&path, None)?;
    let count = site.stop_counting()?;
    wait_for("the last report of every device", || {
        Ok((0..5).all(|device| site.count_in_cloud(&format!("d-{device}")) == count))
    })
    .with_context(|| site.logs())?;
    assert!(!site.python_log().contains("created twice"), "{}", site.python_log());
    Ok(())
}

// `DMI_ROUNDS` and `DMI_SEED` set other numbers, as `cargo xtask soak mapper-restarts` does.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_restarts_in_whatever_order_no_report_is_lost_and_no_device_is_created_twice() -> Result<()>
{
    let seed = std::env::var("DMI_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    let rounds = std::env::var("DMI_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(12);
    println!("DMI_SEED={seed} DMI_ROUNDS={rounds}");
    let mut random = Random(seed);
    let mut site = Site::start(Some("mosquitto"))?;
    site.start_python()?;
    site.start_rust()?;
    site.apply_device("watch", "stopwatch", "1")?;
    let mut devices = vec![("watch".to_owned(), 1), ("d-0".to_owned(), 1)];
    site.apply_device("d-0", "counter", "1")?;
    for round in 0..rounds {
        let restarted = random.below(5);
        site.kill(restarted);
        // Something changes while one of them is away; the API may be that one.
        let change = random.below(3);
        if restarted != site::CLOUD && change == 0 {
            let name = format!("d-{}", round + 1);
            site.apply_device(&name, "counter", "1")?;
            devices.push((name, 1));
        } else if restarted != site::CLOUD {
            let index = usize::try_from(random.below(devices.len() as u64))?;
            let (name, limit) = &mut devices[index];
            *limit += 1;
            let protocol = if name == "watch" { "stopwatch" } else { "counter" };
            site.apply_device(name, protocol, &limit.to_string())?;
        }
        tokio::time::sleep(Duration::from_millis(random.below(400))).await;
        site.restart(restarted)?;
        tokio::time::sleep(Duration::from_millis(random.below(400))).await;
    }
    // From here on every report says the same: what the cloud ends up with is the last one of each device.
    let count = site.stop_counting()?;
    for (name, limit) in &devices {
        wait_within(Duration::from_secs(60), &format!("the cloud to have the last report of {name}"), || {
            let limit = site.value_in_cloud(name, "limit") == Some(limit.to_string());
            Ok(limit && (name == "watch" || site.count_in_cloud(name) == count))
        })
        .with_context(|| format!("seed {seed}, count {count}, limit {limit}\n{}", site.logs()))?;
    }
    let log = site.python_log();
    assert!(!log.contains("created twice"), "seed {seed}: {log}");
    Ok(())
}
