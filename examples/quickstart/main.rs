//! The whole of KubeEdge in one command: a cloud, an edge, a pod with its ConfigMap, and a device.
//!
//! ```text
//! cargo run --release --example quickstart
//! ```
//!
//! Cloud and edge run in this one process, over real QUIC with mutual TLS on the loopback address, and keep what
//! they know in a fresh folder. It prints a line for each thing as it happens and ends non-zero at the first that
//! fails. Nothing has to be installed; `--containerd SOCKET` runs the pod in a real container.

mod print;
mod story;
mod world;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, ValueEnum};
use print::Printer;
use world::World;

/// Shows what KubeEdge does: pods, configuration and devices from kubectl to the edge, offline and back.
#[derive(Debug, Parser)]
struct Cli {
    /// Run the pod on the containerd that listens on this unix socket, instead of as a process.
    #[arg(long, value_name = "SOCKET")]
    containerd: Option<PathBuf>,
    /// The image of the pod, with a shell in it; only with --containerd.
    #[arg(long, default_value = "docker.io/library/busybox:1.36", requires = "containerd")]
    image: String,
    /// Stay up when all is shown, so that you can try kubectl; Ctrl-C ends it.
    #[arg(long)]
    keep: bool,
    /// How to print the steps.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// How the steps are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| "error,kube_client=off".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    // kube asks for the process's provider of cryptography; everything of ours is handed one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut printer = Printer::new(cli.output == Output::Json);
    match run(&cli, &mut printer).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            printer.failed(&error);
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: &Cli, printer: &mut Printer) -> anyhow::Result<()> {
    let folder = tempfile::Builder::new().prefix("kubeedge-quickstart-").tempdir()?;
    let mut world = World::start(folder.path(), cli.containerd.as_deref()).await?;
    let image = cli.containerd.as_ref().map(|_| cli.image.clone());
    let told = story::tell(&mut world, image.as_deref(), printer).await;
    if told.is_ok() {
        printer.invite(&world.kubeconfig);
        if cli.keep {
            printer.note("staying up; Ctrl-C ends it");
            tokio::signal::ctrl_c().await?;
        }
    }
    // The pod outlives the edge by design, so the quickstart takes it away itself.
    let ended = world.end().await;
    told.and(ended)
}
