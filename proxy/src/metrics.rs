//! Counters of the data path. A series is found by its labels once, when a connection or a route is set up; from then
//! on counting is an addition to an atomic that only one thread writes to most of the time.
//!
//! Names and labels are Linkerd's. Each family, and all of them together, keep a bounded number of series; those that
//! nobody holds and that have been idle for long are forgotten.

pub(crate) mod balancer;
pub(crate) mod control;
pub(crate) mod detect;
mod errno;
pub(crate) mod family;
pub(crate) mod http;
pub(crate) mod labels;
pub(crate) mod retry;
pub(crate) mod route;
pub(crate) mod runtime;
pub(crate) mod stream;
pub(crate) mod tcp;

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use balancer::BalancerFamilies;
use control::ControlFamilies;
use detect::DetectFamilies;
use family::{Counter, Families, Family, Gauge, Histogram};
use labels::Labels;
use retry::RetryFamilies;
use route::RouteFamilies;
use runtime::Runtimes;
use stream::StreamFamilies;
use tcp::TcpRouteFamilies;

/// Upper bounds of the latency buckets, in milliseconds: Linkerd's.
const LATENCY_BUCKETS_MS: &[u64] = &[
    1, 2, 3, 4, 5, 10, 20, 30, 40, 50, 100, 200, 300, 400, 500, 1_000, 2_000, 3_000, 4_000, 5_000, 10_000,
    20_000, 30_000, 40_000, 50_000,
];

/// All families.
#[derive(Debug)]
pub(crate) struct Metrics {
    families: Families,
    pub request_total: Arc<Family<Counter>>,
    pub response_total: Arc<Family<Counter>>,
    pub response_latency_ms: Arc<Family<Histogram>>,
    pub tcp_open_total: Arc<Family<Counter>>,
    pub tcp_open_connections: Arc<Family<Gauge>>,
    pub tcp_read_bytes_total: Arc<Family<Counter>>,
    pub tcp_write_bytes_total: Arc<Family<Counter>>,
    pub tcp_close_total: Arc<Family<Counter>>,
    pub inbound_http_authz_allow_total: Arc<Family<Counter>>,
    pub inbound_http_authz_deny_total: Arc<Family<Counter>>,
    pub inbound_http_route_not_found_total: Arc<Family<Counter>>,
    pub inbound_http_local_ratelimit_total: Arc<Family<Counter>>,
    pub inbound_http_errors_total: Arc<Family<Counter>>,
    pub inbound_tcp_authz_allow_total: Arc<Family<Counter>>,
    pub inbound_tcp_authz_deny_total: Arc<Family<Counter>>,
    pub inbound_tcp_authz_terminate_total: Arc<Family<Counter>>,
    pub inbound_tcp_errors_total: Arc<Family<Counter>>,
    pub inbound_tcp_transport_header_connections_total: Arc<Family<Counter>>,
    pub inbound_detect: DetectFamilies,
    pub inbound_http: Arc<StreamFamilies>,
    pub inbound_grpc: Arc<StreamFamilies>,
    pub outbound_http_errors_total: Arc<Family<Counter>>,
    pub outbound_tcp_errors_total: Arc<Family<Counter>>,
    pub outbound_tcp_protocol_connections_total: Arc<Family<Counter>>,
    pub outbound_tcp_transfer_cost_bytes_total: Arc<Family<Counter>>,
    pub outbound_detect: DetectFamilies,
    /// By ServiceProfile route.
    pub route: RouteFamilies,
    pub outbound_http: OutboundFamilies,
    pub outbound_grpc: OutboundFamilies,
    pub outbound_tcp: TcpRouteFamilies,
    pub outbound_tls: TcpRouteFamilies,
    pub http_balancer: BalancerFamilies,
    pub tcp_balancer: BalancerFamilies,
    pub tls_balancer: BalancerFamilies,
    pub control: Arc<ControlFamilies>,
    pub access_log_dropped_total: Arc<Family<Counter>>,
    pub span_export_streams: Arc<Family<Counter>>,
    pub span_export_requests: Arc<Family<Counter>>,
    pub span_exports: Arc<Family<Counter>>,
    pub spans_dropped: Arc<Family<Counter>>,
    pub tap_events_dropped_total: Arc<Family<Counter>>,
    pub runtimes: Runtimes,
    /// What never changes.
    _infos: [Arc<Gauge>; 2],
}

