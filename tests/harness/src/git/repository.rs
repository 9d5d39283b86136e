//! A bare repository and the working clone that commits to it.

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::run;

/// The branch that everything happens on.
const BRANCH: &str = "main";

/// A bare repository with a working clone beside it.
#[derive(Debug, Clone)]
pub struct Repository {
    bare: PathBuf,
    work: PathBuf,
}

impl Repository {
    /// Makes the repository `<name>.git` in `root`, with an empty clone in `<name>.work`.
    pub(super) fn create(root: &Path, name: &str) -> Result<Self> {
        if name.is_empty()
            || !name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        {
            bail!("`{name}` cannot name a repository: expected letters, digits, hyphens and underscores");
        }
        let repository = Self {
            bare: root.join(format!("{name}.git")),
            work: root.join(format!("{name}.work")),
        };
        let Self { bare, work } = &repository;
        run(git()
            .args(["init", "--quiet", "--bare", "--initial-branch", BRANCH])
            .arg(bare))?;
        // Pushing over HTTP is refused by default; fetching one commit by its hash too.
        for setting in ["http.receivepack", "uploadpack.allowAnySHA1InWant"] {
            run(git().arg("-C").arg(bare).args(["config", setting, "true"]))?;
        }
        run(git()
            .args(["init", "--quiet", "--initial-branch", BRANCH])
            .arg(work))?;
        repository.git(["remote", "add", "origin", &bare.to_string_lossy()])?;
        Ok(repository)
    }

    /// The bare repository's folder: a local path that can be fetched from.
    pub fn path(&self) -> &Path {
        &self.bare
    }

    /// The working clone's folder.
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// Writes `files` (path, content), commits and pushes; returns the commit's hash. Empty commits are allowed.
    pub fn commit(&self, message: &str, files: &[(&str, &str)]) -> Result<String> {
        self.write(files)?;
        self.commit_all(&["--allow-empty", "-m", message])?;
        self.push(&[])
    }

    /// As [`Repository::commit`], removing `paths`.
    pub fn remove(&self, message: &str, paths: &[&str]) -> Result<String> {
        self.git(["rm", "-r", "--quiet", "--"].iter().chain(paths))?;
        self.commit_all(&["-m", message])?;
        self.push(&[])
    }

    /// Replaces the last commit by another one with `files` changed, and force-pushes it: what was there before is
    /// no ancestor of the branch any more.
    pub fn rewrite(&self, message: &str, files: &[(&str, &str)]) -> Result<String> {
        self.write(files)?;
        self.commit_all(&["--amend", "--allow-empty", "-m", message])?;
        self.push(&["--force"])
    }

    /// Moves the branch to `commit` and force-pushes.
    pub fn reset_to(&self, commit: &str) -> Result<String> {
        self.git(["reset", "--quiet", "--hard", commit])?;
        self.push(&["--force"])
    }

    /// Tags the current commit and pushes the tag.
    pub fn tag(&self, name: &str) -> Result<()> {
        self.git(["tag", "--force", name])?;
        self.git([
            "push",
            "--quiet",
            "--force",
            "origin",
            &format!("refs/tags/{name}"),
        ])
        .map(drop)
    }

    /// The current commit's hash.
    pub fn head(&self) -> Result<String> {
        self.git(["rev-parse", "HEAD"]).map(|out| out.trim().to_owned())
    }

    /// Runs `git` in the working clone; for what the other functions do not cover.
    pub fn git<S: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<String> {
        run(git().arg("-C").arg(&self.work).args(arguments))
    }

    fn write(&self, files: &[(&str, &str)]) -> Result<()> {
        for (path, content) in files {
            let inside = Path::new(path)
                .components()
                .all(|component| matches!(component, Component::Normal(_)));
            if !inside {
                bail!("`{path}` is no path inside a repository");
            }
            let file = self.work.join(path);
            let shown = || format!("failed to write {}", file.display());
            fs::create_dir_all(file.parent().unwrap_or(&self.work)).with_context(shown)?;
            fs::write(&file, content).with_context(shown)?;
        }
        Ok(())
    }

    fn commit_all(&self, arguments: &[&str]) -> Result<()> {
        self.git(["add", "--all"])?;
        self.git(["commit", "--quiet"].iter().chain(arguments)).map(drop)
    }

    fn push(&self, arguments: &[&str]) -> Result<String> {
        let reference = format!("HEAD:refs/heads/{BRANCH}");
        self.git(
            ["push", "--quiet"]
                .iter()
                .chain(arguments)
                .chain(&["origin", reference.as_str()]),
        )?;
        self.head()
    }
}

/// `git` as a newcomer has it: no configuration of the machine or the user, no questions.
pub(super) fn git() -> Command {
    let mut git = Command::new("git");
    // A hook or a surrounding repository must not redirect what happens here.
    for name in [
        "GIT_DIR",
        "GIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_OBJECT_DIRECTORY",
        "GIT_NAMESPACE",
    ] {
        git.env_remove(name);
    }
    git.env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_AUTHOR_NAME", "Heddle tests")
        .env("GIT_AUTHOR_EMAIL", "tests@heddle.dev")
        .env("GIT_COMMITTER_NAME", "Heddle tests")
        .env("GIT_COMMITTER_EMAIL", "tests@heddle.dev");
    git
}
