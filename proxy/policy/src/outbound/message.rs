//! The policy service's messages, checked: each becomes a policy, or the name of its first field that is wrong.

use std::sync::Arc;

use linkerd2_proxy_api::outbound as proto;

use super::{
    Backend, BackendKind, ClientPolicy, Distribution, FailureAccrual, Http, Limits, Opaque, OpaqueVerdict,
    OutboundRule, Protocol, RETRIES_MAX, RETRY_BODY_BYTES_MAX, Retry, RetryConditions, RouteBackend,
    Timeouts, TlsRoute,
};
use crate::{
    Endpoint, Invalid, Meta,
    balance::{Backoff, EwmaParams, Penalty, SuccessRate, Weights},
    filter::Filter,
    inbound::mk_route,
    invalid::{duration, each},
    route::{self, HostMatch, Route, Rule},
};

impl TryFrom<proto::OutboundPolicy> for ClientPolicy {
    type Error = Invalid;

    fn try_from(policy: proto::OutboundPolicy) -> Result<Self, Invalid> {
        use proto::proxy_protocol::Kind;
        let proto::OutboundPolicy { protocol, metadata } = policy;
        let missing = |field: &str| Invalid::missing(format!("protocol.{field}"));
        let protocol = match protocol
            .and_then(|protocol| protocol.kind)
            .ok_or_else(|| Invalid::missing("protocol"))?
        {
            Kind::Detect(proto::proxy_protocol::Detect {
                timeout,
                opaque,
                http1,
                http2,
            }) => Protocol::Detect {
                timeout: duration(
                    "protocol.detect.timeout",
                    timeout.ok_or_else(|| missing("detect.timeout"))?,
                )?,
                http1: http1_policy(http1.ok_or_else(|| missing("detect.http1"))?)?,
                http2: http2_policy(http2.ok_or_else(|| missing("detect.http2"))?)?,
                opaque: opaque_policy(opaque.ok_or_else(|| missing("detect.opaque"))?.routes)?,
            },
            Kind::Opaque(opaque) => Protocol::Opaque(opaque_policy(opaque.routes)?),
            Kind::Http1(http) => Protocol::Http1(http1_policy(http)?),
            Kind::Http2(http) => Protocol::Http2(http2_policy(http)?),
            Kind::Grpc(grpc) => Protocol::Grpc(Http {
                routes: each("grpc.routes", grpc.routes, grpc_route)?,
                failure_accrual: accrual(grpc.failure_accrual)?,
            }),
            Kind::Tls(tls) => Protocol::Tls(tls_policy(tls.routes)?),
        };
        Ok(Self {
            parent: Meta::required("metadata", metadata)?,
            protocol,
        })
    }
}

fn http1_policy(http: proto::proxy_protocol::Http1) -> Result<Http, Invalid> {
    Ok(Http {
        routes: each("http1.routes", http.routes, http_route)?,
        failure_accrual: accrual(http.failure_accrual)?,
    })
}

fn http2_policy(http: proto::proxy_protocol::Http2) -> Result<Http, Invalid> {
    Ok(Http {
        routes: each("http2.routes", http.routes, http_route)?,
        failure_accrual: accrual(http.failure_accrual)?,
    })
}

fn http_route(route: proto::HttpRoute) -> Result<Route<OutboundRule>, Invalid> {
    let proto::HttpRoute {
        metadata,
        hosts,
        rules,
    } = route;
    mk_route(metadata, hosts, rules, |rule| {
        #[expect(deprecated, reason = "older controllers set only this")]
        let old_timeout = rule.request_timeout;
        let proto::http_route::Rule {
            matches,
            filters,
            backends,
            timeouts,
            retry,
            allow_l5d_request_headers,
            ..
        } = rule;
        let policy = OutboundRule {
            filters: each("filters", filters, Filter::try_from)?,
            distribution: http_distribution(backends)?,
            timeouts: read_timeouts(timeouts, old_timeout)?,
            retry: retry.map(http_retry).transpose()?,
            mirrors: Vec::new(),
            session: None,
            allow_l5d_headers: allow_l5d_request_headers,
            profile: None,
        };
        Ok(Rule {
            matches: route::matches(matches)?,
            policy,
        })
    })
}

