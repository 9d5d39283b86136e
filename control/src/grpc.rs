//! The proxy API: questions in, streams of the newest answers out.
//!
//! Here and nowhere else do answers become messages. Nothing here knows Kubernetes: whatever implements the `Discover`
//! traits can be served. A message is encoded once for all clients that see it alike ([`shared`]).

mod destination;
mod encode;
mod frame;
mod inbound;
mod outbound;
mod rpc;
mod shared;
mod stream;
mod target;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use heddle_control_core::discover::NotFound;
use heddle_control_index::Cluster;
use tonic::Status;

use self::rpc::Served;
use crate::metrics::GrpcMetrics;

pub(crate) use self::{destination::Destination, inbound::Inbound, outbound::Outbound};

/// The destination service.
pub(crate) fn destination(cluster: Cluster, metrics: GrpcMetrics) -> Served<Destination<Cluster>> {
    let domain = cluster.config().cluster_domain.clone();
    Served(Arc::new(Destination::new(cluster, domain, metrics)))
}

/// The policy services, inbound and outbound.
pub(crate) fn policy(
    cluster: Cluster,
    metrics: GrpcMetrics,
) -> (Served<Inbound<Cluster>>, Served<Outbound<Cluster>>) {
    let domain = cluster.config().cluster_domain.clone();
    let inbound = Inbound::new(cluster.clone(), metrics.clone());
    let outbound = Outbound::new(cluster, domain, metrics);
    (Served(Arc::new(inbound)), Served(Arc::new(outbound)))
}

/// What a proxy is told when there is nothing to watch.
fn not_found(error: &NotFound) -> Status {
    match error {
        NotFound::Workload(_) | NotFound::Service { .. } | NotFound::Address(_) => {
            Status::not_found(error.to_string())
        }
        NotFound::ExternalName { .. } => Status::invalid_argument(error.to_string()),
    }
}
