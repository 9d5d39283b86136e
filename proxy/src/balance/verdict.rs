//! What an answer tells of its endpoint. A gRPC call's is known when it ends, by trailers, unless its head says it.

use std::{rc::Rc, time::Duration};

use heddle_proxy_policy::{outbound::FailureAccrual, profile::is_grpc_failure};
use http::{HeaderMap, Response, StatusCode, header};

use super::{Balancer, Endpoint};
use crate::http::{ResponseBody, grpc_status, is_grpc};

/// gRPC's code for too much to do.
const RESOURCE_EXHAUSTED: u32 = 8;

/// What came of a request, as far as it tells of the endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Answer {
    pub failed: bool,
    /// It says that it has too much to do: 429, or gRPC's `RESOURCE_EXHAUSTED`.
    pub overloaded: bool,
    /// What its `Retry-After` asks for.
    pub retry_after: Option<Duration>,
}

/// Who is to be judged when a call ends.
#[derive(Debug)]
pub(crate) struct Verdict {
    balancer: Rc<Balancer>,
    endpoint: Rc<Endpoint>,
    accrual: Option<FailureAccrual>,
}

impl Answer {
    /// There was none, or none that could be used.
    pub(crate) const FAILED: Self = Self {
        failed: true,
        overloaded: false,
        retry_after: None,
    };

    fn of_head(status: StatusCode, headers: &HeaderMap) -> Self {
        let grpc = Self::of_grpc(grpc_status(headers));
        // Seconds; the other form, a date, would need the endpoint's clock.
        let retry_after = || {
            headers
                .get(header::RETRY_AFTER)?
                .to_str()
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        Self {
            failed: status.is_server_error() || grpc.failed,
            overloaded: status == StatusCode::TOO_MANY_REQUESTS || grpc.overloaded,
            retry_after: retry_after().map(Duration::from_secs),
        }
    }

    fn of_grpc(status: Option<u32>) -> Self {
        Self {
            failed: status.is_some_and(is_grpc_failure),
            overloaded: status == Some(RESOURCE_EXHAUSTED),
            retry_after: None,
        }
    }
}

impl Verdict {
    /// Judges the endpoint by the head of its answer, or returns who is to be judged by its end.
    pub(crate) fn now_or_later(
        balancer: &Rc<Balancer>,
        endpoint: &Rc<Endpoint>,
        accrual: Option<&FailureAccrual>,
        response: &Response<ResponseBody>,
    ) -> Option<Box<Self>> {
        if accrual.is_none() && balancer.ewma.penalty.is_none() {
            return None;
        }
        let (status, headers) = (response.status(), response.headers());
        if status == StatusCode::OK && is_grpc(headers) && grpc_status(headers).is_none() {
            return Some(Box::new(Self {
                balancer: balancer.clone(),
                endpoint: endpoint.clone(),
                accrual: accrual.copied(),
            }));
        }
        balancer.judge(endpoint, Answer::of_head(status, headers), accrual);
        None
    }

    /// The call has ended: with a status in its trailers, without, or not as it should.
    pub(crate) fn end(&self, grpc_status: Option<u32>, failed: bool) {
        let answer = match failed {
            true => Answer::FAILED,
            false => Answer::of_grpc(grpc_status),
        };
        self.balancer.judge(&self.endpoint, answer, self.accrual.as_ref());
    }
}