fn grpc_route(route: proto::GrpcRoute) -> Result<Route<OutboundRule>, Invalid> {
    let proto::GrpcRoute {
        metadata,
        hosts,
        rules,
    } = route;
    mk_route(metadata, hosts, rules, |rule| {
        #[expect(deprecated, reason = "older controllers set only this")]
        let old_timeout = rule.request_timeout;
        let proto::grpc_route::Rule {
            matches,
            filters,
            backends,
            timeouts,
            retry,
            allow_l5d_request_headers,
            ..
        } = rule;
        let policy = OutboundRule {
            filters: each("filters", filters, Filter::try_from)?,
            distribution: grpc_distribution(backends)?,
            timeouts: read_timeouts(timeouts, old_timeout)?,
            retry: retry.map(grpc_retry).transpose()?,
            mirrors: Vec::new(),
            session: None,
            allow_l5d_headers: allow_l5d_request_headers,
            profile: None,
        };
        Ok(Rule {
            matches: route::matches(matches)?,
            policy,
        })
    })
}

pub(super) fn read_timeouts(
    timeouts: Option<linkerd2_proxy_api::http_route::Timeouts>,
    old: Option<prost_types::Duration>,
) -> Result<Timeouts, Invalid> {
    let read = |field: &str, value: Option<prost_types::Duration>| {
        // Zero means no limit, in Gateway API as in Linkerd.
        Ok(value
            .map(|value| duration(field, value))
            .transpose()?
            .filter(|value| !value.is_zero()))
    };
    let Some(linkerd2_proxy_api::http_route::Timeouts {
        response,
        request,
        idle,
    }) = timeouts
    else {
        return Ok(Timeouts {
            head: read("request_timeout", old)?,
            ..Default::default()
        });
    };
    Ok(Timeouts {
        head: None,
        response: read("timeouts.response", response)?,
        request: read("timeouts.request", request)?,
        idle: read("timeouts.idle", idle)?,
    })
}

pub(super) fn http_retry(retry: proto::http_route::Retry) -> Result<Retry, Invalid> {
    let proto::http_route::Retry {
        max_retries,
        max_request_bytes,
        conditions,
        timeout,
        backoff,
    } = retry;
    let ranges = conditions
        .ok_or_else(|| Invalid::missing("retry.conditions"))?
        .status_ranges;
    let ranges =
        ranges.into_iter().map(
            |range| match (u16::try_from(range.start), u16::try_from(range.end)) {
                (Ok(start), Ok(end)) if (100..600).contains(&start) && (start..600).contains(&end) => {
                    Ok(start..=end)
                }
                _ => Err(Invalid::new(
                    "retry.conditions.status_ranges",
                    "must be ranges of HTTP statuses",
                )),
            },
        );
    let conditions = RetryConditions::Http(ranges.collect::<Result<_, _>>()?);
    mk_retry(max_retries, max_request_bytes, conditions, timeout, backoff)
}

fn grpc_retry(retry: proto::grpc_route::Retry) -> Result<Retry, Invalid> {
    let proto::grpc_route::Retry {
        max_retries,
        max_request_bytes,
        conditions,
        timeout,
        backoff,
    } = retry;
    let on = conditions.ok_or_else(|| Invalid::missing("retry.conditions"))?;
    let codes = [
        (on.cancelled, 1),
        (on.deadine_exceeded, 4),
        (on.resource_exhausted, 8),
        (on.internal, 13),
        (on.unavailable, 14),
    ];
    let codes = codes
        .into_iter()
        .filter_map(|(on, code)| on.then_some(code))
        .collect();
    mk_retry(
        max_retries,
        max_request_bytes,
        RetryConditions::Grpc(codes),
        timeout,
        backoff,
    )
}

