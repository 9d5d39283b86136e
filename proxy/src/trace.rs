//! Spans: what part of a trace passes through the proxy. Only requests that carry a trace context have any; which of
//! them are recorded is decided by whoever began the trace.
//!
//! A request has two: one as the proxy received it, and one below it for each time it was sent on. The context is passed
//! on in the form in which it came, with the proxy's span in its place.

mod context;
pub(crate) mod export;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use http::{HeaderMap, Request, Response, header};
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{self as proto, Status, span::SpanKind, status::StatusCode},
};
use tokio::sync::mpsc;

use crate::{
    http::grpc_status,
    metrics::family::Counter,
    observe::{Direction, cut},
};
use context::Context;
use export::Message;

/// An attribute's value is cut to this length.
const VALUE_BYTES_MAX: usize = 1024;
/// The parent is known to be another process: bits 8 and 9 of a span's flags.
const PARENT_IS_REMOTE: u32 = 0x300;
/// What a query must not tell: OpenTelemetry's list of keys that sign requests.
const SIGNATURES: [&str; 4] = ["AWSAccessKeyId", "Signature", "sig", "X-Goog-Signature"];

/// Where spans go. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Spans {
    queue: mpsc::Sender<Message>,
    dropped: Arc<Counter>,
}

/// A span that has not ended.
#[derive(Debug)]
pub(crate) struct Span {
    spans: Spans,
    record: Box<proto::Span>,
}

impl Spans {
    /// The proxy received a request: a span begins if its trace is recorded, and its context is passed on.
    pub(crate) fn received<B>(
        &self,
        direction: Direction,
        request: &mut Request<B>,
        client: SocketAddr,
    ) -> Option<Span> {
        let mut span = self.begin(direction, SpanKind::Server, request)?;
        span.set("client.address", client.ip().to_string());
        Some(span)
    }

    /// The proxy sends a request on.
    pub(crate) fn sending<B>(
        &self,
        direction: Direction,
        request: &mut Request<B>,
        peer: SocketAddr,
    ) -> Option<Span> {
        let mut span = self.begin(direction, SpanKind::Client, request)?;
        span.set("network.peer.address", peer.ip().to_string());
        span.set("network.peer.port", i64::from(peer.port()));
        Some(span)
    }

    fn begin<B>(&self, direction: Direction, kind: SpanKind, request: &mut Request<B>) -> Option<Span> {
        let context = Context::of(request.headers())?;
        let span_id = rand::random_range(1..=u64::MAX).to_be_bytes();
        context.pass_on(span_id, request.headers_mut());
        if !context.is_sampled() {
            return None;
        }
        let mut span = Span {
            spans: self.clone(),
            record: Box::new(proto::Span {
                trace_id: context.trace_id.to_vec(),
                span_id: span_id.to_vec(),
                parent_span_id: context.parent_id.to_vec(),
                flags: u32::from(context.flags) | PARENT_IS_REMOTE,
                name: cut(request.uri().path(), VALUE_BYTES_MAX).to_owned(),
                kind: kind.into(),
                start_time_unix_nano: now(),
                ..proto::Span::default()
            }),
        };
        span.set("direction", direction.as_str());
        span.describe(request);
        Some(span)
    }

    fn send(&self, record: Box<proto::Span>) {
        if self.queue.try_send(Message::Span(record)).is_err() {
            self.dropped.add(1);
        }
    }
}

impl Span {
    /// What OpenTelemetry's conventions for HTTP say of a request.
    fn describe<B>(&mut self, request: &Request<B>) {
        let uri = request.uri();
        self.set("http.request.method", request.method().as_str());
        self.set("url.scheme", uri.scheme_str().unwrap_or("http"));
        self.set("url.path", uri.path());
        if let Some(query) = uri.query() {
            self.set("url.query", redacted(query));
        }
        let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
        let host = header(header::HOST).and_then(|host| host.parse::<http::uri::Authority>().ok());
        if let Some(host) = uri.authority().or(host.as_ref()) {
            self.set("server.address", host.host());
            if let Some(port) = host.port_u16() {
                self.set("server.port", i64::from(port));
            }
        }
        if let Some(agent) = header(header::USER_AGENT) {
            self.set("user_agent.original", agent);
        }
    }

    pub(crate) fn answered<B>(&mut self, response: &Response<B>) {
        let status = response.status();
        self.set("http.response.status_code", i64::from(status.as_u16()));
        if status.is_server_error() {
            self.error(status.as_str());
        }
        self.trailers(response.headers());
    }

    pub(crate) fn trailers(&mut self, trailers: &HeaderMap) {
        if let Some(code) = grpc_status(trailers) {
            self.set("rpc.grpc.status_code", i64::from(code));
            if code != 0 {
                self.error(&code.to_string());
            }
        }
    }

