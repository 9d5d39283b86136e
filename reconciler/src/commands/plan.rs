//! `heddle plan` (also `diff`): what a commit would do to the cluster, or with `--offline` what it changes against
//! another commit. Exits 0 when there is nothing to do, 1 when there is, 2 on errors and refusals.

use std::io::IsTerminal as _;

use crate::{
    cli::{Failure, Global, Outcome},
    commands::{connect, render::Location},
    diff, pipeline,
    plan::Plan,
    status,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    location: Location,
    /// The form of the output.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Format,
    /// Ask no cluster: compare with the commit given by --base.
    #[arg(long, requires = "base")]
    offline: bool,
    /// The commit to compare with, for --offline.
    #[arg(long, value_name = "REV")]
    base: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Text,
    Markdown,
    Json,
}

pub fn run(global: &Global, args: Args) -> Outcome {
    let Args {
        location,
        output,
        offline,
        base,
    } = args;
    let snapshot = location.snapshot()?;
    let rendered = location.render(global, &snapshot)?;
    let plan = if offline || base.is_some() {
        let base_snapshot = location.snapshot_at(base.as_deref())?;
        let base = location.render(global, &base_snapshot)?;
        diff::between(&base, &rendered)
    } else {
        super::block_on(async {
            let cluster = connect(global).await?;
            let mesh = status::read(&cluster, &rendered.profile).await?;
            let inventory = status::inventory(mesh.as_ref().and_then(|mesh| mesh.status.as_ref()));
            let prune = mesh.is_none_or(|mesh| mesh.spec.prune);
            let wish = pipeline::Wish {
                rendered: &rendered,
                inventory: &inventory,
                prune,
                rollout: true,
            };
            let (_, plan) = pipeline::plan(&cluster, &wish, |_| true).await?;
            Ok::<_, Failure>(plan)
        })?
    };
    for note in &rendered.notes {
        crate::cli::say(&format!("note: {note}"));
    }
    show(&plan, output, &snapshot.revision.short())?;
    Ok(exit_code(&plan))
}

fn show(plan: &Plan, format: Format, title: &str) -> Result<(), Failure> {
    let text = match format {
        Format::Text => diff::text(plan, std::io::stdout().is_terminal()),
        Format::Markdown => diff::markdown(plan, title),
        Format::Json => format!("{:#}\n", diff::json(plan)),
    };
    crate::cli::print(&text)
}

/// 0 nothing to do, 1 something, 2 refused.
pub fn exit_code(plan: &Plan) -> u8 {
    match () {
        () if !plan.refusals.is_empty() => 2,
        () if plan.changes().next().is_some() || plan.conflicts().next().is_some() => 1,
        () => 0,
    }
}
