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
/// More than what is in flight at the peak; beyond these the generator waits, and the wait counts.
const CONNECTIONS: usize = 512;

pub(super) fn run(arms: &Arms, here: &[Arm], effort: Effort) -> anyhow::Result<Vec<Record>> {
    let Effort { blocks, seconds } = effort;
    let samples = Samples::take(here, blocks, |block, arm| {
        let address = Arms::address(arm, Way::Http).context("it carries HTTP")?;
        let limit = CpuLimit::new(CPU_LIMIT, &arms.pids(arm))?;
        let peak = load::closed(arms, arm, 64, seconds)?.rate;
        let open = load::open_at(arms.netns(arm), address, peak * 2.0, seconds, CONNECTIONS)?;
        drop(limit);
        let goodput = open.rate / peak;
        eprintln!(
            "block {block}/{blocks} {arm:<14} peak {peak:.0} requests/s, at twice that {:.0} good, {} failed",
            open.rate, open.failed
        );
        Ok((goodput, open.failed as f64 / f64::from(seconds)))
    })?;
    let goodput = |arm| samples.column(arm, |(goodput, _)| *goodput);
    let mut records = vec![Record::alone(
        "proxy",
        "overload_goodput_2x",
        "1",
        &goodput(Arm::Heddle),
    )];
    records.extend(samples.beside("overload_goodput_2x_of_peak", "1", true, goodput));
    let failed = samples.column(Arm::Heddle, |(_, failed)| *failed);
    records.push(Record::alone(
        "proxy",
        "overload_failed_per_second",
        "1/s",
        &failed,
    ));
    Ok(records)
}
