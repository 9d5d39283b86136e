//! SIGTERM to the client's sidecar under load: is any request lost?

use anyhow::Context as _;

use super::{
    super::{
        arms::{Arm, Arms, Way},
        client::Drained,
    },
    Effort,
};
use crate::record::Record;

const CONNECTIONS: usize = 64;

pub(super) fn run(arms: &Arms, effort: Effort) -> anyhow::Result<Vec<Record>> {
    let address = Arms::address(Arm::Heddle, Way::Http).context("it carries HTTP")?;
    let mut lost = Vec::new();
    for block in 1..=effort.blocks {
        let options = arms.mesh_options(Arm::Heddle, &format!("drain{block}"));
        let mesh = arms.another(options)?;
        let Drained {
            answered,
            lost: here,
            told,
        } = mesh.drain_under_load(address, CONNECTIONS)?;
        eprintln!(
            "block {block}/{}: {answered} answered, {here} lost, {told} connections told",
            effort.blocks
        );
        anyhow::ensure!(told > 0, "no connection was told that the proxy ends");
        lost.push(here as f64);
    }
    Ok(vec![Record::alone("proxy", "drain_lost_requests", "1", &lost)])
}
