//! What the asynchronous runtimes are busy with: the control plane's and each worker's. Linkerd's names, as far as
//! tokio tells without its unstable interface.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::{
    family::{Counter, Families, Family, Gauge, micros},
    labels::Labels,
};

#[derive(Debug)]
pub(crate) struct Runtimes {
    handles: Mutex<Vec<(String, Handle)>>,
    workers: Arc<Family<Gauge>>,
    alive_tasks: Arc<Family<Gauge>>,
    injection_queue_depth: Arc<Family<Gauge>>,
    parks: Arc<Family<Counter>>,
    busy: Arc<Family<Counter>>,
}

impl Runtimes {
    pub(super) fn new(families: &mut Families) -> Self {
        Self {
            handles: Mutex::default(),
            workers: families.gauge("tokio_rt_workers", "Number of threads that run tasks."),
            alive_tasks: families.gauge(
                "tokio_rt_alive_tasks",
                "Number of tasks that have not ended; tasks bound to one thread are not among them.",
            ),
            injection_queue_depth: families.gauge(
                "tokio_rt_injection_queue_depth",
                "Number of tasks that other threads have woken and that wait to run.",
            ),
            parks: families.counter(
                "tokio_rt_park_total",
                "Total count of times that threads waited for something to do.",
            ),
            busy: families.counter_of_seconds(
                "tokio_rt_busy_seconds_total",
                "Total seconds that threads were busy.",
            ),
        }
    }

    /// Shows the runtime that this is called on, under a name.
    pub(crate) fn add_current(&self, name: impl Into<String>) {
        self.handles.lock().push((name.into(), Handle::current()));
    }

    pub(super) fn update(&self) {
        for (name, handle) in &*self.handles.lock() {
            let labels = Labels::default().with("rt", name);
            let metrics = handle.metrics();
            let workers = || 0..metrics.num_workers();
            let parks = workers().map(|one| metrics.worker_park_count(one)).sum();
            let busy = workers().map(|one| metrics.worker_total_busy_duration(one)).sum();
            self.workers.get(&labels).set(metrics.num_workers());
            self.alive_tasks.get(&labels).set(metrics.num_alive_tasks());
            self.injection_queue_depth
                .get(&labels)
                .set(metrics.global_queue_depth());
            self.parks.get(&labels).raise_to(parks);
            self.busy.get(&labels).raise_to(micros(busy));
        }
    }
}
