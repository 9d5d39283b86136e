//! What a program wrote to the API server, from the server's own audit log.

use std::path::Path;

use anyhow::{Context as _, Result};

/// One request that changed, or tried to change, something.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// `create`, `patch`, `update`, `delete` …
    pub verb: String,
    /// The request's path and query.
    pub uri: String,
    /// The program, as it calls itself.
    pub user_agent: String,
    /// The HTTP status of the answer.
    pub code: i64,
}

/// All writes so far, in order. Dry runs change nothing and are left out.
pub fn writes(log: &Path) -> Result<Vec<Write>> {
    let text = std::fs::read_to_string(log).with_context(|| format!("failed to read {}", log.display()))?;
    Ok(text.lines().filter_map(write).collect())
}

fn write(line: &str) -> Option<Write> {
    // The log's last line may be half written.
    let event: serde_json::Value = serde_json::from_str(line).ok()?;
    let text = |pointer: &str| {
        event
            .pointer(pointer)
            .and_then(|value| value.as_str())
            .unwrap_or_default()
            .to_owned()
    };
    let write = Write {
        verb: text("/verb"),
        uri: text("/requestURI"),
        user_agent: text("/userAgent"),
        code: event
            .pointer("/responseStatus/code")
            .and_then(|code| code.as_i64())
            .unwrap_or(0),
    };
    let changes = matches!(
        write.verb.as_str(),
        "create" | "update" | "patch" | "delete" | "deletecollection"
    );
    // Reviews are questions in the form of a create.
    let question = ["subjectaccessreviews", "selfsubject", "tokenreviews", "/token"]
        .iter()
        .any(|part| write.uri.contains(part));
    let done = text("/stage") == "ResponseComplete";
    (changes && done && !question && !write.uri.contains("dryRun=All")).then_some(write)
}
