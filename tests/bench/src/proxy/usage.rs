//! What a process used, from /proc.

use anyhow::Context as _;

/// CPU time of all threads, in seconds. `schedstat` counts nanoseconds, where `stat` counts 10 ms ticks.
pub(crate) fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let mut ns = 0u64;
    for entry in
        std::fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} is gone"))?
    {
        // A thread may end between the listing and the reading; its time is then lost, which is no error.
        let Ok(text) = std::fs::read_to_string(entry?.path().join("schedstat")) else {
            continue;
        };
        ns += text
            .split_whitespace()
            .next()
            .and_then(|first| first.parse::<u64>().ok())
            .unwrap_or(0);
    }
    Ok(ns as f64 / 1e9)
}

/// Resident memory, in bytes.
pub(crate) fn resident_bytes(pid: u32) -> anyhow::Result<f64> {
    rollup(pid, "Rss:")
}

/// Resident memory with what several processes share divided among them, in bytes.
pub(crate) fn proportional_bytes(pid: u32) -> anyhow::Result<f64> {
    rollup(pid, "Pss:")
}

/// Resident memory that is no file's, in bytes.
pub(crate) fn anonymous_bytes(pid: u32) -> anyhow::Result<f64> {
    rollup(pid, "Pss_Anon:")
}

fn rollup(pid: u32, field: &str) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .with_context(|| format!("cannot read the memory of process {pid}"))?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<f64>().ok())
        .with_context(|| format!("smaps_rollup has no line {field}"))?;
    Ok(kib * 1024.0)
}
