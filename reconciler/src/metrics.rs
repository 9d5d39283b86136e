//! What the reconciler counts, under the prefix `heddle_`.

use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

type Labels = [(&'static str, String); 1];
type HistogramFamily = Family<[(&'static str, &'static str); 1], Histogram, fn() -> Histogram>;

fn seconds() -> Histogram {
    // 5 ms to 5 min: a warm poll to a first installation.
    Histogram::new(exponential_buckets(0.005, 2.0, 17))
}

/// Handles to all metrics; cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    writes: Family<Labels, Counter>,
    reconciles: Family<Labels, Counter>,
    stage_seconds: HistogramFamily,
    reconcile_seconds: Histogram,
    commit_to_applied_seconds: Histogram,
    ready: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            writes: Family::default(),
            reconciles: Family::default(),
            stage_seconds: Family::new_with_constructor(seconds),
            reconcile_seconds: seconds(),
            commit_to_applied_seconds: seconds(),
            ready: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Registers everything.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("heddle");
        registry.register(
            "api_writes",
            "Writes to the API server, by verb; dry runs do not count",
            self.writes.clone(),
        );
        registry.register(
            "reconciles",
            "Passes of the pipeline, by outcome",
            self.reconciles.clone(),
        );
        registry.register(
            "stage_duration_seconds",
            "Time that one stage of a pass took",
            self.stage_seconds.clone(),
        );
        registry.register(
            "reconcile_duration_seconds",
            "Time that one pass took",
            self.reconcile_seconds.clone(),
        );
        registry.register(
            "commit_to_applied_seconds",
            "Time from seeing a new revision to having applied it",
            self.commit_to_applied_seconds.clone(),
        );
        registry.register(
            "mesh_ready",
            "1 while the mesh is as the last revision wants it",
            self.ready.clone(),
        );
    }

    pub fn write(&self, verb: &str) {
        self.writes.get_or_create(&[("verb", verb.to_owned())]).inc();
    }

    pub fn reconciled(&self, outcome: &str, took: std::time::Duration) {
        self.reconciles
            .get_or_create(&[("outcome", outcome.to_owned())])
            .inc();
        self.reconcile_seconds.observe(took.as_secs_f64());
    }

    pub fn stage(&self, stage: &'static str, took: std::time::Duration) {
        self.stage_seconds
            .get_or_create(&[("stage", stage)])
            .observe(took.as_secs_f64());
    }

    pub fn applied(&self, took: std::time::Duration) {
        self.commit_to_applied_seconds.observe(took.as_secs_f64());
    }

    pub fn ready(&self, ready: bool) {
        self.ready.set(i64::from(ready));
    }
}
