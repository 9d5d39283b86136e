//! The index without a cluster: objects in, answers out.

mod authorizations;
mod checker;
mod endpoints;
mod external_workload;
mod fixtures;
mod inbound;
mod inbound_routes;
mod outbound;
mod outbound_routes;
mod profile;
mod slices;
mod status;
