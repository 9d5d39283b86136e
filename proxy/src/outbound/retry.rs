//! Requests that the policy wants tried again.

use heddle_proxy_policy::outbound::{Http, OutboundRule, Retry};
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::{http::Client, target::Policy};
use crate::http::{ProxyError, RequestBody, ResponseBody, error::Side, grpc_status, replay::Replay};

pub(super) async fn send(
    client: &Client,
    policy: &Policy,
    http: &Http,
    rule: &OutboundRule,
    retry: &Retry,
    request: Request<Incoming>,
    started: Instant,
) -> Result<Response<ResponseBody>, ProxyError> {
    let (head, body) = request.into_parts();
    let replay = Replay::new(body, retry.max_request_bytes);
    for tried in 0.. {
        let body = RequestBody::Replay(replay.attempt());
        let sending = client.send(policy, http, rule, head.clone(), body, started);
        let last = tried >= retry.max_retries;
        let result = match retry.timeout {
            Some(limit) if !last => timeout(limit, sending)
                .await
                .unwrap_or(Err(ProxyError::Timeout(limit))),
            _ => sending.await,
        };
        if last || !replay.can_repeat() || !is_worth_another(retry, &result) {
            return result;
        }
        debug!(tried, "Trying a request again");
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
