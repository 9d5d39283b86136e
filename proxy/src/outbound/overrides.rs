//! What a request asks of the proxy in `l5d-*` headers: who its endpoint must be, and, where its rule allows it, its own
//! timeouts and retries. None of it goes on.

use std::{ops::RangeInclusive, time::Duration};

use heddle_proxy_policy::{
    balance::Backoff,
    outbound::{OutboundRule, RETRIES_MAX, RETRY_BODY_BYTES_MAX, Retry, RetryConditions, Timeouts},
};
use heddle_tls::PeerId;
use http::HeaderMap;

use crate::http::{ProxyError, headers};

/// Linkerd's, for requests whose policy has no retries of its own.
const BACKOFF: Backoff = Backoff {
    min: Duration::from_millis(25),
    max: Duration::from_millis(250),
    jitter_ratio: 1.0,
};

/// What a request asks for.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) id: Option<PeerId>,
    /// In place of the rule's.
    pub(super) timeouts: Option<Timeouts>,
    /// In place of the rule's.
    pub(super) retry: Option<Retry>,
}

impl Asked {
    /// Reads and removes what the request says, and what it must not say.
    pub(super) fn take(headers: &mut HeaderMap, rule: &OutboundRule) -> Result<Self, ProxyError> {
        headers::strip_forgeable(headers);
        let id = headers.remove(headers::REQUIRE_ID).map(|value| {
            let id = value.to_str().ok().and_then(|text| text.trim().parse().ok());
            id.ok_or(ProxyError::BadRequest("l5d-require-id is no identity"))
        });
        let mut asked = Self {
            id: id.transpose()?,
            ..Self::default()
        };
        if rule.allow_l5d_headers {
            asked.timeouts = timeouts(headers, rule.timeouts);
            asked.retry = retry(headers, rule.retry.as_ref());
        }
        Ok(asked)
    }
}

fn timeouts(headers: &mut HeaderMap, own: Timeouts) -> Option<Timeouts> {
    let short = duration(headers, "l5d-timeout");
    let request = duration(headers, "l5d-request-timeout").or(short);
    let response = duration(headers, "l5d-response-timeout");
    (request.is_some() || response.is_some()).then(|| Timeouts {
        request: request.or(own.request),
        response: response.or(own.response),
        ..own
    })
}

fn retry(headers: &mut HeaderMap, own: Option<&Retry>) -> Option<Retry> {
    let limit = take(headers, "l5d-retry-limit", |text| text.parse::<u32>().ok());
    let http = take(headers, "l5d-retry-http", statuses);
    let grpc = take(headers, "l5d-retry-grpc", codes);
    let timeout = duration(headers, "l5d-retry-timeout");
    if limit.is_none() && http.is_none() && grpc.is_none() && timeout.is_none() {
        return None;
    }
    let (own_http, own_grpc) = match own.map(|own| &own.conditions) {
        Some(RetryConditions::Http(http)) => (Some(http), None),
        Some(RetryConditions::Grpc(grpc)) => (None, Some(grpc)),
        Some(RetryConditions::Either(http, grpc)) => (Some(http), Some(grpc)),
        // A ServiceProfile's, whose requests set nothing.
        Some(RetryConditions::Failures(_)) | None => (None, None),
    };
    let conditions = match (http.or(own_http.cloned()), grpc.or(own_grpc.cloned())) {
        (Some(http), Some(grpc)) => RetryConditions::Either(http, grpc),
        (Some(http), None) => RetryConditions::Http(http),
        (None, Some(grpc)) => RetryConditions::Grpc(grpc),
        (None, None) => RetryConditions::Http(vec![500..=599]),
    };
    Some(Retry {
        max_retries: limit
            .or(own.map(|own| own.max_retries))
            .unwrap_or(1)
            .min(RETRIES_MAX),
        max_request_bytes: own.map_or(RETRY_BODY_BYTES_MAX, |own| own.max_request_bytes),
        conditions,
        timeout: timeout.or(own.and_then(|own| own.timeout)),
        backoff: own.map_or(Some(BACKOFF), |own| own.backoff),
        respect_retry_after: own.is_some_and(|own| own.respect_retry_after),
        budget: own.and_then(|own| own.budget.clone()),
    })
}

/// Takes a header off; one that cannot be read asks for nothing, as with Linkerd.
fn take<T>(headers: &mut HeaderMap, name: &str, read: impl FnOnce(&str) -> Option<T>) -> Option<T> {
    let value = headers.remove(name)?;
    read(value.to_str().ok()?.trim())
}

fn duration(headers: &mut HeaderMap, name: &str) -> Option<Duration> {
    take(headers, name, |text| heddle_mesh::duration::parse(text).ok()).filter(|time| !time.is_zero())
}

/// `500`, `500-504`, `5xx`, `gateway-error`, separated by commas.
fn statuses(text: &str) -> Option<Vec<RangeInclusive<u16>>> {
    let status = |text: &str| text.parse().ok().filter(|status| (100..600).contains(status));
    each(text, |item| match item {
        _ if item.eq_ignore_ascii_case("5xx") => Some(500..=599),
        _ if item.eq_ignore_ascii_case("gateway-error") => Some(502..=504),
        range => match range.split_once('-') {
            None => status(range).map(|status| status..=status),
            Some((start, end)) => {
                let (start, end) = (status(start)?, status(end)?);
                (start <= end).then_some(start..=end)
            }
        },
    })
}