fn mk_retry(
    max_retries: u32,
    max_request_bytes: u32,
    conditions: RetryConditions,
    timeout: Option<prost_types::Duration>,
    backoff: Option<proto::ExponentialBackoff>,
) -> Result<Retry, Invalid> {
    Ok(Retry {
        max_retries: max_retries.min(RETRIES_MAX),
        max_request_bytes: usize::try_from(max_request_bytes)
            .unwrap_or(usize::MAX)
            .min(RETRY_BODY_BYTES_MAX),
        conditions,
        timeout: timeout
            .map(|timeout| duration("retry.timeout", timeout))
            .transpose()?
            .filter(|one| !one.is_zero()),
        respect_retry_after: backoff.is_some_and(|backoff| backoff.respect_retry_after_hint),
        backoff: backoff
            .map(|backoff| read_backoff("retry.backoff", backoff))
            .transpose()?,
        // Policies cannot say one; without any, a service that fails gets several times its load.
        budget: Some(Arc::default()),
    })
}

fn read_backoff(field: &str, backoff: proto::ExponentialBackoff) -> Result<Backoff, Invalid> {
    let proto::ExponentialBackoff {
        min_backoff,
        max_backoff,
        jitter_ratio,
        respect_retry_after_hint: _,
    } = backoff;
    let read = |name: &str, value: Option<prost_types::Duration>| {
        let field = format!("{field}.{name}");
        value
            .ok_or_else(|| Invalid::missing(field.as_str()))
            .and_then(|value| duration(&field, value))
    };
    let (min, max) = (
        read("min_backoff", min_backoff)?,
        read("max_backoff", max_backoff)?,
    );
    if min.is_zero() || min > max {
        return Err(Invalid::new(
            field,
            "min_backoff must be more than zero and at most max_backoff",
        ));
    }
    if !jitter_ratio.is_finite() || jitter_ratio < 0.0 {
        return Err(Invalid::new(
            format!("{field}.jitter_ratio"),
            "must be zero or more",
        ));
    }
    Ok(Backoff {
        min,
        max,
        jitter_ratio: jitter_ratio.into(),
    })
}

fn accrual(accrual: Option<proto::FailureAccrual>) -> Result<Option<FailureAccrual>, Invalid> {
    use proto::failure_accrual::Kind;
    let Some(proto::FailureAccrual { ejection, kind }) = accrual else {
        return Ok(None);
    };
    let (max_failures, success_rate, backoff) =
        match kind.ok_or_else(|| Invalid::missing("failure_accrual.kind"))? {
            Kind::ConsecutiveFailures(one) => (one.max_failures, None, one.backoff),
            Kind::Unified(one) => {
                let rate = success_rate(one.success_rate_threshold, one.decay, one.min_requests)?;
                (one.max_consecutive_failures, rate, one.backoff)
            }
        };
    let backoff = backoff.ok_or_else(|| Invalid::missing("failure_accrual.backoff"))?;
    Ok(Some(FailureAccrual {
        max_failures,
        success_rate,
        respect_retry_after: backoff.respect_retry_after_hint,
        backoff: read_backoff("failure_accrual.backoff", backoff)?,
        min_ready_endpoints: ejection.map_or(0, |ejection| ejection.min_ready_endpoints),
    }))
}

fn success_rate(
    threshold: f64,
    decay: Option<prost_types::Duration>,
    min_requests: u32,
) -> Result<Option<SuccessRate>, Invalid> {
    if !(0.0..=1.0).contains(&threshold) {
        return Err(Invalid::new(
            "failure_accrual.unified.success_rate_threshold",
            "must be between 0 and 1",
        ));
    }
    // Zero turns the share of successes off.
    if threshold == 0.0 {
        return Ok(None);
    }
    let field = "failure_accrual.unified.decay";
    let decay = duration(field, decay.ok_or_else(|| Invalid::missing(field))?)?;
    Ok(Some(SuccessRate {
        threshold,
        decay,
        min_requests,
    }))
}

