//! Counters of what first bytes tell.

use std::{sync::Arc, time::Duration};

use super::{
    family::{Counter, Families, Family, Histogram},
    labels::Labels,
};

const BUCKETS: &[u64] = &[1_000, 100_000];

#[derive(Debug)]
pub(crate) struct DetectFamilies {
    results: Arc<Family<Counter>>,
    durations: Arc<Family<Histogram>>,
}

impl DetectFamilies {
    pub(super) fn new(families: &mut Families, direction: &str) -> Self {
        Self {
            results: families.counter(
                format!("{direction}_tcp_detect_http_results_total"),
                "Total count of connections by the protocol that their first bytes tell.",
            ),
            durations: families.seconds(
                format!("{direction}_tcp_detect_http_duration_seconds"),
                "Seconds from a connection's beginning to knowing its protocol.",
                BUCKETS,
            ),
        }
    }

    /// Counts one connection. Looked up each time: once per connection, and there are few labels.
    pub(crate) fn observe(&self, labels: &Labels, result: &'static str, took: Duration) {
        self.durations.get(labels).observe_time(took);
        let labels = Labels::default().with("result", result).and(labels);
        self.results.get(&labels).add(1);
    }
}
