//! What an API server was asked to write, from its audit log: for tests that say "this makes no write".
//!
//! The log has one line per write (reads and leases are left out), written before the answer is sent. So once a
//! request has been answered, it is there.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Deserialize;

/// An audit log, read from a place on.
#[derive(Debug, Clone)]
pub struct AuditLog {
    path: PathBuf,
    offset: u64,
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The program that asked, as it calls itself.
    pub user_agent: String,
    /// Who it asked as.
    pub user: String,
    /// `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// `deployments`, or `deployments/scale`.
    pub resource: String,
    pub namespace: String,
    pub name: String,
    /// The field manager and whether it was only a dry run are in here.
    pub uri: String,
    /// HTTP status of the answer.
    pub code: u16,
}

impl Write {
    /// Whether nothing was to be stored.
    pub fn is_dry_run(&self) -> bool {
        self.uri.contains("dryRun=All")
    }
}

impl AuditLog {
    /// The log at `path`, from its current end on.
    pub fn from_now(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let size = std::fs::metadata(&path).map(|meta| meta.len());
        let offset = size.with_context(|| format!("failed to measure the audit log {}", path.display()))?;
        Ok(Self { path, offset })
    }

    /// The log at `path`, from its beginning.
    pub fn from_start(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            offset: 0,
        }
    }

    /// All writes that were answered since, oldest first. A later call returns them again, and newer ones.
    pub fn writes(&self) -> Result<Vec<Write>> {
        let shown = || format!("failed to read the audit log {}", self.path.display());
        let mut file = File::open(&self.path).with_context(shown)?;
        file.seek(SeekFrom::Start(self.offset)).with_context(shown)?;
        let mut writes = Vec::new();
        for line in BufReader::new(file).split(b'\n') {
            // The last line may still be being written; then its request has not been answered.
            if let Ok(event) = serde_json::from_slice::<Event>(&line.with_context(shown)?) {
                writes.push(event.into());
            }
        }
        Ok(writes)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    verb: String,
    #[serde(rename = "requestURI")]
    uri: String,
    user: User,
    #[serde(default)]
    user_agent: String,
    #[serde(default)]
    object_ref: Object,
    response_status: Option<Status>,
}

#[derive(Deserialize)]
struct User {
    #[serde(default)]
    username: String,
}

#[derive(Deserialize, Default)]
struct Object {
    #[serde(default)]
    resource: String,
    #[serde(default)]
    subresource: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
}

impl From<Event> for Write {
    fn from(event: Event) -> Self {
        let Event {
            verb,
            uri,
            user,
            user_agent,
            object_ref,
            response_status,
        } = event;
        let Object {
            mut resource,
            subresource,
            namespace,
            name,
        } = object_ref;
        if !subresource.is_empty() {
            resource = format!("{resource}/{subresource}");
        }
        let code = response_status.map_or(0, |status| status.code);
        Self {
            user_agent,
            user: user.username,
            verb,
            resource,
            namespace,
            name,
            uri,
            code,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const LINE: &str = r#"{"kind":"Event","verb":"patch","requestURI":"/apis/apps/v1/namespaces/a/deployments/b/status?dryRun=All","user":{"username":"u"},"userAgent":"heddle/0.1.0","objectRef":{"resource":"deployments","namespace":"a","name":"b","subresource":"status"},"responseStatus":{"code":200}}"#;

    #[test]
    fn writes_after_the_mark_are_read_and_unfinished_lines_are_not() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "{LINE}").unwrap();
        let log = AuditLog::from_now(file.path()).unwrap();
        assert_eq!(log.writes().unwrap(), []);
        write!(file, "{LINE}\n{}", &LINE[..50]).unwrap();
        let writes = log.writes().unwrap();
        assert_eq!(writes.len(), 1);
        assert_eq!(
            (writes[0].resource.as_str(), writes[0].code),
            ("deployments/status", 200)
        );
        assert!(writes[0].is_dry_run());
        assert_eq!(AuditLog::from_start(file.path()).writes().unwrap().len(), 2);
    }
}
