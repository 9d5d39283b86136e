//! From exec to ready, identity included.

use super::{
    super::{arms::Arm, arms::Arms},
    Effort,
};
use crate::record::Record;

pub(super) fn run(arms: &Arms, effort: Effort) -> anyhow::Result<Vec<Record>> {
    let mesh = arms.another(arms.mesh_options(Arm::Heddle, "start"))?;
    let times = mesh.restart(effort.blocks.max(5))?;
    Ok(vec![Record::alone("proxy", "start_to_ready", "s", &times)])
}
