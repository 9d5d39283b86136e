//! Logs to stdout, with a filter that can be changed while the proxy runs. The access log has stderr: so Linkerd divides
//! them. A reader that does not keep up loses lines (`lines`), and is told how many when there is room again.
//!
//! Filters written for Linkerd name its crates (`linkerd=info`); they hold for Heddle's. What the HTTP/2 library has to say of its
//! peers' frames is heard only where a filter names it: it warns of each, and a peer could write our log.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tracing_subscriber::{
    EnvFilter, Registry, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

use crate::{config::LogConfig, lines::Lines};

/// Holds unless a filter says something else of the same crate.
const QUIET: &str = "h2=error";

/// Changes the filter of the running proxy.
#[derive(Clone, Debug)]
pub(crate) struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
    writer: Writer,
}

/// A filter that is not in `RUST_LOG` syntax.
#[derive(Debug, thiserror::Error)]
#[error("`{text}` is no log filter: expected directives such as `warn,linkerd=debug`")]
pub(crate) struct FilterError {
    text: String,
    source: tracing_subscriber::filter::ParseError,
}

/// Logging does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error(transparent)]
    Filter(#[from] FilterError),
    #[error("failed to start the thread that writes the log")]
    Thread(#[source] io::Error),
}

/// Takes events' lines to the queue.
#[derive(Clone, Debug)]
struct Writer {
    lines: Lines,
    json: bool,
    lost: Arc<AtomicU64>,
}

/// Starts logging.
///
/// # Errors
/// The filter cannot be read, or there is no thread to be had.
pub(crate) fn init(config: &LogConfig) -> Result<LogHandle, LogError> {
    let (filter, handle) = reload::Layer::new(parse(&config.filter)?);
    let registry = tracing_subscriber::registry().with(filter);
    let writer = Writer {
        lines: Lines::start("log", io::stdout()).map_err(LogError::Thread)?,
        json: config.json,
        lost: Arc::default(),
    };
    let makes = writer.clone();
    let layer = fmt::layer().with_writer(move || makes.clone()).with_ansi(false);
    // An error means that a subscriber is set already, as in tests; its settings hold.
    let _ = match config.json {
        true => registry.with(layer.json().flatten_event(true)).try_init(),
        false => registry.with(layer).try_init(),
    };
    Ok(LogHandle {
        filter: handle,
        writer,
    })
}

impl Writer {
    /// How many lines found no room since this was last asked, and what is said of it.
    fn lost(&self) -> (u64, String) {
        let lost = self.lost.swap(0, Relaxed);
        let told = match (lost, self.json) {
            (0, _) => String::new(),
            (_, false) => format!("WARN heddle_proxy: {lost} lines before this one found no room\n"),
            (_, true) => format!(
                "{{\"level\":\"WARN\",\"message\":\"Lines before this one found no room\",\"lines\":{lost}}}\n"
            ),
        };
        (lost, told)
    }
}

impl io::Write for Writer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let (lost, told) = self.lost();
        if !self.lines.push([told.as_bytes(), line].concat()) {
            self.lost.fetch_add(lost + 1, Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether the text is a filter.
///
/// # Errors
/// It cannot be read.
pub(crate) fn check(text: &str) -> Result<(), FilterError> {
    parse(text).map(drop)
}

fn parse(text: &str) -> Result<EnvFilter, FilterError> {
    let heddle: Vec<String> = text
        .split(',')
        .map(str::trim)
        .filter_map(|one| one.strip_prefix("linkerd").filter(|rest| rest.starts_with('=')))
        .map(|level| format!("heddle{level}"))
        .collect();
    // What names Heddle itself comes last, and so wins.
    let all = [QUIET]
        .into_iter()
        .chain(heddle.iter().map(String::as_str))
        .chain([text])
        .collect::<Vec<_>>()
        .join(",");
    EnvFilter::builder().parse(&all).map_err(|source| FilterError {
        text: text.to_owned(),
        source,
    })
}

impl LogHandle {
    /// Replaces the filter.
    ///
    /// # Errors
    /// The filter cannot be read.
    pub(crate) fn set(&self, text: &str) -> Result<(), FilterError> {
        let filter = parse(text)?;
        // Fails only when the subscriber is gone, at the end of the process.
        let _ = self.filter.reload(filter);
        Ok(())
    }

    /// The filter in use.
    pub(crate) fn current(&self) -> String {
        self.filter.with_current(ToString::to_string).unwrap_or_default()
    }

    /// Waits until what was logged so far is written, for a moment. Blocks: for the end of the process.
    pub(crate) fn flush(&self) {
        let Writer { lines, .. } = &self.writer;
        lines.flush();
        let (lost, told) = self.writer.lost();
        if lost > 0 && lines.push(told.into_bytes()) {
            lines.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_do_not_write_the_log_unless_asked_for() {
        let filter = |text| parse(text).expect("a filter").to_string();
        assert!(filter("warn,linkerd=info").contains("h2=error"));
        assert!(filter("warn,linkerd=info").contains("heddle=info"));
        let asked = filter("warn,h2=debug");
        assert!(
            asked.contains("h2=debug") && !asked.contains("h2=error"),
            "{asked}"
        );
    }
}
