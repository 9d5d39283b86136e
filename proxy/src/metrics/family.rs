//! A metric's name and its series by labels.

use std::{
    fmt::{self, Write as _},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use ahash::AHashMap;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::labels::Labels;

/// Series of one family; more than a pod's peers, routes and statuses make. Beyond it all share one overflow series.
pub(crate) const SERIES_MAX: usize = 5_000;
/// Series of all families together: a bound on memory, at about 1 KiB each. Clients and servers can make up the values
/// of some labels.
const SERIES_TOTAL_MAX: usize = 40_000;

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

    /// For what somebody else counts.
    pub(super) fn raise_to(&self, count: u64) {
        self.0.fetch_max(count, Relaxed);
    }
}

/// A count that grows and shrinks.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicI64);

impl Gauge {
    pub(crate) fn add(&self, count: i64) {
        self.0.fetch_add(count, Relaxed);
    }

    /// For what is known as a whole: the last one who sets it wins.
    pub(crate) fn set(&self, count: usize) {
        self.0.store(i64::try_from(count).unwrap_or(i64::MAX), Relaxed);
    }

    /// For gauges of seconds.
    pub(crate) fn set_time(&self, time: Duration) {
        self.0
            .store(time.as_micros().try_into().unwrap_or(i64::MAX), Relaxed);
    }
}

/// For counters and histograms of seconds.
pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Counts by upper bound, and their sum.
#[derive(Debug)]
pub(crate) struct Histogram {
    shape: Shape,
    buckets: Box<[AtomicU64]>,
    sum: AtomicU64,
}

/// A histogram's bounds, and what its values are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    bounds: &'static [u64],
    unit: Unit,
}

#[derive(Clone, Copy, Debug)]
enum Unit {
    /// Shown as they are.
    Plain,
    /// Counted in microseconds, shown in seconds.
    Seconds,
}

impl Shape {
    const NONE: Self = Self {
        bounds: &[],
        unit: Unit::Plain,
    };
    const SECONDS: Self = Self {
        bounds: &[],
        unit: Unit::Seconds,
    };
}

