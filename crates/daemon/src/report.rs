//! Errors as text: the error and all its causes, each once.

use std::error::Error;

/// The error and its causes, joined by `: `.
///
/// Errors of libraries often repeat their source in their own text; a cause whose text the line already ends with is
/// left out, so that nothing is said twice.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    // A chain of errors is as long as the code that made it is deep; a cycle would be a bug of some library.
    const CAUSES_MAX: usize = 32;
    let mut text = error.to_string();
    let mut cause = error.source();
    for _ in 0..CAUSES_MAX {
        let Some(error) = cause else { break };
        let said = error.to_string();
        if !said.is_empty() && !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("failed to read {file}")]
    struct Read {
        file: &'static str,
        source: Wrapped,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("not open: {source}")]
    struct Wrapped {
        source: Cause,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("no such file")]
    struct Cause;

    #[test]
    fn every_cause_is_printed_once() {
        let error = Read {
            file: "a.pem",
            source: Wrapped { source: Cause },
        };
        assert_eq!(chain(&error), "failed to read a.pem: not open: no such file");
        assert_eq!(chain(&Cause), "no such file");
    }
}
