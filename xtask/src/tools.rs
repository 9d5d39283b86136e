//! `cargo xtask tools`: build the programs that clusters are made of, and say where they are.

use anyhow::Result;
use heddle_tests_harness::progress::Progress;
use heddle_tests_harness::tools::{Program, Project, Tools};

/// Build the Kubernetes programs from their Go modules, once per machine and version.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only say what there is and what would be built.
    #[arg(long)]
    list: bool,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    if !arguments.list {
        let programs: Vec<Program> = Program::NODE
            .iter()
            .copied()
            .chain([Program::CertManager, Program::H2spec])
            .chain(Program::CONFORMANCE.iter().copied())
            .collect();
        tokio::task::spawn_blocking(move || Tools::ensure(&programs, Progress::Shown)).await??;
    }
    for &project in Project::ALL {
        let target = project.target()?;
        let state = if target.is_built() { "built" } else { "missing" };
        println!(
            "{:<12} {:<10} {state:<8} {} {}",
            target.name(),
            target.version(),
            target.dir().display(),
            target.key()
        );
    }
    Ok(())
}
