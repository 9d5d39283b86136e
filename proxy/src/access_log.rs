//! The access log: one line per inbound request on stderr, in Apache's form or as JSON, with Linkerd's fields.
//!
//! Lines go through a bounded queue to a thread of their own: a reader that does not keep up loses lines, and slows
//! nothing down. What clients say is escaped, so that nobody can write a line of somebody else's.

use std::{
    fmt::{self, Write as _},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{HeaderMap, HeaderName, Request, Response, header};
use jiff::Timestamp;
use serde_json::json;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use crate::{
    metrics::family::Counter,
    observe::{cut, flush},
};

/// Lines that wait to be written, and their bytes.
const QUEUE_LINES_MAX: usize = 8_192;
const QUEUE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of one field: URIs may be long, others are not.
const URI_BYTES_MAX: usize = 8 * 1024;
const FIELD_BYTES_MAX: usize = 1024;
/// Lines written at once.
const BATCH_LINES_MAX: usize = 256;
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// A line's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Apache,
    Json,
}

/// The log. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct AccessLog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    format: Format,
    queue: mpsc::Sender<Message>,
    /// Bytes in the queue.
    queued_bytes: Arc<AtomicUsize>,
    dropped: Arc<Counter>,
}

#[derive(Debug)]
enum Message {
    Line(String),
    Flush(oneshot::Sender<()>),
}

/// A request that has no response yet. One that never gets any is logged without a status.
#[derive(Debug)]
pub(crate) struct Entry {
    log: AccessLog,
    line: Line,
    begun: Instant,
    /// The part of the time that was the proxy's own.
    pub processing: Duration,
    logged: bool,
}

/// What is known of a request.
#[derive(Debug, Default)]
struct Line {
    client_addr: String,
    client_id: String,
    timestamp: String,
    method: String,
    uri: String,
    version: String,
    host: String,
    user_agent: String,
    trace_id: String,
    request_bytes: String,
    status: Option<u16>,
    response_bytes: String,
    total_ns: u128,
    processing_ns: u128,
}

impl AccessLog {
    /// Starts the thread that writes.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(crate) fn start(format: Format, dropped: Arc<Counter>) -> std::io::Result<Self> {
        let (queue, lines) = mpsc::channel(QUEUE_LINES_MAX);
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let counted = queued_bytes.clone();
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write(lines, &counted, std::io::stderr()))?;
        Ok(Self(Arc::new(Inner {
            format,
            queue,
            queued_bytes,
            dropped,
        })))
    }

    /// Takes note of a request.
    pub(crate) fn entry<B>(
        &self,
        request: &Request<B>,
        client: SocketAddr,
        client_id: Option<&str>,
    ) -> Entry {
        let headers = request.headers();
        let trace_id = ["x-b3-traceid", "x-request-id", "x-amzn-trace-id"];
        let trace_id = trace_id.map(HeaderName::from_static);
        let trace_id = trace_id.iter().find(|name| headers.contains_key(*name));
        let line = Line {
            client_addr: client.to_string(),
            client_id: client_id.unwrap_or("-").to_owned(),
            timestamp: Timestamp::now().to_string(),
            method: request.method().to_string(),
            uri: cut(&request.uri().to_string(), URI_BYTES_MAX).to_owned(),
            version: format!("{:?}", request.version()),
            host: field(headers, &header::HOST),
            user_agent: field(headers, &header::USER_AGENT),
            trace_id: trace_id.map(|name| field(headers, name)).unwrap_or_default(),
            request_bytes: field(headers, &header::CONTENT_LENGTH),
            ..Line::default()
        };
        Entry {
            log: self.clone(),
            line,
            begun: Instant::now(),
            processing: Duration::ZERO,
            logged: false,
        }
    }

    fn log(&self, line: &Line) {
        let Inner {
            format,
            queue,
            queued_bytes,
            dropped,
        } = &*self.0;
        let text = match format {
            Format::Apache => line.apache(),
            Format::Json => line.json(),
        };
        let bytes = text.len();
        if queued_bytes.fetch_add(bytes, Relaxed) + bytes > QUEUE_BYTES_MAX
            || queue.try_send(Message::Line(text)).is_err()
        {
            queued_bytes.fetch_sub(bytes, Relaxed);
            dropped.add(1);
        }
    }

    /// Waits until what was logged so far is written, for a moment.
    pub(crate) async fn flush(&self) {
        // A reader that has stopped reading gets no more time.
        flush(&self.0.queue, Message::Flush, FLUSH_TIMEOUT).await;
    }
}

impl Entry {
    /// Logs the request with its response.
    pub(crate) fn answered<B>(mut self, response: &Response<B>) {
        self.line.status = Some(response.status().as_u16());
        self.line.response_bytes = field(response.headers(), &header::CONTENT_LENGTH);
        self.log();
    }

    fn log(&mut self) {
        self.logged = true;
        self.line.total_ns = self.begun.elapsed().as_nanos();
        self.line.processing_ns = self.processing.as_nanos();
        self.log.log(&self.line);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if !self.logged {
            self.log();
        }
    }
}

