//! The service that tells a pod's proxy who may use the pod's ports.

mod message;

use std::sync::Arc;

use heddle_control_core::{
    discover::{DiscoverInbound, Watched},
    inbound::InboundServer,
};
use http::Request;
use linkerd2_proxy_api::inbound::{PortSpec, inbound_server_policies_server::SERVICE_NAME};
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
pub(crate) struct Inbound<D> {
    discover: D,
    metrics: GrpcMetrics,
    /// By namespace: pods of a namespace that are let in alike share a value.
    servers: Arc<Shared<InboundServer, Arc<str>>>,
}

impl<D: DiscoverInbound> Inbound<D> {
    pub(crate) fn new(discover: D, metrics: GrpcMetrics) -> Self {
        Self {
            discover,
            servers: Arc::new(Shared::new(metrics.encoded("WatchPort"))),
            metrics,
        }
    }

    pub(super) fn lookup(&self, spec: &PortSpec) -> Result<(Watched<InboundServer>, Arc<str>), Status> {
        let workload = target::parse_workload(&spec.workload)?;
        let port = u16::try_from(spec.port).ok().filter(|port| *port > 0);
        let port = port.ok_or_else(|| {
            Status::invalid_argument(format!("{} is no port: expected 1 to 65535", spec.port))
        })?;
        let server = self
            .discover
            .inbound(&workload, port)
            .map_err(|error| not_found(&error))?;
        tracing::debug!(workload = spec.workload, port, "Inbound policy");
        Ok((server, workload.namespace))
    }
}

/// The messages of a port's policy.
pub(super) fn encode(
    servers: &Shared<InboundServer, Arc<str>>,
    server: &Arc<InboundServer>,
    namespace: &Arc<str>,
) -> Frames {
    servers.update(None, server, namespace.clone(), || {
        vec![frame(&message::server(server, namespace))]
    })
}

impl<D: DiscoverInbound> Methods for Inbound<D> {
    const NAME: &'static str = SERVICE_NAME;

    async fn call(&self, method: &str, request: Request<Body>) -> Answer {
        match method {
            "GetPort" => {
                let (server, namespace) = self.lookup(&rpc::read(request).await?)?;
                let server = server.borrow().clone();
                rpc::once(&encode(&self.servers, &server, &namespace))
            }
            "WatchPort" => {
                let (server, namespace) = self.lookup(&rpc::read(request).await?)?;
                let servers = self.servers.clone();
                let step = move |server: &Arc<InboundServer>| encode(&servers, server, &namespace);
                rpc::streaming(Follow::new(server, self.metrics.open("WatchPort"), step))
            }
            _ => rpc::unimplemented(method),
        }
    }
}
