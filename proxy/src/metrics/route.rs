//! Counters of ServiceProfiles' routes: `route_*` per request, `route_actual_*` per try.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use heddle_proxy_policy::profile::RouteProfile;
use http::{HeaderValue, StatusCode};
use tokio::time::Instant;

use super::{
    Metrics,
    family::{Counter, Families, Family, Histogram},
    http::{End, with_status},
    labels::Labels,
};

/// Distinct outcomes remembered of one route; the rest are looked up each time.
const OUTCOMES_MAX: usize = 64;

/// The families.
#[derive(Debug)]
pub(crate) struct RouteFamilies {
    pub request_total: Arc<Family<Counter>>,
    pub response_total: Arc<Family<Counter>>,
    pub response_latency_ms: Arc<Family<Histogram>>,
    pub actual_request_total: Arc<Family<Counter>>,
    pub actual_response_total: Arc<Family<Counter>>,
    pub actual_response_latency_ms: Arc<Family<Histogram>>,
    pub retryable_total: Arc<Family<Counter>>,
}

/// The counters of one route. Belongs to one worker.
#[derive(Debug)]
pub(crate) struct RouteHandles {
    metrics: Arc<Metrics>,
    profile: Arc<RouteProfile>,
    labels: Labels,
    service: HeaderValue,
    requests: Arc<Counter>,
    actual_requests: Arc<Counter>,
    outcomes: RefCell<Vec<Outcome>>,
}

#[derive(Debug)]
struct Outcome {
    of: Of,
    status: Option<StatusCode>,
    end: End,
    responses: Arc<Counter>,
    latency: Option<Arc<Histogram>>,
}

/// What a response is counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    /// The answer to a request, whatever it took.
    Request,
    /// The answer to one try.
    Try,
}

/// A response that is counted when it ends.
#[derive(Debug)]
pub(crate) struct RouteTracker {
    handles: Rc<RouteHandles>,
    of: Of,
    status: StatusCode,
    started: Instant,
}

impl RouteFamilies {
    pub(super) fn new(families: &mut Families, latency_buckets_ms: &'static [u64]) -> Self {
        Self {
            request_total: families.counter(
                "route_request_total",
                "Total count of requests by ServiceProfile route.",
            ),
            response_total: families.counter(
                "route_response_total",
                "Total count of responses by ServiceProfile route.",
            ),
            response_latency_ms: families.histogram(
                "route_response_latency_ms",
                "Milliseconds from a request's headers to its response's end, retries included.",
                latency_buckets_ms,
            ),
            actual_request_total: families.counter(
                "route_actual_request_total",
                "Total count of tries by ServiceProfile route.",
            ),
            actual_response_total: families.counter(
                "route_actual_response_total",
                "Total count of responses to tries by ServiceProfile route.",
            ),
            actual_response_latency_ms: families.histogram(
                "route_actual_response_latency_ms",
                "Milliseconds from a try's headers to its response's end.",
                latency_buckets_ms,
            ),
            retryable_total: families.counter(
                "route_retryable_total",
                "Total count of failures that could be tried again.",
            ),
        }
    }
}

impl Outcome {
    fn count(&self, took: Duration) {
        self.responses.add(1);
        if let Some(latency) = &self.latency {
            latency.observe_millis(took);
        }
    }
}

impl RouteHandles {
    pub(crate) fn new(metrics: &Arc<Metrics>, direction: &str, profile: Arc<RouteProfile>) -> Rc<Self> {
        let mut labels = Labels::direction(direction).with("dst", &profile.service);
        for (name, value) in &profile.labels {
            labels = labels.with(&format!("rt_{name}"), value);
        }
        let families = &metrics.route;
        Rc::new(Self {
            requests: families.request_total.get(&labels),
            actual_requests: families.actual_request_total.get(&labels),
            metrics: metrics.clone(),
            // A DNS name with a port.
            service: HeaderValue::from_str(&profile.service).unwrap_or(HeaderValue::from_static("")),
            profile,
            labels,
            outcomes: RefCell::default(),
        })
    }

    /// The service with its port, as a header tells it.
    pub(crate) fn service(&self) -> &HeaderValue {
        &self.service
    }

    /// Counts a request, or one try of it.
    pub(crate) fn request(&self, of: Of) {
        match of {
            Of::Request => self.requests.add(1),
            Of::Try => self.actual_requests.add(1),
        }
    }

    /// Counts a failure that could be tried again: it was, or the budget was spent.
    pub(crate) fn retryable(&self, in_budget: bool) {
        let labels = self.labels.clone();
        let labels = match in_budget {
            true => labels,
            false => labels.with("skipped", "no_budget"),
        };
        self.metrics.route.retryable_total.get(&labels).add(1);
    }

    /// Counts a response that has ended, or that there is none.
    pub(crate) fn response(&self, of: Of, (status, end): (Option<StatusCode>, End), started: Instant) {
        let took = started.elapsed();
        let mut outcomes = self.outcomes.borrow_mut();
        if let Some(known) = outcomes
            .iter()
            .find(|one| one.of == of && one.status == status && one.end == end)
        {
            return known.count(took);
        }
        let failed = match (end, status) {
            (End::Http, Some(status)) => self.profile.is_failure(status, None),
            (End::Grpc(code), Some(status)) => self.profile.is_failure(status, Some(code)),
            (End::Failed(_), _) | (_, None) => true,
        };
        let with_status = with_status(&self.labels, status);
        let families = &self.metrics.route;
        let (responses, latency) = match of {
            Of::Request => (&families.response_total, &families.response_latency_ms),
            Of::Try => (
                &families.actual_response_total,
                &families.actual_response_latency_ms,
            ),
        };
        let outcome = Outcome {
            of,
            status,
            end,
            responses: responses.get(&end.classified(with_status.clone(), failed)),
            latency: status.map(|_| latency.get(&with_status)),
        };
        outcome.count(took);
        if outcomes.len() < OUTCOMES_MAX {
            outcomes.push(outcome);
        }
    }
}

impl RouteTracker {
    pub(crate) fn new(handles: &Rc<RouteHandles>, of: Of, status: StatusCode, started: Instant) -> Self {
        Self {
            handles: handles.clone(),
            of,
            status,
            started,
        }
    }

    /// The response has ended so.
    pub(crate) fn end(self, end: End) {
        self.handles
            .response(self.of, (Some(self.status), end), self.started);
    }
}
