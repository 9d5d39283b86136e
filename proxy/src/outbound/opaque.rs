//! Connections of bytes: one endpoint each, copied both ways.

use std::net::IpAddr;

use heddle_proxy_policy::outbound::{Affinity, OpaqueVerdict, Protocol};
use tokio::time::Instant;

use super::{Known, OutboundError, Target, sticky};
use crate::{
    balance::{Balancer, InFlight, Layer, Terms, Wish},
    http::ProxyError,
    io::{Io, copy},
    metrics::labels::Labels,
    worker::Worker,
};

/// Bytes have no good moment to stop: they end by themselves, or with the grace period.
pub(super) async fn serve(
    worker: &Worker,
    mut known: Box<Known>,
    server_name: Option<String>,
) -> Result<(), OutboundError> {
    let Known {
        io, target, client, ..
    } = &mut *known;
    carry(worker, target, io, client.ip(), server_name.as_deref()).await
}

/// Connects to an endpoint and copies both ways.
pub(super) async fn carry(
    worker: &Worker,
    target: &Target,
    io: &mut Io,
    client: IpAddr,
    server_name: Option<&str>,
) -> Result<(), OutboundError> {
    let (mut upstream, in_flight, open) = {
        let policy = target.policy()?;
        let opaque = policy.opaque(server_name).ok_or(ProxyError::NoRoute)?;
        let distribution = match &opaque.verdict {
            OpaqueVerdict::To(distribution) => distribution,
            OpaqueVerdict::Forbidden => return Err(OutboundError::Forbidden),
            OpaqueVerdict::Invalid(why) => return Err(ProxyError::InvalidPolicy(why.as_str().into()).into()),
        };
        let (chosen, balancer) = policy.choose(distribution, None)?;
        if let Some(why) = chosen.refusal() {
            return Err(ProxyError::InvalidPolicy(why.into()).into());
        }
        let wish = match &chosen.backend.affinity {
            Some(Affinity::Hash(key)) => sticky::hashed(key, None, client),
            Some(Affinity::Persist(_)) | None => Wish::Any,
        };
        let (limits, failfast) = (chosen.backend.limits, chosen.backend.failfast_timeout);
        let balancer = balancer.clone();
        let labels = Labels::default()
            .port_reference("parent", &policy.policy.parent)
            .reference("route", &opaque.meta);
        let (families, layer) = match policy.policy.protocol {
            Protocol::Tls(_) => (&worker.metrics.outbound_tls, Layer::Tls),
            _ => (&worker.metrics.outbound_tcp, Layer::Tcp),
        };
        let open = families.open(labels);
        let terms = Terms {
            layer,
            wish,
            limits,
            failfast,
        };
        match Box::pin(connect(&balancer, terms)).await {
            Ok((upstream, in_flight)) => (upstream, in_flight, open),
            Err(error) => {
                open.close(error.stream_label());
                return Err(error.into());
            }
        }
    };
    let copied = copy(io, &mut upstream).await;
    drop(in_flight);
    open.close(if copied.is_ok() { "" } else { "IO" });
    Ok(copied?)
}

async fn connect(balancer: &Balancer, terms: Terms) -> Result<(Io, InFlight), ProxyError> {
    let deadline = terms.deadline();
    loop {
        let endpoint = balancer.pick(terms, deadline).await?;
        let started = Instant::now();
        match endpoint.opaque().connect().await {
            Ok(io) => {
                endpoint.connected();
                endpoint.observe(started.elapsed());
                return Ok((io, endpoint.begin()));
            }
            Err(error) => {
                balancer.not_connected(endpoint, &error, deadline).await;
                if Instant::now() >= deadline {
                    return Err(error.into());
                }
            }
        }
    }
}
