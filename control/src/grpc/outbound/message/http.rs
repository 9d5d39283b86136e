//! HTTP routes as messages.

use heddle_control_core::{
    outbound::{OutboundRoute, OutboundRule},
    route::HttpMatch,
};
use linkerd2_proxy_api::outbound::{self as proto, http_route as http};

use super::{
    Backend, Distribution, Filter, RETRY_BACKOFF, RETRY_BYTES_MAX, Retry, RetryOn, backend, backoff, encode,
    timeouts,
};

pub(super) fn route(route: &OutboundRoute<HttpMatch>) -> proto::HttpRoute {
    let OutboundRoute { meta, hosts, rules } = route;
    proto::HttpRoute {
        metadata: Some(encode::metadata(meta)),
        hosts: hosts.iter().map(encode::host).collect(),
        rules: rules.iter().map(rule).collect(),
    }
}

fn rule(rule: &OutboundRule<HttpMatch>) -> http::Rule {
    let OutboundRule {
        matches,
        filters,
        backends,
        timeouts: limits,
        retry: tries,
        mirrors: _,
        session: _,
        allow_l5d_request_headers,
    } = rule;
    http::Rule {
        matches: matches.iter().map(encode::http_match).collect(),
        filters: filters.iter().filter_map(filter).collect(),
        backends: Some(distribution(backends)),
        timeouts: Some(timeouts(limits)),
        retry: tries.as_ref().and_then(retry),
        allow_l5d_request_headers: *allow_l5d_request_headers,
        ..http::Rule::default()
    }
}

fn distribution(distribution: &Distribution) -> http::Distribution {
    use http::distribution::{FirstAvailable, Kind, RandomAvailable};
    let kind = match distribution {
        Distribution::First(one) => Kind::FirstAvailable(FirstAvailable {
            backends: vec![route_backend(one)],
        }),
        Distribution::Weighted(all) => {
            let weighted = |(one, weight): &(Backend, u32)| http::WeightedRouteBackend {
                backend: Some(route_backend(one)),
                weight: *weight,
            };
            Kind::RandomAvailable(RandomAvailable {
                backends: all.iter().map(weighted).collect(),
            })
        }
    };
    http::Distribution { kind: Some(kind) }
}

fn route_backend(one: &Backend) -> http::RouteBackend {
    http::RouteBackend {
        backend: Some(backend(one)),
        filters: one.filters.iter().filter_map(filter).collect(),
        ..http::RouteBackend::default()
    }
}

fn filter(filter: &Filter) -> Option<http::Filter> {
    use http::filter::Kind;
    let kind = match filter {
        Filter::RequestHeaders(modifier) => Kind::RequestHeaderModifier(encode::request_headers(modifier)),
        Filter::ResponseHeaders(modifier) => Kind::ResponseHeaderModifier(encode::response_headers(modifier)),
        Filter::Redirect(redirect) => Kind::Redirect(encode::redirect(redirect)),
        Filter::Fail { status, message } => Kind::FailureInjector(encode::http_failure(*status, message)),
        // The extension's affair.
        Filter::Rewrite(_) => return None,
    };
    Some(http::Filter { kind: Some(kind) })
}

fn retry(retry: &Retry) -> Option<http::Retry> {
    let Retry {
        limit,
        timeout,
        on: RetryOn::Http(ranges),
    } = retry
    else {
        return None;
    };
    let status_ranges = ranges
        .iter()
        .map(|(start, end)| http::retry::conditions::StatusRange {
            start: (*start).into(),
            end: (*end).into(),
        });
    Some(http::Retry {
        max_retries: *limit,
        max_request_bytes: RETRY_BYTES_MAX,
        conditions: Some(http::retry::Conditions {
            status_ranges: status_ranges.collect(),
        }),
        timeout: timeout.and_then(encode::duration),
        backoff: Some(backoff(&RETRY_BACKOFF)),
    })
}
