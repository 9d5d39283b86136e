//! Counters of HTTP requests by route: what clients get, and what backends give.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use http::StatusCode;
use tokio::time::Instant;

use super::{
    family::{Counter, Families, Family, Histogram},
    labels::Labels,
};

/// Distinct outcomes remembered of one route; the rest are looked up each time.
const OUTCOMES_MAX: usize = 64;

/// Linkerd's bounds, in microseconds. What is counted more finely elsewhere has few here.
const REQUEST_BUCKETS: &[u64] = &[50_000, 500_000, 1_000_000, 10_000_000];
const RESPONSE_BUCKETS: &[u64] = &[25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 10_000_000];
const FRAME_BUCKETS: &[u64] = &[128, 1_024, 10_240];

/// What is counted of requests of one kind.
#[derive(Debug)]
pub(crate) struct StreamFamilies {
    grpc: bool,
    requests: Option<Arc<Family<Counter>>>,
    statuses: Arc<Family<Counter>>,
    durations: Vec<Arc<Family<Histogram>>>,
    request_frames: Option<Arc<Family<Histogram>>>,
    response_frames: Option<Arc<Family<Histogram>>>,
}

/// The counters of requests with the same labels. Belongs to one worker.
#[derive(Debug)]
pub(crate) struct StreamHandles {
    families: Arc<StreamFamilies>,
    labels: Labels,
    requests: Option<Arc<Counter>>,
    durations: Box<[Arc<Histogram>]>,
    request_frames: Option<Arc<Histogram>>,
    response_frames: Option<Arc<Histogram>>,
    outcomes: RefCell<Vec<(Outcome, Arc<Counter>)>>,
}

/// A request that is counted when it ends.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    pub handles: Rc<StreamHandles>,
    pub since: Instant,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub status: Option<StatusCode>,
    pub grpc_status: Option<u32>,
    /// Why there is no response, or not a whole one; Linkerd's word.
    pub error: Option<&'static str>,
}

impl StreamFamilies {
    /// Requests to the pod, by server and route.
    pub(super) fn inbound(families: &mut Families, kind: &str) -> Arc<Self> {
        let name = |rest: &str| format!("inbound_{kind}_{rest}");
        Arc::new(Self {
            grpc: kind == "grpc",
            requests: Some(families.counter(
                name("requests_total"),
                "Total count of requests that a route of the server took.",
            )),
            statuses: families.counter(
                name("statuses_total"),
                "Total count of responses by status, or by why there is none.",
            ),
            durations: vec![
                families.seconds(
                    name("request_duration_seconds"),
                    "Seconds from a request's headers to its response's end.",
                    REQUEST_BUCKETS,
                ),
                families.seconds(
                    name("response_duration_seconds"),
                    "Seconds from a request's passing the policy to its response's end.",
                    RESPONSE_BUCKETS,
                ),
            ],
            request_frames: Some(families.histogram(
                name("request_frame_size_bytes"),
                "Sizes of the pieces of requests' bodies.",
                FRAME_BUCKETS,
            )),
            response_frames: Some(families.histogram(
                name("response_frame_size_bytes"),
                "Sizes of the pieces of responses' bodies.",
                FRAME_BUCKETS,
            )),
        })
    }

    /// The application's requests, by route, however often they are tried.
    pub(super) fn outbound_route(families: &mut Families, kind: &str) -> Arc<Self> {
        let name = |rest: &str| format!("outbound_{kind}_route_{rest}");
        Arc::new(Self {
            grpc: kind == "grpc",
            requests: None,
            statuses: families.counter(
                name("request_statuses_total"),
                "Total count of requests by what the application was answered.",
            ),
            durations: vec![families.seconds(
                name("request_duration_seconds"),
                "Seconds from a request's headers to its response's end, with all tries.",
                REQUEST_BUCKETS,
            )],
            request_frames: Some(families.histogram(
                name("request_frame_size_bytes"),
                "Sizes of the pieces of requests' bodies.",
                FRAME_BUCKETS,
            )),
            response_frames: None,
        })
    }

    /// Each try, by route and backend.
    pub(super) fn outbound_backend(families: &mut Families, kind: &str) -> Arc<Self> {
        let name = |rest: &str| format!("outbound_{kind}_route_backend_{rest}");
        Arc::new(Self {
            grpc: kind == "grpc",
            requests: Some(families.counter(
                name("requests_total"),
                "Total count of requests sent to the backend.",
            )),
            statuses: families.counter(
                name("response_statuses_total"),
                "Total count of the backend's responses by status, or by why there is none.",
            ),
            durations: vec![families.seconds(
                name("response_duration_seconds"),
                "Seconds from a request's being sent to its response's end.",
                RESPONSE_BUCKETS,
            )],
            request_frames: None,
            response_frames: Some(families.histogram(
                name("response_frame_size_bytes"),
                "Sizes of the pieces of responses' bodies.",
                FRAME_BUCKETS,
            )),
        })
    }
}

