//! `heddle diagnostics`: what the control plane would tell a proxy, and raw metrics; the questions are asked of the running
//! programs, so the answer is what a proxy gets, not what this program thinks it should be.

mod endpoints;
mod message;
mod metrics;
mod policy;
mod profile;

use clap::Subcommand;
use serde_json::Value;

use crate::{
    cli::{Failure, Global, Outcome},
    yaml,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the metrics of the control plane's programs
    ControllerMetrics(metrics::ControllerArgs),
    /// Print the endpoints of services as the destination service gives them to proxies
    #[command(visible_alias = "ep")]
    Endpoints(endpoints::Args),
    /// Print the policy of a pod's port or of a service's, as proxies get it
    Policy(policy::Args),
    /// Print the profile of a service or endpoint, as proxies get it
    Profile(profile::Args),
    /// Print the metrics of proxies
    ProxyMetrics(metrics::ProxyArgs),
}

pub fn run(global: &Global, args: Args) -> Outcome {
    match args.command {
        Command::ControllerMetrics(args) => metrics::controller(global, args),
        Command::Endpoints(args) => endpoints::run(global, args),
        Command::Policy(args) => policy::run(global, args),
        Command::Profile(args) => profile::run(global, args),
        Command::ProxyMetrics(args) => metrics::proxy(global, args),
    }
}

/// Who asks: the flags of every question to the control plane.
#[derive(Debug, clap::Args)]
struct Asking {
    /// The destination pod that is asked, instead of any
    #[arg(long, value_name = "POD")]
    destination_pod: Option<String>,
    /// The context token that a proxy would send, such as {"ns":"payments","nodeName":"a","pod":"web-0"}
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    Json,
    Yaml,
}

impl Form {
    fn print(self, value: &Value) -> Result<(), Failure> {
        crate::cli::print(&match self {
            Self::Json => format!("{value:#}\n"),
            Self::Yaml => yaml::print(value),
        })
    }
}

/// A refusal of the control plane in words.
fn refused(asked: &str, status: &tonic::Status) -> Failure {
    let failure = Failure::message(format!("{asked}: {} ({:?})", status.message(), status.code()));
    match status.code() {
        tonic::Code::NotFound => {
            failure.hint("names are SERVICE.NAMESPACE.svc.CLUSTER-DOMAIN; see `kubectl get svc -A`")
        }
        _ => failure,
    }
}
