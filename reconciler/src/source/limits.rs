//! How large a tree may be. A repository is input from outside: every number has a bound, and a tree beyond it is
//! refused with the bound's name rather than read in part.

use super::SourceError;

/// Bounds on what is read of a tree.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// One file; a profile file or policy of this size is a mistake.
    pub file_bytes_max: usize,
    pub files_max: usize,
    pub depth_max: usize,
    pub total_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            file_bytes_max: 1 << 20,
            files_max: 10_000,
            depth_max: 16,
            total_bytes_max: 64 << 20,
        }
    }
}

/// Counts against [`Limits`] while a tree is read.
pub(super) struct Budget {
    limits: Limits,
    files: usize,
    bytes: usize,
}

impl Budget {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            files: 0,
            bytes: 0,
        }
    }

    pub(super) fn enter(&self, path: &str, depth: usize) -> Result<(), SourceError> {
        if depth > self.limits.depth_max {
            return Err(refused(
                path,
                format!("folders are nested deeper than {}", self.limits.depth_max),
            ));
        }
        Ok(())
    }

    pub(super) fn file(&mut self, path: &str, bytes: usize) -> Result<(), SourceError> {
        let Limits {
            file_bytes_max,
            files_max,
            total_bytes_max,
            ..
        } = self.limits;
        if bytes > file_bytes_max {
            return Err(refused(
                path,
                format!("the file has {bytes} bytes; at most {file_bytes_max} are read"),
            ));
        }
        self.files += 1;
        self.bytes += bytes;
        if self.files > files_max {
            return Err(refused(
                path,
                format!("there are more than {files_max} files under the path"),
            ));
        }
        if self.bytes > total_bytes_max {
            return Err(refused(
                path,
                format!("the files under the path have more than {total_bytes_max} bytes together"),
            ));
        }
        Ok(())
    }
}

pub(super) fn refused(path: &str, reason: impl Into<String>) -> SourceError {
    SourceError::Refused {
        path: path.to_owned(),
        reason: reason.into(),
    }
}
