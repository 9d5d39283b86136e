//! `heddle version`: ours, and the control plane's when a cluster answers.

use crate::cli::{Global, Outcome};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print only the number.
    #[arg(long)]
    short: bool,
    /// Do not ask the cluster.
    #[arg(long)]
    client: bool,
}

pub fn run(_global: &Global, args: Args) -> Outcome {
    let Args { short, client: _ } = args;
    let text = if short { format!("{}\n", heddle_mesh::VERSION) } else { format!("Client version: {}\n", heddle_mesh::VERSION) };
    crate::cli::print(&text)?;
    Ok(0)
}
