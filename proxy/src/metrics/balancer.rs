//! Counters of balancers: their endpoints, and the requests or connections that wait for one.
//!
//! Each worker has its own balancers. Those of one backend share their series: waiting adds up, and the number of
//! endpoints is as the last worker saw it.

use std::sync::Arc;

use super::{
    family::{Counter, Families, Family, Gauge, Histogram},
    labels::Labels,
};

const QUEUE_BUCKETS: &[u64] = &[1_000, 10_000, 100_000, 500_000, 1_000_000, 3_000_000];

#[derive(Debug)]
pub(crate) struct BalancerFamilies {
    endpoints: Arc<Family<Gauge>>,
    p2c_endpoints: Arc<Family<Gauge>>,
    p2c_updates: Arc<Family<Counter>>,
    queue_length: Arc<Family<Gauge>>,
    queue_requests: Arc<Family<Counter>>,
    queue_latency: Arc<Family<Histogram>>,
    gate_open: Arc<Family<Gauge>>,
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
    gate_open: Arc<Gauge>,
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
            gate_open: families.gauge(
                name("queue_gate_open"),
                "1 as long as there is an endpoint to ask, 0 while requests fail fast.",
            ),
        }
    }

    pub(crate) fn handles(&self, labels: &Labels) -> BalancerHandles {
        let endpoints = |state| self.endpoints.get(&labels.clone().with("endpoint_state", state));
        let updates = |op| self.p2c_updates.get(&labels.clone().with("op", op));
        BalancerHandles {
            ready: endpoints("ready"),
            pending: endpoints("pending"),
            p2c_endpoints: self.p2c_endpoints.get(labels),
            adds: updates("Add"),
            removes: updates("Remove"),
            queue_length: self.queue_length.get(labels),
            queue_requests: self.queue_requests.get(labels),
            queue_latency: self.queue_latency.get(labels),
            gate_open: self.gate_open.get(labels),
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
        self.gate_open.set(usize::from(ready > 0));
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