impl Line {
    fn apache(&self) -> String {
        let Self {
            client_addr,
            timestamp,
            version,
            ..
        } = self;
        let status = self
            .status
            .map_or_else(|| "-".to_owned(), |status| status.to_string());
        let or_dash = |text: &'_ str| match text {
            "" => "-".to_owned(),
            text => Escaped(text).to_string(),
        };
        let (client_id, bytes) = (or_dash(&self.client_id), or_dash(&self.response_bytes));
        let (method, uri) = (Escaped(&self.method), Escaped(&self.uri));
        format!("{client_addr} {client_id} - [{timestamp}] \"{method} {uri} {version}\" {status} {bytes}\n")
    }

    fn json(&self) -> String {
        let Self {
            client_addr,
            client_id,
            timestamp,
            method,
            uri,
            version,
            host,
            user_agent,
            trace_id,
            request_bytes,
            status,
            response_bytes,
            total_ns,
            processing_ns,
        } = self;
        let mut line = json!({
            "client.addr": client_addr,
            "client.id": client_id,
            "host": host,
            "method": method,
            "processing_ns": processing_ns.to_string(),
            "request_bytes": request_bytes,
            "response_bytes": response_bytes,
            "status": status,
            "timestamp": timestamp,
            "total_ns": total_ns.to_string(),
            "trace_id": trace_id,
            "uri": uri,
            "user_agent": user_agent,
            "version": version,
        })
        .to_string();
        line.push('\n');
        line
    }
}

/// Text of a client in a line of other text: what could end the line or its field, and what a terminal would obey, is
/// written as `\xHH`.
struct Escaped<'t>(&'t str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for char in self.0.chars() {
            match char {
                '"' | '\\' => write!(f, "\\{char}")?,
                char if char.is_control() => {
                    let mut bytes = [0; 4];
                    for byte in char.encode_utf8(&mut bytes).bytes() {
                        write!(f, "\\x{byte:02x}")?;
                    }
                }
                char => f.write_char(char)?,
            }
        }
        Ok(())
    }
}

/// A header's text; empty when there is none, or when it is no text.
fn field(headers: &HeaderMap, name: &HeaderName) -> String {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    cut(value.unwrap_or_default(), FIELD_BYTES_MAX).to_owned()
}

/// Writes until nobody can send any more. Blocks its thread whenever the reader does not read.
fn write(mut lines: mpsc::Receiver<Message>, queued_bytes: &AtomicUsize, mut out: impl std::io::Write) {
    let (mut batch, mut text, mut flushed) = (Vec::new(), String::new(), Vec::new());
    while lines.blocking_recv_many(&mut batch, BATCH_LINES_MAX) > 0 {
        for message in batch.drain(..) {
            match message {
                Message::Line(line) => text.push_str(&line),
                Message::Flush(done) => flushed.push(done),
            }
        }
        // With stderr closed there is nobody to tell.
        let _ = out.write_all(text.as_bytes());
        queued_bytes.fetch_sub(text.len(), Relaxed);
        text.clear();
        for done in flushed.drain(..) {
            // Whoever asked may have stopped waiting.
            let _ = done.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Line {
        Line {
            client_addr: "10.0.0.1:5000".to_owned(),
            client_id: "-".to_owned(),
            timestamp: "2026-01-02T03:04:05.000000006Z".to_owned(),
            method: "GET".to_owned(),
            uri: "/a\"b\u{1b}[2J\n9.9.9.9 - - \u{85}".to_owned(),
            version: "HTTP/1.1".to_owned(),
            status: Some(200),
            ..Line::default()
        }
    }

    #[test]
    fn what_clients_say_cannot_end_a_line() {
        assert_eq!(
            line().apache(),
            "10.0.0.1:5000 - - [2026-01-02T03:04:05.000000006Z] \
             \"GET /a\\\"b\\x1b[2J\\x0a9.9.9.9 - - \\xc2\\x85 HTTP/1.1\" 200 -\n"
        );
        let json = line().json();
        assert_eq!(json.lines().count(), 1);
        let read: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(read["uri"], line().uri);
        assert_eq!(read["status"], 200);
    }

    #[test]
    fn a_slow_reader_loses_lines_and_they_are_counted() {
        let (queue, mut lines) = mpsc::channel(QUEUE_LINES_MAX);
        let log = AccessLog(Arc::new(Inner {
            format: Format::Json,
            queue,
            queued_bytes: Arc::default(),
            dropped: Arc::default(),
        }));
        let long = Line {
            uri: "/".repeat(URI_BYTES_MAX),
            ..line()
        };
        for _ in 0..1_000 {
            log.log(&long);
        }
        let bytes = log.0.queued_bytes.load(Relaxed);
        assert!(bytes <= QUEUE_BYTES_MAX, "{bytes}");
        let mut kept = 0;
        while lines.try_recv().is_ok() {
            kept += 1;
        }
        assert!(kept > 0);
        assert_eq!(log.0.dropped.get(), 1_000 - kept);
    }
}
