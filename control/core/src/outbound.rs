//! What a client's proxy is told about a target: protocol, routes, backends, timeouts and retries.

use std::{net::SocketAddr, time::Duration};

use crate::{
    balance::{Affinity, Limits, Persistence},
    meta::{Meta, ResourceRef},
    route::{Filter, GrpcMatch, HostMatch, HttpMatch},
};

/// The policy of connections to one target.
#[derive(Clone, Debug, PartialEq)]
pub struct OutboundPolicy {
    /// The target.
    pub meta: Meta,
    /// What is spoken to it.
    pub protocol: OutboundProtocol,
}

/// What is spoken to a target, and the routes that requests take.
#[derive(Clone, Debug, PartialEq)]
pub enum OutboundProtocol {
    /// To be found out from the first bytes.
    Detect {
        /// How long to wait for them.
        timeout: Duration,
        /// When it is HTTP.
        http: HttpRoutes,
        /// When it is not.
        opaque: OpaqueRoute,
    },
    /// HTTP/1.
    Http1(HttpRoutes),
    /// HTTP/2.
    Http2(HttpRoutes),
    /// gRPC.
    Grpc(GrpcRoutes),
    /// TLS that is not ended here: routes by server name, never empty, in order of precedence.
    Tls(Vec<TlsRoute>),
    /// Bytes that are not looked into: never empty; the first route is taken.
    Opaque(Vec<OpaqueRoute>),
}

/// HTTP routes of a target.
pub type HttpRoutes = Routes<HttpMatch>;
/// gRPC routes of a target.
pub type GrpcRoutes = Routes<GrpcMatch>;

/// Routes of a target, never empty, in order of precedence.
#[derive(Clone, Debug, PartialEq)]
pub struct Routes<M> {
    /// The routes.
    pub routes: Vec<OutboundRoute<M>>,
    /// When an endpoint is taken out for failing.
    pub failure_accrual: Option<FailureAccrual>,
}

/// A route.
#[derive(Clone, Debug, PartialEq)]
pub struct OutboundRoute<M> {
    /// What it comes from.
    pub meta: Meta,
    /// Hosts it is for; empty means all.
    pub hosts: Vec<HostMatch>,
    /// Its rules.
    pub rules: Vec<OutboundRule<M>>,
}

/// A rule of an [`OutboundRoute`].
#[derive(Clone, Debug, PartialEq)]
pub struct OutboundRule<M> {
    /// Which requests; one match suffices.
    pub matches: Vec<M>,
    /// What is done to them.
    pub filters: Vec<Filter>,
    /// Where they go.
    pub backends: Distribution,
    /// How long they may take.
    pub timeouts: Timeouts,
    /// Which failures are tried again.
    pub retry: Option<Retry>,
    /// Where copies of requests go.
    pub mirrors: Vec<Mirror>,
    /// How requests of a session find the same endpoint.
    pub session: Option<Persistence>,
    /// Whether headers of a request itself may set its timeouts and retries.
    pub allow_l5d_request_headers: bool,
}

/// Where a share of requests is copied to; answers to the copies are thrown away.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    /// Where.
    pub backend: Backend,
    /// The share, as numerator and denominator; at most 1.
    pub share: (u32, u32),
}

/// How requests spread over backends; never empty.
#[derive(Clone, Debug, PartialEq)]
pub enum Distribution {
    /// All go to this one.
    First(Box<Backend>),
    /// By weight; every weight is positive.
    Weighted(Vec<(Backend, u32)>),
}

/// Where requests go.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// What it is.
    pub meta: Meta,
    /// How it is reached.
    pub target: BackendTarget,
    /// What is done to requests that go there.
    pub filters: Vec<Filter>,
    /// Where copies of these requests go.
    pub mirrors: Vec<Mirror>,
    /// How failures weigh when one of its endpoints is chosen.
    pub load_bias: Option<LoadBias>,
    /// How its balancer is bounded.
    pub limits: Limits,
    /// Which requests stick to one of its endpoints.
    pub affinity: Option<Affinity>,
}

/// How a backend is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendTarget {
    /// By balancing over the endpoints behind this name, `svc.ns.svc.domain:port`.
    Balance(String),
    /// At this very address.
    Forward(SocketAddr),
}

