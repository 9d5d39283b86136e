//! Counters of balancers: their endpoints, and the requests or connections that wait for one.
//!
//! Each worker has its own balancers. Those of one backend share their series: waiting adds up, and the number of
//! endpoints is as the last worker saw it.

use std::{
    cell::Cell,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    family::{Counter, Families, Family, Gauge, Histogram},
    labels::Labels,
};

/// Linkerd's bounds, in microseconds.
const QUEUE_BUCKETS: &[u64] = &[500, 5_000, 50_000, 500_000, 1_000_000, 3_000_000];

#[derive(Debug)]
pub(crate) struct BalancerFamilies {
    endpoints: Arc<Family<Gauge>>,
    p2c_endpoints: Arc<Family<Gauge>>,
    p2c_updates: Arc<Family<Counter>>,
    queue_length: Arc<Family<Gauge>>,
    queue_requests: Arc<Family<Counter>>,
    queue_latency: Arc<Family<Histogram>>,
    gate_open: Arc<Family<Counter>>,
    gate_shut: Arc<Family<Counter>>,
    gate_open_time: Arc<Family<Gauge>>,
    gate_shut_time: Arc<Family<Gauge>>,
    gate_timeout: Arc<Family<Gauge>>,
}

/// The counters of one backend. Belongs to one worker.
#[derive(Debug)]
pub(crate) struct BalancerHandles {
    ready: Arc<Gauge>,
    pending: Arc<Gauge>,
    p2c_endpoints: Arc<Gauge>,
    adds: Arc<Counter>,
    removes: Arc<Counter>,
    /// Of those that wait now.
    queue_length: Arc<Gauge>,
    queue_requests: Arc<Counter>,
    queue_latency: Arc<Histogram>,
    gate: Gate,
}

/// Whether requests that come may wait for an endpoint in good hope: until one has waited its time in vain, and again
/// as soon as there is an endpoint.
#[derive(Debug)]
struct Gate {
    is_open: Cell<bool>,
    open: Arc<Counter>,
    shut: Arc<Counter>,
    open_time: Arc<Gauge>,
    shut_time: Arc<Gauge>,
    /// Never changes.
    _timeout: Arc<Gauge>,
}

impl BalancerFamilies {
    pub(super) fn new(families: &mut Families, kind: &str) -> Self {
        let name = |rest: &str| format!("outbound_{kind}_balancer_{rest}");
        Self {
            endpoints: families.gauge(
                name("endpoints"),
                "Number of the backend's endpoints, by whether they take anything now.",
            ),
            p2c_endpoints: families.gauge(name("p2c_endpoints"), "Number of the backend's endpoints."),
            p2c_updates: families.counter(
                name("p2c_updates_total"),
                "Total count of endpoints that came or went.",
            ),
            queue_length: families.gauge(
                name("queue_length"),
                "Number of requests that wait for an endpoint.",
            ),
            queue_requests: families.counter(
                name("queue_requests_total"),
                "Total count of requests that asked for an endpoint.",
            ),
            queue_latency: families.seconds(
                name("queue_latency_seconds"),
                "Seconds that requests waited for an endpoint.",
                QUEUE_BUCKETS,
            ),
            gate_open: families.counter(
                name("queue_gate_open_total"),
                "Total count of times that requests could hope for an endpoint, the beginning included.",
            ),
            gate_shut: families.counter(
                name("queue_gate_shut_total"),
                "Total count of times that requests began to fail for want of an endpoint.",
            ),
            gate_open_time: families.gauge_of_seconds(
                name("queue_gate_open_time_seconds"),
                "When requests could last hope for an endpoint again, since 1970; 0 while they cannot.",
            ),
            gate_shut_time: families.gauge_of_seconds(
                name("queue_gate_shut_time_seconds"),
                "Since when requests fail for want of an endpoint, since 1970; 0 while they do not.",
            ),
            gate_timeout: families.gauge_of_seconds(
                name("queue_gate_timeout_seconds"),
                "How long a request waits for an endpoint.",
            ),
        }
    }

