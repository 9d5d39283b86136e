//! `heddle render`: what a commit asks for, as YAML on stdout. Needs no cluster.

use crate::{
    cli::{Failure, Global, Outcome},
    profile,
    render::{self, Rendered},
    source::{self, Limits, Snapshot},
};

/// Where the profile is, for all commands that work on a checkout.
#[derive(Clone, Debug, clap::Args)]
pub struct Location {
    /// The repository: a folder, a bare repository, or an http(s) URL.
    #[arg(long, default_value = ".", value_name = "PATH|URL")]
    pub repo: String,
    /// The profile's folder or file in the repository.
    #[arg(long, default_value = ".", value_name = "PATH")]
    pub path: String,
    /// Read this commit, branch or tag instead of the files as they are on disk.
    #[arg(long, value_name = "REV")]
    pub rev: Option<String>,
    /// Keeps fetched repositories; default: heddle in the user's cache folder.
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<std::path::PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    location: Location,
    /// Print only the digest of what is rendered.
    #[arg(long)]
    digest: bool,
}

impl Location {
    /// The snapshot at `--rev`, or of the files on disk.
    ///
    /// # Errors
    /// What the source says.
    pub fn snapshot(&self) -> Result<Snapshot, Failure> {
        self.snapshot_at(self.rev.as_deref())
    }

    /// The snapshot at a given revision.
    ///
    /// # Errors
    /// What the source says.
    pub fn snapshot_at(&self, rev: Option<&str>) -> Result<Snapshot, Failure> {
        let local = std::path::Path::new(&self.repo);
        if !source::git::is_url(&self.repo) && rev.is_none() && !source::git::is_bare(local) {
            let path = source::clean_path(&self.path)?;
            return Ok(source::directory::snapshot(local, &path, Limits::default())?);
        }
        let reference = source::git::Reference::any(rev.unwrap_or("HEAD"));
        let cache = self.cache_dir.clone().unwrap_or_else(default_cache_dir);
        let access = source::git::Access::default();
        let mut source =
            source::git::GitSource::open(&self.repo, reference, access, &cache, Limits::default())?;
        Ok(source.fetch_blocking()?.snapshot)
    }

    /// Renders a snapshot of this location.
    ///
    /// # Errors
    /// Everything wrong in the profile.
    pub fn render(&self, global: &Global, snapshot: &Snapshot) -> Result<Rendered, Failure> {
        let mesh = profile::load(snapshot.tree.as_ref(), &self.path, &global.bundled()?, &[])?;
        Ok(render::render(&mesh)?)
    }
}

/// `$XDG_CACHE_HOME/heddle`, `~/.cache/heddle`, or `/var/cache/heddle`.
pub fn default_cache_dir() -> std::path::PathBuf {
    let variable = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(std::path::PathBuf::from)
    };
    variable("XDG_CACHE_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".cache")))
        .map_or_else(|| "/var/cache/heddle".into(), |cache| cache.join("heddle"))
}

pub fn run(global: &Global, args: Args) -> Outcome {
    let Args { location, digest } = args;
    let snapshot = location.snapshot()?;
    let rendered = location.render(global, &snapshot)?;
    for note in &rendered.notes {
        crate::cli::say(&format!("note: {note}"));
    }
    if digest {
        crate::cli::print(&format!("{}\n", rendered.digest()))?;
    } else {
        crate::cli::print(&rendered.to_yaml(|_| true))?;
    }
    Ok(0)
}
