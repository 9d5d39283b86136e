//! New connections, each with a mutual handshake between the sidecars.

use anyhow::Context as _;

use super::{
    super::{
        arms::{Arm, Arms, Way},
        client::{self, Pulled},
    },
    Effort, Samples, bulk,
};
use crate::record::Record;

const PARALLEL: usize = 8;

pub(super) fn run(arms: &Arms, here: &[Arm], effort: Effort) -> anyhow::Result<Vec<Record>> {
    let Effort { blocks, seconds } = effort;
    let dir = arms.dir().to_string_lossy().into_owned();
    let mut bounds = Vec::new();
    for _ in 0..blocks {
        bounds.push(bulk::floor(arms, &["handshakes", "1", &dir])?);
    }
    let samples = Samples::take(here, blocks, |block, arm| {
        let address = Arms::address(arm, Way::Bytes).context("it carries bytes")?;
        let before = arms.cpu_seconds(arm)?;
        let args = [
            "connect",
            "--address",
            &address.to_string(),
            "--seconds",
            &seconds.to_string(),
            "--parallel",
            &PARALLEL.to_string(),
        ];
        let Pulled { count, seconds } = client::ask(arms.netns(arm), &args)?;
        let cpu = arms.cpu_seconds(arm)? - before;
        let (rate, each) = (count as f64 / seconds, count as f64 / cpu);
        eprintln!("block {block}/{blocks} {arm:<14} {rate:.0} connections/s, {each:.0} per CPU second");
        Ok(each)
    })?;
    let per_cpu = |arm| samples.column(arm, |sample| *sample);
    let metric = "handshakes_per_cpu_second";
    let mut records = samples.beside(metric, "1/s", true, per_cpu);
    let bound = ("bound", bounds.as_slice());
    records.push(Record::beside(
        "proxy",
        metric,
        "1/s",
        &per_cpu(Arm::Heddle),
        bound,
    ));
    Ok(records)
}
