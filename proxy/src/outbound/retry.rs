//! Requests that the policy wants tried again.

use std::rc::Rc;

use heddle_proxy_policy::outbound::Retry;
use http::{Response, request::Parts};
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::http::{Client, Way};
use crate::http::{ProxyError, RequestBody, ResponseBody, error::Side, grpc_status};

pub(super) async fn send(
    client: &Rc<Client>,
    way: Way<'_>,
    retry: &Retry,
    head: Parts,
    body: RequestBody,
) -> Result<Response<ResponseBody>, ProxyError> {
    let replay = body.repeatable(retry.max_request_bytes);
    if let Some(budget) = &retry.budget {
        budget.deposit(Instant::now().into_std());
    }
    for tried in 0.. {
        let sending = client.send(way, head.clone(), replay.body());
        let last = tried >= retry.max_retries;
        let result = match retry.timeout {
            Some(limit) if !last => timeout(limit, sending)
                .await
                .unwrap_or(Err(ProxyError::Timeout(limit))),
            _ => sending.await,
        };
        let failed = is_worth_another(retry, &result);
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
        drop(result);
        if let Some(backoff) = &retry.backoff {
            sleep(backoff.after(tried + 1, rand::random())).await;
        }
    }
    unreachable!("the last try returns")
}

fn is_worth_another(retry: &Retry, result: &Result<Response<ResponseBody>, ProxyError>) -> bool {
    match result {
        Ok(response) => retry
            .conditions
            .hold(response.status(), grpc_status(response.headers())),
        // As if the endpoint had answered 5xx, when the policy counts those. A time that was set for tries counts too.
        Err(error) => {
            let answer = error.response(false).status();
            error.side() == Side::Upstream
                && (matches!(error, ProxyError::Timeout(_)) || retry.conditions.hold(answer, Some(14)))
        }
    }
}
