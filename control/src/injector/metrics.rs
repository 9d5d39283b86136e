//! The injector's metrics, under Linkerd's names where it has them.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use crate::webhook::metrics::HttpMetrics;

/// Counters of admissions and of what can go wrong beside them.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    pub(super) requests: Family<RequestLabels, Counter>,
    pub(super) responses: Family<ResponseLabels, Counter>,
    pub(super) http: HttpMetrics,
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

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            responses: Family::default(),
            http: HttpMetrics::register(registry, "proxy_inject"),
            events_dropped: Counter::default(),
            settings_failures: Counter::default(),
        };
        let Self {
            requests,
            responses,
            http: _,
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
