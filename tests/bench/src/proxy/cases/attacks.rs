//! Clients of the mesh while someone else attacks the server's sidecar: how much longer do they wait?

use anyhow::Context as _;
use clap::ValueEnum as _;

use super::{
    super::{
        arms::{Arm, Arms, Way},
        client::{Attack, Attacker},
        load, usage,
    },
    Effort,
};
use crate::record::Record;

/// Requests per second of the clients: far from what the sidecars can do.
const RATE: f64 = 1_000.0;
const CONNECTIONS: usize = 32;

pub(super) fn run(arms: &Arms, effort: Effort) -> anyhow::Result<Vec<Record>> {
    let Effort { blocks, seconds } = effort;
    let address = Arms::address(Arm::Heddle, Way::Http).context("it carries HTTP")?;
    let netns = arms.netns(Arm::Heddle);
    let server = *arms.pids(Arm::Heddle).last().context("it has two sidecars")?;
    let measure = || load::open_at(netns, address, RATE, seconds, CONNECTIONS);
    let mut records = Vec::new();
    for attack in Attack::value_variants() {
        let name = attack.name().replace('-', "_");
        let (mut with, mut without, mut failed, mut growth) = (vec![], vec![], vec![], vec![]);
        for block in 1..=blocks {
            let alone = measure()?;
            let before = usage::anonymous_bytes(server)?;
            let attacker = Attacker::start(netns, address, *attack)?;
            let beside = measure()?;
            let grown = usage::anonymous_bytes(server)? - before;
            attacker.end()?;
            eprintln!(
                "block {block}/{blocks} {name}: p99 {:.2} ms, without {:.2} ms, {} failed, {:.1} MB more",
                beside.p99 * 1e3,
                alone.p99 * 1e3,
                beside.failed,
                grown / 1e6,
            );
            with.push(beside.p99);
            without.push(alone.p99);
            failed.push(beside.failed as f64);
            growth.push(grown);
        }
        let peer = ("no attack", without.as_slice());
        records.push(Record::beside(
            "proxy",
            format!("p99_beside_{name}"),
            "s",
            &with,
            peer,
        ));
        records.push(Record::alone(
            "proxy",
            format!("failed_beside_{name}"),
            "1",
            &failed,
        ));
        records.push(Record::alone("proxy", format!("growth_by_{name}"), "B", &growth));
    }
    Ok(records)
}
