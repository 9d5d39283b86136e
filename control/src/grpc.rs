//! The proxy API: questions in, streams of the newest answers out.
//!
//! Here and nowhere else do answers become messages. Nothing here knows Kubernetes: whatever implements the `Discover`
//! traits can be served.

mod destination;
mod encode;
mod inbound;
mod outbound;
mod stream;
mod target;
#[cfg(test)]
mod tests;

use linkerd2_proxy_api::{
    destination::destination_server::DestinationServer,
    inbound::inbound_server_policies_server::InboundServerPoliciesServer,
    outbound::outbound_policies_server::OutboundPoliciesServer,
};
use tokio::sync::watch;

use heddle_control_core::discover::NotFound;
use heddle_control_index::Cluster;
use tonic::Status;

use crate::metrics::GrpcMetrics;

pub(crate) use self::{destination::Destination, inbound::Inbound, outbound::Outbound};

/// Requests are names and addresses; nothing larger is meant well.
const REQUEST_BYTES_MAX: usize = 16 * 1024;

/// The destination service.
pub(crate) fn destination(
    cluster: Cluster,
    metrics: GrpcMetrics,
    closed: watch::Receiver<bool>,
) -> DestinationServer<Destination<Cluster>> {
    let domain = cluster.config().cluster_domain.clone();
    DestinationServer::new(Destination::new(cluster, domain, metrics, closed))
        .max_decoding_message_size(REQUEST_BYTES_MAX)
}

/// The policy services, inbound and outbound.
pub(crate) fn policy(
    cluster: Cluster,
    metrics: GrpcMetrics,
    closed: watch::Receiver<bool>,
) -> (
    InboundServerPoliciesServer<Inbound<Cluster>>,
    OutboundPoliciesServer<Outbound<Cluster>>,
) {
    let domain = cluster.config().cluster_domain.clone();
    let inbound = Inbound::new(cluster.clone(), metrics.clone(), closed.clone());
    let outbound = Outbound::new(cluster, domain, metrics, closed);
    (
        InboundServerPoliciesServer::new(inbound).max_decoding_message_size(REQUEST_BYTES_MAX),
        OutboundPoliciesServer::new(outbound).max_decoding_message_size(REQUEST_BYTES_MAX),
    )
}

/// What a proxy is told when there is nothing to watch.
fn not_found(error: &NotFound) -> Status {
    match error {
        NotFound::Pod { .. } | NotFound::Service { .. } | NotFound::Address(_) => {
            Status::not_found(error.to_string())
        }
        NotFound::ExternalName { .. } => Status::invalid_argument(error.to_string()),
    }
}
