//! Variables of Linkerd's proxy that say nothing to this one; docs/proxy.md says why. A wrong
//! value is a mistake all the same, and is told as Linkerd's proxy tells it.

use super::{Parser, parse};

/// In front of every name.
const PREFIX: &str = "LINKERD2_PROXY_";

const DURATIONS: &[&str] = &[
    "INBOUND_ACCEPT_KEEPALIVE",
    "OUTBOUND_ACCEPT_KEEPALIVE",
    "INBOUND_CONNECT_KEEPALIVE",
    "OUTBOUND_CONNECT_KEEPALIVE",
    "INBOUND_ACCEPT_USER_TIMEOUT",
    "OUTBOUND_ACCEPT_USER_TIMEOUT",
    "INBOUND_CONNECT_USER_TIMEOUT",
    "OUTBOUND_CONNECT_USER_TIMEOUT",
    "INBOUND_DISPATCH_TIMEOUT",
    "OUTBOUND_DISPATCH_TIMEOUT",
    "INBOUND_HTTP_FAILFAST_TIMEOUT",
    "OUTBOUND_HTTP_FAILFAST_TIMEOUT",
    "OUTBOUND_TCP_FAILFAST_TIMEOUT",
    "CONTROL_CONNECT_TIMEOUT",
    "CONTROL_DISPATCH_TIMEOUT",
    "CONTROL_FAILFAST_TIMEOUT",
    "DNS_MIN_TTL",
    "DNS_MAX_TTL",
];

const COUNTS: &[&str] = &[
    "HTTP_QUEUE_CAPACITY",
    "TCP_QUEUE_CAPACITY",
    "INBOUND_HTTP_QUEUE_CAPACITY",
    "OUTBOUND_HTTP_QUEUE_CAPACITY",
    "OUTBOUND_TCP_QUEUE_CAPACITY",
    "INBOUND_MAX_IN_FLIGHT",
    "OUTBOUND_MAX_IN_FLIGHT",
    "HTTP2_INITIAL_STREAM_WINDOW_SIZE",
    "HTTP2_INITIAL_CONNECTION_WINDOW_SIZE",
    "INBOUND_SERVER_HTTP2_INITIAL_STREAM_WINDOW_SIZE",
    "INBOUND_SERVER_HTTP2_INITIAL_CONNECTION_WINDOW_SIZE",
    "INBOUND_SERVER_HTTP2_MAX_FRAME_SIZE",
    "INBOUND_SERVER_HTTP2_MAX_HEADER_LIST_SIZE",
    "INBOUND_SERVER_HTTP2_MAX_PENDING_ACCEPT_RESET_STREAMS",
    "INBOUND_SERVER_HTTP2_MAX_SEND_BUF_SIZE",
    "OUTBOUND_SERVER_HTTP2_INITIAL_STREAM_WINDOW_SIZE",
    "OUTBOUND_SERVER_HTTP2_INITIAL_CONNECTION_WINDOW_SIZE",
    "OUTBOUND_SERVER_HTTP2_MAX_FRAME_SIZE",
    "OUTBOUND_SERVER_HTTP2_MAX_HEADER_LIST_SIZE",
    "OUTBOUND_SERVER_HTTP2_MAX_PENDING_ACCEPT_RESET_STREAMS",
    "OUTBOUND_SERVER_HTTP2_MAX_SEND_BUF_SIZE",
];

/// Each has a MIN, a MAX and a JITTER.
const BACKOFFS: &[&str] = &["INBOUND_CONNECT", "CONTROL"];

const FLAGS: &[&str] = &[
    "INBOUND_SERVER_HTTP2_ADAPTIVE_FLOW_CONTROL",
    "OUTBOUND_SERVER_HTTP2_ADAPTIVE_FLOW_CONTROL",
];

/// Looks at all of them.
pub(super) fn check(parser: &mut Parser<'_>) {
    let name = |suffix: &str| format!("{PREFIX}{suffix}");
    for suffix in DURATIONS {
        parser.optional(&name(suffix), parse::duration);
    }
    for suffix in COUNTS {
        parser.optional(&name(suffix), |text| {
            text.parse::<u32>()
                .map_err(|_| "expected a whole number".to_owned())
        });
    }
    for base in BACKOFFS {
        parser.backoff(base);
    }
    // Clients would choose what is counted: there is no such label here.
    parser.optional(&name("INBOUND_METRICS_AUTHORITY_LABELS"), |text| match text {
        "unsafe" => Ok(()),
        _ => Err("expected `unsafe`".to_owned()),
    });
    for suffix in FLAGS {
        parser.flag(&name(suffix));
    }
}
