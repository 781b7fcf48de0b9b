//! One command for what a contributor does. `cargo xtask --help` lists it.
#![expect(clippy::print_stdout, reason = "a command for people")]

mod check;
mod generate;
mod measure;
mod python;
mod real_parts;
mod run;
#[path = "../../../tests/site.rs"]
#[expect(dead_code, unreachable_pub, reason = "written for the tests, which use all of it")]
mod site;
mod soak;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

/// Checks, tests and measures KubeEdge in Rust. Every step prints the plain command that it runs.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Before a commit: format, clippy, docs, every feature alone, generated code up to date.
    Check,
    /// Installs the real parts that are missing, then runs every test.
    Test {
        /// Only tests whose name contains this.
        filter: Option<String>,
        /// Leave out what needs real parts: containerd, mosquitto, kubectl.
        #[arg(long)]
        no_real_parts: bool,
        /// Runs the end-to-end tests on the cluster of this kubeconfig instead, one after another. It must be an
        /// administrator's, and the cluster the tests' own: they take away all edge nodes and all pods. The filter may
        /// be a test binary's name as well. Left out, and named with the reason, is what is about the standalone API itself.
        #[arg(long, value_name = "FILE", conflicts_with = "no_real_parts")]
        kubeconfig: Option<std::path::PathBuf>,
    },
    /// Simulates whole edges and clouds with faults; prints the seed of a failure.
    Sim {
        /// Replays this one seed.
        #[arg(long)]
        seed: Option<u64>,
        /// How many seeds to run.
        #[arg(long, default_value_t = 2_000)]
        seeds: u64,
    },
    /// Runs one test for longer, or with more, than all tests together leave time for. Installs the real parts that are missing.
    Soak {
        #[command(subcommand)]
        test: soak::Soak,
    },
    /// Prints one of our figures.
    Measure {
        /// Which figure.
        name: measure::Name,
        /// How to print it.
        #[arg(short, long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Generates the Rust code of `proto/*.proto` anew.
    Gen {
        /// Changes nothing; fails if the committed code differs.
        #[arg(long)]
        check: bool,
    },
    /// Installs the real parts that are missing: containerd, runc, CNI plugins, busybox, mosquitto, kubectl.
    RealParts,
}

/// How a command prints its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Check => check::run(),
        Command::Test { filter, kubeconfig: Some(file), .. } => test::on_cluster(filter.as_deref(), &file),
        Command::Test { filter, no_real_parts, kubeconfig: None } => {
            test::run(filter.as_deref(), !no_real_parts)
        }
        Command::Sim { seed, seeds } => test::simulate(seed, seeds),
        Command::Soak { test } => soak::run(test),
        Command::Measure { name, output } => measure::run(name, output),
        Command::Gen { check } => generate::run(check),
        Command::RealParts => real_parts::install(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\nxtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
