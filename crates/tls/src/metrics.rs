//! Metrics of this process' own certificate, under Linkerd's names.

use std::time::SystemTime;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// `control_identity_cert_*`: expiry, time of the last renewal, and renewals by result.
#[derive(Clone, Debug, Default)]
pub struct CertMetrics {
    expiration: Gauge,
    refresh: Gauge,
    refreshes: Family<Labels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    result: RefreshResult,
}

/// How an attempt to renew the certificate ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the names are the label's values")]
pub(crate) enum RefreshResult {
    ok,
    error,
}

impl CertMetrics {
    /// Registers the metrics; counts begin at zero for both results.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        for result in [RefreshResult::ok, RefreshResult::error] {
            drop(metrics.refreshes.get_or_create(&Labels { result }));
        }
        registry.register(
            "control_identity_cert_expiration_timestamp_seconds",
            "Time when this process' certificate expires, in seconds since the Unix epoch",
            metrics.expiration.clone(),
        );
        registry.register(
            "control_identity_cert_refresh_timestamp_seconds",
            "Time when this process' certificate was last renewed, in seconds since the Unix epoch",
            metrics.refresh.clone(),
        );
        registry.register(
            "control_identity_cert_refreshes",
            "Attempts to renew this process' certificate",
            metrics.refreshes.clone(),
        );
        metrics
    }

    /// Counts a renewal that succeeded.
    pub fn renewed(&self, expires: SystemTime) {
        self.expiration.set(unix(expires));
        self.refresh.set(unix(SystemTime::now()));
        self.refreshes
            .get_or_create(&Labels {
                result: RefreshResult::ok,
            })
            .inc();
    }

    /// Counts a renewal that failed.
    pub fn failed(&self) {
        self.refreshes
            .get_or_create(&Labels {
                result: RefreshResult::error,
            })
            .inc();
    }
}

fn unix(time: SystemTime) -> i64 {
    let seconds = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX)
}
