//! Instructions that a pair of proxies executes per request, counted by callgrind and compared with the committed
//! counts: a change that makes a request dearer is seen without measuring time.
//!
//! One client sends one request after another on one connection, so that little depends on timing. What a pair that lived
//! for N requests took is subtracted from what one took that lived for 2N, so that start and end are in neither. Both
//! proxies have one worker. What is left of chance is how often a proxy is woken for what arrives in pieces (on a busy
//! machine less often): so the median of several counts is committed, and a count that is too high is taken again, and the
//! least counts.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

use crate::proxy::{
    arms::{Arm, Arms, Way, write_certificates},
    client::{Caller, Kind},
    mesh::{Mesh, MeshOptions},
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The proxy, as users get it.
    #[arg(long, default_value = "target/release/heddle-proxy")]
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

/// How often it is counted before a count is taken for too high.
const TRIES: usize = 5;

type Counts = BTreeMap<String, u64>;

/// What is committed.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Committed {
    /// Another compiler makes other code.
    rustc: String,
    instructions_per_request: Counts,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let Options {
        proxy,
        init,
        counts,
        record,
    } = options;
    let rustc = rustc()?;
    if *record {
        let all = (0..TRIES)
            .map(|_| count(proxy, init, &Kind::ALL))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let now = Committed {
            rustc,
            instructions_per_request: medians(&all),
        };
        std::fs::write(counts, serde_json::to_string_pretty(&now)? + "\n")
            .with_context(|| format!("cannot write {}", counts.display()))?;
        eprintln!(
            "{} says now: {:?}",
            counts.display(),
            now.instructions_per_request
        );
        return Ok(());
    }
    let text =
        std::fs::read_to_string(counts).with_context(|| format!("cannot read {}", counts.display()))?;
    let committed: Committed =
        serde_json::from_str(&text).with_context(|| format!("{} is not valid", counts.display()))?;
    let mut now = count(proxy, init, &Kind::ALL)?;
    for _ in 1..TRIES {
        let again: Vec<Kind> = Kind::ALL
            .into_iter()
            .filter(|kind| dearer(&committed.instructions_per_request, &now, &kind.to_string()).is_some())
            .collect();
        if again.is_empty() {
            break;
        }
        take_least(&mut now, count(proxy, init, &again)?);
    }
    judge(&committed, &now, &rustc)
}

fn medians(counts: &[Counts]) -> Counts {
    let mut all: BTreeMap<&String, Vec<u64>> = BTreeMap::new();
    for (kind, count) in counts.iter().flatten() {
        all.entry(kind).or_default().push(*count);
    }
    all.into_iter()
        .map(|(kind, mut counts)| {
            counts.sort_unstable();
            eprintln!("{kind}: {counts:?}");
            (kind.clone(), counts[counts.len() / 2])
        })
        .collect()
}

fn take_least(least: &mut Counts, counts: Counts) {
    for (kind, count) in counts {
        let one = least.entry(kind).or_insert(count);
        *one = count.min(*one);
    }
}

/// The compiler that built the proxies: the one that this folder has.
fn rustc() -> anyhow::Result<String> {
    let output = Command::new("rustc").arg("--version").output();
    let output = output.context("`rustc --version` does not run")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Says by how much a kind of request costs too much.
fn dearer(committed: &Counts, now: &Counts, kind: &str) -> Option<String> {
    let (Some(before), Some(now)) = (committed.get(kind), now.get(kind)) else {
        return Some(format!("{kind}: no count to compare"));
    };
    (now * 100 > before * (100 + GROWTH_PERCENT_MAX)).then(|| format!("{kind}: {before} -> {now}"))
}

fn judge(committed: &Committed, now: &Counts, rustc: &str) -> anyhow::Result<()> {
    let before = &committed.instructions_per_request;
    for (kind, &now) in now {
        let growth = before.get(kind).map(|&before| now as f64 / before as f64 - 1.0);
        eprintln!(
            "{kind:<8} {now:>8} instructions per request, {:+.1} %",
            growth.unwrap_or_default() * 100.0
        );
    }
    let dearer: Vec<_> = now.keys().filter_map(|kind| dearer(before, now, kind)).collect();
    let compiler = if committed.rustc == rustc {
        String::new()
    } else {
        format!(
            "; they were counted with {}, and this is {rustc}",
            committed.rustc
        )
    };
    ensure!(
        dearer.is_empty(),
        "requests cost more than {GROWTH_PERCENT_MAX} % more instructions than committed ({}){compiler}; hint: look with \
         `callgrind_annotate`, and if the cost is worth it, `cargo xtask instructions --record` and commit the file with the reason",
        dearer.join(", ")
    );
    Ok(())
}

fn count(proxy: &Path, init: &Path, kinds: &[Kind]) -> anyhow::Result<Counts> {
    ensure!(
        proxy.exists(),
        "{} is missing: `cargo xtask instructions` builds it",
        proxy.display()
    );
    let mut counts = Counts::new();
    for &kind in kinds {
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

    fn committed(instructions_per_request: Counts) -> Committed {
        Committed {
            rustc: "rustc 1".to_owned(),
            instructions_per_request,
        }
    }

    #[test]
    fn more_than_three_percent_is_too_much() {
        let thousand = committed(counts(1000));
        judge(&thousand, &counts(1030), "rustc 1").expect("three percent are allowed");
        judge(&thousand, &counts(700), "rustc 1").expect("less is welcome");
        let error = judge(&thousand, &counts(1031), "rustc 1").expect_err("it grew");
        assert!(
            error.to_string().contains("(http1: 1000 -> 1031); hint"),
            "{error}"
        );
        let error = judge(&thousand, &counts(1031), "rustc 2").expect_err("it grew");
        assert!(
            error
                .to_string()
                .contains("counted with rustc 1, and this is rustc 2"),
            "{error}"
        );
        judge(&committed(Counts::new()), &counts(1), "rustc 1").expect_err("nothing to compare with");
    }

    #[test]
    fn the_least_of_several_counts_is_taken_and_the_median_committed() {
        let mut least = counts(5);
        take_least(&mut least, counts(7));
        take_least(&mut least, counts(4));
        assert_eq!(least, counts(4));
        assert_eq!(medians(&[counts(5), counts(9), counts(1)]), counts(5));
    }
}
