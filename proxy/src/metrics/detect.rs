//! Counters of what first bytes tell, and the telling.

use std::{io, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    family::{Counter, Families, Family, Histogram},
    labels::Labels,
};
use crate::{
    detect::{SNIFF_BYTES_MAX, Sniff, sniff},
    http::serve::HttpVersion,
    io::{Ahead, Io},
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

    /// The version of HTTP that a connection's first bytes tell; none for other bytes, and for a client that waits for the
    /// server to speak first or does not come to the end of its first line in time.
    pub(crate) async fn version(
        &self,
        labels: &Labels,
        io: &mut Io,
        timeout: Duration,
    ) -> io::Result<Option<HttpVersion>> {
        let judge = |bytes: &[u8]| match sniff(bytes) {
            Sniff::Http1 => Some((Some(HttpVersion::Http1), "http/1")),
            Sniff::Http2 => Some((Some(HttpVersion::Http2), "h2")),
            Sniff::Opaque => Some((None, "not_http")),
            Sniff::More => None,
        };
        let begun = Instant::now();
        let detected = io.ahead().peek(SNIFF_BYTES_MAX, begun + timeout, judge).await;
        let (version, result) = match detected {
            Ok(Ahead::Decided((version, result))) => (Ok(version), result),
            Ok(Ahead::Undecided) => (Ok(None), "read_timeout"),
            Err(error) => (Err(error), "error"),
        };
        self.observe(labels, result, begun.elapsed());
        version
    }

    /// Counts one connection. Looked up each time: once per connection, and there are few labels.
    fn observe(&self, labels: &Labels, result: &'static str, took: Duration) {
        self.durations.get(labels).observe_time(took);
        let labels = Labels::default().with("result", result).and(labels);
        self.results.get(&labels).add(1);
    }
}
