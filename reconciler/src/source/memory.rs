//! A tree in memory: the default profile of `heddle install`, an inline profile, and tests.

use std::sync::Arc;

use super::{Files, SourceError, Tree};

/// Files given as text.
#[derive(Clone, Debug, Default)]
pub struct MemoryTree(pub Files);

impl MemoryTree {
    pub fn new<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self(
            files
                .into_iter()
                .map(|(path, text)| (path.to_owned(), Arc::from(text.as_bytes())))
                .collect(),
        )
    }
}

impl Tree for MemoryTree {
    fn files(&self, path: &str) -> Result<Files, SourceError> {
        let folder = format!("{path}/");
        let found: Files = self
            .0
            .iter()
            .filter(|(file, _)| path.is_empty() || *file == path || file.starts_with(&folder))
            .map(|(file, bytes)| (file.clone(), bytes.clone()))
            .collect();
        if found.is_empty() {
            return Err(SourceError::NotFound {
                path: path.to_owned(),
                revision: "the files given".to_owned(),
            });
        }
        Ok(found)
    }
}
