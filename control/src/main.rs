//! The program `heddle-control`: the control plane's services, one subcommand each.
//!
//! `destination` tells proxies where services are, `policy` who may talk to whom and how, `injector` puts proxies into
//! pods. `all` runs the three in one process, for small clusters and for trying out.

mod args;
mod external_workload;
mod grpc;
mod injector;
mod lease;
mod metrics;
mod serve;
mod status;
mod validate;
mod watches;
mod webhook;

use std::process::ExitCode;

use clap::{Args as _, FromArgMatches as _, Parser, Subcommand};
use heddle_daemon::{log, report};
use tokio::runtime;
use tracing::error;

use self::args::Common;

/// Heddle's control plane.
#[derive(Debug, Parser)]
#[command(name = "heddle-control", version)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tells proxies where services are
    Destination(Box<args::Destination>),
    /// Tells proxies who may talk to whom, and how
    Policy(Box<args::Policy>),
    /// Puts proxies into pods
    Injector(Box<injector::Args>),
    /// Runs destination, policy and injector in one process
    All(Box<args::All>),
}

fn main() -> ExitCode {
    let Cli { common, command } = Cli::parse();
    if let Err(error) = log::init(&common.log_level, common.log_format) {
        eprintln!("heddle-control: --log-level: {}", report::chain(&error));
        return ExitCode::from(2);
    }
    let mut builder = match command {
        // Admissions are short and come one by one: threads would spend more on waking each other than they gain.
        Command::Injector(_) => runtime::Builder::new_current_thread(),
        _ => runtime::Builder::new_multi_thread(),
    };
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "Failed to start");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(common, command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = %report::chain(error.as_ref()), "Failed");
            ExitCode::FAILURE
        }
    }
}

async fn run(common: Common, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Destination(args) => serve::run(common, args.into_plan()).await,
        Command::Policy(args) => serve::run(common, args.into_plan()).await,
        Command::Injector(args) => injector::run(*args, common).await,
        Command::All(args) => {
            let injector = injector::run(injector_defaults()?, common.clone());
            tokio::try_join!(serve::run(common, args.into_plan()), injector).map(|_| ())
        }
    }
}

/// The injector's settings as its defaults and the environment give them.
fn injector_defaults() -> Result<injector::Args, clap::Error> {
    let matches =
        injector::Args::augment_args(clap::Command::new("injector")).try_get_matches_from(["injector"])?;
    injector::Args::from_arg_matches(&matches)
}
