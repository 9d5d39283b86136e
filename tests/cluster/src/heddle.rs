//! The `heddle` program, as a user would call it.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};

/// A `heddle` bound to one cluster.
#[derive(Clone, Debug)]
pub struct Heddle {
    program: PathBuf,
    kubeconfig: PathBuf,
}

/// How a run of `heddle` ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// Data.
    pub stdout: String,
    /// Talk.
    pub stderr: String,
}

impl Heddle {
    /// `program` run with `kubeconfig`.
    pub fn new(program: impl Into<PathBuf>, kubeconfig: &Path) -> Self {
        Self {
            program: program.into(),
            kubeconfig: kubeconfig.to_owned(),
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::null());
        command
    }

    /// Runs to the end, whatever that is.
    pub fn run(&self, args: &[&str]) -> Result<Ended> {
        let output = self
            .command(args)
            .output()
            .with_context(|| format!("failed to start {}", self.program.display()))?;
        Ok(Ended {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs to a successful end and returns what it printed.
    pub fn stdout(&self, args: &[&str]) -> Result<String> {
        let ended = self.run(args)?;
        anyhow::ensure!(
            ended.code == Some(0),
            "`heddle {}` ended with {:?}: {}",
            args.join(" "),
            ended.code,
            ended.stderr.trim()
        );
        Ok(ended.stdout)
    }

    /// Starts it and leaves it running, its log in `log`. It is killed (SIGKILL) when the value is dropped.
    pub fn start(&self, args: &[&str], log: &Path) -> Result<Running> {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let child = self.command(args).stdout(Stdio::null()).stderr(file).spawn()?;
        Ok(Running {
            child,
            log: log.to_owned(),
        })
    }
}

/// A running `heddle`.
#[derive(Debug)]
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Ends it as `kill -9` does.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Whether it has ended by itself, and how.
    pub fn ended(&mut self) -> Result<Option<std::process::ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already ended is as good as killed.
        let _ = self.kill();
    }
}
