//! A memory limit, as a container runtime sets it.

use std::{
    path::Path,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use crate::eventually;

/// Version 1's controller, where there is one, and version 2's root.
const V1: &str = "/sys/fs/cgroup/memory";
const V2: &str = "/sys/fs/cgroup";

/// A cgroup for one process; removed with the value, when the process has ended.
pub(crate) struct Cgroup {
    root: &'static str,
    path: String,
}

impl Cgroup {
    pub(crate) fn with_memory(bytes: u64) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let is_v1 = Path::new(V1).join("memory.limit_in_bytes").exists();
        let root = if is_v1 { V1 } else { V2 };
        let number = COUNT.fetch_add(1, Relaxed);
        let path = format!("{root}/heddle-test-{}-{number}", std::process::id());
        std::fs::create_dir(&path).expect("root may make cgroups");
        let limit = if is_v1 {
            "memory.limit_in_bytes"
        } else {
            "memory.max"
        };
        std::fs::write(format!("{path}/{limit}"), bytes.to_string()).expect("it is ours");
        Self { root, path }
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Where a container finds its own cgroup.
    pub(crate) fn root(&self) -> &str {
        self.root
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let remove = || std::fs::remove_dir(&self.path).ok();
        if std::thread::panicking() {
            // The test has failed already.
            let _ = remove();
        } else {
            eventually("the cgroup is empty", remove);
        }
    }
}
