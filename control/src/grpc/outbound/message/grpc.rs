//! gRPC routes as messages.

use heddle_control_core::{
    outbound::{GrpcRetryOn, OutboundRoute, OutboundRule},
    route::GrpcMatch,
};
use linkerd2_proxy_api::outbound::{self as proto, grpc_route as grpc};

use super::{
    Backend, Distribution, Filter, RETRY_BACKOFF, RETRY_BYTES_MAX, Retry, RetryOn, backend, backoff, encode,
    timeouts,
};

pub(super) fn route(route: &OutboundRoute<GrpcMatch>) -> proto::GrpcRoute {
    let OutboundRoute { meta, hosts, rules } = route;
    proto::GrpcRoute {
        metadata: Some(encode::metadata(meta)),
        hosts: hosts.iter().map(encode::host).collect(),
        rules: rules.iter().map(rule).collect(),
    }
}

fn rule(rule: &OutboundRule<GrpcMatch>) -> grpc::Rule {
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
    grpc::Rule {
        matches: matches.iter().map(encode::grpc_match).collect(),
        filters: filters.iter().filter_map(filter).collect(),
        backends: Some(distribution(backends)),
        timeouts: Some(timeouts(limits)),
        retry: tries.as_ref().and_then(retry),
        allow_l5d_request_headers: *allow_l5d_request_headers,
        ..grpc::Rule::default()
    }
}

fn distribution(distribution: &Distribution) -> grpc::Distribution {
    use grpc::distribution::{FirstAvailable, Kind, RandomAvailable};
    let kind = match distribution {
        Distribution::First(one) => Kind::FirstAvailable(FirstAvailable {
            backends: vec![route_backend(one)],
        }),
        Distribution::Weighted(all) => {
            let weighted = |(one, weight): &(Backend, u32)| grpc::WeightedRouteBackend {
                backend: Some(route_backend(one)),
                weight: *weight,
            };
            Kind::RandomAvailable(RandomAvailable {
                backends: all.iter().map(weighted).collect(),
            })
        }
    };
    grpc::Distribution { kind: Some(kind) }
}

fn route_backend(one: &Backend) -> grpc::RouteBackend {
    grpc::RouteBackend {
        backend: Some(backend(one)),
        filters: one.filters.iter().filter_map(filter).collect(),
        ..grpc::RouteBackend::default()
    }
}

fn filter(filter: &Filter) -> Option<grpc::Filter> {
    use grpc::filter::Kind;
    let kind = match filter {
        Filter::RequestHeaders(modifier) => Kind::RequestHeaderModifier(encode::request_headers(modifier)),
        Filter::Fail { status, message } => Kind::FailureInjector(encode::grpc_failure(*status, message)),
        // The extension's affair; and a gRPC call cannot be redirected.
        Filter::ResponseHeaders(_) | Filter::Rewrite(_) | Filter::Redirect(_) => return None,
    };
    Some(grpc::Filter { kind: Some(kind) })
}

fn retry(retry: &Retry) -> Option<grpc::Retry> {
    let Retry {
        limit,
        timeout,
        on: RetryOn::Grpc(on),
    } = retry
    else {
        return None;
    };
    let GrpcRetryOn {
        cancelled,
        deadline_exceeded,
        resource_exhausted,
        internal,
        unavailable,
    } = *on;
    Some(grpc::Retry {
        max_retries: *limit,
        max_request_bytes: RETRY_BYTES_MAX,
        conditions: Some(grpc::retry::Conditions {
            cancelled,
            deadine_exceeded: deadline_exceeded,
            resource_exhausted,
            internal,
            unavailable,
        }),
        timeout: timeout.and_then(encode::duration),
        backoff: Some(backoff(&RETRY_BACKOFF)),
    })
}
