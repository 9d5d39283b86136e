//! Annotations of Services and routes about timeouts, retries and failure accrual.
//!
//! A value that cannot be read is logged and counts as absent: one typing error must not take a service's other
//! settings, let alone its traffic, down.

use std::{collections::BTreeMap, fmt, time::Duration};

use heddle_control_core::outbound::{Backoff, FailureAccrual, GrpcRetryOn, Retry, RetryOn, Timeouts};
use heddle_mesh::duration;

use crate::facts::ObjectKey;

/// Settings of a service's traffic.
#[derive(Clone, Debug, Default)]
pub(super) struct ServiceTraffic {
    pub(super) route: RouteTraffic,
    pub(super) failure_accrual: Option<FailureAccrual>,
}

/// Settings of a route's traffic.
#[derive(Clone, Debug, Default)]
pub(super) struct RouteTraffic {
    pub(super) timeouts: Timeouts,
    pub(super) retry_http: Option<Retry>,
    pub(super) retry_grpc: Option<Retry>,
}

/// An object's annotations, and its name for the log.
struct Reader<'a> {
    kind: &'a str,
    namespace: &'a str,
    name: &'a str,
    annotations: &'a BTreeMap<String, String>,
}

impl ServiceTraffic {
    pub(super) fn read(key: &ObjectKey, annotations: &BTreeMap<String, String>) -> Self {
        let ObjectKey { namespace, name } = key;
        let reader = Reader {
            kind: "Service",
            namespace,
            name,
            annotations,
        };
        Self {
            route: RouteTraffic::read("Service", namespace, name, annotations),
            failure_accrual: reader.failure_accrual(),
        }
    }
}

impl RouteTraffic {
    pub(super) fn read(
        kind: &str,
        namespace: &str,
        name: &str,
        annotations: &BTreeMap<String, String>,
    ) -> Self {
        let reader = Reader {
            kind,
            namespace,
            name,
            annotations,
        };
        let timeout = |key| reader.duration(key).filter(|timeout| !timeout.is_zero());
        let retry = |on| Retry {
            limit: reader.parsed("retry.linkerd.io/limit").unwrap_or(1),
            timeout: timeout("retry.linkerd.io/timeout"),
            on,
        };
        Self {
            timeouts: Timeouts {
                response: timeout("timeout.linkerd.io/response"),
                request: timeout("timeout.linkerd.io/request"),
                idle: timeout("timeout.linkerd.io/idle"),
            },
            retry_http: reader
                .read("retry.linkerd.io/http", http_statuses)
                .map(|on| retry(RetryOn::Http(on))),
            retry_grpc: reader
                .read("retry.linkerd.io/grpc", grpc_statuses)
                .map(|on| retry(RetryOn::Grpc(on))),
        }
    }
}

impl Reader<'_> {
    fn read<T>(&self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let Self {
            kind,
            namespace,
            name,
            annotations,
        } = self;
        match parse(annotations.get(key)?) {
            Ok(value) => Some(value),
            Err(error) => {
                tracing::warn!(
                    kind,
                    namespace,
                    name,
                    annotation = key,
                    error,
                    "Ignored an annotation"
                );
                None
            }
        }
    }

    fn parsed<T: std::str::FromStr<Err: fmt::Display>>(&self, key: &str) -> Option<T> {
        self.read(key, |text| {
            text.trim().parse().map_err(|error| format!("`{text}`: {error}"))
        })
    }

    fn duration(&self, key: &str) -> Option<Duration> {
        self.read(key, |text| {
            duration::parse(text).map_err(|error| error.to_string())
        })
    }

    fn failure_accrual(&self) -> Option<FailureAccrual> {
        const OLD: &str = "balancer.linkerd.io/failure-accrual-consecutive";
        const NEW: &str = "balancer.alpha.linkerd.io/failure-accrual";
        let unified = self.read("balancer.linkerd.io/failure-accrual", |mode| match mode {
            "consecutive" => Ok(false),
            "unified" => Ok(true),
            other => Err(format!(
                "`{other}` is no mode of failure accrual: expected consecutive or unified"
            )),
        })?;
        let min = self
            .duration(&format!("{OLD}-min-penalty"))
            .unwrap_or(Duration::from_secs(1));
        let max = self
            .duration(&format!("{OLD}-max-penalty"))
            .unwrap_or(Duration::from_secs(60));
        if min > max || min.is_zero() {
            let Self { namespace, name, .. } = self;
            tracing::warn!(
                namespace,
                name,
                ?min,
                ?max,
                "Ignored failure accrual: the minimal penalty must be above 0 and not above the maximal one"
            );
            return None;
        }
        let max_failures = self.parsed(&format!("{OLD}-max-failures")).unwrap_or(7);
        let jitter = self
            .read(&format!("{OLD}-jitter-ratio"), |text| {
                ratio(text).map(|ratio| ratio as f32)
            })
            .unwrap_or(0.5);
        let honor_retry_after = unified && self.parsed(&format!("{NEW}-honor-retry-after")).unwrap_or(false);
        let backoff = Backoff {
            min,
            max,
            jitter,
            honor_retry_after,
        };
        if !unified {
            return Some(FailureAccrual::Consecutive {
                max_failures,
                backoff,
            });
        }
        let window = self
            .duration(&format!("{NEW}-window"))
            .filter(|window| *window >= Duration::from_millis(10));
        Some(FailureAccrual::Unified {
            success_rate_threshold: self
                .read(&format!("{NEW}-success-rate-threshold"), ratio)
                .unwrap_or(0.8),
            window: window.unwrap_or(Duration::from_secs(10)),
            min_requests: self
                .parsed(&format!("{NEW}-min-requests"))
                .filter(|n| *n <= 1_000_000)
                .unwrap_or(5),
            max_failures,
            backoff,
        })
    }
}

