//! `cargo xtask down`: remove a cluster completely.

use anyhow::{Result, anyhow};
use heddle_tests_harness::cluster::Cluster;
use heddle_tests_harness::progress::Progress;

/// Remove a cluster: every process, mount, cgroup and network namespace of it. Succeeds if there is none.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The cluster's name.
    #[arg(long, default_value = "heddle", conflicts_with = "all")]
    name: String,
    /// Every cluster on this machine.
    #[arg(long)]
    all: bool,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let Arguments { name, all } = arguments;
    let names = if all { Cluster::names() } else { vec![name] };
    if names.is_empty() {
        eprintln!("There are no clusters.");
    }
    let mut failed = Vec::new();
    // One that resists does not keep the others up.
    for name in names {
        let step = Progress::Shown.step(format!("Removing cluster {name}"));
        match Cluster::down(&name).await {
            Ok(removed) => {
                step.done();
                match removed.existed {
                    true => eprintln!("    {} processes, {} mounts", removed.processes, removed.mounts),
                    false => eprintln!("    there was none"),
                }
            }
            Err(error) => {
                drop(step);
                failed.push(format!("{error:#}"));
            }
        }
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(anyhow!(failed.join("; ")))
    }
}
