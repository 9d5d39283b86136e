//! Heddle's benchmarks: each drives the programs that users run, beside a peer in the same run, and prints the ratio
//! with its spread.
//!
//! In go release binaries and, for `proxy`, network namespaces that it makes itself; out comes a table on stderr and
//! a file with an array of records ([`record::Record`]). Figures are for people to read; only
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
    /// Where to write the records with all samples; `target/bench/NAME.json` when not given.
    #[arg(long, global = true)]
    json: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Bench {
    /// The sidecar pair against no proxy, the least that one could do, and its peers.
    Proxy(proxy::Options),
    /// From commit to applied objects, against a real API server.
    Reconcile(reconcile::Options),
    /// Certificates per CPU second, a restart of 5,000 proxies, and hung reviews.
    Identity(identity::Options),
    /// Streams of simulated proxies, against a real API server.
    Fanout(fanout::Options),
    /// Admissions at a fixed rate, and a burst, against a real API server.
    Injector(injector::Options),
    /// A pair of proxies under load while the control plane is gone.
    Outage(outage::Options),
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
        let Args { bench, json } = Args::parse();
        let (name, records) = match bench {
            Bench::Proxy(options) => ("proxy", proxy::run(options)?),
            Bench::Reconcile(options) => ("reconcile", reconcile::run(options).await?),
            Bench::Identity(options) => ("identity", identity::run(options).await?),
            Bench::Injector(options) => ("injector", injector::run(options).await?),
            Bench::Fanout(options) => ("fanout", fanout::run(options).await?),
            Bench::Outage(options) => ("outage", outage::run(options).await?),
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
        eprint!("{}", record::table(&records));
        let path = json.unwrap_or_else(|| format!("target/bench/{name}.json").into());
        let write = || {
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir)?;
            }
            std::fs::write(&path, serde_json::to_string_pretty(&records)? + "\n")
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("All samples are in {}.", path.display());
        Ok(())
    })
}
