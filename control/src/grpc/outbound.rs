//! The service that tells a client's proxy how to reach a target.

mod message;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use heddle_control_core::{
    discover::{DiscoverOutbound, Target, Watched},
    outbound::OutboundPolicy as Policy,
};
use http::Request;
use linkerd2_proxy_api::outbound::{TrafficSpec, outbound_policies_server::SERVICE_NAME, traffic_spec};
use tonic::{Status, body::Body};

use super::{
    frame::{Frames, frame},
    not_found,
    rpc::{self, Answer, Methods},
    shared::Shared,
    stream::Follow,
    target,
};
use crate::metrics::GrpcMetrics;

/// Serves what `D` discovers.
#[derive(Debug)]
pub(crate) struct Outbound<D> {
    discover: D,
    cluster_domain: String,
    metrics: GrpcMetrics,
    policies: Arc<Shared<Policy, ()>>,
}

impl<D: DiscoverOutbound> Outbound<D> {
    pub(crate) fn new(discover: D, cluster_domain: String, metrics: GrpcMetrics) -> Self {
        Self {
            discover,
            cluster_domain,
            policies: Arc::new(Shared::new(metrics.encoded("Watch"))),
            metrics,
        }
    }

    pub(super) fn lookup(&self, spec: TrafficSpec) -> Result<Watched<Policy>, Status> {
        let TrafficSpec {
            source_workload,
            target,
        } = spec;
        let namespace = target::client_namespace(&source_workload)?;
        let target = match target {
            None => {
                return Err(Status::invalid_argument(
                    "target: expected an address or an authority",
                ));
            }
            Some(traffic_spec::Target::Authority(authority)) => {
                Target::Service(target::parse_service(&authority, &self.cluster_domain)?)
            }
            Some(traffic_spec::Target::Addr(addr)) => Target::Addr(socket_addr(addr)?),
        };
        tracing::debug!(source_workload, ?target, "Outbound policy");
        self.discover
            .outbound(&namespace, &target)
            .map_err(|error| not_found(&error))
    }
}

fn socket_addr(addr: linkerd2_proxy_api::net::TcpAddress) -> Result<SocketAddr, Status> {
    let port = u16::try_from(addr.port).ok().filter(|port| *port > 0);
    let port =
        port.ok_or_else(|| Status::invalid_argument(format!("target.addr: {} is no port", addr.port)))?;
    let ip = addr.ip.and_then(|ip| IpAddr::try_from(ip).ok());
    let ip = ip.ok_or_else(|| Status::invalid_argument("target.addr: no IP address"))?;
    Ok(SocketAddr::new(ip, port))
}

/// The messages of a policy: the same for every client in its namespace.
pub(super) fn encode(policies: &Shared<Policy, ()>, policy: &Arc<Policy>) -> Frames {
    policies.update(None, policy, (), || vec![frame(&message::policy(policy))])
}

impl<D: DiscoverOutbound> Methods for Outbound<D> {
    const NAME: &'static str = SERVICE_NAME;

    async fn call(&self, method: &str, request: Request<Body>) -> Answer {
        match method {
            "Get" => {
                let policy = self.lookup(rpc::read(request).await?)?.borrow().clone();
                rpc::once(&encode(&self.policies, &policy))
            }
            "Watch" => {
                let policy = self.lookup(rpc::read(request).await?)?;
                let policies = self.policies.clone();
                let step = move |policy: &Arc<Policy>| encode(&policies, policy);
                rpc::streaming(Follow::new(policy, self.metrics.open("Watch"), step))
            }
            _ => rpc::unimplemented(method),
        }
    }
}
