//! Kernel settings of the whole machine that a kubelet changes: remembered before the first cluster with a node
//! comes up, put back when the last one has gone.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What the kubelet sets, below /proc/sys.
const CHANGED_BY_KUBELET: &[&str] = &[
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
];

/// Remembers the settings unless that has been done.
pub(super) fn remember(clusters: &Path) {
    let file = file(clusters);
    if file.exists() {
        return;
    }
    let settings: BTreeMap<&str, String> = CHANGED_BY_KUBELET
        .iter()
        .filter_map(|key| {
            fs::read_to_string(path(key))
                .ok()
                .map(|value| (*key, value.trim().to_owned()))
        })
        .collect();
    if let Ok(text) = serde_json::to_string_pretty(&settings) {
        // Without the file the settings stay as the kubelet wants them, which harms nothing that runs.
        let _ = fs::write(file, text);
    }
}

/// Puts the settings back and forgets them.
pub(super) fn restore(clusters: &Path) {
    let file = file(clusters);
    let Ok(text) = fs::read_to_string(&file) else {
        return;
    };
    let settings: BTreeMap<String, String> = serde_json::from_str(&text).unwrap_or_default();
    for key in CHANGED_BY_KUBELET {
        if let Some(value) = settings.get(*key) {
            let _ = fs::write(path(key), value);
        }
    }
    let _ = fs::remove_file(file);
}

fn path(key: &str) -> PathBuf {
    Path::new("/proc/sys").join(key)
}

fn file(clusters: &Path) -> PathBuf {
    clusters.join(".sysctls.json")
}
