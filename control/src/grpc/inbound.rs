//! The service that tells a pod's proxy who may use the pod's ports.

mod message;

use heddle_control_core::discover::{DiscoverInbound, Watched};
use heddle_control_core::inbound::InboundServer;
use linkerd2_proxy_api::inbound::{PortSpec, Server, inbound_server_policies_server::InboundServerPolicies};
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
pub(crate) struct Inbound<D> {
    discover: D,
    metrics: GrpcMetrics,
    closed: watch::Receiver<bool>,
}

impl<D: DiscoverInbound> Inbound<D> {
    pub(crate) fn new(discover: D, metrics: GrpcMetrics, closed: watch::Receiver<bool>) -> Self {
        Self {
            discover,
            metrics,
            closed,
        }
    }

    fn lookup(&self, spec: &PortSpec) -> Result<(Watched<InboundServer>, String), Status> {
        let pod = target::parse_pod(&spec.workload)?;
        let port = u16::try_from(spec.port).ok().filter(|port| *port > 0);
        let port = port.ok_or_else(|| {
            Status::invalid_argument(format!("{} is no port: expected 1 to 65535", spec.port))
        })?;
        let server = self
            .discover
            .inbound(&pod, port)
            .map_err(|error| not_found(&error))?;
        Ok((server, pod.namespace))
    }
}

#[tonic::async_trait]
impl<D: DiscoverInbound> InboundServerPolicies for Inbound<D> {
    type WatchPortStream = Messages<Server>;

    async fn get_port(&self, request: Request<PortSpec>) -> Result<Response<Server>, Status> {
        let (server, namespace) = self.lookup(request.get_ref())?;
        let server = server.borrow().clone();
        Ok(Response::new(message::server(&server, &namespace)))
    }

    async fn watch_port(
        &self,
        request: Request<PortSpec>,
    ) -> Result<Response<Self::WatchPortStream>, Status> {
        let spec = request.into_inner();
        let (server, namespace) = self.lookup(&spec)?;
        tracing::debug!(workload = spec.workload, port = spec.port, "WatchPort");
        let open = self.metrics.open("WatchPort");
        let encode = move |server: &std::sync::Arc<_>| [message::server(server, &namespace)].into();
        Ok(Response::new(follow(server, self.closed.clone(), open, encode)))
    }
}
