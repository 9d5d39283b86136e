//! Counters of requests to the control plane: a client's channel that counts.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use heddle_tls::{ControlAddr, ControlChannel, Identity, connect::ControlBody};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;
use tonic::Status;
use tower_service::Service;

use super::{
    LATENCY_BUCKETS_MS,
    family::{Counter, Families, Family, Histogram},
    http::End,
    labels::Labels,
};
use crate::http::grpc_status;

#[derive(Debug)]
pub(crate) struct ControlFamilies {
    requests: Arc<Family<Counter>>,
    responses: Arc<Family<Counter>>,
    latency: Arc<Family<Histogram>>,
}

/// A channel to a service of the control plane.
#[derive(Clone)]
pub(crate) struct CountedChannel {
    inner: ControlChannel,
    handles: Arc<Handles>,
}

struct Handles {
    families: Arc<ControlFamilies>,
    labels: Labels,
    requests: Arc<Counter>,
}

/// A response's body; counts the response when it ends.
pub(crate) struct CountedBody {
    inner: ControlBody,
    count: Option<Count>,
}

/// A response that has not been counted yet.
struct Count {
    handles: Arc<Handles>,
    status: StatusCode,
    grpc_status: Option<u32>,
}

impl ControlFamilies {
    pub(super) fn new(families: &mut Families) -> Self {
        Self {
            requests: families.counter(
                "control_request_total",
                "Total count of requests to the control plane.",
            ),
            responses: families.counter(
                "control_response_total",
                "Total count of the control plane's responses that have ended.",
            ),
            latency: families.histogram(
                "control_response_latency_ms",
                "Milliseconds from a request to the head of the control plane's response.",
                LATENCY_BUCKETS_MS,
            ),
        }
    }
}

impl CountedChannel {
    pub(crate) fn new(
        inner: ControlChannel,
        families: &Arc<ControlFamilies>,
        addr: &ControlAddr,
        name: &Identity,
    ) -> Self {
        let labels = Labels::default().with("addr", addr);
        let labels = match addr.is_loopback() {
            true => labels
                .with("tls", "no_identity")
                .with("no_tls_reason", "loopback"),
            false => labels.with("tls", "true").with("server_id", name),
        };
        Self {
            inner,
            handles: Arc::new(Handles {
                requests: families.requests.get(&labels),
                families: families.clone(),
                labels,
            }),
        }
    }
}

impl Count {
    fn ended(self, failed: bool) {
        let Self {
            handles,
            status,
            grpc_status,
        } = self;
        let success = !failed && status.is_success() && grpc_status.is_none_or(|code| code == 0);
        let labels = handles.labels.clone().with("status_code", status.as_u16());
        let end = match (failed, grpc_status) {
            (true, _) => End::Failed("unclassified"),
            (false, Some(code)) => End::Grpc(code),
            (false, None) => End::Http,
        };
        let labels = end.classified(labels, !success);
        handles.families.responses.get(&labels).add(1);
    }

    fn note(&mut self, headers: &HeaderMap) {
        self.grpc_status = grpc_status(headers).or(self.grpc_status);
    }
}

impl Service<Request<tonic::body::Body>> for CountedChannel {
    type Response = Response<CountedBody>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        let handles = self.handles.clone();
        handles.requests.add(1);
        let started = Instant::now();
        let responding = self.inner.call(request);
        Box::pin(async move {
            let response = responding.await.inspect_err(|_| {
                let labels = End::Failed("unclassified").classified(handles.labels.clone(), true);
                handles.families.responses.get(&labels).add(1);
            })?;
            let took = started.elapsed();
            let status = response.status();
            let labels = handles.labels.clone().with("status_code", status.as_u16());
            handles.families.latency.get(&labels).observe_millis(took);
            let mut count = Count {
                handles,
                status,
                grpc_status: None,
            };
            count.note(response.headers());
            Ok(response.map(|inner| CountedBody {
                inner,
                count: Some(count),
            }))
        })
    }
}

impl Body for CountedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(trailers), Some(count)) = (frame.trailers_ref(), &mut self.count) {
                    count.note(trailers);
                }
            }
            Some(Err(_)) => {
                if let Some(count) = self.count.take() {
                    count.ended(true);
                }
            }
            None => {
                if let Some(count) = self.count.take() {
                    count.ended(false);
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for CountedBody {
    fn drop(&mut self) {
        // A watch that is ended on our side, as most are, is no failure.
        if let Some(count) = self.count.take() {
            count.ended(false);
        }
    }
}

impl fmt::Debug for CountedChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}
