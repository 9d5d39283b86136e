//! Upgrades of applications' connections.

use http::{Request, Response};
use tokio::time::Instant;

use super::{
    http::{Client, Way},
    sticky::Chosen,
};
use crate::http::{ProxyError, ResponseBody, filter, headers, incoming::Incoming, upgrade};

pub(super) async fn serve(
    client: &Client,
    way: Way<'_>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, ProxyError> {
    let chosen = Chosen::new(way.policy, way.rule, request.headers(), client.addr())?;
    let Chosen {
        backend, balancer, ..
    } = chosen;
    let (mut head, body) = request.into_parts();
    if let Some(response) = filter::to_backend(&backend.filters, way.prefix, &mut head)? {
        return Ok(response);
    }
    let mut request = Request::from_parts(head, body);
    let deadline = balancer.failfast_deadline();
    let (endpoint, connection) = loop {
        let endpoint = balancer.pick(chosen.terms, deadline).await?;
        endpoint.must_be(way.require_id)?;
        match endpoint.http().upgradable().await {
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
    if request.method() != http::Method::CONNECT {
        headers::origin_form(&mut request);
    }
    let held = (endpoint.begin(), client.drain.clone());
    upgrade::send(connection, request, held, std::future::pending()).await
}
