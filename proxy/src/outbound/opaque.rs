//! Connections of bytes: one endpoint each, copied both ways.

use heddle_proxy_policy::outbound::OpaqueVerdict;
use tokio::time::Instant;

use super::{OutboundError, Target};
use crate::{
    balance::{Balancer, InFlight},
    http::ProxyError,
    io::{Io, copy},
};

pub(super) async fn serve(target: &Target, drain: drain::Watch, mut io: Io) -> Result<(), OutboundError> {
    let (mut upstream, in_flight) = {
        let policy = target.policy()?;
        let opaque = policy.opaque().ok_or(ProxyError::NoRoute)?;
        let distribution = match &opaque.verdict {
            OpaqueVerdict::To(distribution) => distribution,
            OpaqueVerdict::Forbidden => return Err(OutboundError::Forbidden),
            OpaqueVerdict::Invalid(why) => return Err(ProxyError::InvalidPolicy(why.as_str().into()).into()),
        };
        let balancer = policy.choose(distribution)?.1.clone();
        Box::pin(connect(&balancer)).await?
    };
    // Bytes have no good moment to stop: they end by themselves, or with the grace period.
    let copied = copy(&mut io, &mut upstream).await;
    drop((in_flight, drain));
    Ok(copied?)
}

async fn connect(balancer: &Balancer) -> Result<(Io, InFlight), ProxyError> {
    let deadline = balancer.failfast_deadline();
    loop {
        let endpoint = balancer.pick(deadline).await?;
        let in_flight = endpoint.begin();
        let started = Instant::now();
        match endpoint.opaque().connect().await {
            Ok(io) => {
                endpoint.connected();
                endpoint.observe(started.elapsed());
                return Ok((io, in_flight));
            }
            Err(error) => {
                endpoint.connect_failed();
                if Instant::now() >= deadline {
                    return Err(error.into());
                }
            }
        }
    }
}
