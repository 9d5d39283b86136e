//! Metrics of the validating webhook.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::verdict::Verdict;
use crate::webhook::{metrics::HttpMetrics, review::Kind};

/// What was asked about, and what became of it.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    reviews: Family<Labels, Counter>,
    pub(super) http: HttpMetrics,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    kind: &'static str,
    result: &'static str,
}

/// The label's values: a closed set, whatever a configuration asks about.
const KINDS: [&str; 13] = [
    "AuthorizationPolicy",
    "EgressNetwork",
    "GRPCRoute",
    "HTTPLocalRateLimitPolicy",
    "HTTPRoute",
    "MeshTLSAuthentication",
    "NetworkAuthentication",
    "Server",
    "ServerAuthorization",
    "Service",
    "ServiceProfile",
    "TCPRoute",
    "TLSRoute",
];

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let prefix = "policy_validator";
        let reviews = Family::default();
        let help = "Objects that were judged";
        registry.register(format!("{prefix}_reviews"), help, Family::clone(&reviews));
        let http = HttpMetrics::register(registry, prefix);
        Self { reviews, http }
    }

    pub(super) fn count(&self, kind: &Kind, verdict: &Verdict) {
        let kind = KINDS
            .into_iter()
            .find(|known| *known == kind.kind)
            .unwrap_or("other");
        let result = match (verdict.problems.is_empty(), verdict.warnings.is_empty()) {
            (false, _) => "denied",
            (true, false) => "warned",
            (true, true) => "admitted",
        };
        self.reviews.get_or_create(&Labels { kind, result }).inc();
    }
}