impl StreamHandles {
    pub(crate) fn new(families: &Arc<StreamFamilies>, labels: Labels) -> Rc<Self> {
        let frames = |family: &Option<Arc<Family<Histogram>>>| family.as_ref().map(|one| one.get(&labels));
        Rc::new(Self {
            requests: families.requests.as_ref().map(|family| family.get(&labels)),
            durations: families
                .durations
                .iter()
                .map(|family| family.get(&labels))
                .collect(),
            request_frames: frames(&families.request_frames),
            response_frames: frames(&families.response_frames),
            outcomes: RefCell::default(),
            families: families.clone(),
            labels,
        })
    }

    pub(crate) fn is_grpc(&self) -> bool {
        self.families.grpc
    }

    /// Counts a request, where requests are counted when they begin.
    pub(crate) fn request(&self) {
        if let Some(requests) = &self.requests {
            requests.add(1);
        }
    }

    pub(crate) fn request_frame(&self, bytes: usize) {
        if let Some(frames) = &self.request_frames {
            frames.observe(bytes as u64);
        }
    }

    fn end(&self, outcome: Outcome, duration: Duration) {
        for histogram in &self.durations {
            histogram.observe_time(duration);
        }
        let mut outcomes = self.outcomes.borrow_mut();
        if let Some((_, count)) = outcomes.iter().find(|(known, _)| *known == outcome) {
            count.add(1);
            return;
        }
        let labels = self.labels.clone();
        let labels = match self.families.grpc {
            false => labels.with(
                "http_status",
                outcome.status.as_ref().map_or("", StatusCode::as_str),
            ),
            true => labels.with("grpc_status", grpc_name(outcome.grpc_status)),
        };
        let labels = labels.with("error", outcome.error.unwrap_or_default());
        let count = self.families.statuses.get(&labels);
        count.add(1);
        if outcomes.len() < OUTCOMES_MAX {
            outcomes.push((outcome, count));
        }
    }
}

impl Stream {
    pub(crate) fn new(handles: Rc<StreamHandles>, since: Instant) -> Self {
        Self { handles, since }
    }

    pub(crate) fn response_frame(&self, bytes: usize) {
        if let Some(frames) = &self.handles.response_frames {
            frames.observe(bytes as u64);
        }
    }

    pub(crate) fn end(&self, outcome: Outcome) {
        self.handles.end(outcome, self.since.elapsed());
    }

    /// There is no response.
    pub(crate) fn failed(&self, error: &'static str) {
        self.end(Outcome {
            error: Some(error),
            ..Outcome::default()
        });
    }
}

/// gRPC's names; what a server does not say is unknown, as gRPC has it.
fn grpc_name(code: Option<u32>) -> &'static str {
    match code {
        Some(0) => "OK",
        Some(1) => "CANCELLED",
        Some(3) => "INVALID_ARGUMENT",
        Some(4) => "DEADLINE_EXCEEDED",
        Some(5) => "NOT_FOUND",
        Some(6) => "ALREADY_EXISTS",
        Some(7) => "PERMISSION_DENIED",
        Some(8) => "RESOURCE_EXHAUSTED",
        Some(9) => "FAILED_PRECONDITION",
        Some(10) => "ABORTED",
        Some(11) => "OUT_OF_RANGE",
        Some(12) => "UNIMPLEMENTED",
        Some(13) => "INTERNAL",
        Some(14) => "UNAVAILABLE",
        Some(15) => "DATA_LOSS",
        Some(16) => "UNAUTHENTICATED",
        _ => "UNKNOWN",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_are_counted_by_what_became_of_them() {
        let mut families = Families::default();
        let backend = StreamFamilies::outbound_backend(&mut families, "grpc");
        let handles = StreamHandles::new(&backend, Labels::default().with("a", "b"));
        handles.request();
        let stream = Stream::new(handles, Instant::now());
        tokio::time::advance(Duration::from_millis(30)).await;
        stream.response_frame(200);
        stream.end(Outcome {
            status: Some(StatusCode::OK),
            grpc_status: Some(14),
            error: None,
        });
        stream.failed("FAIL_FAST");
        let mut out = String::new();
        for family in families.iter() {
            family.render(&mut out);
        }
        let name = "outbound_grpc_route_backend";
        for line in [
            format!("{name}_requests_total{{a=\"b\"}} 1"),
            format!("{name}_response_statuses_total{{a=\"b\",grpc_status=\"UNAVAILABLE\",error=\"\"}} 1"),
            format!(
                "{name}_response_statuses_total{{a=\"b\",grpc_status=\"UNKNOWN\",error=\"FAIL_FAST\"}} 1"
            ),
            format!("{name}_response_duration_seconds_bucket{{a=\"b\",le=\"0.025\"}} 0"),
            format!("{name}_response_duration_seconds_bucket{{a=\"b\",le=\"0.05\"}} 2"),
            format!("{name}_response_frame_size_bytes_bucket{{a=\"b\",le=\"1024\"}} 1"),
        ] {
            assert!(out.lines().any(|have| have == line), "{line} is not in\n{out}");
        }
    }
}
