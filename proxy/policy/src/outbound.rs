//! The policy of an address that the pod's applications connect to.

mod extension;
mod message;
mod profiled;

use std::{net::SocketAddr, num::NonZeroU32, ops::RangeInclusive, sync::Arc, time::Duration};

pub use heddle_wire::{Affinity, HashKey, Limits, Persistence};
use http::StatusCode;

use crate::{
    Endpoint, Meta, Profile,
    balance::{Backoff, EwmaParams, SuccessRate, Weights},
    budget::RetryBudget,
    filter::Filter,
    profile::RouteProfile,
    route::{self, HostMatch, Route, Rule},
};

/// Linkerd's default.
const FAILFAST_DEFAULT: Duration = Duration::from_secs(3);
/// A request's body is kept for retries up to this size, whatever the policy asks for.
pub const RETRY_BODY_BYTES_MAX: usize = 64 * 1024;
/// Retries of one request, whatever the policy asks for.
pub const RETRIES_MAX: u32 = 10;

/// The policy of an address.
#[derive(Clone, Debug)]
pub struct ClientPolicy {
    /// The Service or other resource that the address belongs to.
    pub parent: Meta,
    /// How to treat connections.
    pub protocol: Protocol,
}

/// How to treat connections.
#[derive(Clone, Debug)]
pub enum Protocol {
    /// Look at the first bytes.
    Detect {
        /// How long to wait for them.
        timeout: Duration,
        /// For HTTP/1.
        http1: Http,
        /// For HTTP/2.
        http2: Http,
        /// For the rest.
        opaque: Opaque,
    },
    /// HTTP/1.
    Http1(Http),
    /// HTTP/2.
    Http2(Http),
    /// gRPC.
    Grpc(Http),
    /// Bytes.
    Opaque(Opaque),
    /// The application's own TLS; its routes are by server name.
    Tls(Vec<TlsRoute>),
}

/// HTTP routes of an address.
#[derive(Clone, Debug, Default)]
pub struct Http {
    /// Routes.
    pub routes: Vec<Route<OutboundRule>>,
    /// When to stop sending to an endpoint that fails.
    pub failure_accrual: Option<FailureAccrual>,
}

/// What a rule says.
#[derive(Clone, Debug)]
pub struct OutboundRule {
    /// What is done to the request.
    pub filters: Vec<Filter>,
    /// Where it may go.
    pub distribution: Distribution,
    /// How long it may take.
    pub timeouts: Timeouts,
    /// Whether it is tried again.
    pub retry: Option<Retry>,
    /// Where copies go.
    pub mirrors: Vec<Mirror>,
    /// How sessions stick; comes before what the backend says.
    pub session: Option<Persistence>,
    /// Whether requests may set their own timeouts and retries, in `l5d-*` headers.
    pub allow_l5d_headers: bool,
    /// The ServiceProfile's route, when the rule is one.
    pub profile: Option<Arc<RouteProfile>>,
}

/// Where a share of the requests is copied to.
#[derive(Clone, Debug)]
pub struct Mirror {
    /// Where.
    pub backend: Arc<Backend>,
    /// The share's numerator, and below it the denominator.
    pub numerator: u32,
    /// The share's denominator.
    pub denominator: NonZeroU32,
}

/// Time limits of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the request's start to the response's headers, tries and all: what a ServiceProfile's route sets.
    pub head: Option<Duration>,
    /// From the end of the request, as far as the client is concerned, to the response's end.
    pub response: Option<Duration>,
    /// From the request's start to the response's end, tries and all.
    pub request: Option<Duration>,
    /// Without any data either way.
    pub idle: Option<Duration>,
}

/// When a request is tried again.
#[derive(Clone, Debug)]
pub struct Retry {
    /// Tries after the first.
    pub max_retries: u32,
    /// Requests with a larger body are not tried again.
    pub max_request_bytes: usize,
    /// Failures that are worth another try.
    pub conditions: RetryConditions,
    /// A try without response headers so long after the request's end is given up.
    pub timeout: Option<Duration>,
    /// Pause between tries.
    pub backoff: Option<Backoff>,
    /// Whether the pause is at least what the answer asks for (`Retry-After`), within the backoff's bounds.
    pub respect_retry_after: bool,
    /// What all requests to the service may spend on retries together.
    pub budget: Option<Arc<RetryBudget>>,
}

/// Failures that are worth another try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RetryConditions {
    /// HTTP statuses.
    Http(Vec<RangeInclusive<u16>>),
    /// gRPC statuses.
    Grpc(Vec<u32>),
    /// HTTP statuses or gRPC statuses.
    Either(Vec<RangeInclusive<u16>>, Vec<u32>),
    /// What the ServiceProfile's route calls a failure.
    Failures(Arc<RouteProfile>),
}

