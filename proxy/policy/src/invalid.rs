//! Why a message of the control plane is refused.

use std::{fmt, time::Duration};

/// A field of a control-plane message that breaks the API's rules. The whole message is refused with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("field `{field}` is invalid: {problem}")]
pub struct Invalid {
    /// Path of the field inside the message, such as `http1.routes[2].rules`.
    pub field: String,
    /// What was expected, or what is wrong.
    pub problem: String,
}

impl Invalid {
    /// An invalid field and what is wrong with it.
    pub fn new(field: impl Into<String>, problem: impl fmt::Display) -> Self {
        Self {
            field: field.into(),
            problem: problem.to_string(),
        }
    }

    /// A field that must be set and is not.
    pub fn missing(field: impl Into<String>) -> Self {
        Self::new(field, "must be set")
    }

    /// The same error seen from the enclosing message.
    #[must_use]
    pub fn within(self, parent: impl fmt::Display) -> Self {
        Self {
            field: format!("{parent}.{}", self.field),
            problem: self.problem,
        }
    }
}

/// Nobody waits for longer, and a clock's time can still be added to it.
const DURATION_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Reads a protobuf duration; negative or overlong values are refused.
pub(crate) fn duration(field: &str, value: prost_types::Duration) -> Result<Duration, Invalid> {
    let time = Duration::try_from(value).map_err(|error| Invalid::new(field, error))?;
    Ok(time.min(DURATION_MAX))
}

/// Converts each item of a repeated field, naming the index of the first bad one.
pub(crate) fn each<T, U>(
    field: &str,
    items: Vec<T>,
    convert: impl Fn(T) -> Result<U, Invalid>,
) -> Result<Vec<U>, Invalid> {
    items
        .into_iter()
        .enumerate()
        .map(|(index, item)| convert(item).map_err(|error| error.within(format!("{field}[{index}]"))))
        .collect()
}
