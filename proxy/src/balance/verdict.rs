//! What an answer tells of its endpoint. A gRPC call's is known when it ends, by trailers, unless its head says it.

use std::{rc::Rc, time::Duration};

use heddle_proxy_policy::{
    breaker::{Answer, Pass},
    outbound::FailureAccrual,
    profile::is_grpc_failure,
};
use http::{HeaderMap, Response, StatusCode, header};

use super::{Balancer, Endpoint};
use crate::http::{ResponseBody, grpc_status, is_grpc};

/// gRPC's code for too much to do.
const RESOURCE_EXHAUSTED: u32 = 8;
/// gRPC's `Retry-After`, in milliseconds. A negative one is for who retries the call.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Who is to be judged when a call ends.
#[derive(Debug)]
pub(crate) struct Verdict {
    balancer: Rc<Balancer>,
    endpoint: Rc<Endpoint>,
    pass: Pass,
    accrual: Option<FailureAccrual>,
    /// What the call's trailers ask for.
    pushback: Option<Duration>,
}

impl Verdict {
    /// Judges the endpoint by the head of its answer, or returns who is to be judged by its end.
    pub(crate) fn now_or_later(
        balancer: &Rc<Balancer>,
        endpoint: &Rc<Endpoint>,
        pass: Pass,
        accrual: Option<&FailureAccrual>,
        response: &Response<ResponseBody>,
    ) -> Option<Box<Self>> {
        if accrual.is_none() && !endpoint.load.borrow().has_penalty() {
            return None;
        }
        let (status, headers) = (response.status(), response.headers());
        if status == StatusCode::OK && is_grpc(headers) && grpc_status(headers).is_none() {
            return Some(Box::new(Self {
                balancer: balancer.clone(),
                endpoint: endpoint.clone(),
                pass,
                accrual: accrual.copied(),
                pushback: None,
            }));
        }
        balancer.judge(endpoint, pass, of_head(status, headers), accrual);
        None
    }

    /// The call's trailers have come.
    pub(crate) fn trailers(&mut self, trailers: &HeaderMap) {
        self.pushback = pushback(trailers);
    }

    /// The call has ended: with a status in its trailers, without, or not as it should.
    pub(crate) fn end(&self, grpc_status: Option<u32>, failed: bool) {
        let answer = match failed {
            true => Answer::FAILED,
            false => of_grpc(grpc_status, || self.pushback),
        };
        self.balancer
            .judge(&self.endpoint, self.pass, answer, self.accrual.as_ref());
    }
}

/// What the head of an answer says.
pub(crate) fn of_head(status: StatusCode, headers: &HeaderMap) -> Answer {
    let grpc = match status {
        StatusCode::OK => of_grpc(grpc_status(headers), || pushback(headers)),
        _ => Answer::default(),
    };
    Answer {
        failed: status.is_server_error() || grpc.failed,
        overloaded: status == StatusCode::TOO_MANY_REQUESTS || grpc.overloaded,
        retry_after: retry_after(status, headers).or(grpc.retry_after),
    }
}

fn of_grpc(status: Option<u32>, pushback: impl FnOnce() -> Option<Duration>) -> Answer {
    let overloaded = status == Some(RESOURCE_EXHAUSTED);
    Answer {
        failed: status.is_some_and(is_grpc_failure) && !overloaded,
        overloaded,
        retry_after: if overloaded { pushback() } else { None },
    }
}

/// Seconds; the other form, a date, would need the endpoint's clock. Other answers mean other things by it.
fn retry_after(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    if !matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    ) {
        return None;
    }
    number(headers.get(header::RETRY_AFTER)?).map(Duration::from_secs)
}

fn pushback(headers: &HeaderMap) -> Option<Duration> {
    number(headers.get(PUSHBACK)?).map(Duration::from_millis)
}

fn number(value: &http::HeaderValue) -> Option<u64> {
    value.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn head(status: u16, headers: &[(&'static str, &'static str)]) -> Answer {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        of_head(StatusCode::from_u16(status).expect("a status"), &headers)
    }

    #[test]
    fn too_much_to_do_is_no_failure() {
        let failures = [500, 503].map(|status| head(status, &[]));
        assert!(failures.iter().all(|answer| answer.failed && !answer.overloaded));
        let busy = [head(429, &[]), head(200, &[("grpc-status", "8")])];
        assert!(busy.iter().all(|answer| answer.overloaded && !answer.failed));
        assert!(head(200, &[("grpc-status", "14")]).failed);
        assert_eq!(head(200, &[("grpc-status", "5")]), Answer::default());
    }

    #[test]
    fn an_endpoint_asks_for_time_in_the_ways_that_mean_it() {
        for (status, headers, asked) in [
            (429, [("retry-after", "7"), ("x", "")], Some(7_000)),
            (503, [("retry-after", "7"), ("x", "")], Some(7_000)),
            // When what was made can be had, and where something has moved to.
            (202, [("retry-after", "7"), ("x", "")], None),
            (301, [("retry-after", "7"), ("x", "")], None),
            (
                503,
                [("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT"), ("x", "")],
                None,
            ),
            (
                200,
                [("grpc-status", "8"), ("grpc-retry-pushback-ms", "250")],
                Some(250),
            ),
            (
                200,
                [("grpc-status", "8"), ("grpc-retry-pushback-ms", "-1")],
                None,
            ),
            (
                200,
                [("grpc-status", "14"), ("grpc-retry-pushback-ms", "250")],
                None,
            ),
        ] {
            let answer = head(status, &headers);
            assert_eq!(
                answer.retry_after,
                asked.map(Duration::from_millis),
                "{status} {headers:?}"
            );
        }
    }
}
