//! What an idle process holds, and what each idle connection adds to it. The kernel's own memory is not counted.

use std::time::Duration;

use super::super::{
    arms::{Arm, Arms, Way},
    client::Hold,
    usage,
};
use crate::record::Record;

const FEW: usize = 1_000;
/// Connections are idle when nothing has passed for so long.
const IDLE_TIME: Duration = Duration::from_secs(5);
/// Where the limit of open files allows so many.
const MANY: usize = 10_000;

pub(super) fn run(arms: &Arms, here: &[Arm]) -> anyhow::Result<Vec<Record>> {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    // Each takes two in a sidecar, and haproxy wants a fourth more.
    let many = files.map_or(MANY, |files| files as usize * 3 / 8).min(MANY);
    let mut records = Vec::new();
    let mut alone = |metric: String, value: f64| {
        records.push(Record::alone("proxy", metric, "B", &[value]));
    };
    for &arm in here {
        // The client's sidecar: the server's does less while nothing happens.
        let Some(&pid) = arms.pids(arm).first() else {
            continue;
        };
        let suffix = match arm {
            Arm::Heddle => String::new(),
            _ => format!("_{arm}"),
        };
        alone(
            format!("idle_process_bytes{suffix}"),
            usage::proportional_bytes(pid)?,
        );
        alone(
            format!("idle_process_resident_bytes{suffix}"),
            usage::resident_bytes(pid)?,
        );
        alone(
            format!("idle_process_anonymous_bytes{suffix}"),
            usage::anonymous_bytes(pid)?,
        );
    }
    for (name, way, http) in [
        ("opaque", Way::Plain, false),
        ("mtls", Way::Bytes, false),
        ("http1", Way::Http, true),
    ] {
        for &arm in here.iter().filter(|&&arm| arm != Arm::HeddleAgain) {
            let Some(address) = Arms::address(arm, way) else {
                continue;
            };
            for count in [FEW, many] {
                // Sidecars that have done nothing before: freed memory would be taken again, unseen.
                let fresh = match arm {
                    Arm::Heddle | Arm::Linkerd => Some(arms.another(arms.mesh_options(arm, "idle"))?),
                    _ => None,
                };
                let (pids, netns) = match &fresh {
                    Some(mesh) => (mesh.pids(), &mesh.netns.client),
                    None => (arms.pids(arm), arms.netns(arm)),
                };
                // What the first connection brings along is not an idle one's.
                drop(Hold::new(netns, address, 10, http)?);
                let memory = || -> anyhow::Result<Vec<f64>> {
                    pids.iter().map(|&pid| usage::anonymous_bytes(pid)).collect()
                };
                let before = memory()?;
                let held = Hold::new(netns, address, count, http)?;
                std::thread::park_timeout(IDLE_TIME);
                // Of the two sides the one that each costs more.
                let each = memory()?
                    .iter()
                    .zip(&before)
                    .map(|(now, before)| (now - before) / count as f64)
                    .fold(0.0, f64::max);
                drop(held);
                eprintln!("{arm:<14} {count:>6} idle {name} connections: {each:.0} bytes each");
                let suffix = match (arm, count) {
                    (Arm::Heddle, FEW) => "_of_1000".to_owned(),
                    (Arm::Heddle, _) => String::new(),
                    (arm, FEW) => format!("_of_1000_{arm}"),
                    (arm, _) => format!("_{arm}"),
                };
                records.push(Record::alone(
                    "proxy",
                    format!("idle_connection_bytes_{name}{suffix}"),
                    "B",
                    &[each],
                ));
            }
        }
    }
    Ok(records)
}
