//! Outbound policies as messages.
//!
//! A proxy refuses a whole policy for one field it misses, so every field it looks at is set here, always.

use std::time::Duration;

use heddle_control_core::{
    endpoints::DEFAULT_WEIGHT,
    outbound::{
        Backend, BackendTarget, Backoff, Distribution, FailureAccrual, GrpcRoutes, HttpRoutes, OpaqueRoute,
        OutboundPolicy, OutboundProtocol, Retry, RetryOn, Timeouts,
    },
    route::Filter,
};
use linkerd2_proxy_api::{
    destination, http_route::Timeouts as ProtoTimeouts, opaque_route as opaque, outbound as proto,
};

use crate::grpc::encode;

mod grpc;
mod http;

/// Requests that wait for a ready endpoint, and how long; Linkerd's.
const QUEUE_CAPACITY: u32 = 100;
const QUEUE_FAILFAST: Duration = Duration::from_secs(3);

/// What an endpoint's latency counts as before it is measured, and how fast measurements fade; Linkerd's.
const DEFAULT_RTT: Duration = Duration::from_millis(30);
const RTT_DECAY: Duration = Duration::from_secs(10);

/// Bytes of a request that are kept for a retry, and the waits between tries; Linkerd's.
const RETRY_BYTES_MAX: u32 = 64 * 1024;
const RETRY_BACKOFF: Backoff = Backoff {
    min: Duration::from_millis(25),
    max: Duration::from_millis(250),
    jitter: 1.0,
    honor_retry_after: false,
};

pub(super) fn policy(policy: &OutboundPolicy) -> proto::OutboundPolicy {
    use proto::proxy_protocol::{Detect, Kind};
    let OutboundPolicy { meta, protocol } = policy;
    let kind = match protocol {
        OutboundProtocol::Detect {
            timeout,
            http,
            opaque,
        } => Kind::Detect(Detect {
            timeout: encode::duration(*timeout),
            opaque: Some(opaque_protocol(opaque)),
            http1: Some(http1(http)),
            http2: Some(http2(http)),
        }),
        OutboundProtocol::Http1(http) => Kind::Http1(http1(http)),
        OutboundProtocol::Http2(http) => Kind::Http2(http2(http)),
        OutboundProtocol::Grpc(grpc) => Kind::Grpc(grpc_protocol(grpc)),
        OutboundProtocol::Opaque(opaque) => Kind::Opaque(opaque_protocol(opaque)),
    };
    proto::OutboundPolicy {
        protocol: Some(proto::ProxyProtocol { kind: Some(kind) }),
        metadata: Some(encode::metadata(meta)),
    }
}

fn http1(routes: &HttpRoutes) -> proto::proxy_protocol::Http1 {
    proto::proxy_protocol::Http1 {
        routes: routes.routes.iter().map(http::route).collect(),
        failure_accrual: routes.failure_accrual.as_ref().map(failure_accrual),
    }
}

fn http2(routes: &HttpRoutes) -> proto::proxy_protocol::Http2 {
    proto::proxy_protocol::Http2 {
        routes: routes.routes.iter().map(http::route).collect(),
        failure_accrual: routes.failure_accrual.as_ref().map(failure_accrual),
    }
}

fn grpc_protocol(routes: &GrpcRoutes) -> proto::proxy_protocol::Grpc {
    proto::proxy_protocol::Grpc {
        routes: routes.routes.iter().map(grpc::route).collect(),
        failure_accrual: routes.failure_accrual.as_ref().map(failure_accrual),
    }
}

