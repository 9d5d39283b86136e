//! What is counted, under the names of Linkerd's repair controller.

use prometheus_client::{
    metrics::{
        counter::Counter,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// Counters, cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(crate) queue_overflow: Counter,
    pub(crate) pods_deleted: Counter,
    pub(crate) pods_kept: Counter,
    pub(crate) pods_delete_latency_seconds: Histogram,
    pub(crate) pods_delete_errors: Counter,
    pub(crate) pods_delete_timeout: Counter,
    pub(crate) events_publish_errors: Counter,
    pub(crate) events_publish_timeout: Counter,
}

impl Metrics {
    /// Registers them under `linkerd_cni_repair_controller_`.
    pub fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("linkerd_cni_repair_controller");
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let metrics = Self {
            queue_overflow: counter("queue_overflow", "Failed pods that found the queue full"),
            pods_deleted: counter("pods_deleted", "Pods deleted because their validator failed"),
            pods_kept: counter(
                "pods_kept",
                "Failed pods left as they are, because no controller would make another",
            ),
            pods_delete_errors: counter("pods_delete_errors", "Deletions that the API server refused"),
            pods_delete_timeout: counter("pods_delete_timeout", "Deletions without an answer in time"),
            events_publish_errors: counter("events_publish_errors", "Events that the API server refused"),
            events_publish_timeout: counter("events_publish_timeout", "Events without an answer in time"),
            pods_delete_latency_seconds: Histogram::new(exponential_buckets(0.005, 2.0, 11)),
        };
        registry.register(
            "pods_delete_latency_seconds",
            "How long the API server took to delete a pod",
            metrics.pods_delete_latency_seconds.clone(),
        );
        metrics
    }
}
