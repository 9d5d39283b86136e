//! `cargo xtask bench NAME`: builds what is measured with the image profile, then runs the benchmark.

use std::{ffi::OsString, process::Command};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum as _;
use heddle_tests_harness::{host, progress::Progress, workspace_root};

use crate::{lint, packages};

/// Measure Heddle beside its peers: builds with the image profile first.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// `proxy`, `reconcile`, `identity`, `injector`, `fanout` or `outage`.
    name: Name,
    /// What the benchmark itself takes: `--json FILE`, `--blocks N`; `--help` lists it.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Name {
    Identity,
    Proxy,
    Reconcile,
    Injector,
    Fanout,
    Outage,
}

pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let Arguments { name, rest } = arguments;
    match name {
        Name::Proxy => {
            packages::ensure(host::BENCH_PACKAGES, Progress::Shown)?;
            lint::build_sidecar()?;
            build_proxys_beside()?;
        }
        Name::Outage => {
            packages::ensure(host::BENCH_PACKAGES, Progress::Shown)?;
            lint::build_sidecar()?;
            build_programs(&["heddle-control", "heddle-identity", "heddle-proxy-init"])?;
        }
        Name::Identity => {
            build_programs(&["heddle-identity"])?;
            build_example("heddle-identity", "bound")?;
        }
        Name::Reconcile => build_programs(&["heddle-reconciler"])?,
        Name::Injector => build_programs(&["heddle-control"])?,
        Name::Fanout => build_programs(&["heddle-control", "heddle-identity"])?,
    }
    build_bench()?;
    let binary = lint::target_dir().join("image/heddle-bench");
    let value = name.to_possible_value().expect("no name is skipped");
    let status = Command::new(&binary)
        .arg(value.get_name())
        .args(rest)
        .current_dir(workspace_root())
        .status()
        .with_context(|| format!("failed to start {}", binary.display()))?;
    ensure!(status.success(), "the benchmark failed ({status})");
    Ok(())
}

/// What the sidecar is measured beside.
pub(crate) fn build_proxys_beside() -> Result<()> {
    build_programs(&["heddle-proxy-init"])?;
    build_example("heddle-proxy", "floor")
}

fn build_programs(packages: &[&str]) -> Result<()> {
    let mut build = vec!["build", "--profile", "image", "--bins"];
    build.extend(packages.iter().flat_map(|package| ["--package", package]));
    lint::cargo(&build)
}

/// What a program is held against, the example of its package, is built alike, but by itself: with an example, Cargo gives
/// the programs the features that only tests have, and they are no longer those that users run (the proxy at rest took a
/// third more memory).
fn build_example(package: &str, example: &str) -> Result<()> {
    let image = [
        "build",
        "--profile",
        "image",
        "--package",
        package,
        "--example",
        example,
    ];
    lint::cargo(&image)
}

/// Optimised too: a load generator that takes most of a processor wakes what it measures for each message, and that
/// is then measured (certificates cost a fifth more).
pub(crate) fn build_bench() -> Result<()> {
    let bench = ["--package", "heddle-tests-bench", "--bin", "heddle-bench"];
    lint::cargo(&[&["build", "--profile", "image"], &bench[..]].concat())
}