    /// The span is complete.
    pub(crate) fn end(mut self, failed: bool) {
        if failed {
            self.error("io");
        }
        self.record.end_time_unix_nano = now();
        let Self { spans, record } = self;
        spans.send(record);
    }

    fn error(&mut self, kind: &str) {
        self.set("error.type", kind);
        self.record.status = Some(Status {
            message: String::new(),
            code: StatusCode::Error.into(),
        });
    }

    fn set(&mut self, key: &str, value: impl Into<Text>) {
        self.record.attributes.retain(|known| known.key != key);
        self.record.attributes.push(attribute(key, value.into().0));
    }
}

/// An attribute's value, no longer than it may be.
struct Text(Value);

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(Value::StringValue(cut(text, VALUE_BYTES_MAX).to_owned()))
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<i64> for Text {
    fn from(number: i64) -> Self {
        Self(Value::IntValue(number))
    }
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

/// The query without what signs it.
fn redacted(query: &str) -> String {
    let pairs = query.split('&').map(|pair| match pair.split_once('=') {
        Some((key, _)) if SIGNATURES.contains(&key) => format!("{key}=REDACTED"),
        _ => pair.to_owned(),
    });
    pairs.collect::<Vec<_>>().join("&")
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(context: &str) -> Request<()> {
        let request = Request::get("http://web:80/a?x=1&sig=secret").header("traceparent", context);
        request.body(()).expect("a request")
    }

    fn spans(queue_capacity: usize) -> (Spans, mpsc::Receiver<Message>) {
        let (queue, spans) = mpsc::channel(queue_capacity);
        let dropped = Arc::default();
        (Spans { queue, dropped }, spans)
    }

    const SAMPLED: &str = "00-94d7f6ec6b95f3e916179cb6cfd01390-55ccfce77f972614-01";

    #[test]
    fn a_recorded_trace_gets_a_span_below_its_parent_and_the_context_goes_on_with_it() {
        let (spans, mut queue) = spans(8);
        let mut seen = request(SAMPLED);
        let addr = SocketAddr::from(([10, 0, 0, 1], 80));
        let mut server = spans
            .received(Direction::Inbound, &mut seen, addr)
            .expect("sampled");
        let client = spans
            .sending(Direction::Inbound, &mut seen, addr)
            .expect("sampled");
        server.answered(&Response::builder().status(503).body(()).expect("a response"));
        let (server_id, client_id) = (server.record.span_id.clone(), client.record.span_id.clone());
        client.end(false);
        server.end(false);
        let mut next = || match queue.try_recv() {
            Ok(Message::Span(span)) => span,
            other => panic!("no span: {other:?}"),
        };
        let (client, server) = (next(), next());
        assert_eq!(
            server.parent_span_id,
            [0x55, 0xcc, 0xfc, 0xe7, 0x7f, 0x97, 0x26, 0x14]
        );
        assert_eq!(client.parent_span_id, server_id);
        let value = |span: &proto::Span, key: &str| {
            let found = span.attributes.iter().find(|one| one.key == key)?;
            found.value.clone()?.value
        };
        assert_eq!(
            value(&server, "url.query"),
            Some(Value::StringValue("x=1&sig=REDACTED".to_owned()))
        );
        assert_eq!(
            value(&server, "http.response.status_code"),
            Some(Value::IntValue(503))
        );
        assert_eq!(
            server.status.as_ref().map(|status| status.code),
            Some(StatusCode::Error.into())
        );
        let client_id = u64::from_be_bytes(client_id.try_into().expect("eight bytes"));
        assert_eq!(
            seen.headers()["traceparent"],
            format!("00-94d7f6ec6b95f3e916179cb6cfd01390-{client_id:016x}-01")
        );
    }

    #[test]
    fn a_trace_that_is_not_recorded_is_passed_on_and_no_more() {
        let (spans, _queue) = spans(8);
        let mut seen = request("00-94d7f6ec6b95f3e916179cb6cfd01390-55ccfce77f972614-00");
        let addr = SocketAddr::from(([10, 0, 0, 1], 80));
        assert!(spans.received(Direction::Outbound, &mut seen, addr).is_none());
        let passed = seen.headers()["traceparent"].to_str().expect("text");
        assert!(passed.starts_with("00-94d7f6ec6b95f3e916179cb6cfd01390-"));
        assert!(!passed.contains("55ccfce77f972614"));
        assert!(
            spans
                .received(Direction::Outbound, &mut Request::new(()), addr)
                .is_none()
        );
    }

    #[test]
    fn spans_that_have_no_place_are_counted() {
        let (spans, _queue) = spans(1);
        let addr = SocketAddr::from(([10, 0, 0, 1], 80));
        for _ in 0..3 {
            let span = spans.received(Direction::Outbound, &mut request(SAMPLED), addr);
            span.expect("sampled").end(false);
        }
        assert_eq!(spans.dropped.get(), 2);
    }
}
