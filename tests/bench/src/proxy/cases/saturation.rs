//! Requests per CPU second of both sidecars, and latencies that they add.

use super::{
    super::{
        arms::{Arm, Arms, Way},
        awake::Awake,
        client::{self, Pulled},
        load,
    },
    Effort, Samples,
};
use crate::record::{Record, median, quantile};

const CONNECTIONS: usize = 64;
const GRPC_CONNECTIONS: usize = 4;
const GRPC_STREAMS: usize = 16;

struct Sample {
    /// Requests per second, and CPU seconds of both sidecars per second.
    rate: f64,
    cpu: f64,
    /// Seconds, one request at a time.
    p50: f64,
    p99: f64,
    /// The same with processors that do not halt.
    awake_p50: f64,
    awake_p99: f64,
}

pub(super) fn requests(arms: &Arms, here: &[Arm], effort: Effort) -> anyhow::Result<Vec<Record>> {
    let Effort { blocks, seconds } = effort;
    for &arm in here {
        load::closed(arms, arm, CONNECTIONS, 1)?;
    }
    let samples = Samples::take(here, blocks, |block, arm| {
        let before = arms.cpu_seconds(arm)?;
        let loaded = load::closed(arms, arm, CONNECTIONS, seconds)?;
        let cpu = (arms.cpu_seconds(arm)? - before) / loaded.seconds;
        let alone = load::closed(arms, arm, 1, seconds.div_ceil(2))?;
        let awake = {
            let _awake = Awake::keep()?;
            load::closed(arms, arm, 1, seconds.div_ceil(2))?
        };
        eprintln!(
            "block {block}/{blocks} {arm:<14} {:>7.0} requests/s, {cpu:.2} CPU, alone p50 {:.0} us, p99 {:.0} us, \
             awake {:.0} and {:.0} us",
            loaded.rate,
            alone.p50 * 1e6,
            alone.p99 * 1e6,
            awake.p50 * 1e6,
            awake.p99 * 1e6
        );
        Ok(Sample {
            rate: loaded.rate,
            cpu,
            p50: alone.p50,
            p99: alone.p99,
            awake_p50: awake.p50,
            awake_p99: awake.p99,
        })
    })?;
    let per_core = |arm| samples.column(arm, |sample| sample.rate / sample.cpu);
    let mut records = samples.beside("http1_requests_per_core_second", "1/s", true, per_core);
    let added = |arm| samples.added(arm, |sample| sample.p50);
    records.extend(samples.beside("added_p50_unloaded", "s", false, added));
    let added = |arm| samples.added(arm, |sample| sample.p99);
    records.extend(samples.beside("added_p99_unloaded", "s", false, added));
    let added = |arm| samples.added(arm, |sample| sample.awake_p50);
    records.extend(samples.beside("added_p50_unloaded_awake", "s", false, added));
    let added = |arm| samples.added(arm, |sample| sample.awake_p99);
    records.extend(samples.beside("added_p99_unloaded_awake", "s", false, added));
    for &arm in here {
        let rates = samples.column(arm, |sample| sample.rate);
        let metric = format!("http1_requests_per_second_{arm}");
        records.push(Record::alone("proxy", metric, "1/s", &rates));
        let spread = (quantile(&rates, 1.0) - quantile(&rates, 0.0)) / median(&rates);
        if spread > 0.2 {
            let percent = spread * 100.0;
            eprintln!("{arm}: rates differ by {percent:.0} % between blocks: read its ratios with care");
        }
    }
    Ok(records)
}

pub(super) fn grpc(arms: &Arms, here: &[Arm], effort: Effort) -> anyhow::Result<Vec<Record>> {
    let Effort { blocks, seconds } = effort;
    let samples = Samples::take(here, blocks, |block, arm| {
        let Some(address) = Arms::address(arm, Way::Bytes) else {
            anyhow::bail!("{arm} carries no gRPC");
        };
        let before = arms.cpu_seconds(arm)?;
        let args = [
            "grpc",
            "--address",
            &address.to_string(),
            "--seconds",
            &seconds.to_string(),
            "--connections",
            &GRPC_CONNECTIONS.to_string(),
            "--streams",
            &GRPC_STREAMS.to_string(),
        ];
        let Pulled { count, seconds } = client::ask(arms.netns(arm), &args)?;
        let cpu = arms.cpu_seconds(arm)? - before;
        let rate = count as f64 / seconds;
        eprintln!(
            "block {block}/{blocks} {arm:<14} {rate:>7.0} calls/s, {:.2} CPU",
            cpu / seconds
        );
        Ok(count as f64 / cpu)
    })?;
    let per_core = |arm| samples.column(arm, |sample| *sample);
    Ok(samples.beside("grpc_requests_per_core_second", "1/s", true, per_core))
}

pub(super) fn tails(arms: &Arms, here: &[Arm], effort: Effort) -> anyhow::Result<Vec<Record>> {
    let Effort { blocks, seconds } = effort;
    let mut slowest = f64::INFINITY;
    for &arm in here {
        let peak = load::closed(arms, arm, CONNECTIONS, 1)?.rate;
        if arm != Arm::Direct {
            slowest = slowest.min(peak);
        }
    }
    let samples = Samples::take(here, blocks, |block, arm| {
        let open = load::open(arms, arm, slowest / 2.0, seconds)?;
        let (p50, p99) = (open.p50 * 1e6, open.p99 * 1e6);
        eprintln!(
            "block {block}/{blocks} {arm:<14} at {:.0} requests/s p50 {p50:.0} us, p99 {p99:.0} us",
            open.rate
        );
        Ok(open)
    })?;
    let mut records = samples.beside("added_p50_half_load", "s", false, |arm| {
        samples.added(arm, |open| open.p50)
    });
    records.extend(samples.beside("added_p99_half_load", "s", false, |arm| {
        samples.added(arm, |open| open.p99)
    }));
    Ok(records)
}
