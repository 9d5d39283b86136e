//! The injector: a webhook that puts proxies into pods.

use crate::args::Common;

/// Flags of the injector.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs until told to stop.
pub(crate) async fn run(_args: Args, _common: Common) -> anyhow::Result<()> {
    anyhow::bail!("the injector is not part of this build")
}
