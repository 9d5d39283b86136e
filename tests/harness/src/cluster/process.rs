//! The cluster's daemons: started detached, found again by what they carry, never by a number alone.
//!
//! Every daemon has the cluster's state folder, its own name and a hash of its command line in its environment.
//! So a process that was started a moment before its starter was killed is still known, a recycled process id
//! never is, and `up` can tell a daemon that runs as it should from one that must be replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest, Sha256};

use super::layout::{Layout, MARKER};
use super::network;

const NAME_VARIABLE: &str = "HEDDLE_CLUSTER_PROCESS";
const SPEC_VARIABLE: &str = "HEDDLE_CLUSTER_SPEC";

/// Longest wait for killed processes to be gone: a kill waits for the kernel to free what they hold.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// How much of a dead daemon's log goes into the error.
const LOG_TAIL_LINES: usize = 12;

/// A daemon to run.
#[derive(Debug, Clone)]
pub(super) struct Daemon {
    pub(super) name: &'static str,
    pub(super) program: PathBuf,
    pub(super) args: Vec<String>,
    /// Configuration files: when one changes, the daemon is replaced.
    pub(super) files: Vec<PathBuf>,
    /// Whether it runs in the cluster's network namespace.
    pub(super) in_netns: bool,
}

impl Daemon {
    /// Starts it unless exactly this already runs; one that runs with another command line is replaced.
    pub(super) fn ensure(&self, layout: &Layout) -> Result<()> {
        let spec = self.spec();
        let (same, other): (Vec<_>, Vec<_>) = self
            .find(layout)
            .into_iter()
            .partition(|found| variable(*found, SPEC_VARIABLE).as_deref() == Some(&*spec));
        kill(&other.into_iter().collect()).with_context(|| format!("failed to replace {}", self.name))?;
        if same.is_empty() {
            self.start(layout, &spec)?;
        }
        Ok(())
    }

    /// Whether it runs; an error with the end of its log if not.
    pub(super) fn check(&self, layout: &Layout) -> Result<()> {
        if self.find(layout).is_empty() && !self.is_starting(layout) {
            bail!(
                "{} ended; the end of {}:\n{}",
                self.name,
                self.log(layout).display(),
                self.log_tail(layout)
            );
        }
        Ok(())
    }

