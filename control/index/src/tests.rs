//! The index without a cluster: objects in, answers out.

mod endpoints;
mod fixtures;
mod inbound;
mod inbound_routes;
mod outbound;
mod profile;
mod status;
