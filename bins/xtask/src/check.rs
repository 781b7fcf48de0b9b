//! What has to hold before a commit.

use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::{
    generate,
    run::{cargo, step},
};

/// The libraries, and the features of each that must build alone.
const FEATURES: [(&str, &[&str]); 4] = [
    (
        "kubeedge-core",
        &[
            "",
            "quic",
            "websocket",
            "redb",
            "containerd",
            "device-plugins",
            "dmi",
            "process",
            "tls",
            "join",
            "conformance",
        ],
    ),
    (
        "kubeedge-edge",
        &[
            "",
            "certificates",
            "edgehub",
            "metamanager",
            "devicetwin",
            "dmi",
            "edged",
            "edged-https",
            "edged-api",
            "edged-devices",
            "edged-grpc",
            "eventbus",
            "servicebus",
            "simulation",
        ],
    ),
    (
        "kubeedge-cloud",
        &[
            "",
            "admission",
            "cloudhub",
            "edgecontroller",
            "devicecontroller",
            "election",
            "monitor",
            "relay",
            "router",
            "cloudstream",
            "standalone",
            "pki",
            "manifests",
            "enrollment",
            "simulation",
        ],
    ),
    (
        "kubeedge-device",
        &["", "dmi", "mapper", "keeper", "keeper-api", "modbus", "mqtt", "http", "local", "thermometer"],
    ),
];

/// Runs all checks; the cheapest first.
pub(crate) fn run() -> Result<()> {
    step(cargo().args(["fmt", "--all", "--check"]))?;
    generate::run(true)?;
    only_one_tls_provider()?;
    step(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--all-features",
        "--",
        "--deny",
        "warnings",
    ]))?;
    step(cargo().env("RUSTDOCFLAGS", "--deny warnings").args([
        "doc",
        "--workspace",
        "--all-features",
        "--no-deps",
    ]))?;
    each_feature_alone()
}

fn each_feature_alone() -> Result<()> {
    for (package, features) in FEATURES {
        for feature in features {
            let mut command = cargo();
            command.env("RUSTFLAGS", "--deny warnings");
            // Its own folder: other flags would otherwise make everything else build again.
            command.env("CARGO_TARGET_DIR", target_folder()?.join("features"));
            command.args(["check", "--package", package, "--no-default-features", "--features", feature]);
            step(&mut command)?;
        }
    }
    Ok(())
}

pub(crate) fn target_folder() -> Result<std::path::PathBuf> {
    let output = cargo().args(["metadata", "--no-deps", "--format-version", "1"]).output()?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    Ok(metadata["target_directory"].as_str().context("cargo metadata names no target folder")?.into())
}

/// Two TLS providers in one process are a panic at run time; ring is ours.
fn only_one_tls_provider() -> Result<()> {
    println!("\n$ cargo tree --workspace --invert aws-lc-rs   (must find nothing)");
    let status = cargo()
        .args(["tree", "--quiet", "--workspace", "--invert", "aws-lc-rs"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if status.success() {
        bail!("aws-lc-rs is in the dependency tree beside ring: see `cargo tree --invert aws-lc-rs`");
    }
    Ok(())
}
