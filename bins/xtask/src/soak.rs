//! Long runs of tests that are short by default.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

use crate::test;

/// Which test, and how much of it.
#[derive(Debug, Subcommand)]
pub(crate) enum Soak {
    /// Three clouds on one API, one of which is killed or stands still again and again, while pods, ConfigMaps and statuses
    /// change: nothing is lost, nothing hangs, no pod is started again, no status goes back.
    Replicas {
        /// For how long there are failures; each of the two tests takes so long.
        #[arg(long, default_value_t = 600)]
        seconds: u64,
        /// How many seconds lie between two failures.
        #[arg(long, default_value_t = 20)]
        every: u64,
        #[command(flatten)]
        on: Cluster,
    },
    /// Attempts to join that are refused: cloudcore's memory does not grow with them.
    Joins {
        /// How many.
        #[arg(long, default_value_t = 100_000)]
        count: u64,
        #[command(flatten)]
        on: Cluster,
    },
    /// Secrets of 10 KiB that no pod refers to: cloudcore's memory does not grow with them.
    Secrets {
        /// How many.
        #[arg(long, default_value_t = 5_000)]
        count: u64,
    },
    /// Kills edgecore while pods on containerd come, change and go: none is leaked, started twice or missed.
    PodKills {
        /// How often it is killed.
        #[arg(long, default_value_t = 500)]
        count: u64,
        /// What happens when; the test prints it.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[command(flatten)]
        on: Cluster,
    },
    /// Restarts mappers outside the process, edgecore, cloudcore and the broker: no report is lost, no device created twice.
    MapperRestarts {
        /// How many restarts.
        #[arg(long, default_value_t = 100)]
        count: u64,
        /// What happens when; the test prints it.
        #[arg(long, default_value_t = 7)]
        seed: u64,
        #[command(flatten)]
        on: Cluster,
    },
    /// Some rows of the table of what Kubernetes promises of pods.
    Pods {
        /// Only rows whose names contain this.
        #[arg(long, default_value = "")]
        only: String,
        #[command(flatten)]
        on: Cluster,
    },
}

/// Where it runs.
#[derive(Debug, clap::Args)]
pub(crate) struct Cluster {
    /// On the cluster of this administrator's kubeconfig instead of the API in cloudcore. It must be the tests' own: they take
    /// away all edge nodes and all pods.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

/// Runs it, and shows what it prints.
pub(crate) fn run(soak: Soak) -> Result<()> {
    let nowhere = Cluster { kubeconfig: None };
    let (binary, filter, variables, on) = match soak {
        Soak::Replicas { seconds, every, on } => {
            ("replicas", "", vec![("REPLICAS_SECONDS", seconds), ("REPLICAS_EVERY", every)], on)
        }
        Soak::Joins { count, on } => ("end_to_end_join", "a_flood_of_joins", vec![("JOINS", count)], on),
        Soak::Secrets { count } => ("node_graph", "", vec![("SECRETS", count)], nowhere),
        Soak::PodKills { count, seed, on } => {
            ("end_to_end_pod_faults", "killing_edgecore", vec![("POD_KILLS", count), ("POD_SEED", seed)], on)
        }
        Soak::MapperRestarts { count, seed, on } => {
            ("end_to_end_dmi", "whatever_restarts", vec![("DMI_ROUNDS", count), ("DMI_SEED", seed)], on)
        }
        Soak::Pods { only, on } => {
            return test::one("end_to_end_pods", "", &[("PODS", only)], on.kubeconfig.as_deref());
        }
    };
    let variables: Vec<_> = variables.into_iter().map(|(name, number)| (name, number.to_string())).collect();
    test::one(binary, filter, &variables, on.kubeconfig.as_deref())
}
