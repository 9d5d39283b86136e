//! Requests that the policy wants tried again.

use std::{rc::Rc, time::Duration};

use futures_util::FutureExt as _;

use heddle_proxy_policy::outbound::Retry;
use http::{Response, StatusCode, request::Parts};
use http_body_util::BodyExt as _;
use tokio::time::{Instant, sleep};
use tracing::debug;

use super::http::{Client, Way};
use crate::{
    balance::of_head,
    http::{ProxyError, RequestBody, ResponseBody, error::Side, grpc_status, is_grpc, limit::Limit},
};

/// How long a gRPC call's head waits for what comes next. A call that fails sends trailers right behind its head, and one
/// that streams may send nothing for hours, while its client waits for the head.
const PEEK: Duration = Duration::from_millis(50);

pub(super) async fn send(
    client: &Rc<Client>,
    way: Way<'_>,
    retry: &Retry,
    head: Box<Parts>,
    body: RequestBody,
) -> Result<Response<ResponseBody>, ProxyError> {
    let replay = body.repeatable(retry.max_request_bytes);
    if let Some(budget) = &retry.budget {
        budget.deposit(Instant::now().into_std());
    }
    for tried in 0.. {
        let last = tried >= retry.max_retries;
        let way = Way {
            // There is nothing to gain by giving the last one up.
            one_try: retry.timeout.filter(|_| !last),
            ..way
        };
        let mut result = client.send(way, head.clone(), replay.body()).await;
        let failed = is_worth_another(retry, &mut result).await;
        if !failed && tried == 0 {
            return result;
        }
        let counters = way.counters.retry();
        if !failed {
            counters.successes.add(1);
            return result;
        }
        if last {
            counters.limit_exceeded.add(1);
            return result;
        }
        if !replay.can_repeat() {
            counters.overflow.add(1);
            return result;
        }
        let pause = retry
            .pause(tried + 1, asked(&result), rand::random())
            .unwrap_or_default();
        if way.ends_at().is_some_and(|end| Instant::now() + pause >= end) {
            return result;
        }
        let in_budget = retry
            .budget
            .as_ref()
            .is_none_or(|budget| budget.withdraw(Instant::now().into_std()));
        if let Some(route) = way.route {
            route.retryable(in_budget);
        }
        if !in_budget {
            return result;
        }
        debug!(tried, "Trying a request again");
        counters.requests.add(1);
        if let Ok(mut response) = result {
            // Trailers that were looked at are what it ended with, for those who count.
            let _ = response.body_mut().frame().now_or_never();
        }
        if !pause.is_zero() {
            sleep(pause).await;
        }
    }
    unreachable!("the last try returns")
}

async fn is_worth_another(retry: &Retry, result: &mut Result<Response<ResponseBody>, ProxyError>) -> bool {
    match result {
        Ok(response) => {
            let (status, mut grpc) = (response.status(), grpc_status(response.headers()));
            let is_open = grpc.is_none() && status == StatusCode::OK && is_grpc(response.headers());
            if is_open && retry.conditions.ask_grpc() {
                grpc = response.body_mut().peek_grpc_status(PEEK).await;
            }
            retry.conditions.hold(status, grpc)
        }
        // A time that was set for tries is there to be followed by another. Other limits end the request.
        Err(ProxyError::Timeout { limit, .. }) => *limit == Limit::Try,
        // As if the endpoint had answered 5xx, when the policy counts those.
        Err(error) => error.side() == Side::Upstream && retry.conditions.hold(error.status(), Some(14)),
    }
}

/// How long the endpoint wants to be left alone.
fn asked(result: &Result<Response<ResponseBody>, ProxyError>) -> Option<Duration> {
    let response = result.as_ref().ok()?;
    of_head(response.status(), response.headers()).retry_after
}
