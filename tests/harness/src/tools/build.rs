//! One build of one Go project, and the cache that it lands in.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::progress::{Progress, Step};

/// The file that a finished build ends with; it holds the key of everything that decided the build.
const STAMP: &str = "stamp";

/// Lines of the compiler's talk kept for the error message.
const TALK_LINES: usize = 40;

/// How often a long build says how far it is.
const DETAIL_INTERVAL: Duration = Duration::from_secs(15);

/// A project at a version: what is built, and where the result is kept.
#[derive(Debug, Clone)]
pub struct Target {
    name: &'static str,
    version: String,
    source: PathBuf,
    linker_flags: String,
    packages: &'static [&'static str],
    tools_dir: PathBuf,
    key: String,
}

impl Target {
    pub(super) fn new(
        name: &'static str,
        version: &str,
        source: PathBuf,
        linker_flags: String,
        packages: &'static [&'static str],
        tools_dir: PathBuf,
    ) -> Result<Self> {
        let key = key(&source, &linker_flags, packages)?;
        Ok(Self {
            name,
            version: version.to_owned(),
            source,
            linker_flags,
            packages,
            tools_dir,
            key,
        })
    }

    /// The project's name.
    pub fn name(&self) -> &str {
        self.name
    }

    /// The version that `go.mod` pins.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Hash of everything that decides the build.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Where the finished build is, or will be.
    pub fn dir(&self) -> PathBuf {
        self.tools_dir.join(format!("{}-{}", self.name, self.version))
    }

    /// Whether a finished build of exactly this is there.
    pub fn is_built(&self) -> bool {
        fs::read_to_string(self.dir().join(STAMP)).is_ok_and(|stamp| stamp.trim() == self.key)
    }

    /// Builds it unless it is built, and returns the folder of its programs.
    pub(super) fn ensure(&self, progress: Progress) -> Result<PathBuf> {
        if !self.is_built() {
            fs::create_dir_all(&self.tools_dir)
                .with_context(|| format!("failed to make the tool cache {}", self.tools_dir.display()))?;
            let lock_path = self.tools_dir.join(format!("{}.lock", self.name));
            let lock = File::create(&lock_path)
                .with_context(|| format!("failed to open {}", lock_path.display()))?;
            if lock.try_lock().is_err() {
                progress.say(format!("Another process builds {}: waiting for it.", self.name));
                lock.lock()
                    .with_context(|| format!("failed to lock {}", lock_path.display()))?;
            }
            // Whoever held the lock may have built it.
            if !self.is_built() {
                self.build(progress)?;
            }
        }
        Ok(self.dir().join("bin"))
    }

    fn build(&self, progress: Progress) -> Result<()> {
        let step = progress.step(format!(
            "Building {} {} from its Go module (once per machine)",
            self.name, self.version
        ));
        let (dir, building) = (self.dir(), self.tools_dir.join(format!("{}.building", self.name)));
        remove_dir(&building)?;
        let bin = building.join("bin");
        fs::create_dir_all(&bin).with_context(|| format!("failed to make {}", bin.display()))?;
        self.compile(&bin, &step)?;
        let stamp = building.join(STAMP);
        fs::write(&stamp, &self.key).with_context(|| format!("failed to write {}", stamp.display()))?;
        remove_dir(&dir)?;
        fs::rename(&building, &dir)
            .with_context(|| format!("failed to rename {} to {}", building.display(), dir.display()))?;
        step.done();
        Ok(())
    }

    fn compile(&self, bin: &Path, step: &Step) -> Result<()> {
        let mut output = bin.as_os_str().to_owned();
        // The slash at the end says that it is a folder, one program per package.
        output.push("/");
        let mut go = Command::new("go");
        go.arg("build")
            .args(["-v", "-trimpath", "-ldflags", &self.linker_flags, "-o"])
            .arg(output)
            .args(self.packages)
            .current_dir(&self.source)
            .env("CGO_ENABLED", "0")
            .env("GOWORK", "off")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = go.spawn().context(
            "failed to start `go`: building the cluster's programs needs Go 1.26 or newer in PATH",
        )?;
        let mut talk = std::collections::VecDeque::with_capacity(TALK_LINES);
        let (mut packages, mut told) = (0_usize, Instant::now());
        let stderr = child.stderr.take().expect("stderr was asked for as a pipe above");
        for line in BufReader::new(stderr).lines() {
            let line = line.context("failed to read what `go build` says")?;
            // With -v the compiler names each package on a line of its own.
            packages += usize::from(!line.contains(' '));
            if told.elapsed() > DETAIL_INTERVAL {
                told = Instant::now();
                step.detail(format!("{packages} packages compiled; {line}"));
            }
            if talk.len() == TALK_LINES {
                talk.pop_front();
            }
            talk.push_back(line);
        }
        let status = child.wait().context("failed to wait for `go build`")?;
        if !status.success() {
            let talk = talk.into_iter().collect::<Vec<_>>().join("\n");
            bail!(
                "`go build` of {} {} in {} failed ({status}):\n{talk}",
                self.name,
                self.version,
                self.source.display()
            );
        }
        Ok(())
    }
}

/// Hash of the module's files, the flags and the packages.
fn key(source: &Path, linker_flags: &str, packages: &[&str]) -> Result<String> {
    let mut files = Vec::new();
    let entries = fs::read_dir(source).with_context(|| format!("failed to list {}", source.display()))?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("failed to list {}", source.display()))?
            .path();
        if path
            .extension()
            .is_some_and(|extension| extension == "mod" || extension == "sum" || extension == "go")
        {
            files.push(path);
        }
    }
    files.sort();
    let mut hash = Sha256::new();
    for path in files {
        let content = fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?;
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update((content.len() as u64).to_le_bytes());
        hash.update(&content);
    }
    for part in packages.iter().chain([&linker_flags]) {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    Ok(hex::encode(hash.finalize()))
}

fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(root: &Path) -> Target {
        let source = root.join("source");
        fs::create_dir_all(&source).unwrap();
        fs::write(source.join("go.mod"), "module a.b/hello\n\ngo 1.21\n").unwrap();
        fs::write(source.join("main.go"), "package main\n\nfunc main() {}\n").unwrap();
        Target::new(
            "hello",
            "v0.0.1",
            source,
            "-s -w".into(),
            &["."],
            root.join("tools"),
        )
        .unwrap()
    }

    #[test]
    fn the_key_follows_the_sources() {
        let root = tempfile::tempdir().unwrap();
        let before = target(root.path());
        let same = target(root.path());
        assert_eq!(before.key(), same.key());
        fs::write(root.path().join("source/go.sum"), "x").unwrap();
        assert_ne!(before.key(), target(root.path()).key());
    }

    #[test]
    fn only_a_stamped_build_counts() {
        let root = tempfile::tempdir().unwrap();
        let target = target(root.path());
        fs::create_dir_all(target.dir().join("bin")).unwrap();
        assert!(!target.is_built());
        fs::write(target.dir().join(STAMP), target.key()).unwrap();
        assert!(target.is_built());
        fs::write(target.dir().join(STAMP), "another").unwrap();
        assert!(!target.is_built());
    }
}