    /// Requests of this backend wait for `timeout`.
    pub(crate) fn handles(&self, labels: &Labels, timeout: Duration) -> BalancerHandles {
        let endpoints = |state| self.endpoints.get(&labels.clone().with("endpoint_state", state));
        let updates = |op| self.p2c_updates.get(&labels.clone().with("op", op));
        let gate = Gate {
            is_open: Cell::new(false),
            open: self.gate_open.get(labels),
            shut: self.gate_shut.get(labels),
            open_time: self.gate_open_time.get(labels),
            shut_time: self.gate_shut_time.get(labels),
            _timeout: self.gate_timeout.get(labels),
        };
        gate._timeout.set_time(timeout);
        gate.set_open(true);
        BalancerHandles {
            ready: endpoints("ready"),
            pending: endpoints("pending"),
            p2c_endpoints: self.p2c_endpoints.get(labels),
            adds: updates("Add"),
            removes: updates("Remove"),
            queue_length: self.queue_length.get(labels),
            queue_requests: self.queue_requests.get(labels),
            queue_latency: self.queue_latency.get(labels),
            gate,
        }
    }
}

impl BalancerHandles {
    /// Endpoints came or went.
    pub(crate) fn updated(&self, added: usize, removed: usize) {
        self.adds.add(added as u64);
        self.removes.add(removed as u64);
    }

    /// How many endpoints there are, and how many of them take requests.
    pub(crate) fn endpoints(&self, all: usize, ready: usize) {
        self.ready.set(ready);
        self.pending.set(all - ready);
        self.p2c_endpoints.set(all);
    }

    /// From now on requests wait for an endpoint, or fail at once.
    pub(crate) fn gate_turned(&self, open: bool) {
        self.gate.set_open(open);
    }

    /// A request found its endpoint at once.
    pub(crate) fn served_at_once(&self) {
        self.queue_requests.add(1);
        self.queue_latency.observe(0);
    }

    /// A request waits until what is returned is dropped.
    pub(crate) fn queued(&self) -> Queued<'_> {
        self.queue_requests.add(1);
        self.queue_length.add(1);
        Queued {
            handles: self,
            since: tokio::time::Instant::now(),
        }
    }
}

impl Gate {
    fn set_open(&self, open: bool) {
        if self.is_open.replace(open) == open {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (count, since, other) = match open {
            true => (&self.open, &self.open_time, &self.shut_time),
            false => (&self.shut, &self.shut_time, &self.open_time),
        };
        count.add(1);
        since.set_time(now);
        other.set_time(Duration::ZERO);
    }
}

/// A request that waits.
#[derive(Debug)]
pub(crate) struct Queued<'h> {
    handles: &'h BalancerHandles,
    since: tokio::time::Instant,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.handles.queue_length.add(-1);
        self.handles.queue_latency.observe_time(self.since.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_tells_when_requests_begin_to_fail_and_when_they_no_longer_do() {
        let mut all = Families::default();
        let families = BalancerFamilies::new(&mut all, "http");
        let handles = families.handles(&Labels::default(), Duration::from_secs(3));
        let rendered = || {
            let mut out = String::new();
            for family in all.iter() {
                family.render(&mut out);
            }
            out
        };
        let value = |name: &str| {
            let start = format!("outbound_http_balancer_queue_gate_{name}{{}} ");
            let out = rendered();
            let line = out.lines().find_map(|line| line.strip_prefix(&start));
            line.expect("a series").parse::<f64>().expect("a number")
        };
        let gate = || ["open_total", "shut_total"].map(value);
        let is_open = || {
            let [open, shut] = ["open_time_seconds", "shut_time_seconds"].map(|name| value(name) > 0.0);
            assert_ne!(open, shut, "it is either open or shut");
            open
        };
        assert_eq!(
            (gate(), is_open(), value("timeout_seconds")),
            ([1.0, 0.0], true, 3.0)
        );
        for _ in 0..2 {
            handles.gate_turned(false);
            assert_eq!((gate(), is_open()), ([1.0, 1.0], false));
        }
        handles.gate_turned(true);
        assert_eq!((gate(), is_open()), ([2.0, 1.0], true));
    }
}
