//! `cargo xtask lint`: formatting, clippy and what may be depended upon. Warnings are errors.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use heddle_tests_harness::{progress::Progress, sidecar, tools, workspace_root};

/// The version that deny.toml is written for.
const CARGO_DENY: &str = "0.20.2";

pub(crate) fn run() -> Result<()> {
    cargo(&["fmt", "--all", "--check"]).context("the code is not formatted: run `cargo fmt --all`")?;
    cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ])?;
    let deny = cargo_deny()?;
    // Its advisory database is a Git repository elsewhere; this must work without one.
    let mut command = Command::new(deny);
    command
        .args(["--log-level", "error", "check", "bans", "licenses", "sources"])
        .current_dir(workspace_root());
    succeed(&mut command)
}

/// Runs cargo in the workspace with its output shown.
pub(crate) fn cargo(args: &[&str]) -> Result<()> {
    succeed(
        Command::new(env!("CARGO"))
            .args(args)
            .current_dir(workspace_root()),
    )
}

/// Builds the sidecar as users get it.
pub(crate) fn build_sidecar() -> Result<()> {
    let arguments = sidecar::build_arguments();
    let arguments = ["build"].into_iter().chain(arguments.iter().map(String::as_str));
    cargo(&arguments.collect::<Vec<_>>())
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace_root().join("target"), PathBuf::from)
}

/// Runs it, with its output shown.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let shown = heddle_tests_harness::command::show(command);
    let status = command
        .status()
        .with_context(|| format!("failed to start `{shown}`"))?;
    ensure!(status.success(), "`{shown}` failed ({status})");
    Ok(())
}

/// cargo-deny, installed beside the other tools the first time.
fn cargo_deny() -> Result<PathBuf> {
    let root = tools::cache_dir()?
        .join("tools")
        .join(format!("cargo-deny-{CARGO_DENY}"));
    let binary = root.join("bin/cargo-deny");
    if !binary.exists() {
        let step = Progress::Shown.step(format!("Installing cargo-deny {CARGO_DENY}"));
        let mut command = Command::new(env!("CARGO"));
        command.args([
            "install",
            "cargo-deny",
            "--version",
            CARGO_DENY,
            "--locked",
            "--debug",
            "--quiet",
            "--root",
        ]);
        succeed(command.arg(&root))?;
        step.done();
    }
    Ok(binary)
}