fn opaque_protocol(route: &OpaqueRoute) -> proto::proxy_protocol::Opaque {
    use proto::opaque_route::{
        Distribution as Proto, Filter, RouteBackend, Rule, WeightedRouteBackend, distribution, filter,
    };
    let OpaqueRoute {
        meta,
        backends,
        forbidden,
    } = route;
    let one = |target: &Backend| RouteBackend {
        backend: Some(backend(target)),
        filters: Vec::new(),
    };
    let kind = match backends {
        Distribution::First(target) => distribution::Kind::FirstAvailable(distribution::FirstAvailable {
            backends: vec![one(target)],
        }),
        Distribution::Weighted(targets) => {
            let weighted = |(target, weight): &(Backend, u32)| WeightedRouteBackend {
                backend: Some(one(target)),
                weight: *weight,
            };
            distribution::Kind::RandomAvailable(distribution::RandomAvailable {
                backends: targets.iter().map(weighted).collect(),
            })
        }
    };
    let refused = forbidden.then(|| Filter {
        kind: Some(filter::Kind::Forbidden(opaque::Forbidden {})),
    });
    let rule = Rule {
        backends: Some(Proto { kind: Some(kind) }),
        filters: refused.into_iter().collect(),
    };
    proto::proxy_protocol::Opaque {
        routes: vec![proto::OpaqueRoute {
            metadata: Some(encode::metadata(meta)),
            rules: vec![rule],
        }],
    }
}

fn backend(backend: &Backend) -> proto::Backend {
    use proto::backend::{BalanceP2c, EndpointDiscovery, Kind, balance_p2c, endpoint_discovery};
    let Backend {
        meta,
        target,
        filters: _,
    } = backend;
    let kind = match target {
        BackendTarget::Balance(path) => {
            let get = endpoint_discovery::DestinationGet { path: path.clone() };
            Kind::Balancer(BalanceP2c {
                discovery: Some(EndpointDiscovery {
                    kind: Some(endpoint_discovery::Kind::Dst(get)),
                }),
                load: Some(balance_p2c::Load::PeakEwma(balance_p2c::PeakEwma {
                    default_rtt: encode::duration(DEFAULT_RTT),
                    decay: encode::duration(RTT_DECAY),
                })),
            })
        }
        BackendTarget::Forward(addr) => Kind::Forward(destination::WeightedAddr {
            addr: Some((*addr).into()),
            weight: DEFAULT_WEIGHT,
            ..destination::WeightedAddr::default()
        }),
    };
    proto::Backend {
        metadata: Some(encode::metadata(meta)),
        queue: Some(proto::Queue {
            capacity: QUEUE_CAPACITY,
            failfast_timeout: encode::duration(QUEUE_FAILFAST),
        }),
        kind: Some(kind),
    }
}

fn failure_accrual(accrual: &FailureAccrual) -> proto::FailureAccrual {
    use proto::failure_accrual::{ConsecutiveFailures, Kind, Unified};
    let kind = match accrual {
        FailureAccrual::Consecutive {
            max_failures,
            backoff: waits,
        } => Kind::ConsecutiveFailures(ConsecutiveFailures {
            max_failures: *max_failures,
            backoff: Some(backoff(waits)),
        }),
        FailureAccrual::Unified {
            success_rate_threshold,
            window,
            min_requests,
            max_failures,
            backoff: waits,
        } => Kind::Unified(Unified {
            success_rate_threshold: *success_rate_threshold,
            decay: encode::duration(*window),
            min_requests: *min_requests,
            max_consecutive_failures: *max_failures,
            backoff: Some(backoff(waits)),
        }),
    };
    proto::FailureAccrual {
        ejection: None,
        kind: Some(kind),
    }
}

fn backoff(backoff: &Backoff) -> proto::ExponentialBackoff {
    let Backoff {
        min,
        max,
        jitter,
        honor_retry_after,
    } = backoff;
    proto::ExponentialBackoff {
        min_backoff: encode::duration(*min),
        max_backoff: encode::duration(*max),
        jitter_ratio: *jitter,
        respect_retry_after_hint: *honor_retry_after,
    }
}

fn timeouts(timeouts: &Timeouts) -> ProtoTimeouts {
    let Timeouts {
        response,
        request,
        idle,
    } = timeouts;
    ProtoTimeouts {
        response: response.and_then(encode::duration),
        request: request.and_then(encode::duration),
        idle: idle.and_then(encode::duration),
    }
}
