//! Failure accrual, load bias, and the limits and affinity of a service's balancer.

use std::time::Duration;

use heddle_control_core::{
    balance::{Affinity, Limits},
    outbound::{Backoff, FailureAccrual, LoadBias, SuccessRate},
};

use super::Reader;

const ACCRUAL: &str = "balancer.linkerd.io/failure-accrual";
const MAX_FAILURES: &str = "balancer.linkerd.io/failure-accrual-consecutive-max-failures";
const MIN_PENALTY: &str = "balancer.linkerd.io/failure-accrual-consecutive-min-penalty";
const MAX_PENALTY: &str = "balancer.linkerd.io/failure-accrual-consecutive-max-penalty";
const JITTER_RATIO: &str = "balancer.linkerd.io/failure-accrual-consecutive-jitter-ratio";
const THRESHOLD: &str = "balancer.alpha.linkerd.io/failure-accrual-success-rate-threshold";
const WINDOW: &str = "balancer.alpha.linkerd.io/failure-accrual-success-rate-window";
const MIN_REQUESTS: &str = "balancer.alpha.linkerd.io/failure-accrual-success-rate-min-requests";
const HONOR_RETRY_AFTER: &str = "balancer.alpha.linkerd.io/failure-accrual-honor-retry-after";
const MIN_READY_ENDPOINTS: &str = "balancer.heddle.dev/min-ready-endpoints";

const PENALIZE_FAILURES: &str = "balancer.alpha.linkerd.io/penalize-failures";
const BIAS_PENALTY: &str = "balancer.alpha.linkerd.io/load-biaser-penalty";
const BIAS_MAX_RETRY_AFTER: &str = "balancer.alpha.linkerd.io/load-biaser-max-retry-after";

const MAX_CONNECTIONS: &str = "balancer.heddle.dev/max-connections";
const MAX_REQUESTS: &str = "balancer.heddle.dev/max-requests";
const MAX_PENDING: &str = "balancer.heddle.dev/max-pending-requests";
const MAX_ENDPOINT_CONNECTIONS: &str = "balancer.heddle.dev/max-connections-per-endpoint";
const MAX_ENDPOINT_REQUESTS: &str = "balancer.heddle.dev/max-requests-per-endpoint";

/// What is read about failure accrual.
pub(super) const ACCRUAL_KEYS: &[&str] = &[
    ACCRUAL,
    MAX_FAILURES,
    MIN_PENALTY,
    MAX_PENALTY,
    JITTER_RATIO,
    THRESHOLD,
    WINDOW,
    MIN_REQUESTS,
    HONOR_RETRY_AFTER,
    MIN_READY_ENDPOINTS,
];

/// What is read besides, of Linkerd's and of Heddle's own.
pub(super) const LINKERD_KEYS: &[&str] = ACCRUAL_KEYS;
pub(super) const KEYS: &[&str] = &[
    PENALIZE_FAILURES,
    BIAS_PENALTY,
    BIAS_MAX_RETRY_AFTER,
    MAX_CONNECTIONS,
    MAX_REQUESTS,
    MAX_PENDING,
    MAX_ENDPOINT_CONNECTIONS,
    MAX_ENDPOINT_REQUESTS,
];

/// Settings of a service's balancer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Balancing {
    pub(crate) failure_accrual: Option<FailureAccrual>,
    pub(crate) load_bias: Option<LoadBias>,
    pub(crate) limits: Limits,
    pub(crate) affinity: Option<Affinity>,
}

