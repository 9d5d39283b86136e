//! The service that tells a client's proxy how to reach a target.

mod message;

use std::net::{IpAddr, SocketAddr};

use heddle_control_core::{
    discover::{DiscoverOutbound, Target, Watched},
    outbound::OutboundPolicy as Policy,
};
use linkerd2_proxy_api::outbound::{
    OutboundPolicy, TrafficSpec, outbound_policies_server::OutboundPolicies, traffic_spec,
};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::{
    not_found,
    stream::{Messages, follow},
    target,
};
use crate::metrics::GrpcMetrics;

/// Serves what `D` discovers.
#[derive(Debug)]
pub(crate) struct Outbound<D> {
    discover: D,
    cluster_domain: String,
    metrics: GrpcMetrics,
    closed: watch::Receiver<bool>,
}

impl<D: DiscoverOutbound> Outbound<D> {
    pub(crate) fn new(
        discover: D,
        cluster_domain: String,
        metrics: GrpcMetrics,
        closed: watch::Receiver<bool>,
    ) -> Self {
        Self {
            discover,
            cluster_domain,
            metrics,
            closed,
        }
    }

    fn lookup(&self, spec: TrafficSpec) -> Result<Watched<Policy>, Status> {
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

#[tonic::async_trait]
impl<D: DiscoverOutbound> OutboundPolicies for Outbound<D> {
    type WatchStream = Messages<OutboundPolicy>;

    async fn get(&self, request: Request<TrafficSpec>) -> Result<Response<OutboundPolicy>, Status> {
        let policy = self.lookup(request.into_inner())?.borrow().clone();
        Ok(Response::new(message::policy(&policy)))
    }

    async fn watch(&self, request: Request<TrafficSpec>) -> Result<Response<Self::WatchStream>, Status> {
        let policy = self.lookup(request.into_inner())?;
        let open = self.metrics.open("Watch");
        Ok(Response::new(follow(
            policy,
            self.closed.clone(),
            open,
            |policy| [message::policy(policy)].into(),
        )))
    }
}
