//! kubectl, as a user would call it.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// A kubectl bound to one cluster.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Kubectl {
    /// `program` run with `kubeconfig`.
    pub fn new(program: impl Into<PathBuf>, kubeconfig: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            kubeconfig: kubeconfig.into(),
        }
    }

    /// Where the cluster's credentials are.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Runs to the end and returns standard output; an unsuccessful end is an error with what kubectl said.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        self.run_with_input(args, "")
    }

    /// [`Kubectl::run`], with `input` on standard input.
    pub fn run_with_input(&self, args: &[&str], input: &str) -> Result<String> {
        let shown = format!("kubectl {}", args.join(" "));
        let mut child = Command::new(&self.program)
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("failed to start `{shown}`"))?;
        let mut stdin = child
            .stdin
            .take()
            .context("the child's standard input is piped")?;
        let input = input.to_owned();
        // Written from a thread of its own: a child that fills its output first would otherwise wait for us for ever.
        let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
        let output = child
            .wait_with_output()
            .with_context(|| format!("failed to wait for `{shown}`"))?;
        // A child that ended without reading everything has said why on standard error.
        let _ = writer.join();
        if !output.status.success() {
            bail!(
                "`{shown}` failed ({}): {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Applies manifests, as `kubectl apply -f -` does.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        self.run_with_input(&["apply", "-f", "-"], manifests)
    }

    /// The value of `kubectl get … -o json`.
    pub fn get(&self, args: &[&str]) -> Result<serde_json::Value> {
        let mut all = vec!["get", "-o", "json"];
        all.extend(args);
        serde_json::from_str(&self.run(&all)?).context("kubectl printed no JSON")
    }

    /// Waits for every pod of a Deployment to be rolled out.
    pub fn rollout_status(&self, namespace: &str, deployment: &str) -> Result<()> {
        let target = format!("deployment/{deployment}");
        self.run(&["rollout", "status", "-n", namespace, &target, "--timeout=180s"])
            .map(drop)
    }
}
