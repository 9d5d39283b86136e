//! The access log: one line per inbound request on stderr, in Apache's form or as JSON, with Linkerd's fields.
//!
//! A reader that does not keep up loses lines, and slows nothing down (`lines`). What clients say is escaped, so that
//! nobody can write a line of somebody else's.

use std::{
    fmt::{self, Write as _},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use http::{HeaderMap, HeaderName, Request, Response, header};
use jiff::Timestamp;
use serde_json::json;
use tokio::time::Instant;

use crate::{lines::Lines, metrics::family::Counter, observe::cut};

/// Bytes of one field: URIs may be long, others are not.
const URI_BYTES_MAX: usize = 8 * 1024;
const FIELD_BYTES_MAX: usize = 1024;

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
    lines: Lines,
    dropped: Arc<Counter>,
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
        let lines = Lines::start("access-log", std::io::stderr())?;
        Ok(Self(Arc::new(Inner {
            format,
            lines,
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
            lines,
            dropped,
        } = &*self.0;
        let text = match format {
            Format::Apache => line.apache(),
            Format::Json => line.json(),
        };
        if !lines.push(text.into_bytes()) {
            dropped.add(1);
        }
    }

    /// Waits until what was logged so far is written, for a moment. Blocks: for the end of the process.
    pub(crate) fn flush(&self) {
        self.0.lines.flush();
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
}
