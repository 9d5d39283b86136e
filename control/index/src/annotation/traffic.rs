//! Timeouts and retries.

use heddle_control_core::outbound::{GrpcRetryOn, Retry, RetryOn, Timeouts};

use super::Reader;

const RETRY_HTTP: &str = "retry.linkerd.io/http";
const RETRY_GRPC: &str = "retry.linkerd.io/grpc";
const RETRY_LIMIT: &str = "retry.linkerd.io/limit";
const RETRY_TIMEOUT: &str = "retry.linkerd.io/timeout";
const TIMEOUT_REQUEST: &str = "timeout.linkerd.io/request";
const TIMEOUT_RESPONSE: &str = "timeout.linkerd.io/response";
const TIMEOUT_IDLE: &str = "timeout.linkerd.io/idle";

/// What is read here.
pub(super) const KEYS: &[&str] = &[
    RETRY_HTTP,
    RETRY_GRPC,
    RETRY_LIMIT,
    RETRY_TIMEOUT,
    TIMEOUT_REQUEST,
    TIMEOUT_RESPONSE,
    TIMEOUT_IDLE,
];

/// Settings of requests that take a route.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RouteTraffic {
    pub(crate) timeouts: Timeouts,
    pub(crate) retry_http: Option<Retry>,
    pub(crate) retry_grpc: Option<Retry>,
}

impl Reader<'_> {
    pub(crate) fn route_traffic(&mut self) -> RouteTraffic {
        let limit = self.number(RETRY_LIMIT, 0, u16::MAX.into());
        let timeout = self.timeout(RETRY_TIMEOUT);
        // Linkerd: with a limit or a timeout alone there is a retry, of tries that take too long.
        let unconditional = limit.is_some() || timeout.is_some();
        let limit = limit.filter(|limit| *limit > 0).unwrap_or(1);
        let retry = |on| Retry { limit, timeout, on };
        let on_http = self.read(RETRY_HTTP, http_statuses);
        let on_grpc = self.read(RETRY_GRPC, grpc_statuses);
        RouteTraffic {
            timeouts: Timeouts {
                response: self.timeout(TIMEOUT_RESPONSE),
                request: self.timeout(TIMEOUT_REQUEST),
                idle: self.timeout(TIMEOUT_IDLE),
            },
            retry_http: on_http
                .or(unconditional.then(Vec::new))
                .map(|on| retry(RetryOn::Http(on))),
            retry_grpc: on_grpc
                .or(unconditional.then(GrpcRetryOn::default))
                .map(|on| retry(RetryOn::Grpc(on))),
        }
    }
}

/// `5xx`, `gateway-error`, single statuses and ranges, separated by commas.
fn http_statuses(text: &str) -> Result<Vec<(u16, u16)>, String> {
    let expected =
        || "statuses or ranges from 100 to 599, 5xx or gateway-error, separated by commas".to_owned();
    let status = |text: &str| match text.trim().parse::<u16>() {
        Ok(status) if (100..600).contains(&status) => Ok(status),
        _ => Err(expected()),
    };
    let range = |part: &str| {
        if part.eq_ignore_ascii_case("5xx") {
            return Ok((500, 599));
        }
        if part.eq_ignore_ascii_case("gateway-error") {
            return Ok((502, 504));
        }
        let Some((start, end)) = part.split_once('-') else {
            return status(part).map(|status| (status, status));
        };
        match (status(start)?, status(end)?) {
            (start, end) if start <= end => Ok((start, end)),
            _ => Err("ranges that do not end before they start, such as 500-504".to_owned()),
        }
    };
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let ranges: Vec<_> = parts.map(range).collect::<Result<_, _>>()?;
    match ranges.is_empty() {
        true => Err(expected()),
        false => Ok(ranges),
    }
}

fn grpc_statuses(text: &str) -> Result<GrpcRetryOn, String> {
    let expected = || {
        "some of cancelled, deadline-exceeded, internal, resource-exhausted and unavailable, separated by commas"
            .to_owned()
    };
    let mut on = GrpcRetryOn::default();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match part.to_ascii_lowercase().as_str() {
            "cancelled" => on.cancelled = true,
            "deadline-exceeded" => on.deadline_exceeded = true,
            "internal" => on.internal = true,
            "resource-exhausted" => on.resource_exhausted = true,
            "unavailable" => on.unavailable = true,
            _ => return Err(expected()),
        }
    }
    match on == GrpcRetryOn::default() {
        true => Err(expected()),
        false => Ok(on),
    }
}
