//! Outbound policies as messages.
//!
//! A proxy refuses a whole policy for one field it misses, so every field it looks at is set here, always. What the
//! proxy API has no place for goes into Heddle's extension.

use std::time::Duration;

use heddle_control_core::{
    endpoints::DEFAULT_WEIGHT,
    outbound::{
        Backend, BackendTarget, Backoff, Distribution, FailureAccrual, GrpcRoutes, HttpRoutes, LoadBias,
        OutboundPolicy, OutboundProtocol, Retry, RetryOn, SuccessRate, Timeouts,
    },
    route::Filter,
};
use heddle_wire::PolicyMessage;
use linkerd2_proxy_api::{destination, http_route::Timeouts as ProtoTimeouts, outbound as proto};

use crate::grpc::encode;

mod connection;
mod extension;
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

/// The message of a policy, with Heddle's extension; stock proxies skip that.
pub(super) fn policy(policy: &OutboundPolicy) -> PolicyMessage {
    PolicyMessage::new(standard(policy), &extension::of(policy))
}

fn standard(policy: &OutboundPolicy) -> proto::OutboundPolicy {
    use proto::proxy_protocol::{Detect, Kind, Opaque};
    let OutboundPolicy { meta, protocol } = policy;
    let kind = match protocol {
        OutboundProtocol::Detect {
            timeout,
            http,
            opaque,
        } => Kind::Detect(Detect {
            timeout: encode::duration(*timeout),
            opaque: Some(Opaque {
                routes: vec![connection::opaque(opaque)],
            }),
            http1: Some(http1(http)),
            http2: Some(http2(http)),
        }),
        OutboundProtocol::Http1(http) => Kind::Http1(http1(http)),
        OutboundProtocol::Http2(http) => Kind::Http2(http2(http)),
        OutboundProtocol::Grpc(grpc) => Kind::Grpc(grpc_protocol(grpc)),
        OutboundProtocol::Tls(routes) => Kind::Tls(proto::proxy_protocol::Tls {
            routes: routes.iter().map(connection::tls).collect(),
        }),
        OutboundProtocol::Opaque(routes) => Kind::Opaque(Opaque {
            routes: routes.iter().map(connection::opaque).collect(),
        }),
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

fn backend(backend: &Backend) -> proto::Backend {
    use proto::backend::{BalanceP2c, EndpointDiscovery, Kind, endpoint_discovery};
    let Backend {
        meta,
        target,
        load_bias,
        // Of filters the route's backend speaks, of the rest the extension.
        filters: _,
        mirrors: _,
        limits: _,
        affinity: _,
    } = backend;
    let kind = match target {
        BackendTarget::Balance(path) => {
            let get = endpoint_discovery::DestinationGet { path: path.clone() };
            Kind::Balancer(BalanceP2c {
                discovery: Some(EndpointDiscovery {
                    kind: Some(endpoint_discovery::Kind::Dst(get)),
                }),
                load: Some(load(load_bias.as_ref())),
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

fn load(bias: Option<&LoadBias>) -> proto::backend::balance_p2c::Load {
    use proto::backend::balance_p2c::{Load, PeakEwma, PenaltyPeakEwma};
    match bias {
        None => Load::PeakEwma(PeakEwma {
            default_rtt: encode::duration(DEFAULT_RTT),
            decay: encode::duration(RTT_DECAY),
        }),
        Some(LoadBias {
            penalty,
            max_retry_after,
        }) => Load::PenaltyPeakEwma(PenaltyPeakEwma {
            default_rtt: encode::duration(DEFAULT_RTT),
            decay: encode::duration(RTT_DECAY),
            penalty: encode::duration(*penalty),
            max_retry_after: encode::duration(*max_retry_after),
            penalty_decay: encode::duration(RTT_DECAY),
        }),
    }
}

fn failure_accrual(accrual: &FailureAccrual) -> proto::FailureAccrual {
    use proto::failure_accrual::{ConsecutiveFailures, Kind, Unified};
    let FailureAccrual {
        max_failures,
        success_rate,
        backoff: waits,
        min_ready_endpoints,
    } = accrual;
    let kind = match success_rate {
        None => Kind::ConsecutiveFailures(ConsecutiveFailures {
            max_failures: *max_failures,
            backoff: Some(backoff(waits)),
        }),
        Some(SuccessRate {
            threshold,
            window,
            min_requests,
        }) => Kind::Unified(Unified {
            success_rate_threshold: *threshold,
            decay: encode::duration(*window),
            min_requests: *min_requests,
            max_consecutive_failures: *max_failures,
            backoff: Some(backoff(waits)),
        }),
    };
    proto::FailureAccrual {
        ejection: (*min_ready_endpoints > 0).then_some(proto::EjectionConfig {
            min_ready_endpoints: *min_ready_endpoints,
        }),
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
