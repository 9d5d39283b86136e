//! Counters of further tries.

use std::sync::Arc;

use super::{
    family::{Counter, Families, Family},
    labels::Labels,
};

#[derive(Debug)]
pub(crate) struct RetryFamilies {
    requests: Arc<Family<Counter>>,
    successes: Arc<Family<Counter>>,
    limit_exceeded: Arc<Family<Counter>>,
    overflow: Arc<Family<Counter>>,
}

/// The counters of one route.
#[derive(Debug)]
pub(crate) struct RetryHandles {
    /// Tries after the first.
    pub requests: Arc<Counter>,
    /// Requests that a further try saved.
    pub successes: Arc<Counter>,
    /// Requests whose last try failed as well.
    pub limit_exceeded: Arc<Counter>,
    /// Requests not tried again because their body is too large to keep.
    pub overflow: Arc<Counter>,
}

impl RetryFamilies {
    pub(super) fn new(families: &mut Families, kind: &str) -> Self {
        let name = |rest: &str| format!("outbound_{kind}_route_retry_{rest}");
        Self {
            requests: families.counter(name("requests_total"), "Total count of tries after the first."),
            successes: families.counter(
                name("successes_total"),
                "Total count of requests that a further try saved.",
            ),
            limit_exceeded: families.counter(
                name("limit_exceeded_total"),
                "Total count of requests whose last try failed as well.",
            ),
            overflow: families.counter(
                name("overflow_total"),
                "Total count of requests not tried again because their body is too large.",
            ),
        }
    }

    pub(crate) fn handles(&self, labels: &Labels) -> RetryHandles {
        RetryHandles {
            requests: self.requests.get(labels),
            successes: self.successes.get(labels),
            limit_exceeded: self.limit_exceeded.get(labels),
            overflow: self.overflow.get(labels),
        }
    }
}