/// What is counted of an outbound route's requests, and of each of its backends'.
#[derive(Debug)]
pub(crate) struct OutboundFamilies {
    pub route: Arc<StreamFamilies>,
    pub backend: Arc<StreamFamilies>,
    pub retry: RetryFamilies,
}

impl OutboundFamilies {
    fn new(families: &mut Families, kind: &str) -> Self {
        Self {
            route: StreamFamilies::outbound_route(families, kind),
            retry: RetryFamilies::new(families, kind),
            backend: StreamFamilies::outbound_backend(families, kind),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut all = Families::default();
        let families = &mut all;
        Self {
            request_total: families.counter("request_total", "Total count of HTTP requests."),
            response_total: families.counter("response_total", "Total count of HTTP responses."),
            response_latency_ms: families.histogram(
                "response_latency_ms",
                "Milliseconds from a request's headers to its response's end.",
                LATENCY_BUCKETS_MS,
            ),
            tcp_open_total: families.counter("tcp_open_total", "Total count of opened connections."),
            tcp_open_connections: families
                .gauge("tcp_open_connections", "Number of connections that are open."),
            tcp_read_bytes_total: families
                .counter("tcp_read_bytes_total", "Total count of bytes read from peers."),
            tcp_write_bytes_total: families
                .counter("tcp_write_bytes_total", "Total count of bytes written to peers."),
            tcp_close_total: families.counter("tcp_close_total", "Total count of closed connections."),
            inbound_http_authz_allow_total: families.counter(
                "inbound_http_authz_allow_total",
                "Total count of inbound HTTP requests that were authorized.",
            ),
            inbound_http_authz_deny_total: families.counter(
                "inbound_http_authz_deny_total",
                "Total count of inbound HTTP requests that no authorization fits.",
            ),
            inbound_http_route_not_found_total: families.counter(
                "inbound_http_route_not_found_total",
                "Total count of inbound HTTP requests that no route takes.",
            ),
            inbound_http_local_ratelimit_total: families.counter(
                "inbound_http_local_ratelimit_total",
                "Total count of inbound HTTP requests refused by a rate limit.",
            ),
            inbound_http_errors_total: families
                .counter("inbound_http_errors_total", "Total count of inbound HTTP errors."),
            inbound_tcp_authz_allow_total: families.counter(
                "inbound_tcp_authz_allow_total",
                "Total count of inbound connections that were authorized.",
            ),
            inbound_tcp_authz_deny_total: families.counter(
                "inbound_tcp_authz_deny_total",
                "Total count of inbound connections that no authorization fits.",
            ),
            inbound_tcp_authz_terminate_total: families.counter(
                "inbound_tcp_authz_terminate_total",
                "Total count of inbound connections ended because the policy changed.",
            ),
            inbound_tcp_errors_total: families
                .counter("inbound_tcp_errors_total", "Total count of inbound TCP errors."),
            inbound_tcp_transport_header_connections_total: families.counter(
                "inbound_tcp_transport_header_connections_total",
                "Total count of connections straight to the proxy, by what their header asks for.",
            ),
            inbound_detect: DetectFamilies::new(families, "inbound"),
            inbound_http: StreamFamilies::inbound(families, "http"),
            inbound_grpc: StreamFamilies::inbound(families, "grpc"),
            outbound_http_errors_total: families.counter(
                "outbound_http_errors_total",
                "Total count of outbound HTTP errors.",
            ),
            outbound_tcp_errors_total: families
                .counter("outbound_tcp_errors_total", "Total count of outbound TCP errors."),
            outbound_tcp_protocol_connections_total: families.counter(
                "outbound_tcp_protocol_connections_total",
                "Total count of outbound connections by the protocol that their policy tells.",
            ),
            outbound_tcp_transfer_cost_bytes_total: families.counter(
                "outbound_tcp_transfer_cost_bytes_total",
                "Total count of bytes to and from endpoints, by whether they are in the pod's zone.",
            ),
            outbound_detect: DetectFamilies::new(families, "outbound"),
            route: RouteFamilies::new(families, LATENCY_BUCKETS_MS),
            outbound_http: OutboundFamilies::new(families, "http"),
            outbound_grpc: OutboundFamilies::new(families, "grpc"),
            outbound_tcp: TcpRouteFamilies::new(families, "tcp"),
            outbound_tls: TcpRouteFamilies::new(families, "tls"),
            http_balancer: BalancerFamilies::new(families, "http"),
            tcp_balancer: BalancerFamilies::new(families, "tcp"),
            tls_balancer: BalancerFamilies::new(families, "tls"),
            control: Arc::new(ControlFamilies::new(families)),
            access_log_dropped_total: families.counter(
                "inbound_access_log_dropped_total",
                "Total count of access log lines dropped because the reader of the log is slow.",
            ),
            span_export_streams: families.counter(
                "opentelemetry_span_export_streams",
                "Total count of calls to the collector, whether it took their spans or not.",
            ),
            span_export_requests: families.counter(
                "opentelemetry_span_export_requests",
                "Total count of messages with spans that the collector took.",
            ),
            span_exports: families.counter(
                "opentelemetry_span_exports",
                "Total count of spans that the collector took.",
            ),
            spans_dropped: families.counter(
                "opentelemetry_spans_dropped_total",
                "Total count of spans dropped because the collector is slow or away.",
            ),
            tap_events_dropped_total: families.counter(
                "tap_events_dropped_total",
                "Total count of tap events dropped because their observer is slow.",
            ),
            runtimes: Runtimes::new(families),
            _infos: [build_info(families), rustls_info(families)],
            families: all,
        }
    }
}

fn build_info(families: &mut Families) -> Arc<Gauge> {
    let profile = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };
    let labels = Labels::default()
        .with("version", heddle_mesh::VERSION)
        .with("vendor", "heddle")
        .with("profile", profile);
    let info = families
        .gauge("proxy_build_info", "Build of the proxy.")
        .get(&labels);
    info.set(1);
    info
}

