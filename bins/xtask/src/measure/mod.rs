//! Our figures, each by its name. The one door to them: what README says was read here.

mod footprint;

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::{
    Output,
    check::target_folder,
    run::{cargo, step},
};

/// What can be measured.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Name {
    /// Memory and size of the release binaries: edgecore idle with one pod and one device, cloudcore standalone idle.
    Footprint,
    /// From a pod's creation in the API to Running, against the bare calls of the container runtime; 30 pods at once
    /// and idle. Needs containerd and root.
    PodStart,
    /// Twin updates a second over MQTT, each on the disk before it is answered, and how long an answer takes at half of
    /// 20,000 a second; then 1,000 devices read 10 times a second: what arrives at the API, what is lost, memory.
    Twins,
    /// 2,000 nodes of a cloudcore: memory and traffic of an idle session, and how all come back after a restart.
    Sessions,
    /// 1,000 objects changed for a node that is 200 ms away: how long until the last is acknowledged.
    Distance,
}

/// Measures and prints.
pub(crate) fn run(name: Name, output: Output) -> Result<()> {
    match name {
        Name::Footprint => {
            let footprint = footprint::footprint(output)?;
            match output {
                Output::Json => println!("{}", serde_json::to_string(&footprint)?),
                Output::Text => footprint.print(),
            }
            Ok(())
        }
        Name::PodStart => program("measure-pod-start", output),
        Name::Twins => program("measure-twins", output),
        Name::Sessions => program("measure-sessions", output),
        Name::Distance => program("measure-distance", output),
    }
}

/// Runs one of the measuring programs of `benches/measure/` beside the release binaries of edgecore and cloudcore.
fn program(name: &str, output: Output) -> Result<()> {
    let packages =
        ["--package", "edgecore", "--package", "cloudcore", "--package", "kubeedge-benches", "--bins"];
    let folder = release(&packages, output)?;
    let mut command = Command::new(folder.join(name));
    if output == Output::Json {
        command.arg("--json");
    }
    let status = command.status().with_context(|| format!("cannot run {name}"))?;
    if !status.success() {
        bail!("{name} ended with {status}");
    }
    Ok(())
}

/// Builds packages for release, and returns the folder that they are in.
fn release(packages: &[&str], output: Output) -> Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--release"]).args(packages);
    if output == Output::Json {
        build.arg("--quiet").stdout(Stdio::null());
        let status = build.status().context("cannot run cargo")?;
        if !status.success() {
            bail!("the release build failed");
        }
    } else {
        step(&mut build)?;
    }
    Ok(target_folder()?.join("release"))
}
