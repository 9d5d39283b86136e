//! Counters of the data path. A series is found by its labels once, when a connection or a route is set up; from then
//! on counting is an addition to an atomic that only one thread writes to most of the time.
//!
//! Names and labels are Linkerd's. Each family keeps a bounded number of series; those that nobody holds and that have
//! been idle for long are forgotten.

pub(crate) mod family;
pub(crate) mod http;
pub(crate) mod labels;
pub(crate) mod route;
pub(crate) mod tcp;

use std::time::Duration;

use family::{Counter, Family, Gauge, Histogram};
use route::RouteFamilies;
use tokio::time::Instant;

/// Upper bounds of the latency buckets, in milliseconds: Linkerd's.
const LATENCY_BUCKETS_MS: &[u64] = &[
    1, 2, 3, 4, 5, 10, 20, 30, 40, 50, 100, 200, 300, 400, 500, 1_000, 2_000, 3_000, 4_000, 5_000, 10_000,
    20_000, 30_000, 40_000, 50_000,
];

/// All families.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub request_total: Family<Counter>,
    pub response_total: Family<Counter>,
    pub response_latency_ms: Family<Histogram>,
    pub tcp_open_total: Family<Counter>,
    pub tcp_open_connections: Family<Gauge>,
    pub tcp_read_bytes_total: Family<Counter>,
    pub tcp_write_bytes_total: Family<Counter>,
    pub tcp_close_total: Family<Counter>,
    pub inbound_http_authz_allow_total: Family<Counter>,
    pub inbound_http_authz_deny_total: Family<Counter>,
    pub inbound_http_route_not_found_total: Family<Counter>,
    pub inbound_http_local_ratelimit_total: Family<Counter>,
    pub inbound_http_errors_total: Family<Counter>,
    pub inbound_tcp_authz_allow_total: Family<Counter>,
    pub inbound_tcp_authz_deny_total: Family<Counter>,
    pub inbound_tcp_authz_terminate_total: Family<Counter>,
    pub inbound_tcp_errors_total: Family<Counter>,
    pub outbound_http_errors_total: Family<Counter>,
    pub outbound_tcp_errors_total: Family<Counter>,
    /// By ServiceProfile route.
    pub route: RouteFamilies,
}

impl Default for Metrics {
    fn default() -> Self {
        let counter = Family::<Counter>::counter;
        Self {
            request_total: counter("request_total", "Total count of HTTP requests."),
            response_total: counter("response_total", "Total count of HTTP responses."),
            response_latency_ms: Family::histogram(
                "response_latency_ms",
                "Milliseconds from a request's headers to its response's end.",
                LATENCY_BUCKETS_MS,
            ),
            tcp_open_total: counter("tcp_open_total", "Total count of opened connections."),
            tcp_open_connections: Family::gauge(
                "tcp_open_connections",
                "Number of connections that are open.",
            ),
            tcp_read_bytes_total: counter("tcp_read_bytes_total", "Total count of bytes read from peers."),
            tcp_write_bytes_total: counter("tcp_write_bytes_total", "Total count of bytes written to peers."),
            tcp_close_total: counter("tcp_close_total", "Total count of closed connections."),
            inbound_http_authz_allow_total: counter(
                "inbound_http_authz_allow_total",
                "Total count of inbound HTTP requests that were authorized.",
            ),
            inbound_http_authz_deny_total: counter(
                "inbound_http_authz_deny_total",
                "Total count of inbound HTTP requests that no authorization fits.",
            ),
            inbound_http_route_not_found_total: counter(
                "inbound_http_route_not_found_total",
                "Total count of inbound HTTP requests that no route takes.",
            ),
            inbound_http_local_ratelimit_total: counter(
                "inbound_http_local_ratelimit_total",
                "Total count of inbound HTTP requests refused by a rate limit.",
            ),
            inbound_http_errors_total: counter(
                "inbound_http_errors_total",
                "Total count of inbound HTTP errors.",
            ),
            inbound_tcp_authz_allow_total: counter(
                "inbound_tcp_authz_allow_total",
                "Total count of inbound connections that were authorized.",
            ),
            inbound_tcp_authz_deny_total: counter(
                "inbound_tcp_authz_deny_total",
                "Total count of inbound connections that no authorization fits.",
            ),
            inbound_tcp_authz_terminate_total: counter(
                "inbound_tcp_authz_terminate_total",
                "Total count of inbound connections ended because the policy changed.",
            ),
            inbound_tcp_errors_total: counter(
                "inbound_tcp_errors_total",
                "Total count of inbound TCP errors.",
            ),
            outbound_http_errors_total: counter(
                "outbound_http_errors_total",
                "Total count of outbound HTTP errors.",
            ),
            outbound_tcp_errors_total: counter(
                "outbound_tcp_errors_total",
                "Total count of outbound TCP errors.",
            ),
            route: RouteFamilies::new(LATENCY_BUCKETS_MS),
        }
    }
}

impl Metrics {
    /// All families in Prometheus' text form.
    pub(crate) fn render(&self, out: &mut String) {
        self.each(&mut |family| family.render(out));
    }

    /// Forgets series that nobody has held for `retain`.
    pub(crate) fn expire(&self, now: Instant, retain: Duration) {
        self.each(&mut |family| family.expire(now, retain));
    }

    fn each(&self, visit: &mut dyn FnMut(&dyn family::AnyFamily)) {
        let Self {
            request_total,
            response_total,
            response_latency_ms,
            tcp_open_total,
            tcp_open_connections,
            tcp_read_bytes_total,
            tcp_write_bytes_total,
            tcp_close_total,
            inbound_http_authz_allow_total,
            inbound_http_authz_deny_total,
            inbound_http_route_not_found_total,
            inbound_http_local_ratelimit_total,
            inbound_http_errors_total,
            inbound_tcp_authz_allow_total,
            inbound_tcp_authz_deny_total,
            inbound_tcp_authz_terminate_total,
            inbound_tcp_errors_total,
            outbound_http_errors_total,
            outbound_tcp_errors_total,
            route,
        } = self;
        let counters = [
            request_total,
            response_total,
            tcp_open_total,
            tcp_read_bytes_total,
            tcp_write_bytes_total,
            tcp_close_total,
            inbound_http_authz_allow_total,
            inbound_http_authz_deny_total,
            inbound_http_route_not_found_total,
            inbound_http_local_ratelimit_total,
            inbound_http_errors_total,
            inbound_tcp_authz_allow_total,
            inbound_tcp_authz_deny_total,
            inbound_tcp_authz_terminate_total,
            inbound_tcp_errors_total,
            outbound_http_errors_total,
            outbound_tcp_errors_total,
        ];
        for family in counters {
            visit(family);
        }
        visit(tcp_open_connections);
        visit(response_latency_ms);
        route.each(visit);
    }
}