fn ratio(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err(format!("`{text}` is no ratio: expected a number from 0 to 1")),
    }
}

/// `5xx`, `gateway-error`, single statuses and ranges, separated by commas.
fn http_statuses(text: &str) -> Result<Vec<(u16, u16)>, String> {
    let status = |text: &str| match text.trim().parse::<u16>() {
        Ok(status) if (100..600).contains(&status) => Ok(status),
        _ => Err(format!(
            "`{text}` is no HTTP status: expected statuses or ranges from 100 to 599, 5xx or gateway-error"
        )),
    };
    let range = |part: &str| match (part, part.split_once('-')) {
        ("5xx", _) => Ok((500, 599)),
        ("gateway-error", _) => Ok((502, 504)),
        (_, Some((start, end))) => match (status(start)?, status(end)?) {
            (start, end) if start <= end => Ok((start, end)),
            _ => Err(format!(
                "`{part}` is no range of statuses: it ends before it starts"
            )),
        },
        (one, None) => status(one).map(|status| (status, status)),
    };
    let ranges: Vec<_> = text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(range)
        .collect::<Result<_, _>>()?;
    match ranges.is_empty() {
        true => Err("names no status".to_owned()),
        false => Ok(ranges),
    }
}

fn grpc_statuses(text: &str) -> Result<GrpcRetryOn, String> {
    let mut on = GrpcRetryOn::default();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match part {
            "cancelled" => on.cancelled = true,
            "deadline-exceeded" => on.deadline_exceeded = true,
            "internal" => on.internal = true,
            "resource-exhausted" => on.resource_exhausted = true,
            "unavailable" => on.unavailable = true,
            other => {
                return Err(format!(
                    "`{other}` cannot be retried: expected cancelled, deadline-exceeded, internal, resource-exhausted or unavailable"
                ));
            }
        }
    }
    match on == GrpcRetryOn::default() {
        true => Err("names no status".to_owned()),
        false => Ok(on),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> ServiceTraffic {
        let annotations = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        ServiceTraffic::read(&ObjectKey::new("ns", "svc"), &annotations)
    }

    #[test]
    fn the_seeds_retry_annotations_are_understood() {
        let retry = read(&[("retry.linkerd.io/http", "5xx"), ("retry.linkerd.io/limit", "2")])
            .route
            .retry_http;
        assert_eq!(
            retry,
            Some(Retry {
                limit: 2,
                timeout: None,
                on: RetryOn::Http(vec![(500, 599)])
            })
        );
    }

    #[test]
    fn statuses_are_single_ranged_or_named() {
        assert_eq!(
            http_statuses("429, 500-504,gateway-error").as_deref(),
            Ok(&[(429, 429), (500, 504), (502, 504)][..])
        );
        for bad in ["", "99", "600", "504-500", "4xx", "a-b"] {
            assert!(http_statuses(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn one_wrong_annotation_leaves_the_others_in_force() {
        let traffic = read(&[
            ("timeout.linkerd.io/request", "1.5s"),
            ("timeout.linkerd.io/response", "2s"),
        ])
        .route;
        assert_eq!(
            traffic.timeouts,
            Timeouts {
                response: Some(Duration::from_secs(2)),
                ..Timeouts::default()
            }
        );
    }

    #[test]
    fn consecutive_failure_accrual_has_linkerds_defaults() {
        let accrual = read(&[("balancer.linkerd.io/failure-accrual", "consecutive")]).failure_accrual;
        let backoff = Backoff {
            min: Duration::from_secs(1),
            max: Duration::from_secs(60),
            jitter: 0.5,
            honor_retry_after: false,
        };
        assert_eq!(
            accrual,
            Some(FailureAccrual::Consecutive {
                max_failures: 7,
                backoff
            })
        );
        assert_eq!(
            read(&[("balancer.linkerd.io/failure-accrual", "sometimes")]).failure_accrual,
            None
        );
    }
}
