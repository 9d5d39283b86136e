//! What was decided when a cluster was first brought up, written down so that no other cluster takes it; and the
//! locks around such decisions.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::address::{CLUSTERS_MAX, Slot};
use super::control_plane::Ports;
use super::layout::Layout;
use super::{Cluster, ClusterOptions, Mode, blocking};
use crate::command;
use crate::progress::Progress;

/// What was decided when the cluster was first brought up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) mode: Mode,
    pub(super) slot: Slot,
    pub(super) ports: Ports,
    pub(super) cluster_domain: String,
}

impl Record {
    pub(super) fn read(layout: &Layout) -> Result<Option<Self>> {
        let path = layout.record();
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("failed to read {}", path.display()))?,
        };
        let parsed = serde_json::from_str(&text);
        parsed.map(Some).with_context(|| {
            format!(
                "failed to parse {}; hint: take the cluster down and up again",
                path.display()
            )
        })
    }

    /// Decides on addresses and ports and writes them down, so that no other cluster takes them.
    pub(super) async fn assign(layout: &Layout, options: &ClusterOptions) -> Result<Self> {
        let _lock = lock(layout.clusters().join(".slots.lock"), options.progress).await?;
        let (slot, ports) = match options.mode {
            Mode::Full => (free_slot(layout)?, Ports::OWN_NAMESPACE),
            Mode::ApiServerOnly => (Slot::FIRST, Ports::free()?),
        };
        let record = Self {
            mode: options.mode,
            slot,
            ports,
            cluster_domain: options.cluster_domain.clone(),
        };
        let path = layout.record();
        let text =
            serde_json::to_string_pretty(&record).context("failed to write a cluster's record as JSON")?;
        fs::create_dir_all(layout.state())
            .with_context(|| format!("failed to make {}", layout.state().display()))?;
        // By rename, so that a record is whole or not there.
        let unfinished = path.with_extension("json.tmp");
        fs::write(&unfinished, text).with_context(|| format!("failed to write {}", unfinished.display()))?;
        fs::rename(&unfinished, &path).with_context(|| format!("failed to write {}", path.display()))?;
        Ok(record)
    }
}

/// The lowest slot that no cluster has and whose link network the host does not use.
fn free_slot(layout: &Layout) -> Result<Slot> {
    let mut taken = Vec::new();
    for name in Cluster::names() {
        if let Some(record) = Record::read(&Layout::new(&name)?)? {
            taken.extend((record.mode == Mode::Full && name != layout.name()).then_some(record.slot));
        }
    }
    // Clusters of another state folder, and whoever else uses these addresses.
    let shown = command::run_args("ip", ["-4", "-oneline", "address", "show"])?;
    let used: Vec<Ipv4Addr> = shown
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3)?.split('/').next()?.parse().ok())
        .collect();
    let slot = Slot::lowest_free(|slot| {
        taken.contains(&slot) || used.iter().any(|address| slot.link().contains(*address))
    });
    slot.with_context(|| {
        format!("all {CLUSTERS_MAX} address ranges are taken; hint: cargo xtask down --name NAME")
    })
}

/// Waits for the lock on `path`; it is held until the file is dropped, or the process ends.
pub(super) async fn lock(path: PathBuf, progress: Progress) -> Result<File> {
    blocking(move || lock_now(&path, progress)).await
}

/// As [`lock`], blocking.
pub(super) fn lock_now(path: &Path, progress: Progress) -> Result<File> {
    let shown = || format!("failed to lock {}", path.display());
    loop {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .with_context(shown)?;
        if file.try_lock().is_err() {
            progress.say(format!(
                "Another process holds {}: waiting for it.",
                path.display()
            ));
            file.lock().with_context(shown)?;
        }
        // Its last holder may have removed it; then the lock that counts is on another file.
        let locked = file.metadata().with_context(shown)?;
        if fs::metadata(path).is_ok_and(|named| (named.dev(), named.ino()) == (locked.dev(), locked.ino())) {
            return Ok(file);
        }
    }
}