impl Histogram {
    fn new(shape: Shape) -> Self {
        // One more for what is above all bounds.
        let buckets = (0..=shape.bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self {
            shape,
            buckets,
            sum: AtomicU64::new(0),
        }
    }

    pub(crate) fn observe(&self, value: u64) {
        let bucket = self.shape.bounds.partition_point(|&bound| bound < value);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    /// For histograms of milliseconds.
    pub(crate) fn observe_millis(&self, time: Duration) {
        self.observe(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    }

    /// For histograms of seconds.
    pub(crate) fn observe_time(&self, time: Duration) {
        self.observe(micros(time));
    }
}

/// All families, in the order in which they are shown.
#[derive(Debug, Default)]
pub(crate) struct Families {
    all: Vec<Arc<dyn AnyFamily>>,
    series_total: Arc<AtomicUsize>,
}

/// A metric with its series.
#[derive(Debug)]
pub(crate) struct Family<M> {
    name: String,
    help: &'static str,
    shape: Shape,
    series: Mutex<AHashMap<Labels, Series<M>>>,
    series_total: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Series<M> {
    metric: Arc<M>,
    /// Since when nobody has held it.
    idle: Option<Instant>,
}

/// What can be counted with.
pub(crate) trait Metric: fmt::Debug + Send + Sync + 'static {
    /// Prometheus' name for it.
    const TYPE: &'static str;
    #[doc(hidden)]
    fn make(shape: Shape) -> Self;
    #[doc(hidden)]
    fn write(&self, shape: Shape, name: &str, labels: &Labels, out: &mut String);
}

/// A family whatever it counts.
pub(crate) trait AnyFamily: fmt::Debug + Send + Sync {
    fn render(&self, out: &mut String);
    fn expire(&self, now: Instant, retain: Duration);
}

impl Families {
    pub(crate) fn counter(&mut self, name: impl Into<String>, help: &'static str) -> Arc<Family<Counter>> {
        self.add(name, help, Shape::NONE)
    }

    pub(crate) fn gauge(&mut self, name: impl Into<String>, help: &'static str) -> Arc<Family<Gauge>> {
        self.add(name, help, Shape::NONE)
    }

    /// A counter of time, in microseconds.
    pub(crate) fn counter_of_seconds(
        &mut self,
        name: impl Into<String>,
        help: &'static str,
    ) -> Arc<Family<Counter>> {
        self.add(name, help, Shape::SECONDS)
    }

    /// A gauge of a time.
    pub(crate) fn gauge_of_seconds(
        &mut self,
        name: impl Into<String>,
        help: &'static str,
    ) -> Arc<Family<Gauge>> {
        self.add(name, help, Shape::SECONDS)
    }

    pub(crate) fn histogram(
        &mut self,
        name: impl Into<String>,
        help: &'static str,
        bounds: &'static [u64],
    ) -> Arc<Family<Histogram>> {
        let unit = Unit::Plain;
        self.add(name, help, Shape { bounds, unit })
    }

    /// A histogram of times, with its bounds in microseconds.
    pub(crate) fn seconds(
        &mut self,
        name: impl Into<String>,
        help: &'static str,
        bounds: &'static [u64],
    ) -> Arc<Family<Histogram>> {
        let unit = Unit::Seconds;
        self.add(name, help, Shape { bounds, unit })
    }

    fn add<M: Metric>(
        &mut self,
        name: impl Into<String>,
        help: &'static str,
        shape: Shape,
    ) -> Arc<Family<M>> {
        let family = Arc::new(Family {
            name: name.into(),
            help,
            shape,
            series: Mutex::default(),
            series_total: self.series_total.clone(),
        });
        self.all.push(family.clone());
        family
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &dyn AnyFamily> {
        self.all.iter().map(|family| &**family)
    }
}

impl<M: Metric> Family<M> {
    /// The series of these labels; hold it as long as it may be counted on.
    pub(crate) fn get(&self, labels: &Labels) -> Arc<M> {
        let mut all = self.series.lock();
        if let Some(series) = all.get_mut(labels) {
            series.idle = None;
            return series.metric.clone();
        }
        let overflow = Labels::overflow();
        let room = all.len() < SERIES_MAX && self.series_total.load(Relaxed) < SERIES_TOTAL_MAX;
        let labels = if room { labels } else { &overflow };
        let make = || {
            self.series_total.fetch_add(1, Relaxed);
            Series {
                metric: Arc::new(M::make(self.shape)),
                idle: None,
            }
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
        let Self { name, help, .. } = self;
        // Writing to a String cannot fail.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {}", M::TYPE);
        for (labels, metric) in sorted {
            metric.write(self.shape, name, &labels, out);
        }
    }

    fn expire(&self, now: Instant, retain: Duration) {
        let mut all = self.series.lock();
        let before = all.len();
        all.retain(|_, series| {
            if Arc::strong_count(&series.metric) > 1 {
                series.idle = None;
                return true;
            }
            now.saturating_duration_since(*series.idle.get_or_insert(now)) < retain
        });
        self.series_total.fetch_sub(before - all.len(), Relaxed);
    }
}

impl Metric for Counter {
    const TYPE: &'static str = "counter";

    fn make(_: Shape) -> Self {
        Self::default()
    }

    fn write(&self, shape: Shape, name: &str, labels: &Labels, out: &mut String) {
        let _ = writeln!(out, "{name}{{{labels}}} {}", Shown(self.get(), shape.unit));
    }
}

impl Metric for Gauge {
    const TYPE: &'static str = "gauge";

    fn make(_: Shape) -> Self {
        Self::default()
    }

    fn write(&self, shape: Shape, name: &str, labels: &Labels, out: &mut String) {
        let value = self.0.load(Relaxed);
        let sign = if value < 0 { "-" } else { "" };
        let shown = Shown(value.unsigned_abs(), shape.unit);
        let _ = writeln!(out, "{name}{{{labels}}} {sign}{shown}");
    }
}

/// A value in its unit.
struct Shown(u64, Unit);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Unit::Plain => write!(f, "{}", self.0),
            Unit::Seconds => write!(f, "{}", Duration::from_micros(self.0).as_secs_f64()),
        }
    }
}

impl Metric for Histogram {
    const TYPE: &'static str = "histogram";

    fn make(shape: Shape) -> Self {
        Self::new(shape)
    }

    fn write(&self, Shape { bounds, unit }: Shape, name: &str, labels: &Labels, out: &mut String) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut total = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            total += bucket.load(Relaxed);
            let _ = match bounds.get(index) {
                Some(&bound) => writeln!(
                    out,
                    "{name}_bucket{{{labels}{comma}le=\"{}\"}} {total}",
                    Shown(bound, unit)
                ),
                None => writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {total}"),
            };
        }
        let _ = writeln!(out, "{name}_count{{{labels}}} {total}");
        let sum = Shown(self.sum.load(Relaxed), unit);
        let _ = writeln!(out, "{name}_sum{{{labels}}} {sum}");
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
        let mut families = Families::default();
        let counter = families.counter("a_total", "A.");
        counter.get(&labels("x", "2\"\n")).add(3);
        counter.get(&labels("x", "1")).add(1);
        let histogram = families.histogram("b_ms", "B.", &[1, 10]);
        for value in [0, 1, 2, 11] {
            histogram.get(&Labels::default()).observe(value);
        }
        let times = families.seconds("c_seconds", "C.", &[50_000, 1_000_000]);
        times
            .get(&Labels::default())
            .observe_time(Duration::from_millis(60));
        families.gauge("d", "Not shown without a series.");
        let gauge = families.gauge("e", "E.").get(&Labels::default());
        gauge.add(-2);
        let since = families
            .gauge_of_seconds("f_seconds", "F.")
            .get(&Labels::default());
        since.set_time(Duration::from_millis(1_764_528_000_250));
        let busy = families.counter_of_seconds("g_seconds_total", "G.");
        for count in [1_500_000, 1_000_000] {
            busy.get(&Labels::default()).raise_to(count);
        }
        let mut out = String::new();
        for family in families.iter() {
            family.render(&mut out);
        }
        assert_eq!(
            out,
            "# HELP a_total A.\n# TYPE a_total counter\na_total{x=\"1\"} 1\na_total{x=\"2\\\"\\n\"} 3\n\
             # HELP b_ms B.\n# TYPE b_ms histogram\nb_ms_bucket{le=\"1\"} 2\nb_ms_bucket{le=\"10\"} 3\n\
             b_ms_bucket{le=\"+Inf\"} 4\nb_ms_count{} 4\nb_ms_sum{} 14\n\
             # HELP c_seconds C.\n# TYPE c_seconds histogram\nc_seconds_bucket{le=\"0.05\"} 0\n\
             c_seconds_bucket{le=\"1\"} 1\nc_seconds_bucket{le=\"+Inf\"} 1\nc_seconds_count{} 1\n\
             c_seconds_sum{} 0.06\n\
             # HELP e E.\n# TYPE e gauge\ne{} -2\n\
             # HELP f_seconds F.\n# TYPE f_seconds gauge\nf_seconds{} 1764528000.25\n\
             # HELP g_seconds_total G.\n# TYPE g_seconds_total counter\ng_seconds_total{} 1.5\n"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn forgets_series_that_nobody_holds() {
        let family = Families::default().counter("a_total", "A.");
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
        let family = Families::default().counter("a_total", "A.");
        for n in 0..SERIES_MAX + 10 {
            family.get(&labels("x", &n.to_string())).add(1);
        }
        assert_eq!(family.len(), SERIES_MAX + 1);
        assert_eq!(family.get(&Labels::overflow()).get(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn families_share_a_bound_and_give_back_what_they_forget() {
        let mut families = Families::default();
        let many: Vec<_> = (0..=SERIES_TOTAL_MAX / SERIES_MAX)
            .map(|n| families.counter(format!("family_{n}_total"), "A."))
            .collect();
        for family in &many {
            for n in 0..SERIES_MAX {
                family.get(&labels("x", &n.to_string()));
            }
        }
        let last = &many[many.len() - 1];
        assert_eq!(last.len(), 1, "only the series of what has no place");
        let later = Instant::now() + Duration::from_secs(1);
        for family in families.iter() {
            family.expire(Instant::now(), Duration::from_secs(1));
            family.expire(later, Duration::from_secs(1));
        }
        assert_eq!(families.series_total.load(Relaxed), 0);
    }
}
