//! Metrics of a webhook's HTTPS server.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

/// How long answers take, and which requests got none.
#[derive(Clone, Debug)]
pub(crate) struct HttpMetrics {
    pub(crate) refused: Family<RefusedLabels, Counter>,
    pub(crate) seconds: Histogram,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RefusedLabels {
    pub(crate) status: u16,
}

/// From half a millisecond: an admission is some parsing and no waiting.
const BUCKETS: [f64; 11] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

impl HttpMetrics {
    /// Registers under the webhook's own prefix.
    pub(crate) fn register(registry: &mut Registry, prefix: &str) -> Self {
        let metrics = Self {
            refused: Family::default(),
            seconds: Histogram::new(BUCKETS),
        };
        let Self { refused, seconds } = &metrics;
        let help = "Requests that got an HTTP error";
        registry.register(format!("{prefix}_refused_requests"), help, refused.clone());
        let help = "Time from a request's first byte to its answer";
        let name = format!("{prefix}_admission_duration");
        registry.register_with_unit(name, help, Unit::Seconds, seconds.clone());
        metrics
    }
}