impl Reader<'_> {
    pub(crate) fn balancing(&mut self) -> Balancing {
        Balancing {
            failure_accrual: self.failure_accrual(),
            load_bias: self.load_bias(),
            limits: self.limits(),
            affinity: self.affinity(),
        }
    }

    pub(crate) fn failure_accrual(&mut self) -> Option<FailureAccrual> {
        let mode = self.read(ACCRUAL, |mode| match mode {
            "consecutive" => Ok(false),
            "unified" => Ok(true),
            _ => Err("consecutive or unified".to_owned()),
        });
        let Some(unified) = mode else {
            for key in ACCRUAL_KEYS.iter().filter(|key| **key != ACCRUAL) {
                if self.has(key) {
                    self.complain(
                        key,
                        format!("{ACCRUAL} beside it, which turns failure accrual on"),
                    );
                }
            }
            return None;
        };
        let max_failures = self.number(MAX_FAILURES, 0, u32::MAX).unwrap_or(7);
        let success_rate = unified.then(|| self.success_rate());
        if !unified {
            for key in [THRESHOLD, WINDOW, MIN_REQUESTS] {
                if self.has(key) {
                    self.complain(key, format!("{ACCRUAL}: unified beside it"));
                }
            }
        }
        Some(FailureAccrual {
            max_failures,
            success_rate,
            backoff: self.backoff(),
            min_ready_endpoints: self.number(MIN_READY_ENDPOINTS, 0, u32::MAX).unwrap_or_default(),
        })
    }

    fn backoff(&mut self) -> Backoff {
        const MIN: Duration = Duration::from_secs(1);
        const MAX: Duration = Duration::from_secs(60);
        let min = self.duration(MIN_PENALTY).unwrap_or(MIN);
        let max = self.duration(MAX_PENALTY).unwrap_or(MAX);
        // Proxies refuse a whole policy for these.
        let (min, max) = if min.is_zero() || max.is_zero() || min > max {
            let expected = format!(
                "{MIN_PENALTY} to be more than 0 and not more than {MAX_PENALTY}: 1s and 60s are used"
            );
            for key in [MIN_PENALTY, MAX_PENALTY] {
                if self.has(key) {
                    self.complain(key, expected.as_str());
                }
            }
            (MIN, MAX)
        } else {
            (min, max)
        };
        Backoff {
            min,
            max,
            jitter: self.ratio(JITTER_RATIO, 100.0).unwrap_or(0.5) as f32,
            honor_retry_after: self.flag(HONOR_RETRY_AFTER),
        }
    }

    fn success_rate(&mut self) -> SuccessRate {
        // Proxies refuse a whole policy for less, or for more requests.
        const WINDOW_MIN: Duration = Duration::from_millis(10);
        const REQUESTS_MAX: u32 = 1_000_000;
        let window = self.duration(WINDOW);
        if window.is_some_and(|window| window < WINDOW_MIN) {
            self.complain(WINDOW, "10ms or more");
        }
        SuccessRate {
            threshold: self.ratio(THRESHOLD, 1.0).unwrap_or(0.8),
            window: window
                .filter(|window| *window >= WINDOW_MIN)
                .unwrap_or(Duration::from_secs(10)),
            min_requests: self.number(MIN_REQUESTS, 0, REQUESTS_MAX).unwrap_or(5),
        }
    }

    fn load_bias(&mut self) -> Option<LoadBias> {
        // Proxies count it in milliseconds of 32 bits.
        const PENALTY_MAX: Duration = Duration::from_millis(u32::MAX as u64);
        if !self.flag(PENALIZE_FAILURES) {
            for key in [BIAS_PENALTY, BIAS_MAX_RETRY_AFTER] {
                if self.has(key) {
                    self.complain(key, format!("{PENALIZE_FAILURES}: \"true\" beside it"));
                }
            }
            return None;
        }
        let penalty = self.timeout(BIAS_PENALTY);
        if penalty.is_some_and(|penalty| penalty > PENALTY_MAX) {
            self.complain(BIAS_PENALTY, "at most 49d");
        }
        Some(LoadBias {
            penalty: penalty
                .filter(|penalty| *penalty <= PENALTY_MAX)
                .unwrap_or(Duration::from_secs(5)),
            max_retry_after: self
                .timeout(BIAS_MAX_RETRY_AFTER)
                .unwrap_or(Duration::from_secs(300)),
        })
    }

    fn limits(&mut self) -> Limits {
        let mut limit = |key| self.number(key, 1, u32::MAX);
        Limits {
            connections: limit(MAX_CONNECTIONS),
            requests: limit(MAX_REQUESTS),
            pending_requests: limit(MAX_PENDING),
            endpoint_connections: limit(MAX_ENDPOINT_CONNECTIONS),
            endpoint_requests: limit(MAX_ENDPOINT_REQUESTS),
        }
    }
}
