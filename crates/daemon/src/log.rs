//! Logging to stderr, as text for people or as JSON lines for collectors.

use std::{fmt, io::IsTerminal, str::FromStr};

use tracing_subscriber::{EnvFilter, filter};

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people: time, level, module, message, fields.
    #[default]
    Plain,
    /// One JSON object per line.
    Json,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level is not in the syntax of `RUST_LOG`.
    #[error(
        "`{level}` is no log level: expected a level such as `info`, or directives such as `info,heddle_proxy=debug`"
    )]
    Level {
        /// The level as given.
        level: String,
        /// What the parser said.
        source: filter::ParseError,
    },
    /// Something else in this process has already set up logging.
    #[error("logging is already set up")]
    Twice(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Text that names no log format.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no log format: expected `plain` or `json`")]
pub struct UnknownFormat(String);

/// Starts logging. `level` has the syntax of `RUST_LOG`; an empty one means `info`.
///
/// # Errors
/// A level that does not parse, or a second call in one process.
pub fn init(level: &str, format: Format) -> Result<(), LogError> {
    let level = if level.trim().is_empty() { "info" } else { level };
    let filter = EnvFilter::builder()
        .parse(level)
        .map_err(|source| LogError::Level {
            level: level.to_owned(),
            source,
        })?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        Format::Plain => subscriber.with_ansi(std::io::stderr().is_terminal()).try_init(),
        Format::Json => subscriber.json().flatten_event(true).try_init(),
    }
    .map_err(LogError::Twice)
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "plain" => Ok(Self::Plain),
            "json" => Ok(Self::Json),
            other => Err(UnknownFormat(other.to_owned())),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Json => "json",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_level_is_named() {
        let error = init("heddle=loud", Format::Plain).expect_err("`loud` is no level");
        assert!(
            error.to_string().contains("`heddle=loud` is no log level"),
            "{error}"
        );
    }

    #[test]
    fn formats_read_as_they_print() {
        for format in [Format::Plain, Format::Json] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert_eq!("xml".parse::<Format>(), Err(UnknownFormat("xml".into())));
    }
}
