//! The sidecar pair: `direct`, `heddle`, and haproxy with HTTP/1.1 and HTTP/2 between its two processes.
//!
//! Two namespaces, the application in one and its client in the other; generator and application run on CPU 0, both
//! sidecars on CPU 1. The arms of one block run in shuffled order right after one another, and ratios are taken block
//! by block. TCP's congestion control is reno for all arms. What haproxy does less: no discovery, no policy, no histograms, no interception. The haproxy arm of a
//! comparison is the better of its two at each point.

mod arms;
mod load;
pub(crate) mod sidecar;
mod usage;

use std::{collections::BTreeMap, path::PathBuf};

use rand::seq::SliceRandom as _;

use crate::record::{Record, median, quantile};
use arms::{Arm, Arms};
pub(crate) use load::{OpenOptions, run_open};
pub(crate) use usage::{cpu_seconds, resident_bytes};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How often each arm is measured.
    #[arg(long, default_value_t = 5)]
    blocks: usize,
    /// How long each measurement lasts, in seconds.
    #[arg(long, default_value_t = 4)]
    seconds: u32,
    /// The proxy under test.
    #[arg(long, default_value = "target/image/heddle-proxy")]
    proxy: PathBuf,
    /// What redirects a namespace's traffic to it.
    #[arg(long, default_value = "target/image/heddle-init")]
    init: PathBuf,
}

/// One arm's figures in one block.
struct Sample {
    /// Requests per second and the pair's CPU seconds per second, at 64 connections.
    rate: f64,
    cpu: f64,
    /// Seconds, one request at a time.
    unloaded_p50: f64,
    unloaded_p99: f64,
    /// Seconds from the intended send, at half of the slower pair's peak.
    half_load_p99: f64,
}

/// One of a sample's figures.
type Figure = fn(&Sample) -> f64;

const CONNECTIONS: usize = 64;

pub(crate) async fn run(options: Options) -> anyhow::Result<Vec<Record>> {
    let Options {
        blocks,
        seconds,
        proxy,
        init,
    } = options;
    let mut arms = Arms::start(&proxy, &init)?;
    let idle_rss: f64 = arms.resident_bytes(Arm::Heddle)?;
    let idle_rss_haproxy = arms.resident_bytes(Arm::HaproxyH2)?;

    // One short look at every arm: all must answer, and the tail is measured at a load that each of them can carry.
    let mut slowest_pair = f64::INFINITY;
    for arm in Arm::ALL {
        let look = load::closed(&arms, arm, CONNECTIONS, 2)?;
        eprintln!(
            "{arm:<11} answers: {:.0} requests/s at {CONNECTIONS} connections",
            look.rate
        );
        if arm != Arm::Direct {
            slowest_pair = slowest_pair.min(look.rate);
        }
    }

    let mut samples: BTreeMap<Arm, Vec<Sample>> = BTreeMap::new();
    for block in 1..=blocks {
        let mut order = Arm::ALL;
        order.shuffle(&mut rand::rng());
        for arm in order {
            let before = arms.cpu_seconds(arm)?;
            let loaded = load::closed(&arms, arm, CONNECTIONS, seconds)?;
            let cpu = (arms.cpu_seconds(arm)? - before) / loaded.seconds;
            let unloaded = load::closed(&arms, arm, 1, seconds.div_ceil(2))?;
            let tail = load::open(&arms, arm, slowest_pair / 2.0, seconds)?;
            eprintln!(
                "block {block}/{blocks} {arm:<11} {:>7.0} requests/s, {:.2} CPU, p50 {:.0} us and p99 {:.0} us unloaded, p99 {:.0} us at half load",
                loaded.rate,
                cpu,
                unloaded.p50 * 1e6,
                unloaded.p99 * 1e6,
                tail.p99 * 1e6,
            );
            samples.entry(arm).or_default().push(Sample {
                rate: loaded.rate,
                cpu,
                unloaded_p50: unloaded.p50,
                unloaded_p99: unloaded.p99,
                half_load_p99: tail.p99,
            });
        }
    }
    let busy_rss = arms.resident_bytes(Arm::Heddle)?;
    let busy_rss_haproxy = arms.resident_bytes(Arm::HaproxyH2)?;
    arms.check_alive()?;

    let column = |arm: Arm, figure: Figure| -> Vec<f64> {
        samples
            .get(&arm)
            .map(|all| all.iter().map(figure).collect())
            .unwrap_or_default()
    };
    let added = |arm: Arm, figure: Figure| -> Vec<f64> {
        column(arm, figure)
            .iter()
            .zip(column(Arm::Direct, figure))
            .map(|(with, without)| with - without)
            .collect()
    };
    let better = |higher: bool, of: &dyn Fn(Arm) -> Vec<f64>| -> Vec<f64> {
        let (h1, h2) = (of(Arm::HaproxyH1), of(Arm::HaproxyH2));
        if (median(&h1) > median(&h2)) == higher {
            h1
        } else {
            h2
        }
    };
    let per_core = |arm: Arm| column(arm, |sample| sample.rate / sample.cpu);
    let mut records = vec![Record::beside(
        "proxy",
        "http1_requests_per_core_second",
        "1/s",
        &per_core(Arm::Heddle),
        ("haproxy", &better(true, &per_core)),
    )];
    let figures: [(&str, Figure); 3] = [
        ("added_p50_unloaded", |sample| sample.unloaded_p50),
        ("added_p99_unloaded", |sample| sample.unloaded_p99),
        ("added_p99_half_load", |sample| sample.half_load_p99),
    ];
    for (metric, figure) in figures {
        let peer = better(false, &|arm| added(arm, figure));
        records.push(Record::beside(
            "proxy",
            metric,
            "s",
            &added(Arm::Heddle, figure),
            ("haproxy", &peer),
        ));
    }
    for (metric, ours, theirs) in [
        ("pair_resident_bytes_idle", idle_rss, idle_rss_haproxy),
        ("pair_resident_bytes_after_load", busy_rss, busy_rss_haproxy),
    ] {
        records.push(Record::beside(
            "proxy",
            metric,
            "B",
            &[ours],
            ("haproxy", &[theirs]),
        ));
    }
    for (arm, all) in &samples {
        let rates: Vec<f64> = all.iter().map(|sample| sample.rate).collect();
        records.push(Record::alone(
            "proxy",
            format!("http1_requests_per_second_{arm}"),
            "1/s",
            &rates,
        ));
        let spread = (quantile(&rates, 1.0) - quantile(&rates, 0.0)) / median(&rates);
        if spread > 0.2 {
            eprintln!(
                "{arm}: rates differ by {:.0} % between blocks: read its ratios with care",
                spread * 100.0
            );
        }
    }
    Ok(records)
}
