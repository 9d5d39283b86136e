//! `cargo xtask bench NAME`: builds what is measured with the image profile, then runs the benchmark.

use std::{ffi::OsString, process::Command};

use anyhow::{Context as _, Result, ensure};
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
    // What the programs are held against, the example of a package, must be built alike.
    let example = match name {
        Name::Proxy => Some(("heddle-proxy", "floor")),
        Name::Identity => Some(("heddle-identity", "bound")),
        Name::Reconcile | Name::Injector | Name::Fanout | Name::Outage => None,
    };
    let (name, packages): (&str, &[&str]) = match name {
        Name::Proxy => {
            packages::ensure(host::BENCH_PACKAGES, Progress::Shown)?;
            ("proxy", &["heddle-proxy", "heddle-proxy-init"])
        }
        Name::Identity => ("identity", &["heddle-identity"]),
        Name::Reconcile => ("reconcile", &["heddle-reconciler"]),
        Name::Injector => ("injector", &["heddle-control"]),
        Name::Outage => {
            packages::ensure(host::BENCH_PACKAGES, Progress::Shown)?;
            let programs = &[
                "heddle-control",
                "heddle-identity",
                "heddle-proxy",
                "heddle-proxy-init",
            ];
            ("outage", programs)
        }
        Name::Fanout => ("fanout", &["heddle-control", "heddle-identity"]),
    };
    let mut build = vec!["build", "--profile", "image"];
    build.extend(packages.iter().flat_map(|package| ["--package", package]));
    build.push("--bins");
    lint::cargo(&build)?;
    // By itself: with an example, Cargo gives the programs the features that only tests have, and they are no longer those
    // that users run (the proxy at rest took a third more memory).
    if let Some((package, example)) = example {
        lint::cargo(&[
            "build",
            "--profile",
            "image",
            "--package",
            package,
            "--example",
            example,
        ])?;
    }
    // Optimised too: a load generator that takes most of a processor wakes what it measures for each message, and that
    // is then measured (certificates cost a fifth more).
    lint::cargo(&[
        "build",
        "--profile",
        "image",
        "--package",
        "heddle-tests-bench",
        "--bin",
        "heddle-bench",
    ])?;
    let binary = lint::target_dir().join("image/heddle-bench");
    let status = Command::new(&binary)
        .arg(name)
        .args(rest)
        .current_dir(workspace_root())
        .status()
        .with_context(|| format!("failed to start {}", binary.display()))?;
    ensure!(status.success(), "the benchmark failed ({status})");
    Ok(())
}
