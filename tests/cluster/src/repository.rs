//! The mesh repository of a story: bare, served over HTTP to the host and the cluster alike.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, Result};
use heddle_tests_harness::{
    cluster::Cluster,
    git::{GitServer, GitServerOptions, Repository},
};

/// A served repository; it goes away with this value.
#[derive(Debug)]
pub struct MeshRepository {
    server: GitServer,
    repository: Repository,
}

impl MeshRepository {
    /// Serves an empty repository where the cluster's pods reach it; without an embedded cluster, on all addresses of
    /// this machine.
    pub async fn serve(cluster: Option<&Cluster>) -> Result<Self> {
        let ip = cluster.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |cluster| {
            cluster.host_ip().into()
        });
        let server = GitServer::start(GitServerOptions::on(ip)).await?;
        let repository = server.create("mesh")?;
        Ok(Self { server, repository })
    }

    /// Where it is served.
    pub fn url(&self) -> String {
        self.server.url(&self.repository)
    }

    /// The server, for making it fail.
    pub fn server(&self) -> &GitServer {
        &self.server
    }

    /// The repository, for rewriting its history.
    pub fn git(&self) -> &Repository {
        &self.repository
    }

    /// Commits `files` (path, text) and pushes; returns the commit's full hash.
    pub fn commit(&self, files: &[(&str, &str)], message: &str) -> Result<String> {
        self.repository.commit(message, files)
    }

    /// A folder as a contributor has it before committing: the repository's files with `changes` made. It is a Git
    /// repository of its own.
    pub fn worktree(&self, changes: &[(&str, &str)]) -> Result<tempfile::TempDir> {
        let folder = tempfile::tempdir()?;
        let path = folder
            .path()
            .to_str()
            .context("temporary folders have UTF-8 names")?;
        let run = |args: &[&str]| heddle_tests_harness::command::run_args("git", args);
        run(&[
            "clone",
            "--quiet",
            &self.repository.path().to_string_lossy(),
            path,
        ])?;
        for (file, text) in changes {
            let target = folder.path().join(file);
            std::fs::create_dir_all(target.parent().context("a file has a folder")?)?;
            std::fs::write(&target, text)?;
        }
        let identity = [
            "-c",
            "user.name=Heddle tests",
            "-c",
            "user.email=tests@heddle.dev",
        ];
        run(&["-C", path, "add", "--all"])?;
        let mut commit = vec!["-C", path];
        commit.extend(identity);
        commit.extend(["commit", "--quiet", "--allow-empty", "-m", "A proposal"]);
        run(&commit)?;
        Ok(folder)
    }
}
