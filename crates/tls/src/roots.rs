//! Trust anchors from a file that changes: a mounted ConfigMap, say.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use heddle_daemon::report::chain;
use tracing::{info, warn};

use crate::{Store, StoreError, TrustBundle, TrustError};

/// The kubelet itself updates mounts once a minute or so; reading a few kilobytes this often costs nothing.
pub const POLL_INTERVAL: Duration = Duration::from_secs(10);

/// Keeps a store's trust anchors equal to a file's.
#[derive(Clone, Debug)]
pub struct RootsFile {
    path: PathBuf,
    poll_interval: Duration,
    optional: bool,
}

/// Trust anchors could not be read from their file.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// The file is not readable.
    #[error("failed to read trust anchors from {path}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file holds no trust bundle.
    #[error("{path} holds no trust bundle", path = .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: TrustError,
    },
    /// rustls refuses the anchors.
    #[error("trust anchors of {path} cannot be used", path = .path.display())]
    Use {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: StoreError,
    },
}

impl RootsError {
    fn is_absence(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    }
}

/// Reads a bundle from a PEM file.
///
/// # Errors
/// The file cannot be read, or is no bundle.
pub fn load(path: &Path) -> Result<TrustBundle, RootsError> {
    let text = std::fs::read_to_string(path).map_err(|source| RootsError::Read {
        path: path.into(),
        source,
    })?;
    TrustBundle::from_pem(&text).map_err(|source| RootsError::Parse {
        path: path.into(),
        source,
    })
}

impl RootsFile {
    /// Follows `path`. The store has anchors already: a file that cannot be read is no reason to forget them.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            poll_interval: POLL_INTERVAL,
            optional: false,
        }
    }

    /// Nobody has promised that the file is there, and nothing is said as long as it is not. Once it is, it is followed.
    #[must_use]
    pub fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    /// Reads the file this often.
    #[must_use]
    pub fn poll_interval(mut self, poll_interval: Duration) -> Self {
        self.poll_interval = poll_interval;
        self
    }

    /// Runs until dropped. Reads the file at once, before it waits for anything: what is spawned later has its anchors.
    /// A file that is broken is logged once, and the last good anchors stay.
    pub async fn run(self, store: Store) {
        let mut complained = None;
        let mut seen = !self.optional;
        loop {
            match self.refresh(&store) {
                Ok(changed) => {
                    (complained, seen) = (None, true);
                    if changed {
                        info!(path = %self.path.display(), anchors = store.roots().certs().len(), "Took new trust anchors");
                    }
                }
                Err(error) if !seen && error.is_absence() => {}
                Err(error) => {
                    let text = chain(&error);
                    if complained.as_ref() != Some(&text) {
                        warn!(error = %text, "Keeping the last good trust anchors");
                        complained = Some(text);
                    }
                }
            }
            tokio::time::sleep(self.poll_interval).await;
        }
    }

    fn refresh(&self, store: &Store) -> Result<bool, RootsError> {
        let roots = load(&self.path)?;
        store.set_roots(roots).map_err(|source| RootsError::Use {
            path: self.path.clone(),
            source,
        })
    }
}
