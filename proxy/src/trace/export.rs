//! Sends spans to the collector: OTLP over gRPC, in batches, over mTLS to whom the collector must prove to be.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use heddle_tls::ControlChannel;
use http::uri::PathAndQuery;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    common::v1::InstrumentationScope,
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span as Record},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout, timeout_at},
};
use tonic::{Request, Status, client::Grpc};
use tonic_prost::ProstCodec;
use tracing::{debug, warn};

use super::{Spans, Text, attribute};
use crate::{
    metrics::{Metrics, family::Counter, labels::Labels},
    observe::flush,
};

const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// Spans that wait to be sent. Linkerd's queue holds 1,000.
const QUEUE_SPANS_MAX: usize = 2_048;
const BATCH_SPANS_MAX: usize = 512;
/// How long a span waits for others.
const BATCH_DELAY: Duration = Duration::from_secs(1);
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// A batch is sent so often before it is given up.
const TRIES_MAX: u32 = 3;
const RETRY_PAUSE: Duration = Duration::from_secs(1);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// A response is a few numbers and a sentence.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug)]
pub(super) enum Message {
    Span(Box<Record>),
    Flush(oneshot::Sender<()>),
}

/// What sends spans.
#[derive(Debug)]
pub(crate) struct Exporter {
    queue: mpsc::Receiver<Message>,
    client: Grpc<ControlChannel>,
    resource: Resource,
    streams: Arc<Counter>,
    requests: Arc<Counter>,
    sent: Arc<Counter>,
    dropped: Arc<Counter>,
}

impl Exporter {
    /// Where spans are put, and what sends them, with what all of them say of the pod.
    pub(crate) fn new(
        channel: ControlChannel,
        attributes: &BTreeMap<String, String>,
        metrics: &Metrics,
    ) -> (Spans, Self) {
        let (spans, queue) = mpsc::channel(QUEUE_SPANS_MAX);
        let dropped = metrics.spans_dropped.get(&Labels::default());
        let attributes = attributes
            .iter()
            .map(|(key, value)| attribute(key, Text::from(value.as_str()).0));
        let exporter = Self {
            queue,
            client: Grpc::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX),
            resource: Resource {
                attributes: attributes.collect(),
                ..Resource::default()
            },
            streams: metrics.span_export_streams.get(&Labels::default()),
            requests: metrics.span_export_requests.get(&Labels::default()),
            sent: metrics.span_exports.get(&Labels::default()),
            dropped: dropped.clone(),
        };
        let spans = Spans {
            queue: spans,
            dropped,
        };
        (spans, exporter)
    }

    /// Sends spans until nobody makes any.
    pub(crate) async fn run(mut self) {
        let (mut messages, mut batch, mut flushed) = (Vec::new(), Vec::new(), Vec::new());
        while self.queue.recv_many(&mut messages, BATCH_SPANS_MAX).await > 0 {
            let deadline = Instant::now() + BATCH_DELAY;
            loop {
                for message in messages.drain(..) {
                    match message {
                        Message::Span(span) => batch.push(*span),
                        Message::Flush(done) => flushed.push(done),
                    }
                }
                if batch.len() >= BATCH_SPANS_MAX || !flushed.is_empty() {
                    break;
                }
                let more = self.queue.recv_many(&mut messages, BATCH_SPANS_MAX - batch.len());
                // Nothing is lost by being late: what was received is in `messages`.
                if !matches!(timeout_at(deadline, more).await, Ok(1..)) {
                    break;
                }
            }
            if !batch.is_empty() {
                self.send(std::mem::take(&mut batch)).await;
            }
            for done in flushed.drain(..) {
                // Whoever asked may have stopped waiting.
                let _ = done.send(());
            }
        }
    }

    async fn send(&mut self, spans: Vec<Record>) {
        let count = spans.len() as u64;
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans {
                    scope: Some(InstrumentationScope {
                        name: "heddle-proxy".to_owned(),
                        version: heddle_mesh::VERSION.to_owned(),
                        ..InstrumentationScope::default()
                    }),
                    spans,
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            }],
        };
        for tried in 1..=TRIES_MAX {
            self.streams.add(1);
            let sent = timeout(EXPORT_TIMEOUT, self.export(request.clone())).await;
            match sent.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time"))) {
                Ok(response) => {
                    let refused = response.partial_success.unwrap_or_default();
                    let rejected = u64::try_from(refused.rejected_spans).unwrap_or(0).min(count);
                    if rejected > 0 {
                        debug!(rejected, reason = %refused.error_message, "The collector refused spans");
                    }
                    self.requests.add(1);
                    self.sent.add(count - rejected);
                    self.dropped.add(rejected);
                    return;
                }
                Err(status) if tried == TRIES_MAX => warn!(spans = count, %status, "Spans are lost"),
                Err(status) => {
                    debug!(%status, "The collector did not take spans");
                    sleep(RETRY_PAUSE).await;
                }
            }
        }
        self.dropped.add(count);
    }

    async fn export(
        &mut self,
        request: ExportTraceServiceRequest,
    ) -> Result<ExportTraceServiceResponse, Status> {
        let ready = self.client.ready().await;
        ready.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = PathAndQuery::from_static(EXPORT);
        let response = self
            .client
            .unary(Request::new(request), path, ProstCodec::default())
            .await?;
        Ok(response.into_inner())
    }
}

impl Spans {
    /// Waits until the spans of now are sent, for a moment.
    pub(crate) async fn flush(&self) {
        // A collector that is away gets no more time.
        flush(&self.queue, Message::Flush, FLUSH_TIMEOUT).await;
    }
}