/// Backends of a rule.
#[derive(Clone, Debug)]
pub enum Distribution {
    /// None: every request fails.
    Empty,
    /// The first that is available.
    FirstAvailable(Vec<RouteBackend>),
    /// At random by weight. A backend that has no endpoints answers for its share, as Gateway API wants it.
    RandomAvailable(Vec<RouteBackend>, Weights),
    /// At random by weight, among those that have endpoints: a ServiceProfile's targets.
    Split(Vec<RouteBackend>, Weights),
}

/// A backend of a rule.
#[derive(Clone, Debug)]
pub struct RouteBackend {
    /// The backend.
    pub backend: Arc<Backend>,
    /// What is done to requests for it.
    pub filters: Vec<Filter>,
    /// Where copies of requests for it go.
    pub mirrors: Vec<Mirror>,
}

impl RouteBackend {
    /// Why connections to it are refused, if they are.
    pub fn refusal(&self) -> Option<&str> {
        self.filters.iter().find_map(|filter| match filter {
            Filter::Fail(fail) => Some(fail.message.as_str()),
            _ => None,
        })
    }
}

/// Where requests may go.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// The resource.
    pub meta: Meta,
    /// How it is reached.
    pub kind: BackendKind,
    /// How long a request may wait for an endpoint.
    pub failfast_timeout: Duration,
    /// Which requests stick to an endpoint.
    pub affinity: Option<Affinity>,
    /// Bounds towards the service and its endpoints.
    pub limits: Limits,
}

/// How a backend is reached.
#[derive(Clone, Debug, PartialEq)]
pub enum BackendKind {
    /// At one address.
    Forward(Arc<Endpoint>),
    /// At the endpoints that the destination service gives for a path.
    Balance {
        /// The path, `service.namespace.svc.domain:port`.
        path: String,
        /// Parameters of the latency estimate.
        ewma: EwmaParams,
    },
    /// Not at all: a backend that cannot be found, whose filters answer in its place.
    Nowhere,
}

/// Opaque routes of an address.
#[derive(Clone, Debug)]
pub struct Opaque {
    /// The route's resource.
    pub meta: Meta,
    /// Where connections may go.
    pub verdict: OpaqueVerdict,
}

/// A route of connections with the application's own TLS.
#[derive(Clone, Debug)]
pub struct TlsRoute {
    /// Server names it is for; empty for all, also for clients that name none.
    pub names: Vec<HostMatch>,
    /// What holds for them.
    pub opaque: Opaque,
}

/// Where a connection may go.
#[derive(Clone, Debug)]
pub enum OpaqueVerdict {
    /// To these backends.
    To(Distribution),
    /// Nowhere: the policy forbids it.
    Forbidden,
    /// Nowhere: the route is wrong.
    Invalid(String),
}

/// When an endpoint that fails gets no more requests for a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FailureAccrual {
    /// After this many failures in a row; 0 never.
    pub max_failures: u32,
    /// When its share of successes is lower than this; none: never.
    pub success_rate: Option<SuccessRate>,
    /// How long it rests.
    pub backoff: Backoff,
    /// Whether it rests for at least as long as its answers ask for (`Retry-After`), within the backoff's bounds.
    pub respect_retry_after: bool,
    /// At least this many endpoints stay in use.
    pub min_ready_endpoints: u32,
}

impl ClientPolicy {
    /// The policy of an address, or name, that the policy service has none for: by the profile, or straight to the
    /// address. A name of which the profile says nothing either has no backend.
    pub fn synthesize(
        addr: Option<SocketAddr>,
        port: u16,
        profile: &Profile,
        detect_timeout: Duration,
    ) -> Self {
        let backend = |kind, name: &str| {
            Arc::new(Backend {
                meta: Meta::default_named(name),
                kind,
                failfast_timeout: FAILFAST_DEFAULT,
                affinity: None,
                limits: Limits::default(),
            })
        };
        let (name, backend) = match profile {
            Profile {
                fully_qualified_name: Some(name),
                ..
            } => {
                let kind = BackendKind::Balance {
                    path: format!("{name}:{port}"),
                    ewma: EwmaParams::default(),
                };
                ("service", Some(backend(kind, "service")))
            }
            Profile {
                endpoint: Some(endpoint),
                ..
            } => (
                "endpoint",
                Some(backend(
                    BackendKind::Forward(Arc::new(endpoint.clone())),
                    "endpoint",
                )),
            ),
            _ => {
                let endpoint = addr.map(|addr| BackendKind::Forward(Arc::new(Endpoint::unmeshed(addr))));
                ("fallback", endpoint.map(|kind| backend(kind, "fallback")))
            }
        };
        let meta = Meta::default_named(name);
        let distribution = || {
            let Some(backend) = &backend else {
                return Distribution::Empty;
            };
            Distribution::FirstAvailable(vec![RouteBackend {
                backend: backend.clone(),
                filters: vec![],
                mirrors: vec![],
            }])
        };
        let http = || {
            let policy = OutboundRule {
                filters: Vec::new(),
                distribution: distribution(),
                timeouts: Timeouts::default(),
                retry: None,
                mirrors: Vec::new(),
                session: None,
                allow_l5d_headers: false,
                profile: None,
            };
            let rules = vec![Rule {
                matches: Vec::new(),
                policy,
            }];
            Http {
                routes: vec![Route {
                    meta: meta.clone(),
                    hosts: Vec::new(),
                    rules,
                }],
                failure_accrual: None,
            }
        };
        let opaque = Opaque {
            meta: meta.clone(),
            verdict: OpaqueVerdict::To(distribution()),
        };
        let hint_opaque = profile
            .endpoint
            .as_ref()
            .is_some_and(|one| one.hint == crate::endpoint::ProtocolHint::Opaque);
        let protocol = match profile.opaque || hint_opaque {
            true => Protocol::Opaque(opaque),
            false => Protocol::Detect {
                timeout: detect_timeout,
                http1: http(),
                http2: http(),
                opaque,
            },
        };
        Self {
            parent: meta,
            protocol,
        }
    }
}

