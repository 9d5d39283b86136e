//! Metrics of the process itself, from `/proc`, read when scraped: start time, memory, CPU time, open files, threads.

use std::{fs, sync::OnceLock};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// `/proc/self/stat` counts in units of USER_HZ, which is 100 on every architecture that Linux runs containers on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Lets the process have as many connections as it may: the usual soft limit of files is far below what is allowed.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // The limit stays as it is where it may not be changed.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

/// Registers `process_*` metrics under the names that Prometheus' own client libraries use.
pub fn register(registry: &mut Registry) {
    registry.register_collector(Box::new(Process));
}

#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        if let Some(start) = start_time() {
            gauge(
                &mut encoder,
                "process_start_time_seconds",
                "Start of the process since the Unix epoch",
                start,
            )?;
        }
        if let Some(stat) = Stat::read() {
            let cpu = ConstCounter::new(stat.cpu_seconds);
            let help = "User and system CPU time of the process";
            let metric = encoder.encode_descriptor("process_cpu_seconds", help, None, cpu.metric_type())?;
            cpu.encode(metric)?;
            gauge(
                &mut encoder,
                "process_threads",
                "Threads of the process",
                stat.threads,
            )?;
        }
        for (key, name, help) in [
            (
                "VmRSS:",
                "process_resident_memory_bytes",
                "Resident memory of the process",
            ),
            (
                "VmSize:",
                "process_virtual_memory_bytes",
                "Virtual memory of the process",
            ),
        ] {
            if let Some(bytes) = memory(key) {
                gauge(&mut encoder, name, help, bytes)?;
            }
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            // The folder itself is open while it is read.
            let open = files.count().saturating_sub(1);
            gauge(
                &mut encoder,
                "process_open_fds",
                "Open file descriptors of the process",
                open as f64,
            )?;
        }
        if let Some(max) = files_max() {
            gauge(
                &mut encoder,
                "process_max_fds",
                "Limit of open file descriptors",
                max,
            )?;
        }
        Ok(())
    }
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: f64,
) -> Result<(), std::fmt::Error> {
    let gauge = ConstGauge::new(value);
    let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
    gauge.encode(metric)
}

struct Stat {
    cpu_seconds: f64,
    threads: f64,
    start_seconds_after_boot: f64,
}

impl Stat {
    fn read() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/self/stat").ok()?)
    }

    /// proc_pid_stat(5). The second field is the program's name in parentheses and may hold anything, so count from the
    /// last parenthesis: what follows is field 3.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        Some(Self {
            cpu_seconds: (field(14)? + field(15)?) / TICKS_PER_SECOND,
            threads: field(20)?,
            start_seconds_after_boot: field(22)? / TICKS_PER_SECOND,
        })
    }
}

/// Neither the boot time nor the process' start changes, so they are read once.
fn start_time() -> Option<f64> {
    static START: OnceLock<Option<f64>> = OnceLock::new();
    *START.get_or_init(|| {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let boot: f64 = stat
            .lines()
            .find_map(|line| line.strip_prefix("btime "))?
            .trim()
            .parse()
            .ok()?;
        Some(boot + Stat::read()?.start_seconds_after_boot)
    })
}

fn memory(key: &str) -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024.0)
}

fn files_max() -> Option<f64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stat_of_a_program_with_an_odd_name() {
        let text = "42 (a ) b) S 1 1 1 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 7 0 1000 1 1 1";
        let stat = Stat::parse(text).expect("a stat line");
        assert_eq!(
            (stat.cpu_seconds, stat.threads, stat.start_seconds_after_boot),
            (2.0, 7.0, 10.0)
        );
        assert!(Stat::parse("").is_none() && Stat::parse("1 (x) S").is_none());
    }

    #[test]
    fn metrics_of_this_process_are_encoded() {
        let mut registry = Registry::default();
        register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("encodes");
        for name in [
            "process_start_time_seconds ",
            "process_cpu_seconds_total ",
            "process_resident_memory_bytes ",
            "process_open_fds ",
            "process_max_fds ",
            "process_threads ",
        ] {
            assert!(
                text.lines().any(|line| line.starts_with(name)),
                "{name} is missing in:\n{text}"
            );
        }
    }
}
