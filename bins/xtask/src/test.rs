//! Every test there is, and the simulation by seeds.

use std::{path::Path, process::Command};

use anyhow::{Context, Result};

use crate::{
    python, real_parts,
    run::{cargo, on_path, step},
    site::cluster,
};

/// Runs all tests; with the real parts, after installing what is missing of them.
pub(crate) fn run(filter: Option<&str>, real_parts: bool) -> Result<()> {
    if real_parts {
        build_with_real_parts()?;
    } else {
        build()?;
    }
    step(&mut tests(filter, real_parts))?;
    if filter.is_none() {
        step(cargo().args(["test", "--workspace", "--doc", "--all-features", "--quiet"]))?;
    }
    Ok(())
}

/// The test binaries that run on a real Kubernetes API as well. All others are about one part, or have a cloud without an API.
const ON_CLUSTER: &[&str] = &[
    "api_faults",
    "certificates",
    "cluster_install",
    "cluster_objects",
    "end_to_end",
    "end_to_end_bad_input",
    "end_to_end_devices",
    "end_to_end_dmi",
    "end_to_end_faults",
    "end_to_end_join",
    "end_to_end_messages",
    "end_to_end_pod_faults",
    "end_to_end_pod_life",
    "end_to_end_pod_resources",
    "end_to_end_pod_troubles",
    "end_to_end_pods",
    "end_to_end_relay",
    "end_to_end_streams",
    "replicas",
    "security",
];

/// Tests among them that are left out on a cluster, and why.
const STANDALONE: &[(&str, &str)] = &[
    ("the_quickstart_runs_its_pod", "it shows that no cluster is needed: its API is in its own process"),
    ("kubectl_is_told_what_is_wrong", "it is the standalone API whose words are looked at"),
    ("each_wrong_request_gets_a_status", "it is the standalone API that is fed with nonsense"),
    ("cve_2022_31074", "it is the standalone API whose limit is looked at"),
    ("cve_2022_31076", "it is the standalone API that is sent null"),
];

/// Runs the end-to-end tests on the cluster of a kubeconfig; one after another, since they share it, and takes away what they
/// leave there. The filter may be the name of a test binary as well.
pub(crate) fn on_cluster(filter: Option<&str>, kubeconfig: &Path) -> Result<()> {
    let kubeconfig = kubeconfig.canonicalize().with_context(|| kubeconfig.display().to_string())?;
    build_with_real_parts()?;
    let (binaries, filter) = match filter {
        Some(name) if ON_CLUSTER.contains(&name) => (vec![name], None),
        filter => (ON_CLUSTER.to_vec(), filter),
    };
    for (test, why) in STANDALONE {
        println!("left out on a cluster: {test}: {why}");
    }
    let mut command = cargo();
    // With the features of the whole workspace nothing is built a second time.
    command.env(cluster::VARIABLE, &kubeconfig).args(["test", "--no-fail-fast", "--workspace"]);
    for binary in binaries {
        command.args(["--test", binary]);
    }
    // A test that leaves out a part of itself says so in what it prints.
    command.args(["--", "--test-threads=1", "--show-output"]).args(filter);
    for (test, _) in STANDALONE {
        command.args(["--skip", test]);
    }
    let tested = step(&mut command);
    tested.and(tidy(&kubeconfig))
}

/// What tests leave behind the next one takes away; nobody follows the last. KubeEdge's kinds and cloudcore's rights stay.
fn tidy(kubeconfig: &Path) -> Result<()> {
    let left = cluster::forget_webhooks(kubeconfig).and_then(|()| cluster::clean(kubeconfig));
    left.context("the cluster is not as it was before")
}

fn build_with_real_parts() -> Result<()> {
    real_parts::install()?;
    python::install()?;
    build()
}

/// The end-to-end tests run the binaries and examples that a user would.
fn build() -> Result<()> {
    step(cargo().args(["build", "--workspace", "--bins", "--examples"]))
}

/// Runs those tests of one binary whose names contain the filter, one after another, with these variables, and shows what
/// they print.
pub(crate) fn one(
    binary: &str,
    filter: &str,
    variables: &[(&str, String)],
    kubeconfig: Option<&Path>,
) -> Result<()> {
    build_with_real_parts()?;
    let mut command = cargo();
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    let kubeconfig = kubeconfig.map(|file| file.canonicalize().with_context(|| file.display().to_string()));
    let kubeconfig = kubeconfig.transpose()?;
    if let Some(file) = &kubeconfig {
        command.env(cluster::VARIABLE, file);
    }
    command.args(["test", "--workspace", "--test", binary, "--", "--test-threads=1", "--nocapture"]);
    let tested = step(command.arg(filter));
    tested.and(kubeconfig.map_or(Ok(()), |file| tidy(&file)))
}

/// Runs the whole-system simulation: one seed, or many.
pub(crate) fn simulate(seed: Option<u64>, seeds: u64) -> Result<()> {
    let mut command = cargo();
    match seed {
        Some(seed) => command.env("SIM_SEED", seed.to_string()),
        None => command.env("SIM_SEEDS", seeds.to_string()),
    };
    command.args([
        "test",
        "--release",
        "--package",
        "kubeedge-tests",
        "--test",
        "simulation",
        "--test",
        "twin_history",
        "--",
        "--nocapture",
    ]);
    step(&mut command)
}

/// The test binaries that need real parts, as nextest's filters name them.
const REAL: &[&str] = &[
    "api_faults",
    "cluster_objects",
    "containerd",
    "devices",
    "kubelet_api",
    "kubectl",
    "eventbus",
    "mqtt_standard",
    "end_to_end",
    "end_to_end_dmi",
    "end_to_end_devices",
    "end_to_end_faults",
    "end_to_end_bad_input",
    "end_to_end_messages",
    "end_to_end_join",
    "end_to_end_relay",
    "twin_topics",
    "end_to_end_pod_faults",
    "end_to_end_pods",
    "end_to_end_pod_life",
    "end_to_end_pod_resources",
    "end_to_end_pod_troubles",
    "end_to_end_streams",
    "replicas",
];

fn tests(filter: Option<&str>, real_parts: bool) -> Command {
    let scope = ["--workspace", "--all-features"];
    let nextest = on_path("cargo-nextest") || cargo_home_has_nextest();
    let mut command = cargo();
    if nextest {
        command.args(["nextest", "run", "--no-fail-fast"]).args(scope);
        if !real_parts {
            let real: Vec<_> = REAL.iter().map(|name| format!("binary({name})")).collect();
            command.args(["-E", &format!("not ({})", real.join(" or "))]);
        }
        command.args(filter);
    } else {
        command.args(["test", "--no-fail-fast"]).args(scope);
        if real_parts {
            command.args(["--lib", "--bins", "--tests"]);
        } else {
            // cargo test cannot leave a test binary out by its name, so the libraries are all that is left.
            command.args(["--lib", "--bins"]);
        }
        command.args(filter);
    }
    command
}

fn cargo_home_has_nextest() -> bool {
    std::env::var_os("CARGO")
        .and_then(|cargo| Some(std::path::Path::new(&cargo).parent()?.join("cargo-nextest").is_file()))
        .unwrap_or(false)
}
