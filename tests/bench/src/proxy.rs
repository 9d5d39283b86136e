//! The sidecar pair beside its peers: no proxy at all, the least that a proxy could do, haproxy, nginx, and
//! linkerd2-proxy and ztunnel where their binaries are given.
//!
//! Two namespaces for each pair, the application in one and its client in the other; generator and application run on
//! CPU 0, both sidecars on CPU 1. TCP's congestion control is reno for all arms. Only linkerd2-proxy does equal work:
//! `null`, haproxy and nginx have no discovery, policy, histograms or interception, and ztunnel carries bytes alone.

mod app;
pub(crate) mod arms;
mod awake;
mod cases;
pub(crate) mod client;
mod limit;
mod load;
pub(crate) mod mesh;
mod peers;
pub(crate) mod sidecar;
mod usage;

use std::{path::PathBuf, time::Instant};

use crate::record::Record;
use arms::{Arm, Arms, Programs};
use cases::{Case, Effort};

pub(crate) use app::{AppOptions, run as run_app};
pub(crate) use load::{OpenOptions, run_open};
pub(crate) use usage::{anonymous_bytes, cpu_seconds, resident_bytes};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How often each arm is measured.
    #[arg(long, default_value_t = 5)]
    blocks: usize,
    /// How long each measurement lasts, in seconds.
    #[arg(long, default_value_t = 4)]
    seconds: u32,
    /// Only these cases; several are separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Case>,
    /// Only these arms, by name, beside `heddle` itself.
    #[arg(long, value_delimiter = ',')]
    arms: Vec<String>,
    /// The proxy under test.
    #[arg(long, default_value = "target/release/heddle-proxy")]
    proxy: PathBuf,
    /// What redirects a namespace's traffic to it.
    #[arg(long, default_value = "target/image/heddle-init")]
    init: PathBuf,
    /// The relay that does nothing but TLS, and the bounds.
    #[arg(long, default_value = "target/image/examples/floor")]
    floor: PathBuf,
    /// A linkerd2-proxy, for an arm of its own.
    #[arg(long, env = "PEER_LINKERD2_PROXY_BIN")]
    linkerd: Option<PathBuf>,
    /// A ztunnel built with the feature `testing`, for an arm of its own.
    #[arg(long, env = "PEER_ZTUNNEL_BIN")]
    ztunnel: Option<PathBuf>,
}

pub(crate) fn run(options: Options) -> anyhow::Result<Vec<Record>> {
    let Options {
        blocks,
        seconds,
        only,
        arms: wanted,
        proxy,
        init,
        floor,
        linkerd,
        ztunnel,
    } = options;
    // Inherited by all that is started here.
    heddle_daemon::process::raise_file_limit();
    let programs = Programs {
        proxy,
        init,
        floor,
        linkerd,
        ztunnel,
    };
    let cases = if only.is_empty() { Case::ALL.to_vec() } else { only };
    let needed = |arm: &Arm| {
        let named = wanted.is_empty() || *arm == Arm::Heddle || wanted.contains(&arm.to_string());
        named && cases.iter().any(|case| case.arms().contains(arm))
    };
    let needed: Vec<Arm> = Arm::ALL.into_iter().filter(needed).collect();
    let mut arms = Arms::start(programs, &needed)?;
    let mut records = Vec::new();
    let mut took = Vec::new();
    for case in cases {
        let began = Instant::now();
        eprintln!("{case:?}:");
        records.extend(case.run(&mut arms, Effort { blocks, seconds })?);
        arms.check_alive()?;
        took.push(format!("{case:?} {:.0} s", began.elapsed().as_secs_f64()));
    }
    eprintln!("{} blocks took: {}", blocks, took.join(", "));
    Ok(records)
}
