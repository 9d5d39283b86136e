//! What the asynchronous runtimes are busy with: the control plane's and each worker's.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::{
    family::{Families, Family, Gauge},
    labels::Labels,
};

#[derive(Debug)]
pub(crate) struct Runtimes {
    handles: Mutex<Vec<(String, Handle)>>,
    workers: Arc<Family<Gauge>>,
    alive_tasks: Arc<Family<Gauge>>,
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
            self.workers.get(&labels).set(metrics.num_workers());
            self.alive_tasks.get(&labels).set(metrics.num_alive_tasks());
        }
    }
}
