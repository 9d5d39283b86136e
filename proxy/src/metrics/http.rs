//! Counters of requests and responses.

use std::{cell::RefCell, rc::Rc, sync::Arc};

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
    status: StatusCode,
    end: End,
    responses: Arc<Counter>,
    latency: Arc<Histogram>,
}

/// How a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Whole, without a gRPC status.
    Http,
    /// With this gRPC status.
    Grpc(u32),
    /// Cut, or never begun.
    Failed,
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

    /// Counts a response that has ended.
    pub(crate) fn response(&self, status: StatusCode, end: End, started: Instant) {
        let took = started.elapsed();
        let mut outcomes = self.outcomes.borrow_mut();
        if let Some(known) = outcomes.iter().find(|one| one.status == status && one.end == end) {
            known.responses.add(1);
            known.latency.observe_millis(took);
            return;
        }
        let success = match end {
            End::Http => !status.is_server_error(),
            End::Grpc(code) => !is_grpc_failure(code),
            End::Failed => false,
        };
        let with_status = self.labels.clone().with("status_code", status.as_u16());
        let mut labels = with_status
            .clone()
            .with("classification", if success { "success" } else { "failure" });
        match end {
            End::Http => {}
            End::Grpc(code) => labels = labels.with("grpc_status", code),
            End::Failed => labels = labels.with("error", "unknown"),
        }
        let outcome = Outcome {
            status,
            end,
            responses: self.metrics.response_total.get(&labels),
            latency: self.metrics.response_latency_ms.get(&with_status),
        };
        outcome.responses.add(1);
        outcome.latency.observe_millis(took);
        if outcomes.len() < OUTCOMES_MAX {
            outcomes.push(outcome);
        }
    }
}
