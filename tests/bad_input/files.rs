//! Nonsense in files: configurations, and the edge's store.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use kubeedge_tests::{
    binaries,
    site::{Edge, EdgeOptions, wait_for},
};

use crate::Healthy;

#[test]
fn a_broken_configuration_ends_with_the_place_and_the_reason() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (program, text, wanted) in [
        ("edgecore", "modules: {edgeHub: {heartbeat: soon}}", "modules.edgeHub.heartbeat"),
        ("edgecore", "modules:\n  edgeHub: [\n", "line"),
        ("edgecore", "modules:\n\tedgeHub: {}\n", "line 2, column 2"),
        ("edgecore", "modules: {}\nmodules: {}\n", "line 2"),
        ("edgecore", "just text", "keys and values expected"),
        ("edgecore", "modules: {edged: {hostnameOverride: \"No Name\"}}", "modules.edged.hostnameOverride"),
        ("edgecore", "modules: {edgeHub: {quic: {server: nowhere}}}", "modules.edgeHub.quic.server"),
        ("edgecore", "modules: {eventBus: {mqttMode: 7}}", "modules.eventBus.mqttMode"),
        ("edgecore", "kubeedgeRs: {runtime: magic}", "kubeedgeRs.runtime"),
        ("edgecore", "database: [a]", "database"),
        ("cloudcore", "modules: {cloudHub: {nodeLimit: many}}", "modules.cloudHub.nodeLimit"),
        ("cloudcore", "modules: {cloudHub: {quic: {port: 65536}}}", "modules.cloudHub.quic.port"),
        ("cloudcore", "modules:\n  cloudHub: {\n", "line"),
        ("cloudcore", "a: 'b\nc: \u{1}", "line"),
        ("cloudcore", "[1, 2]", "keys and values expected"),
    ] {
        let file = folder.path().join(format!("{program}.yaml"));
        fs::write(&file, text)?;
        let mut command = Command::new(binaries().folder.join(program));
        command.arg("--config").arg(&file);
        if program == "cloudcore" {
            command.arg("--standalone").arg("--data-dir").arg(folder.path().join("data"));
        }
        let output = command.output()?;
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(!output.status.success(), "{text:?} was taken: {said}");
        for wanted in [wanted, &file.to_string_lossy()] {
            ensure!(said.contains(wanted), "{wanted:?} is not in: {said}");
        }
        ensure!(!said.contains("panicked"), "{said}");
    }
    Ok(())
}

#[test]
fn bytes_that_are_no_text_are_a_broken_configuration_too() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("edgecore.yaml");
    for bytes in [&[0xff, 0xfe, 0x00][..], &[b'['; 100_000]] {
        fs::write(&file, bytes)?;
        let output = Command::new(binaries().folder.join("edgecore")).arg("--config").arg(&file).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1), "{:?}: {said}", output.status);
        ensure!(said.contains(&*file.to_string_lossy()) && said.len() < 2000, "{said}");
    }
    Ok(())
}

#[test]
fn a_store_of_another_program_is_refused_and_stays_as_it_is() -> Result<()> {
    let site = Healthy::start()?;
    let folder = site.folder.path().join("edge-2");
    let mut edge = Edge::prepare(&binaries(), &folder, &site.cloud, &EdgeOptions::new("edge-2"))?;
    let store = folder.join("edgecore.redb");
    let theirs = [b"SQLite format 3\0".as_slice(), &[7; 8192]].concat();
    fs::write(&store, &theirs)?;
    edge.spawn()?;
    wait_for("edgecore to end", || Ok(edge.has_ended()))?;
    let log = edge.log();
    ensure!(log.contains("SQLite") && log.contains(&*store.to_string_lossy()), "{log}");
    ensure!(fs::read(&store)? == theirs, "the file was changed");
    let others = fs::read_dir(&folder)?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("edgecore.redb."));
    ensure!(others.count() == 0, "something was put beside the file");
    Ok(())
}

#[test]
fn a_damaged_store_is_set_aside_and_the_node_has_everything_from_the_cloud() -> Result<()> {
    let mut site = Healthy::start()?;
    let store = site.edge.folder().join("edgecore.redb");
    for damage in [noise as fn(&mut Vec<u8>), cut] {
        site.edge.kill();
        let mut bytes = fs::read(&store)?;
        damage(&mut bytes);
        fs::write(&store, &bytes)?;
        site.edge.spawn()?;
        // What changed while the node was away comes too, and the pod is the one that ran.
        site.follows()?;
        site.edge_says(&["edgecore.redb", "corrupt"])?;
        let aside = fs::read_dir(site.edge.folder())?
            .flatten()
            .find(|entry| entry.file_name().to_string_lossy().starts_with("edgecore.redb.corrupt-"));
        let aside = aside.context("the damaged file is gone")?.path();
        ensure!(fs::read(&aside)? == bytes, "the damaged file was changed");
        fs::remove_file(aside)?;
    }
    Ok(())
}

/// All but the first bytes, by which the file is known.
#[expect(clippy::ptr_arg, reason = "it stands in a list beside one that shortens")]
fn noise(bytes: &mut Vec<u8>) {
    for (index, byte) in bytes.iter_mut().enumerate().skip(10) {
        *byte = (index * 31 + index / 251) as u8;
    }
}

fn cut(bytes: &mut Vec<u8>) {
    bytes.truncate(5000);
}