/// What TLS the proxy speaks, in the order in which it prefers it.
fn rustls_info(families: &mut Families) -> Arc<Gauge> {
    let provider = heddle_tls::provider();
    let suites = provider
        .cipher_suites
        .iter()
        .map(|suite| format!("{:?}", suite.suite()));
    let groups = provider
        .kx_groups
        .iter()
        .map(|group| format!("{:?}", group.name()));
    let list = |names: Vec<String>| names.join(",");
    let labels = Labels::default()
        .with("tls_suites", list(suites.collect()))
        .with("tls_kx_groups", list(groups.collect()))
        .with("tls_rand", "AwsLcRs")
        .with("tls_key_provider", "AwsLcRs")
        .with("tls_fips", provider.fips());
    let info = families
        .gauge("rustls_info", "What TLS the proxy speaks.")
        .get(&labels);
    info.set(1);
    info
}

impl Metrics {
    /// All families in Prometheus' text form.
    pub(crate) fn render(&self, out: &mut String) {
        self.runtimes.update();
        for family in self.families.iter() {
            family.render(out);
        }
    }

    /// Forgets series that nobody has held for `retain`.
    pub(crate) fn expire(&self, now: Instant, retain: Duration) {
        for family in self.families.iter() {
            family.expire(now, retain);
        }
    }
}