macro_rules! distributions {
    ($($name:ident: $module:ident, |$filters:ident| $read_filters:expr;)*) => {$(
        fn $name(distribution: Option<proto::$module::Distribution>) -> Result<Distribution, Invalid> {
            use proto::$module::distribution::Kind;
            let kind = distribution.and_then(|one| one.kind).ok_or_else(|| Invalid::missing("backends"))?;
            let read = |one: proto::$module::RouteBackend| {
                let backend = Backend::try_from(one.backend.ok_or_else(|| Invalid::missing("backend"))?)?;
                let $filters = one.filters;
                Ok(RouteBackend { backend: Arc::new(backend), filters: $read_filters, mirrors: Vec::new() })
            };
            match kind {
                Kind::Empty(_) => Ok(Distribution::Empty),
                Kind::FirstAvailable(first) => nonempty(each("backends", first.backends, read)?).map(Distribution::FirstAvailable),
                Kind::RandomAvailable(random) => {
                    let weights = Weights::new(random.backends.iter().map(|one| one.weight));
                    let read = |one: proto::$module::WeightedRouteBackend| {
                        read(one.backend.ok_or_else(|| Invalid::missing("backend"))?)
                    };
                    let backends = nonempty(each("backends", random.backends, read)?)?;
                    match weights.total() {
                        // Gateway API: all weights zero is a rule that takes no traffic.
                        0 => Ok(Distribution::Empty),
                        _ => Ok(Distribution::RandomAvailable(backends, weights)),
                    }
                }
            }
        }
    )*};
}

distributions! {
    http_distribution: http_route, |filters| each("filters", filters, Filter::try_from)?;
    grpc_distribution: grpc_route, |filters| each("filters", filters, Filter::try_from)?;
    opaque_distribution: opaque_route, |filters| each("filters", filters, |filter| {
        use proto::opaque_route::filter::Kind;
        match filter.kind {
            Some(Kind::Invalid(invalid)) => refusal(invalid.message),
            Some(Kind::Forbidden(_)) => refusal("forbidden".to_owned()),
            None => Err(Invalid::missing("kind")),
        }
    })?;
    tls_distribution: tls_route, |filters| each("filters", filters, |filter| {
        use proto::tls_route::filter::Kind;
        match filter.kind {
            Some(Kind::Invalid(invalid)) => refusal(invalid.message),
            Some(Kind::Forbidden(_)) => refusal("forbidden".to_owned()),
            None => Err(Invalid::missing("kind")),
        }
    })?;
}

fn nonempty(backends: Vec<RouteBackend>) -> Result<Vec<RouteBackend>, Invalid> {
    match backends.is_empty() {
        true => Err(Invalid::new("backends", "must have at least one backend")),
        false => Ok(backends),
    }
}

/// The one thing that happens to connections at a backend: they are refused.
fn refusal(message: String) -> Result<Filter, Invalid> {
    Filter::try_from(linkerd2_proxy_api::http_route::HttpFailureInjector {
        status: 503,
        message,
        ratio: None,
    })
}

fn opaque_policy(routes: Vec<proto::OpaqueRoute>) -> Result<Opaque, Invalid> {
    use proto::opaque_route::filter::Kind;
    // Connections have nothing to choose a route by: the first, which is the oldest, holds.
    let route = routes
        .into_iter()
        .next()
        .ok_or_else(|| Invalid::new("opaque.routes", "must have at least one route"))?;
    let rule = route
        .rules
        .into_iter()
        .next()
        .ok_or_else(|| Invalid::new("opaque.routes.rules", "must have at least one rule"))?;
    let kind = rule.filters.into_iter().next().and_then(|filter| filter.kind);
    let verdict = match kind {
        None => OpaqueVerdict::To(opaque_distribution(rule.backends)?),
        Some(Kind::Forbidden(_)) => OpaqueVerdict::Forbidden,
        Some(Kind::Invalid(invalid)) => OpaqueVerdict::Invalid(invalid.message),
    };
    Ok(Opaque {
        meta: Meta::required("opaque.routes.metadata", route.metadata)?,
        verdict,
    })
}

fn tls_policy(routes: Vec<proto::TlsRoute>) -> Result<Vec<TlsRoute>, Invalid> {
    if routes.is_empty() {
        return Err(Invalid::new("tls.routes", "must have at least one route"));
    }
    each("tls.routes", routes, tls_route)
}

