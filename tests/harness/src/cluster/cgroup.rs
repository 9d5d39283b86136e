//! The cluster's folder in every cgroup hierarchy: it holds all pods, tells them from everyone else's, and keeps
//! two kubelets on one machine apart.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::layout::Layout;

const ROOT: &str = "/sys/fs/cgroup";

/// Makes the folder wherever a hierarchy is mounted.
pub(super) fn ensure(layout: &Layout) -> Result<()> {
    for root in hierarchies() {
        let own = root.join(layout.cgroup());
        if !own.exists() {
            fs::create_dir(&own).with_context(|| format!("failed to make the cgroup {}", own.display()))?;
        }
        // In the first version's cpuset hierarchy a new group has no processors and no memory until it is given some.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let (from, to) = (root.join(file), own.join(file));
            if let Ok(value) = fs::read_to_string(&from)
                && fs::read_to_string(&to).is_ok_and(|own| own.trim().is_empty())
                && root.join("cgroup.clone_children").exists()
            {
                fs::write(&to, value).with_context(|| format!("failed to write {}", to.display()))?;
            }
        }
        // In the second version a group's controllers are those that its parent hands down.
        if let Ok(controllers) = fs::read_to_string(root.join("cgroup.controllers")) {
            let all: String = controllers
                .split_whitespace()
                .map(|name| format!("+{name} "))
                .collect();
            for group in [&root, &own] {
                // A controller that cannot be handed down is one that the kubelet will name if it needs it.
                let _ = fs::write(group.join("cgroup.subtree_control"), all.trim_end());
            }
        }
    }
    Ok(())
}

/// Processes in the cluster's groups: everything that runs in its pods.
pub(super) fn processes(layout: &Layout) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    for group in groups(layout) {
        let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        found.extend(
            text.lines()
                .filter_map(|line| line.trim().parse::<u32>().ok())
                .filter(|pid| *pid > 0),
        );
    }
    found
}

/// Removes the folders, innermost first; returns those that are still held by something.
pub(super) fn remove(layout: &Layout) -> Vec<PathBuf> {
    let mut groups = groups(layout);
    groups.sort_by_key(|group| std::cmp::Reverse(group.components().count()));
    groups
        .into_iter()
        .filter(|group| fs::remove_dir(group).is_err() && group.exists())
        .collect()
}

/// All groups of the cluster, in every hierarchy.
fn groups(layout: &Layout) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = hierarchies().map(|root| root.join(layout.cgroup())).collect();
    while let Some(group) = open.pop() {
        if let Ok(entries) = fs::read_dir(&group) {
            open.extend(
                entries
                    .flatten()
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|entry| entry.path()),
            );
            found.push(group);
        }
    }
    found
}

/// The mounted hierarchies; symbolic links such as `cpu -> cpu,cpuacct` are left out.
fn hierarchies() -> impl Iterator<Item = PathBuf> {
    let unified = Path::new(ROOT).join("cgroup.controllers").exists();
    let mut found = Vec::new();
    if unified {
        found.push(PathBuf::from(ROOT));
    } else if let Ok(entries) = fs::read_dir(ROOT) {
        let folders = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        found.extend(
            folders
                .map(|entry| entry.path())
                .filter(|path| path.join("cgroup.procs").exists()),
        );
    }
    found.into_iter()
}
