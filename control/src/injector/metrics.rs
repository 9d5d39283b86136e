//! The injector's metrics, under Linkerd's names where it has them.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Counters of admissions and of what can go wrong beside them.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    pub(super) requests: Family<RequestLabels, Counter>,
    pub(super) responses: Family<ResponseLabels, Counter>,
    pub(super) refused: Family<RefusedLabels, Counter>,
    pub(super) seconds: Histogram,
    pub(super) events_dropped: Counter,
    pub(super) settings_failures: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RequestLabels {
    pub(super) owner_kind: &'static str,
    pub(super) namespace: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ResponseLabels {
    pub(super) owner_kind: &'static str,
    pub(super) namespace: String,
    pub(super) skip: &'static str,
    pub(super) skip_reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RefusedLabels {
    pub(super) status: u16,
}

/// From half a millisecond: an admission is some parsing and no waiting.
const BUCKETS: [f64; 11] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            responses: Family::default(),
            refused: Family::default(),
            seconds: Histogram::new(BUCKETS),
            events_dropped: Counter::default(),
            settings_failures: Counter::default(),
        };
        let Self {
            requests,
            responses,
            refused,
            seconds,
            events_dropped,
            settings_failures,
        } = &metrics;
        registry.register(
            "proxy_inject_admission_requests",
            "Admission requests",
            requests.clone(),
        );
        registry.register(
            "proxy_inject_admission_responses",
            "Admission responses",
            responses.clone(),
        );
        registry.register(
            "proxy_inject_refused_requests",
            "Requests that got an HTTP error",
            refused.clone(),
        );
        let help = "Time from a request's first byte to its answer";
        registry.register_with_unit(
            "proxy_inject_admission_duration",
            help,
            Unit::Seconds,
            seconds.clone(),
        );
        let help = "Events that were not recorded: too many, or the API server refused them";
        registry.register("proxy_inject_events_dropped", help, events_dropped.clone());
        let help = "Times that the settings or trust anchors turned bad; the last good ones stayed in use";
        registry.register("proxy_inject_settings_failures", help, settings_failures.clone());
        metrics
    }
}

/// The label for an owner's kind: a closed set, since kinds are what users call them.
pub(super) fn owner_kind(kind: Option<&str>) -> &'static str {
    const KINDS: [&str; 7] = [
        "daemonset",
        "deployment",
        "replicaset",
        "replicationcontroller",
        "statefulset",
        "job",
        "cronjob",
    ];
    match kind {
        None => "pod",
        Some(kind) => KINDS
            .into_iter()
            .find(|known| known.eq_ignore_ascii_case(kind))
            .unwrap_or("other"),
    }
}