/// A route by the server name of a TLS handshake.
#[derive(Clone, Debug, PartialEq)]
pub struct TlsRoute {
    /// Server names; empty means all.
    pub snis: Vec<HostMatch>,
    /// Where such connections go.
    pub route: OpaqueRoute,
}

/// The route of bytes that are not looked into.
#[derive(Clone, Debug, PartialEq)]
pub struct OpaqueRoute {
    /// What it comes from.
    pub meta: Meta,
    /// Where the bytes go.
    pub backends: Distribution,
    /// Whether connections are refused instead.
    pub forbidden: bool,
}

/// How long a request may take; what is absent is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// Until the response's headers.
    pub response: Option<Duration>,
    /// The whole exchange.
    pub request: Option<Duration>,
    /// A silence in between.
    pub idle: Option<Duration>,
}

/// Which failures are tried again.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// How often.
    pub limit: u32,
    /// A try is given up, and tried again, after this long.
    pub timeout: Option<Duration>,
    /// Which answers count as failures.
    pub on: RetryOn,
}

/// See [`Retry::on`].
#[derive(Clone, Debug, PartialEq)]
pub enum RetryOn {
    /// HTTP statuses, as inclusive ranges; with none, only tries that take too long are tried again.
    Http(Vec<(u16, u16)>),
    /// gRPC statuses.
    Grpc(GrpcRetryOn),
}

/// gRPC statuses that are tried again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GrpcRetryOn {
    /// `CANCELLED`
    pub cancelled: bool,
    /// `DEADLINE_EXCEEDED`
    pub deadline_exceeded: bool,
    /// `RESOURCE_EXHAUSTED`
    pub resource_exhausted: bool,
    /// `INTERNAL`
    pub internal: bool,
    /// `UNAVAILABLE`
    pub unavailable: bool,
}

/// When an endpoint is taken out for failing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FailureAccrual {
    /// After so many failures in a row; 0 is never.
    pub max_failures: u32,
    /// And when its success rate falls, if that is looked at.
    pub success_rate: Option<SuccessRate>,
    /// How long it stays out.
    pub backoff: Backoff,
    /// So many endpoints stay in, however they fail.
    pub min_ready_endpoints: u32,
}

/// When an endpoint's success rate is too low.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SuccessRate {
    /// The lowest good rate, from 0 (never too low) to 1.
    pub threshold: f64,
    /// The window that the rate is taken over, at least 10 ms.
    pub window: Duration,
    /// Requests before the rate counts, at most a million.
    pub min_requests: u32,
}

/// How failures and hints to come back later weigh on an endpoint's load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadBias {
    /// The latency that a failure counts as.
    pub penalty: Duration,
    /// The longest `Retry-After` that is believed.
    pub max_retry_after: Duration,
}

/// Growing, jittered waits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// The first.
    pub min: Duration,
    /// The longest.
    pub max: Duration,
    /// The share of a wait that is random.
    pub jitter: f32,
    /// Whether a `Retry-After` header counts.
    pub honor_retry_after: bool,
}

impl Distribution {
    /// All go to this one.
    pub fn first(backend: Backend) -> Self {
        Self::First(Box::new(backend))
    }

    /// The backends.
    pub fn backends(&self) -> impl Iterator<Item = &Backend> {
        let (first, rest): (Option<&Backend>, &[(Backend, u32)]) = match self {
            Self::First(backend) => (Some(backend), &[]),
            Self::Weighted(backends) => (None, backends),
        };
        first.into_iter().chain(rest.iter().map(|(backend, _)| backend))
    }
}

impl Backend {
    /// A target with nothing special about it.
    pub fn new(meta: Meta, target: BackendTarget) -> Self {
        Self {
            meta,
            target,
            filters: Vec::new(),
            mirrors: Vec::new(),
            load_bias: None,
            limits: Limits::default(),
            affinity: None,
        }
    }

    /// A service's port, with the name that its endpoints are found by.
    pub fn service(service: ResourceRef, cluster_domain: &str) -> Self {
        let name = format!(
            "{}.{}.svc.{cluster_domain}:{}",
            service.name,
            service.namespace,
            service.port.unwrap_or(80)
        );
        Self::new(Meta::Resource(service), BackendTarget::Balance(name))
    }
}
