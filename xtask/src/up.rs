//! `cargo xtask up`: bring a cluster up, or repair it.

use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;
use heddle_tests_harness::cluster::{Cluster, ClusterOptions, Mode};
use heddle_tests_harness::host;
use heddle_tests_harness::progress::Progress;

use crate::packages;

/// Bring up a Kubernetes cluster on this machine; does nothing if it is up.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The cluster's name; several run side by side.
    #[arg(long, default_value = "heddle")]
    name: String,
    /// How much of a cluster.
    #[arg(long, value_enum, default_value_t = ModeArgument::Full)]
    mode: ModeArgument,
}

#[derive(Clone, Copy, ValueEnum)]
enum ModeArgument {
    /// Everything: a node, pods, Services, DNS. Needs root.
    Full,
    /// etcd and the API server alone.
    Api,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let Arguments { name, mode } = arguments;
    let start = Instant::now();
    let mode = match mode {
        ModeArgument::Full => {
            packages::ensure(host::CLUSTER_PACKAGES, Progress::Shown)?;
            Mode::Full
        }
        ModeArgument::Api => Mode::ApiServerOnly,
    };
    let cluster = Cluster::up(ClusterOptions::new(name, mode).with_progress(Progress::Shown)).await?;
    eprintln!("Cluster {} is up after {:.1} s. To use it:", cluster.name(), start.elapsed().as_secs_f64());
    println!("export KUBECONFIG={}", cluster.kubeconfig_path().display());
    eprintln!("with {}; its logs are in {}.", cluster.kubectl_path()?.display(), cluster.state_dir().join("log").display());
    Ok(())
}
