//! Where profiles come from: a commit of a Git repository, or a folder.
//!
//! In goes a location; out comes a [`Snapshot`]: a revision and a [`Tree`] whose files never change. Nothing is checked
//! out, and nothing that could reach outside the tree (symlinks, submodules, `..`) is followed. This module knows
//! nothing of what the files mean.

pub mod bridge;
pub mod directory;
pub mod git;
pub mod limits;
pub mod memory;

use std::{collections::BTreeMap, fmt, sync::Arc};

pub use limits::Limits;

/// The files of a folder by their path from the repository's root.
pub type Files = BTreeMap<String, Arc<[u8]>>;

/// An immutable tree of files.
pub trait Tree: Send + Sync {
    /// All files under a folder, or the one file of that path. Paths are from the root, with `/` between, without `.`
    /// and `..`; the empty path is the root.
    ///
    /// # Errors
    /// [`SourceError::NotFound`] and what [`Limits`] refuse.
    fn files(&self, path: &str) -> Result<Files, SourceError>;
}

/// One state of a source.
#[derive(Clone)]
pub struct Snapshot {
    pub revision: Revision,
    pub tree: Arc<dyn Tree>,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

/// Flux's form of a revision: `main@sha1:0123…`, `sha256:…` for a folder.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Revision {
    /// The branch or tag; empty for a folder or a bare commit.
    pub name: String,
    /// `sha1:…` of a commit or `sha256:…` of contents.
    pub digest: String,
}

impl Revision {
    pub fn commit(name: &str, id: &str) -> Self {
        Self {
            name: name.to_owned(),
            digest: format!("sha1:{id}"),
        }
    }

    /// `main@sha1:0123abcd`, for people.
    pub fn short(&self) -> String {
        let end = self.digest.find(':').map_or(0, |colon| colon + 1) + 10;
        let digest = self.digest.get(..end).unwrap_or(&self.digest);
        if self.name.is_empty() {
            digest.to_owned()
        } else {
            format!("{}@{digest}", self.name)
        }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.is_empty() {
            f.write_str(&self.digest)
        } else {
            write!(f, "{}@{}", self.name, self.digest)
        }
    }
}

/// Why a source has no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("the location `{location}` is not understood: {reason}")]
    Location { location: String, reason: String },
    #[error("the repository {url} cannot be reached")]
    Unreachable {
        url: String,
        #[source]
        source: git2::Error,
    },
    #[error("the repository {url} refuses the credentials")]
    Unauthorized {
        url: String,
        #[source]
        source: git2::Error,
    },
    #[error("the source's credentials cannot be read: {reason}")]
    Credentials { reason: String },
    #[error("the repository {url} has no {reference}")]
    NoReference { url: String, reference: String },
    #[error("the repository {url} cannot be read")]
    Repository {
        url: String,
        #[source]
        source: git2::Error,
    },
    #[error("there is no `{path}` in {revision}")]
    NotFound { path: String, revision: String },
    #[error("{path}: {reason}")]
    Refused { path: String, reason: String },
    #[error("the folder {path} cannot be read")]
    Folder {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the bridge to {url} cannot be set up: {reason}")]
    Bridge { url: String, reason: String },
    #[error("the fetch of {url} took longer than {seconds} s")]
    Timeout { url: String, seconds: u64 },
}

impl SourceError {
    /// One word for conditions, Events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Location { .. } => "InvalidSource",
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::Bridge { .. } => "RepositoryUnreachable",
            Self::Unauthorized { .. } | Self::Credentials { .. } => "AuthenticationFailed",
            Self::NoReference { .. } => "ReferenceNotFound",
            Self::Repository { .. } | Self::Folder { .. } => "SourceUnreadable",
            Self::NotFound { .. } => "PathNotFound",
            Self::Refused { .. } => "TreeRefused",
        }
    }

    /// What to do about it, when that is clear.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } => Some(
                "check the URL and that this host can reach it; the last good revision stays applied".into(),
            ),
            Self::Unauthorized { .. } => Some(
                "check the Secret that spec.source names (keys username and password, or bearerToken)".into(),
            ),
            Self::NoReference { .. } => Some("check the branch, tag or commit".into()),
            Self::NotFound { .. } => Some("check --path (or spec.path)".into()),
            Self::Repository { source, .. } if source.code() == git2::ErrorCode::Owner => {
                Some("the repository belongs to another user; run as its owner".into())
            }
            _ => None,
        }
    }
}

/// Checks a path inside the tree and takes `./` and doubled `/` out of it.
///
/// # Errors
/// `..`, a NUL or backslash.
pub fn clean_path(path: &str) -> Result<String, SourceError> {
    let refuse = |reason: &str| SourceError::Refused {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                return Err(refuse(
                    "paths must not contain `..`; a leading `/` names the repository's root",
                ));
            }
            part if part.contains(['\\', '\0']) => return Err(refuse("paths must not contain backslashes")),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_and_never_climb() {
        assert_eq!(clean_path("./a//b/.").unwrap(), "a/b");
        assert_eq!(clean_path("/").unwrap(), "");
        assert!(clean_path("a/../b").is_err());
        assert!(clean_path("..").is_err());
        assert!(clean_path("a\\b").is_err());
    }

    #[test]
    fn revisions_read_as_fluxs() {
        let revision = Revision::commit("main", "0123456789abcdef");
        assert_eq!(revision.to_string(), "main@sha1:0123456789abcdef");
        assert_eq!(revision.short(), "main@sha1:0123456789");
    }
}
