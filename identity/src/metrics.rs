//! Metrics of the identity service, under Linkerd's names where it has them.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use heddle_tls::Store;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric},
    metrics::{counter::Counter, family::Family, gauge::ConstGauge, histogram::Histogram},
    registry::Registry,
};

use crate::{event::Events, issuer::Issuer};

/// From a cached review to one that is nearly too late.
const REVIEW_SECONDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.0, 10.0];

/// Counts requests.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Family<Labels, Counter>,
    review_seconds: Histogram,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    result: RequestResult,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the names are the label's values")]
pub enum RequestResult {
    /// A leaf was signed.
    issued,
    /// The request is malformed.
    invalid_request,
    /// The signing request is not for the identity.
    csr_mismatch,
    /// The token proves nothing.
    not_authenticated,
    /// The token is another account's.
    wrong_identity,
    /// The Kubernetes API failed.
    review_failed,
    /// Too many requests at a time.
    busy,
    /// A pod or an account asks too often.
    rate_limited,
    /// The identity is revoked.
    revoked,
    /// There is no issuer.
    issuer_not_ready,
    /// The issuer cannot sign.
    sign_failed,
}

impl Metrics {
    /// Registers the metrics; the times left of the issuer and the anchors are computed when scraped.
    pub fn register(
        registry: &mut Registry,
        issuer: Arc<ArcSwapOption<Issuer>>,
        store: Store,
        events: &Events,
    ) -> Self {
        let metrics = Self {
            requests: Family::default(),
            review_seconds: Histogram::new(REVIEW_SECONDS),
        };
        registry.register(
            "identity_certify_requests",
            "Certify requests by result",
            metrics.requests.clone(),
        );
        registry.register(
            "identity_token_review_duration_seconds",
            "Time that the Kubernetes API takes to review a token",
            metrics.review_seconds.clone(),
        );
        registry.register(
            "identity_events_dropped",
            "Events that were not posted because there were too many",
            events.dropped(),
        );
        registry.register_collector(Box::new(TimesLeft { issuer, store }));
        metrics
    }

    pub(crate) fn ended(&self, result: RequestResult) {
        self.requests.get_or_create(&Labels { result }).inc();
    }

    pub(crate) fn reviewed(&self, took: Duration) {
        self.review_seconds.observe(took.as_secs_f64());
    }
}

#[derive(Debug)]
struct TimesLeft {
    issuer: Arc<ArcSwapOption<Issuer>>,
    store: Store,
}

impl Collector for TimesLeft {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let now = SystemTime::now();
        let mut gauge = |name, help, expires: SystemTime| {
            let left = match expires.duration_since(now) {
                Ok(left) => left.as_secs_f64(),
                Err(over) => -over.duration().as_secs_f64(),
            };
            let left = ConstGauge::new(left);
            left.encode(encoder.encode_descriptor(name, help, None, left.metric_type())?)
        };
        if let Some(issuer) = self.issuer.load().as_ref() {
            let help = "Time until the issuer's chain expires, in seconds";
            gauge("issuer_cert_ttl_seconds", help, issuer.expires())?;
        }
        let help = "Time until the first of the trust anchors expires, in seconds";
        gauge(
            "trust_anchors_cert_ttl_seconds",
            help,
            self.store.roots().expires(),
        )
    }
}
