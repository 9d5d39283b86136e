//! The Gateway API mesh conformance suite against Heddle, installed by a profile as users install it.
//!
//! In go a cluster with the Gateway API's definitions and the images, and the suite as a program; out comes the
//! suite's own report, or what it said. `docs/conformance` keeps the report, so that a feature that is lost shows as a
//! difference, even when the suite would merely skip what is not supported any more.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use heddle_tests_harness::wait::{self, Look};
use serde_yaml::Value;
use similar::TextDiff;

use crate::{heddle::Heddle, kubectl::Kubectl};

const PROFILE: &str = include_str!("../manifests/conformance/mesh.yaml");
const OPTIONS: &str = include_str!("../manifests/conformance/options.yaml");

/// The suite needs two minutes; this is for machines that do other things besides.
const SUITE_LIMIT: Duration = Duration::from_secs(20 * 60);

/// The lines of the suite's talk that an error shows.
const TALK_LINES: usize = 60;

/// Installs the mesh and waits until it is ready.
pub fn install(kubectl: &Kubectl, heddle: &Heddle) -> Result<()> {
    kubectl.apply(&heddle.stdout(&["install", "--crds"])?)?;
    let repository = tempfile::tempdir().context("failed to make a temporary folder for the profile")?;
    fs::write(repository.path().join("mesh.yaml"), PROFILE).context("failed to write the profile")?;
    let path = repository
        .path()
        .to_str()
        .context("temporary folders have UTF-8 names")?;
    heddle
        .stdout(&["apply", "--repo", path, "--timeout", "5m"])
        .map(drop)
}

/// Where a run leaves what it has to say.
#[derive(Debug)]
pub struct Run<'a> {
    /// The suite.
    pub program: &'a Path,
    /// The cluster.
    pub kubeconfig: &'a Path,
    /// Gets `report.yaml`, and `suite.log` with all that the suite says.
    pub folder: &'a Path,
    /// Passed to the suite, such as `-run-test MeshBasic`.
    pub arguments: &'a [String],
}

/// Runs the suite to its end. The report is written whether it passes or not.
pub async fn run(run: Run<'_>) -> Result<PathBuf> {
    let Run {
        program,
        kubeconfig,
        folder,
        arguments,
    } = run;
    fs::create_dir_all(folder).with_context(|| format!("failed to make {}", folder.display()))?;
    let (options, report, log) = (
        folder.join("options.yaml"),
        folder.join("report.yaml"),
        folder.join("suite.log"),
    );
    fs::write(&options, OPTIONS).with_context(|| format!("failed to write {}", options.display()))?;
    let output = File::create(&log).with_context(|| format!("failed to write {}", log.display()))?;
    let mut suite = Command::new(program)
        .args(["-test.v", "-version", env!("CARGO_PKG_VERSION")])
        .args(["-conformance-options-file".as_ref(), options.as_os_str()])
        .args(["-report-output".as_ref(), report.as_os_str()])
        .args(arguments)
        .env("KUBECONFIG", kubeconfig)
        .stdin(Stdio::null())
        .stdout(output.try_clone().context("failed to share the log's file")?)
        .stderr(output)
        .spawn()
        .with_context(|| format!("failed to start {}", program.display()))?;
    let ended = wait::until("the conformance suite to end", SUITE_LIMIT, || {
        let look = match suite.try_wait() {
            Ok(Some(status)) => Look::Done(status),
            Ok(None) => Look::NotYet("it runs".to_owned()),
            Err(error) => Look::NotYet(error.to_string()),
        };
        async move { look }
    })
    .await;
    if ended.is_err() {
        // One that ended meanwhile is as good as killed.
        let _ = suite.kill();
        let _ = suite.wait();
    }
    let status = ended.with_context(|| format!("{} ends with:\n{}", log.display(), failures(&log)))?;
    if !status.success() {
        bail!(
            "the conformance suite failed ({status}); {} says why:\n{}",
            log.display(),
            failures(&log)
        );
    }
    Ok(report)
}

/// What matters of the log of a run that failed.
fn failures(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let failed: Vec<&str> = text
        .lines()
        .filter(|line| line.trim_start().starts_with("--- FAIL"))
        .collect();
    let last: Vec<&str> = text.lines().rev().take(TALK_LINES).collect();
    failed
        .into_iter()
        .chain(last.into_iter().rev())
        .collect::<Vec<_>>()
        .join("\n")
}

/// Compares a report with the one that is kept, or writes it there with `UPDATE_EXPECT=1`.
pub fn compare(report: &Path, kept: &Path) -> Result<()> {
    let text = fs::read_to_string(report).with_context(|| format!("failed to read {}", report.display()))?;
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        return fs::write(kept, text).with_context(|| format!("failed to write {}", kept.display()));
    }
    let expected = fs::read_to_string(kept).with_context(|| format!("failed to read {}", kept.display()))?;
    let (found, expected) = (shown(&text)?, shown(&expected)?);
    ensure!(
        found == expected,
        "{} differs from {}: run again with UPDATE_EXPECT=1 if it should\n{}",
        report.display(),
        kept.display(),
        TextDiff::from_lines(&expected, &found).unified_diff()
    );
    Ok(())
}

/// A report without what every run changes: its date, and the order of the profiles, which the suite keeps in a map.
fn shown(report: &str) -> Result<String> {
    let mut report: Value = serde_yaml::from_str(report).context("a conformance report is YAML")?;
    let fields = report
        .as_mapping_mut()
        .context("a conformance report has fields")?;
    fields.remove("date");
    fields
        .get_mut("profiles")
        .and_then(Value::as_sequence_mut)
        .context("a conformance report has profiles")?
        .sort_by(|one, other| name(one).cmp(&name(other)));
    serde_yaml::to_string(&report).context("a conformance report can be written")
}

fn name(profile: &Value) -> Option<&str> {
    profile.get("name").and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_feature_shows_and_another_day_or_order_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let kept = file(
            "kept",
            "date: yesterday\nprofiles: [{name: HTTP, extended: {supportedFeatures: [A, B]}}, {name: GRPC}]\n",
        );
        let same = file(
            "same",
            "date: today\nprofiles: [{name: GRPC}, {name: HTTP, extended: {supportedFeatures: [A, B]}}]\n",
        );
        let less = file(
            "less",
            "date: today\nprofiles: [{name: HTTP, extended: {supportedFeatures: [A]}}, {name: GRPC}]\n",
        );
        compare(&same, &kept).unwrap();
        let error = compare(&less, &kept).unwrap_err().to_string();
        assert!(error.contains("-    - B\n"), "{error}");
    }
}
