//! Instructions that a pair of proxies executes per request, counted by callgrind and compared with the committed
//! counts: a change that makes a request dearer is seen, however busy the machine is.
//!
//! One client sends one request after another on one connection, so that nothing depends on timing. What N requests
//! cost is taken from what 2N cost; what happens once, or now and then, is in neither. Both proxies have one worker.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail, ensure};

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

const WARM_UP: u64 = 300;
const REQUESTS: u64 = 500;
/// What a request may cost more than was committed.
const GROWTH_MAX: f64 = 0.03;

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
        if growth > GROWTH_MAX {
            dearer.push(format!("{kind}: {before} -> {now}"));
        }
    }
    ensure!(
        dearer.is_empty(),
        "requests cost more than {:.0} % more instructions than committed ({}); hint: look with `callgrind_annotate`, and \
         if the cost is worth it, `cargo xtask instructions --record` and commit the file with the reason",
        GROWTH_MAX * 100.0,
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
    let files = tempfile::tempdir()?;
    let dir = files.path();
    // The proxies' user writes the counts here.
    std::fs::set_permissions(dir, PermissionsExt::from_mode(0o777))?;
    write_certificates(dir)?;
    let prefix = dir.join("vgdb");
    let wrapper: Vec<OsString> = vec![
        "valgrind".into(),
        "--quiet".into(),
        "--tool=callgrind".into(),
        format!("--vgdb-prefix={}", prefix.display()).into(),
        format!("--callgrind-out-file={}/count.%p", dir.display()).into(),
    ];
    let options = MeshOptions::new(Arm::Heddle, proxy.to_owned()).wrapped(wrapper);
    let mesh = Mesh::start(dir, init, options)?;
    mesh.wait_ready()?;
    let mut counts = Counts::new();
    for kind in Kind::ALL {
        let address = Arms::address(Arm::Heddle, Way::Bytes).context("it carries bytes")?;
        let mut caller = Caller::new(&mesh.netns.client, address, kind)?;
        caller.call(WARM_UP)?;
        let mut section = |requests| -> anyhow::Result<u64> {
            // A dump starts the count anew.
            dump_all(&mesh, dir, &prefix)?;
            caller.call(requests)?;
            dump_all(&mesh, dir, &prefix)
        };
        let (once, twice) = (section(REQUESTS)?, section(2 * REQUESTS)?);
        ensure!(
            twice > once,
            "{kind}: {twice} instructions for twice the requests that took {once}"
        );
        counts.insert(kind.to_string(), (twice - once) / REQUESTS);
    }
    Ok(counts)
}

/// Instructions of both proxies since the last time.
fn dump_all(mesh: &Mesh, dir: &Path, prefix: &Path) -> anyhow::Result<u64> {
    let mut sum = 0;
    for proxy in &mesh.proxies {
        sum += dump(proxy.pid(), dir, prefix)?;
    }
    Ok(sum)
}

fn dump(pid: u32, dir: &Path, prefix: &Path) -> anyhow::Result<u64> {
    let written = |at: u32| dir.join(format!("count.{pid}.{at}"));
    let last = (1..).take_while(|&at| written(at).exists()).last().unwrap_or(0);
    let output = Command::new("vgdb")
        .arg(format!("--vgdb-prefix={}", prefix.display()))
        .arg(format!("--pid={pid}"))
        .arg("dump")
        // The channel's name has the user's in it, and the proxies have none.
        .env_remove("LOGNAME")
        .env_remove("USER")
        .output()
        .context("cannot run vgdb")?;
    let path = written(last + 1);
    let text = std::fs::read_to_string(&path).with_context(|| {
        format!(
            "no counts came: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )
    })?;
    let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
    let Some(total) = totals.and_then(|total| total.trim().parse().ok()) else {
        bail!("{} has no totals", path.display());
    };
    Ok(total)
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
