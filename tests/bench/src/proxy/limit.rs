//! A limit of CPU time for some processes, as a container runtime sets it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

const PERIOD_MICROS: u64 = 20_000;
/// Version 1's controller, where there is one, and version 2's root.
const V1: &str = "/sys/fs/cgroup/cpu";
const V2: &str = "/sys/fs/cgroup";

/// Holds until it is dropped.
pub(super) struct CpuLimit {
    dir: PathBuf,
    parent: &'static str,
}

impl CpuLimit {
    pub(super) fn new(cpus: f64, pids: &[u32]) -> anyhow::Result<Self> {
        let is_v1 = Path::new(V1).join("cpu.cfs_quota_us").exists();
        let parent = if is_v1 { V1 } else { V2 };
        let dir = Path::new(parent).join(format!("heddle-bench-{}", std::process::id()));
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let limit = Self { dir, parent };
        let quota = (cpus * PERIOD_MICROS as f64) as u64;
        if is_v1 {
            limit.write("cpu.cfs_period_us", PERIOD_MICROS)?;
            limit.write("cpu.cfs_quota_us", quota)?;
        } else {
            limit.write("cpu.max", format!("{quota} {PERIOD_MICROS}"))?;
        }
        for pid in pids {
            limit.write("cgroup.procs", pid)?;
        }
        Ok(limit)
    }

    fn write(&self, file: &str, value: impl ToString) -> anyhow::Result<()> {
        let path = self.dir.join(file);
        std::fs::write(&path, value.to_string()).with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Drop for CpuLimit {
    fn drop(&mut self) {
        let procs = std::fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
        for pid in procs.lines() {
            // One that has ended needs no way back.
            let _ = std::fs::write(Path::new(self.parent).join("cgroup.procs"), pid);
        }
        if let Err(error) = std::fs::remove_dir(&self.dir) {
            eprintln!("{} stays behind: {error}", self.dir.display());
        }
    }
}
