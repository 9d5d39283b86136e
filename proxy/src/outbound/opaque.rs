//! Connections of bytes: one endpoint each, copied both ways.

use std::net::IpAddr;

use heddle_proxy_policy::outbound::{Affinity, OpaqueVerdict};
use tokio::time::Instant;

use super::{OutboundError, Target, sticky};
use crate::{
    balance::{Balancer, InFlight, Terms, Wish},
    http::ProxyError,
    io::{Io, copy},
};

pub(super) async fn serve(
    target: &Target,
    drain: drain::Watch,
    mut io: Io,
    client: IpAddr,
    server_name: Option<&str>,
) -> Result<(), OutboundError> {
    let carried = carry(target, &mut io, client, server_name).await;
    // Bytes have no good moment to stop: they end by themselves, or with the grace period.
    drop(drain);
    carried
}

/// Connects to an endpoint and copies both ways.
pub(super) async fn carry(
    target: &Target,
    io: &mut Io,
    client: IpAddr,
    server_name: Option<&str>,
) -> Result<(), OutboundError> {
    let (mut upstream, in_flight) = {
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
        let limits = chosen.backend.limits;
        let balancer = balancer.clone();
        Box::pin(connect(&balancer, Terms { wish, limits })).await?
    };
    let copied = copy(io, &mut upstream).await;
    drop(in_flight);
    Ok(copied?)
}

async fn connect(balancer: &Balancer, terms: Terms) -> Result<(Io, InFlight), ProxyError> {
    let deadline = balancer.failfast_deadline();
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
