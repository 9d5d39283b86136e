//! A metric's name and its series by labels.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use ahash::AHashMap;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::labels::Labels;

/// Series of one family; more than a pod's peers, routes and statuses make. Beyond it all share one overflow series.
pub(crate) const SERIES_MAX: usize = 5_000;

/// A count that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A count that grows and shrinks.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicI64);

impl Gauge {
    pub(crate) fn add(&self, count: i64) {
        self.0.fetch_add(count, Relaxed);
    }
}

/// Counts by upper bound, and their sum.
#[derive(Debug)]
pub(crate) struct Histogram {
    bounds: &'static [u64],
    buckets: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [u64]) -> Self {
        // One more for what is above all bounds.
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self {
            bounds,
            buckets,
            sum: AtomicU64::new(0),
        }
    }

    pub(crate) fn observe(&self, value: u64) {
        let bucket = self.bounds.partition_point(|&bound| bound < value);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }
}

/// A metric with its series.
#[derive(Debug)]
pub(crate) struct Family<M> {
    name: &'static str,
    help: &'static str,
    kind: &'static str,
    make: Make,
    series: Mutex<AHashMap<Labels, Series<M>>>,
}

#[derive(Clone, Copy, Debug)]
struct Make {
    bounds: &'static [u64],
}

#[derive(Debug)]
struct Series<M> {
    metric: Arc<M>,
    /// Since when nobody has held it.
    idle: Option<Instant>,
}

/// What can be counted with.
pub(crate) trait Metric: Sized {
    #[doc(hidden)]
    fn make(bounds: &'static [u64]) -> Self;
    #[doc(hidden)]
    fn write(&self, name: &str, labels: &Labels, out: &mut String);
}

/// A family whatever it counts.
pub(crate) trait AnyFamily {
    fn render(&self, out: &mut String);
    fn expire(&self, now: Instant, retain: Duration);
}

impl Family<Counter> {
    pub(crate) fn counter(name: &'static str, help: &'static str) -> Self {
        Self::new(name, help, "counter", &[])
    }
}

impl Family<Gauge> {
    pub(crate) fn gauge(name: &'static str, help: &'static str) -> Self {
        Self::new(name, help, "gauge", &[])
    }
}

impl Family<Histogram> {
    pub(crate) fn histogram(name: &'static str, help: &'static str, bounds: &'static [u64]) -> Self {
        Self::new(name, help, "histogram", bounds)
    }
}

impl<M: Metric> Family<M> {
    fn new(name: &'static str, help: &'static str, kind: &'static str, bounds: &'static [u64]) -> Self {
        Self {
            name,
            help,
            kind,
            make: Make { bounds },
            series: Mutex::default(),
        }
    }

    /// The series of these labels; hold it as long as it may be counted on.
    pub(crate) fn get(&self, labels: &Labels) -> Arc<M> {
        let mut all = self.series.lock();
        if let Some(series) = all.get_mut(labels) {
            series.idle = None;
            return series.metric.clone();
        }
        let overflow = Labels::overflow();
        let labels = if all.len() < SERIES_MAX { labels } else { &overflow };
        let make = || Series {
            metric: Arc::new(M::make(self.make.bounds)),
            idle: None,
        };
        all.entry(labels.clone()).or_insert_with(make).metric.clone()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.series.lock().len()
    }
}

impl<M: Metric> AnyFamily for Family<M> {
    fn render(&self, out: &mut String) {
        let all = self.series.lock();
        if all.is_empty() {
            return;
        }
        let mut sorted: Vec<_> = all
            .iter()
            .map(|(labels, series)| (labels.clone(), series.metric.clone()))
            .collect();
        drop(all);
        sorted.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "# HELP {} {}\n# TYPE {} {}",
            self.name, self.help, self.name, self.kind
        );
        for (labels, metric) in sorted {
            metric.write(self.name, &labels, out);
        }
    }

    fn expire(&self, now: Instant, retain: Duration) {
        self.series.lock().retain(|_, series| {
            if Arc::strong_count(&series.metric) > 1 {
                series.idle = None;
                return true;
            }
            now.saturating_duration_since(*series.idle.get_or_insert(now)) < retain
        });
    }
}

impl Metric for Counter {
    fn make(_: &'static [u64]) -> Self {
        Self::default()
    }

    fn write(&self, name: &str, labels: &Labels, out: &mut String) {
        let _ = writeln!(out, "{name}{{{labels}}} {}", self.get());
    }
}

impl Metric for Gauge {
    fn make(_: &'static [u64]) -> Self {
        Self::default()
    }

    fn write(&self, name: &str, labels: &Labels, out: &mut String) {
        let _ = writeln!(out, "{name}{{{labels}}} {}", self.0.load(Relaxed));
    }
}

impl Metric for Histogram {
    fn make(bounds: &'static [u64]) -> Self {
        Self::new(bounds)
    }

    fn write(&self, name: &str, labels: &Labels, out: &mut String) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut total = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            total += bucket.load(Relaxed);
            let _ = match self.bounds.get(index) {
                Some(bound) => writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {total}"),
                None => writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {total}"),
            };
        }
        let _ = writeln!(out, "{name}_count{{{labels}}} {total}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}", self.sum.load(Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(name: &str, value: &str) -> Labels {
        Labels::default().with(name, value)
    }

    #[test]
    fn renders_what_was_counted() {
        let counter = Family::counter("a_total", "A.");
        counter.get(&labels("x", "2\"\n")).add(3);
        counter.get(&labels("x", "1")).add(1);
        let histogram = Family::histogram("b_ms", "B.", &[1, 10]);
        for value in [0, 1, 2, 11] {
            histogram.get(&Labels::default()).observe(value);
        }
        let mut out = String::new();
        counter.render(&mut out);
        histogram.render(&mut out);
        assert_eq!(
            out,
            "# HELP a_total A.\n# TYPE a_total counter\na_total{x=\"1\"} 1\na_total{x=\"2\\\"\\n\"} 3\n\
             # HELP b_ms B.\n# TYPE b_ms histogram\nb_ms_bucket{le=\"1\"} 2\nb_ms_bucket{le=\"10\"} 3\n\
             b_ms_bucket{le=\"+Inf\"} 4\nb_ms_count{} 4\nb_ms_sum{} 14\n"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn forgets_series_that_nobody_holds() {
        let family = Family::counter("a_total", "A.");
        let held = family.get(&labels("x", "held"));
        drop(family.get(&labels("x", "idle")));
        let retain = Duration::from_secs(10);
        family.expire(Instant::now(), retain);
        assert_eq!(family.len(), 2);
        family.expire(Instant::now() + retain, retain);
        assert_eq!(family.len(), 1);
        drop(held);
    }

    #[test]
    fn a_full_family_counts_the_rest_together() {
        let family = Family::counter("a_total", "A.");
        for n in 0..SERIES_MAX + 10 {
            family.get(&labels("x", &n.to_string())).add(1);
        }
        assert_eq!(family.len(), SERIES_MAX + 1);
        assert_eq!(family.get(&Labels::overflow()).get(), 10);
    }
}
