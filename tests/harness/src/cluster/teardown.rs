//! Taking a cluster away completely, whatever state it is in and whatever was killed before.
//!
//! Works from the cluster's name alone. The order matters: processes first, for they hold everything else; then
//! mounts, namespaces and cgroups; the state folder last, so that a `down` that fails can be repeated.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::layout::{Layout, PREFIX};
use super::{cgroup, network, process, sysctl};

/// How long cgroups may take to empty after their processes have gone.
const CGROUP_LIMIT: Duration = Duration::from_secs(10);

/// What was removed, for people.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// Processes that were killed.
    pub processes: usize,
    /// Mounts that were removed.
    pub mounts: usize,
    /// Whether there was anything at all.
    pub existed: bool,
}

/// Removes everything of the cluster. The caller holds its lock.
pub(super) fn remove(layout: &Layout) -> Result<Removed> {
    process::check_owner(layout)?;
    let existed = layout.state().exists() || network::exists(layout);
    let processes = process::kill_all(|| process::of_cluster(layout))?;
    let mounts = unmount_below(&layout.state())?;
    network::remove(layout)?;
    remove_cgroups(layout)?;
    for folder in [layout.shim_sockets(), layout.state()] {
        remove_tree(&folder)?;
    }
    remove_traces(layout);
    if !any_other_node(layout) {
        sysctl::restore(layout.clusters());
    }
    Ok(Removed {
        processes,
        mounts,
        existed,
    })
}

/// Unmounts all below `folder`, what was mounted last first.
fn unmount_below(folder: &Path) -> Result<usize> {
    let mut mounts = mounts_below(folder)?;
    mounts.reverse();
    for mount in &mounts {
        // Detached: whoever still looks at it keeps it for as long as that lasts, and no longer.
        match rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH) {
            // It went with another one.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("failed to unmount {}", mount.display()));
            }
        }
    }
    Ok(mounts.len())
}

fn mounts_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("failed to read the list of mounts")?;
    let points = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape);
    Ok(points.filter(|point| point.starts_with(folder)).collect())
}

/// The kernel writes spaces, tabs, newlines and backslashes of a path as three octal digits.
fn unescape(field: &str) -> PathBuf {
    let bytes = field.as_bytes();
    let (mut path, mut index) = (Vec::with_capacity(bytes.len()), 0);
    while index < bytes.len() {
        let digits = bytes
            .get(index + 1..index + 4)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if bytes[index] == b'\\' => {
                path.push(byte);
                index += 4;
            }
            _ => {
                path.push(bytes[index]);
                index += 1;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(path))
}

fn remove_cgroups(layout: &Layout) -> Result<()> {
    let deadline = Instant::now() + CGROUP_LIMIT;
    loop {
        let held = cgroup::remove(layout);
        if held.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("cgroups are still in use: {held:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn remove_tree(folder: &Path) -> Result<()> {
    let mounted = mounts_below(folder)?;
    if !mounted.is_empty() {
        // Removing would reach into what is mounted there.
        bail!(
            "{} is not removed: still mounted below it: {mounted:?}",
            folder.display()
        );
    }
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Files that the runtime and the kubelet keep in places of the whole machine, whatever they are told.
fn remove_traces(layout: &Layout) {
    let results = Path::new("/var/lib/cni/results");
    for entry in fs::read_dir(results).into_iter().flatten().flatten() {
        if is_cni_result(&entry.file_name().to_string_lossy(), &layout.cni_network()) {
            // Cache entries and dead links: nothing reads them, so what cannot be removed does no harm.
            let _ = fs::remove_file(entry.path());
        }
    }
    let links = Path::new("/var/log/containers");
    for entry in fs::read_dir(links).into_iter().flatten().flatten() {
        if fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(layout.state())) {
            let _ = fs::remove_file(entry.path());
        }
    }
    for folder in [
        results,
        Path::new("/var/lib/cni"),
        links,
        Path::new("/run/heddle"),
    ] {
        // Only if empty.
        let _ = fs::remove_dir(folder);
    }
}

/// `<network>-<container id>-<interface>`: the id tells `a` from `a-b`.
fn is_cni_result(file: &str, network: &str) -> bool {
    let rest = file.strip_prefix(network).and_then(|rest| rest.strip_prefix('-'));
    rest.and_then(|rest| rest.split_once('-'))
        .is_some_and(|(id, _)| id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Whether another cluster with a node is there.
fn any_other_node(layout: &Layout) -> bool {
    let own = layout.netns();
    let mut others = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    others.any(|entry| {
        entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(PREFIX) && name != own)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_mount_points_are_read() {
        assert_eq!(unescape("/a/b"), PathBuf::from("/a/b"));
        assert_eq!(unescape("/a\\040b\\134c"), PathBuf::from("/a b\\c"));
        assert_eq!(unescape("/a\\"), PathBuf::from("/a\\"));
    }

    #[test]
    fn only_the_clusters_own_network_results_are_known() {
        let id = "0123456789abcdef".repeat(4);
        assert!(is_cni_result(&format!("heddle-a-{id}-eth0"), "heddle-a"));
        assert!(!is_cni_result(&format!("heddle-a-b-{id}-eth0"), "heddle-a"));
        assert!(!is_cni_result("other", "heddle-a"));
    }
}