    /// Whether the process started last is alive and in the middle of `exec`: until the kernel has mapped the new
    /// program, which takes a while when that comes from disk, its environment reads as empty.
    fn is_starting(&self, layout: &Layout) -> bool {
        let pid = fs::read_to_string(layout.at(&format!("run/{}.pid", self.name)));
        let pid = pid.ok().and_then(|text| text.trim().parse().ok());
        pid.is_some_and(|pid: u32| {
            is_alive(pid) && fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| environ.is_empty())
        })
    }

    /// The last lines it logged.
    pub(super) fn log_tail(&self, layout: &Layout) -> String {
        let text = fs::read(self.log(layout)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }

    fn log(&self, layout: &Layout) -> PathBuf {
        layout.at(&format!("log/{}.log", self.name))
    }

    fn start(&self, layout: &Layout, spec: &str) -> Result<()> {
        let log = self.log(layout);
        for folder in [layout.at("log"), layout.at("run")] {
            fs::create_dir_all(&folder).with_context(|| format!("failed to make {}", folder.display()))?;
        }
        let open = || {
            File::options()
                .create(true)
                .append(true)
                .open(&log)
                .with_context(|| format!("failed to open {}", log.display()))
        };
        let mut command = match self.in_netns {
            true => network::command_in(layout, &self.program),
            false => Command::new(&self.program),
        };
        let mut path = vec![self.program.parent().map(PathBuf::from).unwrap_or_default()];
        path.extend(
            [
                "/usr/local/sbin",
                "/usr/local/bin",
                "/usr/sbin",
                "/usr/bin",
                "/sbin",
                "/bin",
            ]
            .map(PathBuf::from),
        );
        let path = std::env::join_paths(path).context("the tools' folder has a colon in its path")?;
        command
            .args(&self.args)
            // Nothing of the caller's environment: a proxy setting or a KUBECONFIG would change what runs.
            .env_clear()
            .env("PATH", path)
            .env("HOME", layout.state())
            .env(MARKER, layout.state())
            .env(NAME_VARIABLE, self.name)
            .env(SPEC_VARIABLE, spec)
            .current_dir(layout.state())
            .stdin(Stdio::null())
            .stdout(open()?)
            .stderr(open()?)
            // A group of its own: Ctrl-C at the terminal is not meant for it.
            .process_group(0);
        let mut child = command
            .spawn()
            .with_context(|| format!("failed to start {}", self.name))?;
        let pid_file = layout.at(&format!("run/{}.pid", self.name));
        fs::write(&pid_file, format!("{}\n", child.id()))
            .with_context(|| format!("failed to write {}", pid_file.display()))?;
        // It usually outlives this process. If it does not, somebody must collect it.
        std::thread::spawn(move || child.wait());
        Ok(())
    }

    /// Processes that are this daemon, and not children that inherited its environment.
    fn find(&self, layout: &Layout) -> Vec<u32> {
        let state = layout.state();
        all()
            .into_iter()
            .filter(|pid| {
                variable(*pid, MARKER).is_some_and(|value| state.as_os_str() == &*value)
                    && variable(*pid, NAME_VARIABLE).as_deref() == Some(self.name)
                    && self.is_program(*pid)
            })
            .collect()
    }

    fn is_program(&self, pid: u32) -> bool {
        let Ok(exe) = fs::read_link(format!("/proc/{pid}/exe")) else {
            return false;
        };
        // The program may have been built anew since, or may still be on its way through nsenter.
        let exe = exe.to_string_lossy().trim_end_matches(" (deleted)").to_owned();
        let is = |name: &std::ffi::OsStr| std::path::Path::new(&exe).file_name() == Some(name);
        self.program.file_name().is_some_and(is) || is("nsenter".as_ref())
    }

    fn spec(&self) -> String {
        let mut hash = Sha256::new();
        for part in [self.program.to_string_lossy().as_ref()]
            .into_iter()
            .chain(self.args.iter().map(String::as_str))
        {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        for file in &self.files {
            // One that cannot be read is a failure that the daemon reports better.
            hash.update(Sha256::digest(fs::read(file).unwrap_or_default()));
        }
        hex::encode(hash.finalize())
    }
}

/// Fails if the cluster's network namespace is that of a cluster with the same name in another state folder.
pub(super) fn check_owner(layout: &Layout) -> Result<()> {
    let netns = netns_id(layout);
    let inside = |pid: &u32| netns.is_some() && process_netns_id(*pid) == netns;
    let other = all()
        .into_iter()
        .filter(inside)
        .filter_map(|pid| variable(pid, MARKER));
    match other
        .into_iter()
        .find(|state| layout.state().as_os_str() != &**state)
    {
        Some(state) => bail!(
            "the network namespace {} is that of another cluster, whose state is in {state}; hint: choose another name",
            layout.netns()
        ),
        None => Ok(()),
    }
}

/// Every process that belongs to the cluster: those that carry its mark, live in its network namespace or its
/// cgroups, and all that descend from these. Never this process itself.
pub(super) fn of_cluster(layout: &Layout) -> BTreeSet<u32> {
    let state = layout.state();
    let netns = netns_id(layout);
    let mut found = super::cgroup::processes(layout);
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for pid in all() {
        if let Some(parent) = stat(pid).map(|stat| stat.parent) {
            children.entry(parent).or_default().push(pid);
        }
        let marked = variable(pid, MARKER).is_some_and(|value| state.as_os_str() == &*value);
        let inside = netns.is_some() && process_netns_id(pid) == netns;
        if marked || inside {
            found.insert(pid);
        }
    }
    let mut open: Vec<u32> = found.iter().copied().collect();
    while let Some(pid) = open.pop() {
        for child in children.get(&pid).into_iter().flatten() {
            if found.insert(*child) {
                open.push(*child);
            }
        }
    }
    // A test that runs `down` may itself stand in the namespace or carry the mark.
    found.remove(&std::process::id());
    found.retain(|pid| is_alive(*pid));
    found
}

fn netns_id(layout: &Layout) -> Option<(u64, u64)> {
    fs::metadata(layout.netns_path())
        .ok()
        .map(|meta| (meta.dev(), meta.ino()))
}

fn process_netns_id(pid: u32) -> Option<(u64, u64)> {
    fs::metadata(format!("/proc/{pid}/ns/net"))
        .ok()
        .map(|meta| (meta.dev(), meta.ino()))
}

/// Kills what `find` returns until it returns nothing.
pub(super) fn kill_all(mut find: impl FnMut() -> BTreeSet<u32>) -> Result<usize> {
    let deadline = Instant::now() + KILL_LIMIT;
    let mut killed = BTreeSet::new();
    loop {
        // Looked for anew each time: what was about to be started when its parent died shows up in the next round.
        let found = find();
        if found.is_empty() {
            return Ok(killed.len());
        }
        if Instant::now() > deadline {
            bail!(
                "processes {found:?} did not end within {} s of being killed",
                KILL_LIMIT.as_secs()
            );
        }
        for pid in found {
            send_kill(pid);
            killed.insert(pid);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn kill(pids: &BTreeSet<u32>) -> Result<()> {
    kill_all(|| pids.iter().copied().filter(|pid| is_alive(*pid)).collect()).map(drop)
}

fn send_kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended in the meantime, which is what is wanted.
        let _ = kill_process(pid, Signal::KILL);
    }
}

struct Stat {
    parent: u32,
    state: char,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses and may hold anything, parentheses and spaces included.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some(Stat {
        state,
        parent: fields.next()?.parse().ok()?,
    })
}

/// Whether it still runs: a process that only waits for its parent to collect it does not.
fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| stat.state != 'Z' && stat.state != 'X')
}

fn all() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| is_alive(*pid))
        .collect()
}

/// A variable of a process's environment as it was started; `None` too when it is not ours to read.
fn variable(pid: u32, name: &str) -> Option<String> {
    let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let prefix = format!("{name}=");
    let entry = environ
        .split(|byte| *byte == 0)
        .find_map(|entry| entry.strip_prefix(prefix.as_bytes()))?;
    String::from_utf8(entry.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_and_state_of_a_process_are_read() {
        let child = Command::new("sleep")
            .arg("60")
            .env(NAME_VARIABLE, "a test")
            .spawn()
            .unwrap();
        let pid = child.id();
        // Between fork and exec the child still shows this process's environment.
        let deadline = Instant::now() + Duration::from_secs(5);
        while variable(pid, NAME_VARIABLE).is_none() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert_eq!(variable(pid, NAME_VARIABLE).as_deref(), Some("a test"));
        assert_eq!(variable(pid, "HEDDLE_CLUSTER"), None);
        assert_eq!(stat(pid).unwrap().parent, std::process::id());
        kill(&BTreeSet::from([pid])).unwrap();
        // Not collected yet, but it no longer runs.
        assert!(!is_alive(pid));
        drop(child);
    }
}
