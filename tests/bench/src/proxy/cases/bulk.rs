//! Bytes: CPU per GiB through one sidecar without TLS, and GiB per CPU second through a pair with it.

use std::process::Command;

use anyhow::Context as _;

use super::{
    super::{
        arms::{Arm, Arms, Way},
        client::{self, Pulled},
    },
    Effort, Samples,
};
use crate::record::Record;

const GIB: f64 = (1 << 30) as f64;
/// Of one measurement.
const BYTES: u64 = 2 << 30;

pub(super) fn run(arms: &Arms, here: &[Arm], effort: Effort) -> anyhow::Result<Vec<Record>> {
    let mut records = Vec::new();
    for streams in [1, 8] {
        for (way, metric) in [
            (Way::Plain, "opaque_cpu_seconds_per_gib"),
            (Way::Bytes, "mtls_gib_per_cpu_second"),
        ] {
            let able: Vec<Arm> = here
                .iter()
                .copied()
                .filter(|&arm| Arms::address(arm, way).is_some())
                .collect();
            let samples = Samples::take(&able, effort.blocks, |block, arm| {
                let sample = pull(arms, arm, way, streams)?;
                let Sample { rate, cpu_per_gib } = sample;
                eprintln!(
                    "block {block}/{} {arm:<14} {way:?} x{streams}: {rate:.2} GiB/s, {cpu_per_gib:.3} CPU s per GiB",
                    effort.blocks
                );
                Ok(sample)
            })?;
            let metric = match streams {
                1 => metric.to_owned(),
                _ => format!("{metric}_{streams}_streams"),
            };
            let cpu = |arm| samples.column(arm, |sample| sample.cpu_per_gib);
            let per_cpu = |arm| samples.column(arm, |sample| 1.0 / sample.cpu_per_gib);
            if way == Way::Plain {
                records.extend(samples.beside(&metric, "s", false, cpu));
                continue;
            }
            records.extend(samples.beside(&metric, "GiB/s", true, per_cpu));
            for (bound, which) in [("bound", "cipher"), ("bound with sockets", "sockets")] {
                let bounds = (0..effort.blocks)
                    .map(|_| Ok(floor(arms, &[which, "1"])? / GIB))
                    .collect::<anyhow::Result<Vec<f64>>>()?;
                let ours = per_cpu(Arm::Heddle);
                records.push(Record::beside(
                    "proxy",
                    metric.as_str(),
                    "GiB/s",
                    &ours,
                    (bound, &bounds),
                ));
            }
        }
    }
    Ok(records)
}

struct Sample {
    rate: f64,
    cpu_per_gib: f64,
}

fn pull(arms: &Arms, arm: Arm, way: Way, streams: u64) -> anyhow::Result<Sample> {
    let address = Arms::address(arm, way).context("it goes this way")?;
    let before = arms.cpu_seconds(arm)?;
    let args = [
        "pull",
        "--address",
        &address.to_string(),
        "--bytes",
        &BYTES.to_string(),
        "--streams",
        &streams.to_string(),
    ];
    let Pulled { count, seconds } = client::ask(arms.netns(arm), &args)?;
    let gib = count as f64 / GIB;
    Ok(Sample {
        rate: gib / seconds,
        cpu_per_gib: (arms.cpu_seconds(arm)? - before) / gib,
    })
}

/// One of the bounds, measured now on the sidecars' CPU.
pub(super) fn floor(arms: &Arms, args: &[&str]) -> anyhow::Result<f64> {
    let output = Command::new("taskset")
        .args(["-c", "1"])
        .arg(&arms.programs.floor)
        .args(args)
        .output()
        .context("cannot run the bound")?;
    String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .with_context(|| format!("the bound failed: {}", String::from_utf8_lossy(&output.stderr)))
}