impl ClientPolicy {
    /// The rules of all its HTTP routes.
    pub fn http_rules(&self) -> impl Iterator<Item = &OutboundRule> {
        let (one, two) = match &self.protocol {
            Protocol::Detect { http1, http2, .. } => (Some(http1), Some(http2)),
            Protocol::Http1(http) | Protocol::Http2(http) | Protocol::Grpc(http) => (Some(http), None),
            Protocol::Opaque(_) | Protocol::Tls(_) => (None, None),
        };
        let routes = one.into_iter().chain(two).flat_map(|http| &http.routes);
        routes.flat_map(|route| &route.rules).map(|rule| &rule.policy)
    }
}

impl TlsRoute {
    /// The route of a connection: the one with the most specific name, and the first of those.
    pub fn find<'r>(routes: &'r [Self], server_name: Option<&str>) -> Option<&'r Opaque> {
        let ranked = routes
            .iter()
            .filter_map(|one| route::host_rank(&one.names, server_name).map(|rank| (rank, one)));
        // `max_by_key` would take the last of equals.
        ranked
            .reduce(|best, next| if next.0 > best.0 { next } else { best })
            .map(|(_, one)| &one.opaque)
    }
}

impl OutboundRule {
    /// Whether a filter of the rule, or of one of its backends, may look at the matched prefix.
    pub fn changes_urls(&self) -> bool {
        let looks = |filter: &Filter| matches!(filter, Filter::Redirect(_) | Filter::Rewrite(_));
        let of_backends = self.distribution.backends().iter().flat_map(|one| &one.filters);
        self.filters.iter().chain(of_backends).any(looks)
    }
}

impl Mirror {
    /// Whether a request with this random number is copied.
    pub fn takes(&self, random: u64) -> bool {
        random % u64::from(self.denominator.get()) < u64::from(self.numerator)
    }
}

impl Distribution {
    /// All backends.
    pub fn backends(&self) -> &[RouteBackend] {
        match self {
            Self::Empty => &[],
            Self::FirstAvailable(backends)
            | Self::RandomAvailable(backends, _)
            | Self::Split(backends, _) => backends,
        }
    }
}

impl Timeouts {
    /// How long a request may take with all its tries, at least until its response begins.
    pub fn whole(&self) -> Option<Duration> {
        match (self.request, self.head) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        }
    }
}

impl Retry {
    /// The pause after so many tries, with `unit` drawn from 0..1. `asked` is what the last answer wanted.
    pub fn pause(&self, tries: u32, asked: Option<Duration>, unit: f64) -> Option<Duration> {
        let backoff = self.backoff.as_ref()?;
        let pause = backoff.after(tries, unit);
        let asked = asked.filter(|_| self.respect_retry_after);
        Some(asked.map_or(pause, |asked| pause.max(asked.clamp(backoff.min, backoff.max))))
    }
}

impl RetryConditions {
    /// Whether the gRPC status matters.
    pub fn ask_grpc(&self) -> bool {
        !matches!(self, Self::Http(_))
    }

    /// Whether a response of this status, and gRPC status where there is one, is worth another try.
    pub fn hold(&self, status: StatusCode, grpc_status: Option<u32>) -> bool {
        let http =
            |ranges: &[RangeInclusive<u16>]| ranges.iter().any(|range| range.contains(&status.as_u16()));
        let grpc = |codes: &[u32]| grpc_status.is_some_and(|code| codes.contains(&code));
        match self {
            Self::Http(ranges) => http(ranges),
            Self::Grpc(codes) => grpc(codes),
            Self::Either(ranges, codes) => http(ranges) || grpc(codes),
            Self::Failures(route) => route.is_failure(status, grpc_status),
        }
    }
}

#[cfg(test)]
mod tests;
