//! KubeEdge's installer: makes nodes join a cloud, and leave it.

mod cloud;
mod files;
mod init;
mod join;
mod reset;
mod system;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// KubeEdge's installer. In the cloud: `keadm init`, then `keadm gettoken`. On the node: `keadm join`, and `keadm reset` to leave.
#[derive(Debug, Parser)]
#[command(name = "keadm", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// What is logged to standard error: error, warn, info, debug, or a filter.
    #[arg(long, default_value = "warn", env = "RUST_LOG", global = true)]
    log: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Brings cloudcore into a cluster.
    Init(init::Init),
    /// Prints what `init` applies.
    Manifest(init::Manifest),
    /// Prints the token with which nodes join.
    Gettoken(cloud::GetToken),
    /// Makes this machine a node: checks, certificate, configuration, service.
    Join(Box<join::Join>),
    /// Takes this machine back from being a node.
    Reset(reset::Reset),
    /// Lets one certificate authority of the cloud follow another, in three steps.
    RotateCa(cloud::RotateCa),
    /// Prints the version.
    Version,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt().with_env_filter(&cli.log).with_writer(std::io::stderr).init();
    // kube asks for the process's provider of cryptography; everything of ours is handed one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run(&cli.command)));
    match ended {
        Ok(code) => code,
        #[expect(clippy::print_stderr, reason = "this is how a command line says that it failed")]
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Init(init) => init.run().await?,
        Command::Manifest(manifest) => manifest.run()?,
        Command::Gettoken(gettoken) => gettoken.run().await?,
        Command::Join(join) => return join.run().await,
        Command::Reset(reset) => reset.run()?,
        Command::RotateCa(rotate) => rotate.run().await?,
        Command::Version => say(env!("CARGO_PKG_VERSION")),
    }
    Ok(ExitCode::SUCCESS)
}

/// Names the step that has failed, why, and what to do about it.
fn failed(step: &str, cause: impl std::fmt::Display, fix: impl std::fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("{step}: {cause}; fix: {fix}")
}

/// Prints a line to standard output.
#[expect(clippy::print_stdout, reason = "this is what was asked for")]
fn say(line: impl std::fmt::Display) {
    println!("{line}");
}