/// Names of gRPC statuses, separated by commas.
fn codes(text: &str) -> Option<Vec<u32>> {
    let known = [
        ("cancelled", 1),
        ("deadline-exceeded", 4),
        ("resource-exhausted", 8),
        ("internal", 13),
        ("unavailable", 14),
    ];
    each(text, |item| {
        let found = known.iter().find(|(name, _)| item.eq_ignore_ascii_case(name));
        found.map(|(_, code)| *code)
    })
}

/// The items of a list that can be read, if there are any; the others are left out, as with Linkerd.
fn each<T>(text: &str, read: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    let items: Vec<_> = text.split(',').filter_map(|item| read(item.trim())).collect();
    (!items.is_empty()).then_some(items)
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        pairs.collect()
    }

    #[test]
    fn a_request_sets_its_own_retries_within_bounds() {
        let mut headers = map(&[
            ("l5d-retry-http", "gateway-error, 429"),
            ("l5d-retry-limit", "1000"),
            ("l5d-retry-timeout", "50ms"),
            ("x-other", "1"),
        ]);
        let asked = retry(&mut headers, None).expect("asked");
        assert_eq!(
            (asked.max_retries, asked.timeout),
            (RETRIES_MAX, Some(Duration::from_millis(50)))
        );
        for (status, holds) in [(429, true), (502, true), (500, false)] {
            let status = http::StatusCode::from_u16(status).expect("a status");
            assert_eq!(asked.conditions.hold(status, None), holds, "{status}");
        }
        assert_eq!(headers.len(), 1);
        let mut grpc = map(&[
            ("l5d-retry-grpc", "unavailable,cancelled"),
            ("l5d-retry-http", "5xx"),
        ]);
        let both = retry(&mut grpc, None).expect("asked").conditions;
        assert!(both.hold(http::StatusCode::OK, Some(14)) && both.hold(http::StatusCode::BAD_GATEWAY, None));
        assert!(!both.hold(http::StatusCode::OK, Some(13)));
    }

    #[test]
    fn what_cannot_be_read_asks_for_nothing() {
        for (name, value) in [
            ("l5d-retry-http", "6xx"),
            ("l5d-retry-http", "504-500"),
            ("l5d-retry-grpc", "unknown-status"),
            ("l5d-retry-limit", "-1"),
            ("l5d-retry-timeout", "1.5s"),
        ] {
            let mut headers = map(&[(name, value)]);
            assert!(retry(&mut headers, None).is_none(), "{name}: {value}");
            assert!(headers.is_empty());
        }
        let own = Timeouts::default();
        assert!(timeouts(&mut map(&[("l5d-timeout", "soon")]), own).is_none());
        let request = timeouts(&mut map(&[("l5d-timeout", "2s")]), own)
            .expect("asked")
            .request;
        assert_eq!(request, Some(Duration::from_secs(2)));
    }

    #[test]
    fn what_can_be_read_of_a_list_holds() {
        assert_eq!(statuses("5XX"), Some(vec![500..=599]));
        assert_eq!(
            statuses("Gateway-Error,teapot, 429,504-500"),
            Some(vec![502..=504, 429..=429])
        );
        assert_eq!(
            codes("Unavailable,not-found,resource-exhausted"),
            Some(vec![14, 8])
        );
        assert_eq!(codes("not-found"), None);
    }

    #[test]
    fn what_a_request_does_not_say_is_as_its_rule_says() {
        let own = retry(&mut map(&[("l5d-retry-grpc", "internal")]), None);
        let mut headers = map(&[("l5d-retry-http", "429")]);
        let asked = retry(&mut headers, own.as_ref()).expect("asked").conditions;
        assert_eq!(asked, RetryConditions::Either(vec![429..=429], vec![13]));
    }

    #[test]
    fn the_longer_name_comes_before_the_shorter() {
        let mut both = map(&[("l5d-timeout", "1s"), ("l5d-request-timeout", "2s")]);
        let asked = timeouts(&mut both, Timeouts::default()).expect("asked");
        assert_eq!(asked.request, Some(Duration::from_secs(2)));
        assert!(both.is_empty(), "neither goes on");
    }

    /// Lines of `name: value`: whatever they ask for is bounded, and none of them goes on.
    #[test]
    fn fuzz_overrides() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let mut headers = HeaderMap::new();
            for line in bytes.split(|byte| *byte == b'\n').take(50) {
                let mut parts = line.splitn(2, |byte| *byte == b':');
                let name = HeaderName::from_bytes(&[b"l5d-", parts.next().unwrap_or_default()].concat());
                let value = HeaderValue::from_bytes(parts.next().unwrap_or_default().trim_ascii());
                if let (Ok(name), Ok(value)) = (name, value) {
                    headers.append(name, value);
                }
            }
            if let Some(retry) = retry(&mut headers, None) {
                assert!(retry.max_retries <= RETRIES_MAX);
                assert!(retry.max_request_bytes <= RETRY_BODY_BYTES_MAX);
            }
            let own = Timeouts::default();
            let _ = timeouts(&mut headers, own);
            for name in [
                "l5d-retry-limit",
                "l5d-retry-http",
                "l5d-retry-grpc",
                "l5d-timeout",
            ] {
                assert!(!headers.contains_key(name), "{name}");
            }
        });
    }
}
