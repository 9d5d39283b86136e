//! `heddle apply`: one pass of the loop, from here. Ends when everything is applied and, unless told otherwise, ready
//! and rolled out.

use crate::{
    cli::{Failure, Global, Outcome},
    commands::{connect, render::Location},
    reconcile::{self, Once},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    location: Location,
    /// Do not wait until the control plane is ready, and restart nothing.
    #[arg(long)]
    no_wait: bool,
    /// Keep objects that left the profile.
    #[arg(long)]
    no_prune: bool,
    /// How long everything may take to become ready.
    #[arg(long, default_value = "5m", value_name = "DURATION", value_parser = heddle_mesh::duration::parse)]
    timeout: std::time::Duration,
}

pub fn run(global: &Global, args: Args) -> Outcome {
    let Args {
        location,
        no_wait,
        no_prune,
        timeout,
    } = args;
    let snapshot = location.snapshot()?;
    let rendered = location.render(global, &snapshot)?;
    super::block_on(async {
        let cluster = connect(global).await?;
        let once = Once {
            revision: snapshot.revision.to_string(),
            source: super::run::source_of(&location)?,
            path: location.path.clone(),
            wait: !no_wait,
            prune: !no_prune,
            timeout,
        };
        let done = reconcile::once(&cluster, &rendered, once)
            .await
            .map_err(|error| {
                let hint = match &error {
                    crate::execute::ExecuteError::Cluster(error) => error.hint(),
                    crate::execute::ExecuteError::NotReady { .. } => {
                        Some("see `heddle check`; --no-wait applies without waiting".into())
                    }
                    _ => None,
                };
                Failure {
                    error: error.into(),
                    hint,
                    code: 2,
                }
            })?;
        for line in done {
            crate::cli::say(&line);
        }
        Ok::<_, Failure>(())
    })?;
    Ok(0)
}
