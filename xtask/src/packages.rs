//! Distribution packages that other commands need: installed on Debian and Ubuntu as root, named elsewhere.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use heddle_tests_harness::command::run_within;
use heddle_tests_harness::host::{self, Package};
use heddle_tests_harness::progress::Progress;

/// Longest that fetching and installing may take.
const INSTALL_LIMIT: Duration = Duration::from_secs(600);

/// Makes sure that `packages` are installed.
pub(crate) fn ensure(packages: &[Package], progress: Progress) -> Result<()> {
    let missing = host::missing(packages);
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    if !host::is_root() || host::find_program("apt-get").is_none() {
        let list: Vec<String> = missing
            .iter()
            .map(|package| format!("{} ({})", package.name, package.purpose))
            .collect();
        bail!(
            "these are not installed: {}; hint: on Debian and Ubuntu run this as root, or `sudo apt-get install {}`; \
             elsewhere install what provides the same programs",
            list.join(", "),
            names.join(" ")
        );
    }
    let step = progress.step(format!("Installing {}", names.join(", ")));
    run_within(&mut apt(&["update", "--quiet"]), INSTALL_LIMIT)?;
    let arguments = ["install", "--quiet", "--yes", "--no-install-recommends"];
    run_within(
        &mut apt(&arguments.iter().chain(&names).copied().collect::<Vec<_>>()),
        INSTALL_LIMIT,
    )?;
    let still = host::missing(&missing);
    if !still.is_empty() {
        bail!(
            "installed, but not found afterwards: {}",
            still
                .iter()
                .map(|package| package.name)
                .collect::<Vec<_>>()
                .join(", ")
        );
    }
    step.done();
    Ok(())
}

fn apt(arguments: &[&str]) -> Command {
    let mut apt = Command::new("apt-get");
    apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    apt
}
