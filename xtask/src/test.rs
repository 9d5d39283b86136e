//! `cargo xtask test`: everything that must hold, from pure tests to a whole Kubernetes.
//!
//! The cluster is started before and taken down after the tests, whatever their outcome, so that a failed run leaves
//! nothing behind; `--keep` leaves it for a look.

use std::{process::Command, time::Instant};

use anyhow::{Context as _, Result, ensure};
use heddle_tests_harness::{
    cluster::{Cluster, ClusterOptions, Mode},
    host,
    progress::Progress,
    tools::{Program, Tools},
    workspace_root,
};

use crate::{images, lint, packages};

/// The cluster that the tests share; their harness finds it by this name.
const CLUSTER: &str = "heddle-test";

/// Run all tests, from pure ones to a whole Kubernetes.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Leave the cluster running afterwards: `cargo xtask down --name heddle-test` removes it.
    #[arg(long)]
    keep: bool,
    /// Only the tests that need neither root nor a cluster.
    #[arg(long)]
    pure: bool,
    /// Faults and attacks in their full size: thousands of clients, a pause of a minute; takes five minutes more.
    #[arg(long)]
    long: bool,
    /// Passed to the test programs, after `--`.
    #[arg(last = true)]
    rest: Vec<String>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let Arguments {
        keep,
        pure,
        long,
        rest,
    } = arguments;
    let start = Instant::now();
    if pure {
        return run_tests(&mut cargo_test(&["--lib", "--bins"], &rest));
    }
    ensure!(
        host::is_root(),
        "the cluster and network-namespace tests need root; without it, `cargo xtask test --pure` runs the others"
    );
    packages::ensure(host::CLUSTER_PACKAGES, Progress::Shown)?;
    packages::ensure(host::BUILD_PACKAGES, Progress::Shown)?;
    // Long builds, told here: the tests that need them would only seem to hang.
    let tools = Tools::ensure(&[Program::CertManager, Program::H2spec], Progress::Shown)?;
    // The test programs run the built binaries, so these must be there, and current, first.
    lint::cargo(&["build", "--workspace", "--bins"])?;
    Cluster::down(CLUSTER).await?;
    let cluster =
        Cluster::up(ClusterOptions::new(CLUSTER, Mode::Full).with_progress(Progress::Shown)).await?;
    let outcome = async {
        images::build_and_load("dev", images::Target::Cluster(cluster), &[]).await?;
        let mut tests = cargo_test(&[], &rest);
        tests.env("HEDDLE_H2SPEC", tools.path(Program::H2spec));
        if long {
            tests.env("HEDDLE_LONG_FAULTS", "1");
        }
        run_tests(&mut tests)
    }
    .await;
    if keep {
        eprintln!("The cluster {CLUSTER} stays: `cargo xtask down --name {CLUSTER}` removes it.");
    } else {
        Cluster::down(CLUSTER).await?;
    }
    outcome?;
    eprintln!("All tests passed in {:.0} s.", start.elapsed().as_secs_f64());
    Ok(())
}

fn cargo_test(what: &[&str], rest: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(what)
        .arg("--")
        .args(rest)
        .env("HEDDLE_TEST_CLUSTER", CLUSTER)
        .current_dir(workspace_root());
    command
}

fn run_tests(command: &mut Command) -> Result<()> {
    let status = command.status().context("failed to start cargo test")?;
    ensure!(status.success(), "tests failed ({status})");
    Ok(())
}
