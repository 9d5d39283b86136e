//! Twice what a pair can do, under a CPU limit, so that the generator is not what is overloaded.

use anyhow::Context as _;

use super::{
    super::{
        arms::{Arm, Arms, Way},
        limit::CpuLimit,
        load,
    },
    Effort, Samples,
};
use crate::record::Record;

/// Both sidecars together.
const CPU_LIMIT: f64 = 0.3;
/// As many as are busy at the peak; beyond them the generator waits, and the wait counts.
const CONNECTIONS: usize = 64;
/// Clients that open more of them when they are not answered: then each sidecar works on eight times as much at once.
const MANY_CONNECTIONS: usize = 512;

/// What came of one arm in one block.
struct Overload {
    /// As parts of the peak.
    goodput: f64,
    goodput_of_many: f64,
    /// Per second.
    failed: f64,
}

pub(super) fn run(arms: &Arms, here: &[Arm], effort: Effort) -> anyhow::Result<Vec<Record>> {
    let Effort { blocks, seconds } = effort;
    let samples = Samples::take(here, blocks, |block, arm| {
        let address = Arms::address(arm, Way::Http).context("it carries HTTP")?;
        let limit = CpuLimit::new(CPU_LIMIT, &arms.pids(arm))?;
        let peak = load::closed(arms, arm, CONNECTIONS, seconds)?.rate;
        let open = |count| load::open_at(arms.netns(arm), address, peak * 2.0, seconds, count);
        let (few, many) = (open(CONNECTIONS)?, open(MANY_CONNECTIONS)?);
        drop(limit);
        let failed = few.failed + many.failed;
        eprintln!(
            "block {block}/{blocks} {arm:<14} peak {peak:.0} requests/s, at twice that {:.0} good, by {MANY_CONNECTIONS} \
             connections {:.0}, {failed} failed",
            few.rate, many.rate
        );
        Ok(Overload {
            goodput: few.rate / peak,
            goodput_of_many: many.rate / peak,
            failed: failed as f64 / f64::from(2 * seconds),
        })
    })?;
    let mut records = Vec::new();
    for (name, goodput) in [
        ("overload_goodput_2x", (|one| one.goodput) as fn(&Overload) -> f64),
        ("overload_goodput_2x_512_connections", |one| one.goodput_of_many),
    ] {
        records.push(Record::alone(
            "proxy",
            name,
            "1",
            &samples.column(Arm::Heddle, goodput),
        ));
        let of_peak = format!("{name}_of_peak");
        records.extend(samples.beside(&of_peak, "1", true, |arm| samples.column(arm, goodput)));
    }
    let failed = samples.column(Arm::Heddle, |one| one.failed);
    records.push(Record::alone(
        "proxy",
        "overload_failed_per_second",
        "1/s",
        &failed,
    ));
    Ok(records)
}
