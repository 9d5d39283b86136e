//! Instructions that a pair of proxies executes per request, counted by callgrind and compared with the committed
//! counts: a change that makes a request dearer is seen, however busy the machine is.
//!
//! One client sends one request after another on one connection, so that little depends on timing. What a pair that lived
//! for N requests took is subtracted from what one took that lived for 2N, so that start and end are in neither. Both
//! proxies have one worker.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};

use crate::proxy::{
    arms::{Arm, Arms, Way, write_certificates},
    client::{Caller, Kind},
    mesh::{Mesh, MeshOptions},
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The proxy, built with the profile `image`.
    #[arg(long, default_value = "target/image/heddle-proxy")]
    proxy: PathBuf,
    /// What redirects a namespace's traffic to it.
    #[arg(long, default_value = "target/debug/heddle-init")]
    init: PathBuf,
    /// The committed counts.
    #[arg(long, default_value = "tests/bench/instructions.json")]
    counts: PathBuf,
    /// Writes the counts instead of comparing with them.
    #[arg(long)]
    record: bool,
}

const REQUESTS: u64 = 1_000;
/// Per cent that a request may cost more than was committed.
const GROWTH_PERCENT_MAX: u64 = 3;

type Counts = BTreeMap<String, u64>;

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let Options {
        proxy,
        init,
        counts,
        record,
    } = options;
    let now = count(proxy, init)?;
    if *record {
        std::fs::write(counts, serde_json::to_string_pretty(&now)? + "\n")
            .with_context(|| format!("cannot write {}", counts.display()))?;
        eprintln!("{} says now: {now:?}", counts.display());
        return Ok(());
    }
    let text =
        std::fs::read_to_string(counts).with_context(|| format!("cannot read {}", counts.display()))?;
    let committed: Counts =
        serde_json::from_str(&text).with_context(|| format!("{} is not valid", counts.display()))?;
    judge(&committed, &now)
}

fn judge(committed: &Counts, now: &Counts) -> anyhow::Result<()> {
    let mut dearer = Vec::new();
    for (kind, &now) in now {
        let before = *committed
            .get(kind)
            .with_context(|| format!("there is no committed count of {kind}"))?;
        let growth = now as f64 / before as f64 - 1.0;
        eprintln!(
            "{kind:<8} {now:>8} instructions per request, {:+.1} %",
            growth * 100.0
        );
        if now * 100 > before * (100 + GROWTH_PERCENT_MAX) {
            dearer.push(format!("{kind}: {before} -> {now}"));
        }
    }
    ensure!(
        dearer.is_empty(),
        "requests cost more than {GROWTH_PERCENT_MAX} % more instructions than committed ({}); hint: look with `callgrind_annotate`, and \
         if the cost is worth it, `cargo xtask instructions --record` and commit the file with the reason",
        dearer.join(", ")
    );
    Ok(())
}

fn count(proxy: &Path, init: &Path) -> anyhow::Result<Counts> {
    ensure!(
        proxy.exists(),
        "{} is missing: `cargo xtask instructions` builds it",
        proxy.display()
    );
    let mut counts = Counts::new();
    for kind in Kind::ALL {
        let total = |requests| total(proxy, init, kind, requests).with_context(|| format!("counting {kind}"));
        let (once, twice) = (total(REQUESTS)?, total(2 * REQUESTS)?);
        ensure!(
            twice > once,
            "{kind}: {twice} instructions for twice the requests that took {once}"
        );
        counts.insert(kind.to_string(), (twice - once) / REQUESTS);
    }
    Ok(counts)
}

/// Instructions of a pair of proxies from start to end, with so many requests between. (To ask a running program for its
/// counts, `vgdb` must interrupt it, and that valgrind does not survive reliably.)
fn total(proxy: &Path, init: &Path, kind: Kind, requests: u64) -> anyhow::Result<u64> {
    let files = tempfile::tempdir()?;
    let dir = files.path();
    // The proxies' user writes the counts here.
    std::fs::set_permissions(dir, PermissionsExt::from_mode(0o777))?;
    write_certificates(dir)?;
    let wrapper: Vec<OsString> = vec![
        "valgrind".into(),
        "--quiet".into(),
        "--tool=callgrind".into(),
        "--vgdb=no".into(),
        format!("--callgrind-out-file={}/count.%p", dir.display()).into(),
    ];
    let options = MeshOptions::new(Arm::Heddle, proxy.to_owned()).wrapped(wrapper);
    let mut mesh = Mesh::start(dir, init, options)?;
    mesh.wait_ready()?;
    let address = Arms::address(Arm::Heddle, Way::Bytes).context("it carries bytes")?;
    let mut caller = Caller::new(&mesh.netns.client, address, kind)?;
    caller.call(requests)?;
    drop(caller);
    let pids = mesh.pids();
    // Ends them, and waits: the counts are written last.
    mesh.proxies.clear();
    pids.iter()
        .map(|pid| read_total(&dir.join(format!("count.{pid}"))))
        .sum()
}

fn read_total(path: &Path) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
    let total = totals.and_then(|total| total.trim().parse().ok());
    total.with_context(|| {
        format!(
            "{} has no totals: the proxy did not end by itself",
            path.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(http1: u64) -> Counts {
        Counts::from([("http1".to_owned(), http1)])
    }

    #[test]
    fn more_than_three_percent_is_too_much() {
        judge(&counts(1000), &counts(1030)).expect("three percent are allowed");
        judge(&counts(1000), &counts(700)).expect("less is welcome");
        let error = judge(&counts(1000), &counts(1031)).expect_err("it grew");
        assert!(error.to_string().contains("http1: 1000 -> 1031"), "{error}");
        judge(&Counts::new(), &counts(1)).expect_err("nothing to compare with");
    }
}
