//! Upgrades of applications' connections. Limits of time hold until the server has agreed, or has not.

use http::{Request, Response};
use tokio::time::Instant;

use super::{
    attempt::Attempt,
    clock::Clock,
    http::{Client, Way, override_authority},
    sticky::Chosen,
};
use crate::{
    balance::{Answer, Verdict},
    http::{ProxyError, ResponseBody, filter, headers, incoming::Incoming, upgrade},
};

pub(super) async fn serve(
    client: &Client,
    way: Way<'_>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, ProxyError> {
    // Nobody sends a body before the server has agreed.
    if let Some(sent) = way.sent {
        sent.now();
    }
    let clock = way.clock();
    clock
        .bound(send(client, way, &clock, request), way.activity)
        .await
}

async fn send(
    client: &Client,
    way: Way<'_>,
    clock: &Clock,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, ProxyError> {
    let chosen = Chosen::new(way.policy, way.rule, request.headers(), client.addr())?;
    let Chosen {
        backend,
        balancer,
        terms,
        ..
    } = chosen;
    let (mut head, body) = request.into_parts();
    if let Some(response) = filter::to_backend(&backend.filters, way.prefix, &mut head)? {
        return Ok(response);
    }
    let mut request = Request::from_parts(head, body);
    let accrual = way.http.failure_accrual.as_ref();
    let deadline = terms.deadline();
    let (endpoint, connection) = loop {
        let endpoint = balancer.pick(terms, deadline).await?;
        endpoint.must_be(way.require_id)?;
        let attempt = Attempt::begin(balancer, &endpoint, endpoint.pass(), accrual, Some(clock));
        let connected = endpoint.http().upgradable().await;
        attempt.over();
        match connected {
            Ok(connection) => break (endpoint, connection),
            Err(error) => {
                balancer.not_connected(endpoint, &error, deadline).await;
                if Instant::now() >= deadline {
                    return Err(error.into());
                }
            }
        }
    };
    endpoint.connected();
    endpoint.handles().request();
    if let Some(authority) = &endpoint.info().authority_override {
        override_authority(&mut request, authority);
    }
    if request.method() != http::Method::CONNECT {
        headers::origin_form(&mut request);
    }
    let in_flight = endpoint.begin();
    let (endpoint, pass) = (in_flight.endpoint().clone(), in_flight.pass());
    let attempt = Attempt::begin(balancer, &endpoint, pass, accrual, Some(clock));
    let held = (in_flight, client.drain.clone());
    let sent = upgrade::send(connection, request, held, std::future::pending()).await;
    attempt.over();
    match &sent {
        Ok(response) => drop(Verdict::now_or_later(
            balancer, &endpoint, pass, accrual, response,
        )),
        Err(_) => balancer.judge(&endpoint, pass, Answer::FAILED, accrual),
    }
    sent
}
