//! `cargo xtask instructions`: what a request costs the proxies, in instructions, beside the committed counts.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use heddle_tests_harness::{host, progress::Progress, sidecar, workspace_root};

use crate::{lint, packages};

/// Count the instructions that requests cost the proxies; more than 3 % above the committed counts is an error.
#[derive(Default, clap::Args)]
pub(crate) struct Arguments {
    /// Write the counts that there are now to tests/bench/instructions.json.
    #[arg(long)]
    record: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    packages::ensure(host::COUNT_PACKAGES, Progress::Shown)?;
    lint::build_sidecar()?;
    // As part of the workspace, or their dependencies would be built anew with other features.
    lint::cargo(&[
        "build",
        "--workspace",
        "--bin",
        "heddle-bench",
        "--bin",
        "heddle-init",
    ])?;
    let target = lint::target_dir();
    let status = Command::new(target.join("debug/heddle-bench"))
        .arg("instructions")
        .arg("--proxy")
        .arg(target.join(sidecar::PROFILE).join(sidecar::NAME))
        .arg("--init")
        .arg(target.join("debug/heddle-init"))
        .args(arguments.record.then_some("--record"))
        .current_dir(workspace_root())
        .status()
        .context("failed to start heddle-bench")?;
    ensure!(
        status.success(),
        "the instruction counts are not as committed ({status})"
    );
    Ok(())
}
