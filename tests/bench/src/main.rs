//! Heddle's benchmarks: each drives the programs that users run, beside a peer in the same run, and prints the ratio
//! with its spread.
//!
//! In go release binaries and, for `proxy`, network namespaces that it makes itself; out comes a table on stderr and,
//! with `--json FILE`, an array of records ([`record::Record`]). Figures are for people to read; only
//! `instructions` judges them, because it counts and does not measure.

mod control;
mod fanout;
mod identity;
mod injector;
mod instructions;
mod netns;
mod outage;
mod plane;
mod proxy;
mod reconcile;
mod record;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "heddle-bench",
    about = "Measures Heddle against its peers in the same run"
)]
struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// The sidecar pair against no proxy, the least that one could do, and its peers.
    Proxy {
        #[command(flatten)]
        options: proxy::Options,
        /// Where to write the records.
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// From commit to applied objects, against a real API server.
    Reconcile {
        #[command(flatten)]
        options: reconcile::Options,
        /// Where to write the records.
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Certificates per CPU second, a restart of 5,000 proxies, and hung reviews.
    Identity {
        #[command(flatten)]
        options: identity::Options,
        /// Where to write the records.
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Streams of simulated proxies, against a real API server.
    Fanout {
        #[command(flatten)]
        options: fanout::Options,
        /// Where to write the records.
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Admissions at a fixed rate, and a burst, against a real API server.
    Injector {
        #[command(flatten)]
        options: injector::Options,
        /// Where to write the records.
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// A pair of proxies under load while the control plane is gone.
    Outage {
        #[command(flatten)]
        options: outage::Options,
        /// Where to write the records.
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Requests at a fixed rate, started by `outage` in the client's namespace.
    #[command(hide = true)]
    SteadyLoad(outage::LoadOptions),
    /// A scripted control plane on loopback, started by `proxy` in each namespace.
    #[command(hide = true)]
    Control(control::Options),
    /// Instructions per request, against the committed counts.
    Instructions(instructions::Options),
    /// The application behind the proxies, started by `proxy`.
    #[command(hide = true)]
    App(proxy::AppOptions),
    /// A client of it, started by `proxy` in the client's namespace.
    #[command(hide = true)]
    Client(proxy::client::ClientOptions),
    /// One open-loop measurement, started by `proxy` in the client's namespace.
    #[command(hide = true)]
    OpenLoop(proxy::OpenOptions),
}

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (records, json) = match Args::parse().bench {
            Bench::Proxy { options, json } => (proxy::run(options)?, json),
            Bench::Reconcile { options, json } => (reconcile::run(options).await?, json),
            Bench::Identity { options, json } => (identity::run(options).await?, json),
            Bench::Injector { options, json } => (injector::run(options).await?, json),
            Bench::Fanout { options, json } => (fanout::run(options).await?, json),
            Bench::Outage { options, json } => (outage::run(options).await?, json),
            Bench::SteadyLoad(options) => return outage::run_load(&options).await,
            Bench::Instructions(options) => return instructions::run(&options),
            Bench::App(options) => return proxy::run_app(options).await,
            Bench::Client(options) => return proxy::client::run(options).await,
            Bench::Control(options) => return control::run(options).await,
            Bench::OpenLoop(options) => {
                println!("{}", serde_json::to_string(&proxy::run_open(&options)?)?);
                return Ok(());
            }
        };
        for record in &records {
            eprintln!("{record}");
        }
        if let Some(path) = json {
            let text = serde_json::to_string_pretty(&records)?;
            std::fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    })
}
