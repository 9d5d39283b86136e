//! Counters of requests and responses.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use heddle_proxy_policy::profile::is_grpc_failure;
use http::StatusCode;
use tokio::time::Instant;

use super::{
    Metrics,
    family::{Counter, Histogram},
    labels::Labels,
};

/// Distinct outcomes remembered of one route and endpoint; the rest are looked up each time.
const OUTCOMES_MAX: usize = 64;

/// The counters of requests with the same labels. Belongs to one worker.
#[derive(Debug)]
pub(crate) struct HttpHandles {
    metrics: Arc<Metrics>,
    labels: Labels,
    requests: Arc<Counter>,
    outcomes: RefCell<Vec<Outcome>>,
}

#[derive(Debug)]
struct Outcome {
    status: Option<StatusCode>,
    end: End,
    responses: Arc<Counter>,
    latency: Option<Arc<Histogram>>,
}

/// How a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Whole, without a gRPC status; or until nobody wanted more of it.
    Http,
    /// With this gRPC status.
    Grpc(u32),
    /// Cut, or never begun, for this reason.
    Failed(&'static str),
}

impl End {
    /// The labels of its class. Linkerd writes each, empty where there is nothing to tell.
    pub(super) fn classified(self, labels: Labels, failed: bool) -> Labels {
        let labels = labels.with("classification", if failed { "failure" } else { "success" });
        match self {
            Self::Http => labels.with("grpc_status", "").with("error", ""),
            Self::Grpc(code) => labels.with("grpc_status", code).with("error", ""),
            Self::Failed(why) => labels.with("grpc_status", "").with("error", why),
        }
    }
}

/// These labels, and a response's status, if there is a response.
pub(super) fn with_status(labels: &Labels, status: Option<StatusCode>) -> Labels {
    match status {
        Some(status) => labels.clone().with("status_code", status.as_u16()),
        None => labels.clone(),
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

impl HttpHandles {
    pub(crate) fn new(metrics: Arc<Metrics>, labels: Labels) -> Rc<Self> {
        let requests = metrics.request_total.get(&labels);
        Rc::new(Self {
            metrics,
            labels,
            requests,
            outcomes: RefCell::default(),
        })
    }

    /// Counts a request.
    pub(crate) fn request(&self) {
        self.requests.add(1);
    }

    /// Counts a response that has ended, or that there is none.
    pub(crate) fn response(&self, status: Option<StatusCode>, end: End, started: Instant) {
        let took = started.elapsed();
        let mut outcomes = self.outcomes.borrow_mut();
        if let Some(known) = outcomes.iter().find(|one| one.status == status && one.end == end) {
            return known.count(took);
        }
        let failed = match end {
            End::Http => status.is_some_and(|status| status.is_server_error()),
            End::Grpc(code) => is_grpc_failure(code),
            End::Failed(_) => true,
        };
        let with_status = with_status(&self.labels, status);
        let latency = || self.metrics.response_latency_ms.get(&with_status);
        let outcome = Outcome {
            status,
            end,
            latency: status.map(|_| latency()),
            responses: self
                .metrics
                .response_total
                .get(&end.classified(with_status.clone(), failed)),
        };
        outcome.count(took);
        if outcomes.len() < OUTCOMES_MAX {
            outcomes.push(outcome);
        }
    }
}
