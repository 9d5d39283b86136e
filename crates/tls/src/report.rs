//! Errors with their causes, for this crate's log lines; programs have `heddle-daemon`'s, which this crate stands
//! beside and not on.

use std::error::Error;

/// The error and its causes, each once, joined by `: `.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}
