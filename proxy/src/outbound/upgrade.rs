//! Upgrades of applications' connections.

use heddle_proxy_policy::outbound::OutboundRule;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::{http::Client, target::Policy};
use crate::http::{ProxyError, ResponseBody, headers, upgrade};

pub(super) async fn serve(
    client: &Client,
    policy: &Policy,
    rule: &OutboundRule,
    mut request: Request<Incoming>,
) -> Result<Response<ResponseBody>, ProxyError> {
    let (_, balancer) = policy.choose(&rule.distribution)?;
    let deadline = balancer.failfast_deadline();
    let (endpoint, connection) = loop {
        let endpoint = balancer.pick(deadline).await?;
        match endpoint.http().upgradable().await {
            Ok(connection) => break (endpoint, connection),
            Err(error) => {
                endpoint.connect_failed();
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
    upgrade::send(connection, request, (endpoint.begin(), client.drain.clone())).await
}
