//! Tails while an endpoint comes and goes a thousand times a second.

use anyhow::Context as _;

use super::{
    super::{
        arms::{Arm, Arms, Way},
        load,
    },
    Effort, Samples,
};
use crate::record::Record;

const FLAPS_PER_SECOND: u32 = 1_000;

pub(super) fn run(arms: &Arms, effort: Effort) -> anyhow::Result<Vec<Record>> {
    let Effort { blocks, seconds } = effort;
    let options = arms
        .mesh_options(Arm::Heddle, "flapping")
        .flapping(FLAPS_PER_SECOND);
    let flapping = arms.another(options)?;
    let address = Arms::address(Arm::Heddle, Way::Http).context("it carries HTTP")?;
    let (calm, churned) = (arms.netns(Arm::Heddle), &flapping.netns.client);
    let rate = load::closed_at(churned, address, 64, 2)?.rate / 2.0;
    // The second of each block's two arms is the one with churn.
    let samples = Samples::take(&[Arm::Heddle, Arm::HeddleAgain], blocks, |block, arm| {
        let netns = match arm {
            Arm::Heddle => churned,
            _ => calm,
        };
        let open = load::open_at(netns, address, rate, seconds, 32)?;
        let name = if arm == Arm::Heddle { "churn" } else { "calm" };
        let p99 = open.p99 * 1e6;
        eprintln!(
            "block {block}/{blocks} {name:<14} at {rate:.0} requests/s p99 {p99:.0} us, {} failed",
            open.failed
        );
        Ok(open)
    })?;
    let p99 = |arm| samples.column(arm, |open| open.p99);
    let failed = samples.column(Arm::Heddle, |open| open.failed as f64);
    Ok(vec![
        Record::beside(
            "proxy",
            "p99_half_load_1000_flaps",
            "s",
            &p99(Arm::Heddle),
            ("no churn", &p99(Arm::HeddleAgain)),
        ),
        Record::alone("proxy", "failed_requests_1000_flaps", "1", &failed),
    ])
}