fn tls_route(route: proto::TlsRoute) -> Result<TlsRoute, Invalid> {
    use linkerd2_proxy_api::tls_route::sni_match::Match;
    use proto::tls_route::filter::Kind;
    let proto::TlsRoute {
        metadata,
        snis,
        rules,
    } = route;
    let rule = rules
        .into_iter()
        .next()
        .ok_or_else(|| Invalid::new("rules", "must have at least one rule"))?;
    let kind = rule.filters.into_iter().next().and_then(|filter| filter.kind);
    let verdict = match kind {
        None => OpaqueVerdict::To(tls_distribution(rule.backends)?),
        Some(Kind::Forbidden(_)) => OpaqueVerdict::Forbidden,
        Some(Kind::Invalid(invalid)) => OpaqueVerdict::Invalid(invalid.message),
    };
    let names = each("snis", snis, |sni| {
        match sni.r#match.ok_or_else(|| Invalid::missing("match"))? {
            Match::Exact(name) => Ok(HostMatch::Exact(name.to_ascii_lowercase())),
            Match::Suffix(suffix) => HostMatch::suffix(suffix.reverse_labels),
        }
    })?;
    Ok(TlsRoute {
        names,
        opaque: Opaque {
            meta: Meta::required("metadata", metadata)?,
            verdict,
        },
    })
}

impl TryFrom<proto::Backend> for Backend {
    type Error = Invalid;

    fn try_from(backend: proto::Backend) -> Result<Self, Invalid> {
        use proto::backend::{Kind, balance_p2c::Load, endpoint_discovery};
        let proto::Backend {
            metadata,
            queue,
            kind,
        } = backend;
        let queue = queue.ok_or_else(|| Invalid::missing("queue"))?;
        let failfast = queue
            .failfast_timeout
            .ok_or_else(|| Invalid::missing("queue.failfast_timeout"))?;
        let kind = match kind {
            // Linkerd's controller sends this for a Service that does not exist, with a filter that answers.
            None => BackendKind::Nowhere,
            Some(Kind::Forward(addr)) => BackendKind::Forward(Arc::new(
                Endpoint::from_proto(addr, &Default::default()).map_err(|error| error.within("forward"))?,
            )),
            Some(Kind::Balancer(balancer)) => {
                let discovery = balancer.discovery.and_then(|one| one.kind);
                let endpoint_discovery::Kind::Dst(dst) =
                    discovery.ok_or_else(|| Invalid::missing("balancer.discovery"))?;
                if dst.path.is_empty() {
                    return Err(Invalid::new("balancer.discovery.dst.path", "must not be empty"));
                }
                let read = |field: &str, value: Option<prost_types::Duration>| {
                    value
                        .ok_or_else(|| Invalid::missing(field))
                        .and_then(|value| duration(field, value))
                };
                let (default_rtt, decay, penalty) =
                    match balancer.load.ok_or_else(|| Invalid::missing("balancer.load"))? {
                        Load::PeakEwma(ewma) => (ewma.default_rtt, ewma.decay, None),
                        Load::PenaltyPeakEwma(ewma) => {
                            let penalty = Penalty {
                                charge: read("balancer.load.penalty", ewma.penalty)?,
                                max_retry_after: read("balancer.load.max_retry_after", ewma.max_retry_after)?,
                                decay: read("balancer.load.penalty_decay", ewma.penalty_decay)?,
                            };
                            (ewma.default_rtt, ewma.decay, Some(penalty))
                        }
                    };
                let ewma = EwmaParams {
                    default_rtt: read("balancer.load.default_rtt", default_rtt)?,
                    decay: read("balancer.load.decay", decay)?,
                    penalty,
                };
                BackendKind::Balance { path: dst.path, ewma }
            }
        };
        Ok(Self {
            meta: Meta::required("metadata", metadata)?,
            kind,
            failfast_timeout: duration("queue.failfast_timeout", failfast)?,
            affinity: None,
            limits: Limits::default(),
        })
    }
}
