//! `cargo xtask pgo`: records what the sidecar does under load, for the compiler to know what matters.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use heddle_tests_harness::{host, progress::Progress, sidecar, workspace_root};

use crate::{bench, lint, packages};

/// What the sidecar spends its time on in clusters: requests, calls, bytes and new connections.
const TRAINING: &str = "saturation,grpc,tails,bulk,handshakes";

/// Record what the sidecar does under load, to proxy/heddle-proxy.profdata: what users run is compiled by it.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How long each kind of load lasts, in seconds.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let llvm = llvm_major()?;
    ensure!(
        host::LLVM_PROFDATA.ends_with(&format!("-{llvm}")),
        "the compiler has LLVM {llvm}, and profiles are merged by {}; hint: name LLVM {llvm}'s package and tool in \
         tests/harness/src/host.rs",
        host::LLVM_PROFDATA
    );
    packages::ensure(host::PGO_PACKAGES, Progress::Shown)?;
    packages::ensure(host::BENCH_PACKAGES, Progress::Shown)?;
    let target = lint::target_dir().join("pgo");
    let raw = target.join("raw");
    let mut build = vec!["build".to_owned()];
    build.extend(sidecar::recording_arguments(&raw));
    build.extend(["--target-dir".to_owned(), target.display().to_string()]);
    lint::cargo(&build.iter().map(String::as_str).collect::<Vec<_>>())?;
    bench::build_proxys_beside()?;
    bench::build_bench()?;
    // Build scripts have written theirs.
    if raw.exists() {
        fs::remove_dir_all(&raw).with_context(|| format!("failed to remove {}", raw.display()))?;
    }
    fs::create_dir_all(&raw).with_context(|| format!("failed to make {}", raw.display()))?;
    // The sidecar runs as a user of its own.
    fs::set_permissions(&raw, fs::Permissions::from_mode(0o777))?;
    let records = target.join("training.json");
    let mut training = Command::new(lint::target_dir().join("image/heddle-bench"));
    training
        .args(["proxy", "--blocks", "1", "--only", TRAINING, "--arms", "heddle"])
        .args(["--seconds", &arguments.seconds.to_string()])
        .arg("--proxy")
        .arg(target.join(sidecar::PROFILE).join(sidecar::NAME))
        .arg("--json")
        .arg(&records)
        .current_dir(workspace_root());
    lint::succeed(&mut training)?;
    merge(&raw, &sidecar::recorded())
}

fn merge(raw: &Path, recorded: &Path) -> Result<()> {
    let written: Vec<PathBuf> = fs::read_dir(raw)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    ensure!(
        !written.is_empty(),
        "no sidecar has written its profile to {}",
        raw.display()
    );
    lint::succeed(
        Command::new(host::LLVM_PROFDATA)
            .args(["merge", "--sparse", "--output"])
            .arg(recorded)
            .args(written),
    )?;
    let bytes = fs::metadata(recorded)?.len();
    eprintln!("{} has {bytes} bytes now: commit it.", recorded.display());
    Ok(())
}

/// The major version of the compiler's LLVM.
fn llvm_major() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output();
    let output = output.context("`rustc -vV` does not run")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.lines().find_map(|line| line.strip_prefix("LLVM version: "));
    let major = version.and_then(|version| version.split('.').next());
    major
        .map(str::to_owned)
        .context("`rustc -vV` does not tell its LLVM version")
}
